"""Task heads by class name: the Auto class that opens them, the Hub's pipeline tag, and the words of a model card."""

from typing import Any, NamedTuple


class Head(NamedTuple):
    """
    A kind of model head.

    Attributes:
        auto_class: the Auto class of transformers that opens it.
        pipeline_tag: the task on the Hub; None if the Hub has no name for it.
        summary: one sentence about the model.
        example: arguments of a call of transformers' pipeline; None if there is no such pipeline.
    """

    auto_class: str
    pipeline_tag: str | None
    summary: str
    example: str | None = None


_CAUSAL = Head(
    "AutoModelForCausalLM",
    "text-generation",
    "A causal language model: it continues text.",
    '"Once upon a time", max_new_tokens=40',
)
_HEADS_BY_SUFFIX = {
    "ForCausalLM": _CAUSAL,
    "LMHeadModel": _CAUSAL,  # GPT-2, CTRL, XLM
    "ForMaskedLM": Head(
        "AutoModelForMaskedLM",
        "fill-mask",
        "A masked language model: it fills gaps in text.",
        'f"The old king had a {run.tokenizer.mask_token}."',
    ),
    "ForPreTraining": Head(
        "AutoModelForPreTraining",
        "fill-mask",
        "A masked language model that also predicts whether two pieces of text belong together.",
        'f"The old king had a {run.tokenizer.mask_token}."',
    ),
    "ForNextSentencePrediction": Head(
        "AutoModelForNextSentencePrediction", None, "It predicts whether one piece of text follows another."
    ),
    "ForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "text-classification", "It labels texts.", '"How long does it take?"'
    ),
    "ForTokenClassification": Head(
        "AutoModelForTokenClassification",
        "token-classification",
        "It labels the words of a text.",
        '"Ada Lovelace was born in London."',
    ),
    "ForQuestionAnswering": Head(
        "AutoModelForQuestionAnswering", "question-answering", "It finds the answer to a question in a text."
    ),
    "EncoderDecoderModel": Head("AutoModelForSeq2SeqLM", "translation", "It translates text."),
    "ForMultipleChoice": Head("AutoModelForMultipleChoice", "multiple-choice", "It chooses one of several options."),
}
_NO_HEAD = Head("AutoModel", "feature-extraction", "It turns texts into vectors.", '"The old king had a daughter."')
_EMBEDDINGS = Head(
    "AutoModel", "sentence-similarity", "It turns texts into vectors for comparison and search (sentence-transformers)."
)


def head_of_class(model_class: str) -> Head:
    """Return the head of a model class by the class's name; without a known head that of a base model."""
    return next((head for suffix, head in _HEADS_BY_SUFFIX.items() if model_class.endswith(suffix)), _NO_HEAD)


def head_of_record(record: dict[str, Any]) -> Head:
    """Return the head of the model that a run record describes."""
    is_embedder = record.get("library") == "sentence-transformers"
    return _EMBEDDINGS if is_embedder else head_of_class(record["model"]["class"])


def is_adapter(record: dict[str, Any]) -> bool:
    """Return whether the recorded folder holds an adapter rather than a whole model."""
    return "adapter" in record and not record["adapter"].get("merged")


def has_own_code(record: dict[str, Any]) -> bool:
    """Return whether the recorded folder carries the model's code."""
    return bool(record["model"]["config"].get("auto_map"))


def opening_call(record: dict[str, Any], folder: Any) -> str:
    """Return the line of Python that opens the folder of a whole model."""
    trust = ", trust_remote_code=True" if has_own_code(record) else ""
    if record.get("library") == "sentence-transformers":
        return f'SentenceTransformer("{folder}"{trust})'
    return f'{head_of_record(record).auto_class}.from_pretrained("{folder}"{trust})'

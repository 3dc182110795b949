"""Opens any saved model: a folder of this package or a native one, a name on the Hub, or an adapter on its base."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError, explain
from ..core.memory import keep_freed_memory
from ..core.model_files import ADAPTER_FILE, read_config
from ..core.quiet import quiet
from .head_table import head_of_class
from .record import RECORD_FILE, read_record
from .tokenizer_files import tokenizer_fingerprint


LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForPreTraining")
_ADAPTER_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def auto_class_of(path: str, trust_remote_code: bool = False) -> str:
    """
    Return the name of the Auto class that opens a model with the head it was saved with.

    Raises:
        InputError: there is no model, or its class is unknown.
    """
    if (adapter := _adapter_config(path)) is not None:
        if (kind := _class_of_adapter(path, adapter)) is None:
            raise InputError(
                f"{path}: {ADAPTER_FILE} has task_type {adapter.get('task_type')!r}; supported are "
                f"{', '.join(_ADAPTER_CLASSES)}"
            )
        return kind
    architectures = read_config(path, trust_remote_code=trust_remote_code).get("architectures")
    if not architectures:
        raise InputError(f"{path}: config.json does not name the model's class in `architectures`")
    return head_of_class(architectures[0]).auto_class


def open_model(
    path: str,
    auto_class: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a model in evaluation mode with its tokenizer.

    All weights come from the checkpoint. Without an accelerator, the process keeps freed memory from then on (see
    [`keep_freed_memory`]).

    Args:
        path: folder or Hub name of a model, or folder of an adapter.
        auto_class: Auto class to open the model with; by default that of its head.
        base: folder or Hub name of an adapter's base model; by default that in the adapter's configuration.
        options: for `from_pretrained`, such as `attn_implementation`.

    Raises:
        InputError: there is no such model, or it lacks weights that the class needs.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    adapter = _adapter_config(path)
    if adapter is not None and auto_class and (own_class := _class_of_adapter(path, adapter)) not in (None, auto_class):
        # PEFT would ignore weights whose names differ.
        raise InputError(
            f"{path}: is an adapter for {own_class}, not for {auto_class}: merge it first with `hf-tfm merge`, and "
            "open the merged folder"
        )
    auto_class = auto_class or auto_class_of(path, trust_remote_code)
    options |= {"trust_remote_code": trust_remote_code}
    source = path
    if adapter is not None:
        source = base or adapter.get("base_model_name_or_path") or ""
        if not source or (not Path(source).exists() and Path(source).is_absolute()):
            hint = "name its folder with --base, in scripts with --base_model"
            raise InputError(f"{path}: its base model {source!r} is not there; {hint}")
        options |= head_of_adapter(path)
    config = read_config(source, trust_remote_code=trust_remote_code)
    with explain(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    try:
        with quiet(), explain(source):
            model, report = getattr(transformers, auto_class).from_pretrained(
                source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=adapter is not None, **options
            )
    except InputError as error:
        if "Unrecognized configuration class" in str(error):  # followed by a list of a hundred others
            kind = (config.get("architectures") or [f"a model of type {config.get('model_type')}"])[0]
            raise InputError(f"{source}: contains {kind}, which {auto_class} does not open") from None
        raise
    if adapter is not None:
        # The adapter brings its head.
        from peft import PeftModel
        from peft.utils import load_peft_weights

        with quiet(), explain(path):
            weights = load_peft_weights(path, device="cpu")
            _refuse_new_weights(
                path, [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])], weights
            )
            _resize_for_adapter(model, path, adapter, weights, max(tokenizer.get_vocab().values()) + 1)
            return PeftModel.from_pretrained(model, path).eval(), tokenizer
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{path}: no weights for {missing[0]}, which {type(model).__name__} needs: it is another kind of model"
        )
    return model.eval(), tokenizer


def recorded(path: str, name: str) -> Any:
    """Return a field of the run record in a model's folder; None without record or field."""
    folder = Path(path)
    return read_record(folder).get(name) if (folder / RECORD_FILE).is_file() else None


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 in hex of weights, configuration and tokenizer, which determine a model's figures."""
    digest = hashlib.sha256(tokenizer_fingerprint(tokenizer).encode())
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _adapter_config(path: str) -> dict[str, Any] | None:
    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        return None
    with explain(file):
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"holds no object but a {type(config).__name__}")
        return config


def _class_of_adapter(path: str, adapter: dict[str, Any]) -> str | None:
    """Return the name of the Auto class of an adapter's base with its head; None if it is unknown."""
    kind = adapter.get("task_type")
    if kind is not None:
        return _ADAPTER_CLASSES.get(kind)
    if (model := recorded(path, "model")) is not None:  # PEFT has no task type for multiple choice
        return head_of_class(model["class"]).auto_class
    name = (adapter.get("auto_mapping") or {}).get("base_model_class")
    return head_of_class(name).auto_class if name else None


def _refuse_new_weights(path: str, new: list[str], weights: dict[str, torch.Tensor]) -> None:
    """
    Refuse a head that neither the base model nor the adapter contains: it would differ after each loading.

    Args:
        new: names of the weights that the base model lacks or has in another shape.
    """
    saved = {name.removeprefix("base_model.model.").replace("modules_to_save.", "") for name in weights}
    if lost := sorted(set(new) - saved):
        module = lost[0].rpartition(".")[0]
        raise InputError(
            f"{path}: neither the adapter nor its base model has {', '.join(lost[:4])}{', …' if len(lost) > 4 else ''} "
            f"({len(lost)} weights): they were drawn at random before the training and not saved, and would be drawn "
            f"anew; train again with modules_to_save=[{module!r}, …] in the LoraConfig, or give --base the model that "
            "the adapter was trained on"
        )


def _resize_for_adapter(
    model: PreTrainedModel, path: str, adapter: dict[str, Any], weights: dict[str, torch.Tensor], num_tokens: int
) -> None:
    """
    Resize the embeddings of a base model to those that its adapter was trained with.

    The adapter brings the embeddings of tokens that were added before its training.

    Args:
        num_tokens: of the adapter's tokenizer.

    Raises:
        InputError: the adapter does not contain all new embeddings.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = outputs is not None and outputs.weight is inputs.weight
    names = {id(module): name for name, module in model.named_modules()}
    trained = adapter.get("trainable_token_indices") or []
    by_name = trained if isinstance(trained, dict) else {names[id(inputs)]: trained}
    ends = {
        name: _embeddings_of_adapter(weights, by_name, name)
        for name in (names[id(end)] for end in (inputs, None if is_tied else outputs) if end is not None)
    }
    base_size = inputs.weight.shape[0]
    sizes = [rows for rows, is_whole, _ in ends.values() if is_whole]
    size = sizes[0] if sizes else max(base_size, num_tokens, *(rows for rows, _, _ in ends.values()))
    for name, (_, is_whole, trained) in ends.items():
        if not is_whole and (lost := sorted(set(range(base_size, size)) - trained)):
            raise InputError(
                f"{path}: tokens were added to its base model before training, and it lacks {name} of {len(lost)} of "
                f"them (row {lost[0]} is the first): save it again with save_embedding_layers=True"
            )
    if size != base_size:
        model.resize_token_embeddings(size, mean_resizing=False)


def _embeddings_of_adapter(
    weights: dict[str, torch.Tensor], trained_tokens: dict[str, list[int]], name: str
) -> tuple[int, bool, set[int]]:
    """
    Return facts about the embeddings of a module in an adapter.

    Args:
        trained_tokens: ids of the rows that are trained individually, by the end of their module's name.

    Returns: their least number when the adapter was trained, whether the adapter contains all, and the rows that it
        trains individually.
    """
    places = ("", "base_layer.", "original_module.", "modules_to_save.", "token_adapter.base_layer.")
    whole = [weights.get(f"base_model.model.{name}.{place}weight") for place in places]
    sizes = [weight.shape[0] for weight in whole if weight is not None]
    trained = next((tokens for part, tokens in trained_tokens.items() if f".{name}".endswith(f".{part}")), [])
    factor = weights.get(f"base_model.model.{name}.lora_embedding_A")
    least_size = max(0, *(token + 1 for token in trained), 0 if factor is None else factor.shape[1])
    return sizes[0] if sizes else least_size, bool(sizes), set(trained)


def head_of_adapter(path: str) -> dict[str, Any]:
    """
    Return the fields of an adapter's head that its base's configuration lacks: labels, pooling.

    They come from the run record; without one the number of labels is that of the head's outputs in the weights.
    """
    model = recorded(path, "model")
    if model is None:
        return _count_labels(path)
    config = model["config"]
    names = ("problem_type", "pad_token_id", "classifier_pooling", "use_pooler")
    fields = {name: config[name] for name in names if config.get(name) is not None}
    if labels := config.get("id2label"):
        fields["id2label"] = {int(number): name for number, name in labels.items()}
        fields["label2id"] = {name: number for number, name in fields["id2label"].items()}
    return fields


def _count_labels(path: str) -> dict[str, int]:
    from peft.utils import load_peft_weights

    head = re.compile(r"\.(classifier|score)(\.modules_to_save)?(\.out_proj)?\.weight")
    with explain(path):
        weights = load_peft_weights(path, device="cpu")
    counts = [weight.shape[0] for name, weight in weights.items() if head.search(name)]
    return {"num_labels": counts[0]} if counts else {}

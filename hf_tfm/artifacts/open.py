"""Open any saved model to use it: a folder of ours, a native one, a name on the Hub, or an adapter on its base."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError, explain
from ..core.memory import keep_freed_memory
from ..core.model_files import read_config
from ..core.quiet import quiet
from .card import task_of
from .record import RECORD_FILE, read_record
from .tokenizer_files import tokenizer_fingerprint


ADAPTER_FILE = "adapter_config.json"
LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForPreTraining")
_ADAPTER_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def auto_class_of(path: str, trust_remote_code: bool = False) -> str:
    """
    Name of the Auto class that opens a model as what it was saved as.

    Raises:
        InputError: there is no model, or nothing says what it is.
    """
    if (adapter := _adapter_config(path)) is not None:
        kind = adapter.get("task_type")
        if kind is None and (Path(path) / RECORD_FILE).is_file():  # PEFT has no name for multiple choice
            return task_of(read_record(Path(path))["model"]["class"])[0]
        if kind not in _ADAPTER_CLASSES:
            raise InputError(f"{path}: {ADAPTER_FILE} has task_type {kind!r}; known are {', '.join(_ADAPTER_CLASSES)}")
        return _ADAPTER_CLASSES[kind]
    architectures = read_config(path, trust_remote_code=trust_remote_code).get("architectures")
    if not architectures:
        raise InputError(f"{path}: config.json does not say in `architectures` what the model is")
    return task_of(architectures[0])[0]


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
    A model in evaluation mode, all of whose weights come from the checkpoint, and its tokenizer. Where there is no
    accelerator, the process keeps its memory from then on: see [`keep_freed_memory`].

    Args:
        path: folder or Hub name of a model, or folder of an adapter.
        auto_class: how to open it; by default as what it was saved as.
        base: where an adapter's base model is, if not where the adapter says.
        options: for `from_pretrained`, such as `attn_implementation`.

    Raises:
        InputError: there is no such model, or it lacks weights that the class needs.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    adapter = _adapter_config(path)
    auto_class = auto_class or auto_class_of(path, trust_remote_code)
    options |= {"trust_remote_code": trust_remote_code}
    source = path
    if adapter is not None:
        source = base or adapter.get("base_model_name_or_path") or ""
        if not source or (not Path(source).exists() and Path(source).is_absolute()):
            where = "say where it is, with --base, in scripts with --base_model"
            raise InputError(f"{path}: its base model {source!r} is not there; {where}")
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
        if "Unrecognized configuration class" in str(error):  # and then a list of some hundred others
            kind = (config.get("architectures") or [f"a model of type {config.get('model_type')}"])[0]
            raise InputError(f"{source}: holds {kind}, which {auto_class} does not open") from None
        raise
    if adapter is not None:
        # New heads come with the adapter.
        from peft import PeftModel

        with quiet(), explain(path):
            _resize_for_adapter(model, path, adapter)
            return PeftModel.from_pretrained(model, path).eval(), tokenizer
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{path}: no weights for {missing[0]}, which {type(model).__name__} needs: another kind of model"
        )
    return model.eval(), tokenizer


def recorded(path: str, name: str) -> Any:
    """What the run record of a model's folder says about something; None if there is no record or it does not."""
    folder = Path(path)
    return read_record(folder).get(name) if (folder / RECORD_FILE).is_file() else None


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A sha256 in hex over weights, configuration and tokenizer: what decides which figures come out."""
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


def _resize_for_adapter(model: PreTrainedModel, path: str, adapter: dict[str, Any]) -> None:
    """
    Give a base model as many embeddings as its adapter was trained with, where tokens had been added to it before; what
    the new ones are comes with the adapter.

    Raises:
        InputError: the adapter does not hold all new embeddings.
    """
    from peft.utils import load_peft_weights

    weights = load_peft_weights(path, device="cpu")
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    before = size = inputs.weight.shape[0]
    for name, module in model.named_modules():
        if module is not inputs and (module is not outputs or outputs.weight is inputs.weight):
            continue
        rows, is_whole, trained = _embeddings_of_adapter(weights, adapter, name)
        if not is_whole and (lost := sorted(set(range(before, rows)) - trained)):
            raise InputError(
                f"{path}: was trained after tokens were added to its base model, and lacks {name} of {len(lost)} of "
                f"them (row {lost[0]} is the first): save it again with save_embedding_layers=True"
            )
        size = rows if is_whole else max(size, rows)
    if size != before:
        model.resize_token_embeddings(size, mean_resizing=False)


def _embeddings_of_adapter(
    weights: dict[str, torch.Tensor], adapter: dict[str, Any], name: str
) -> tuple[int, bool, set[int]]:
    """
    How many embeddings a module had at least when an adapter was trained, whether the adapter holds them all, and which
    ones it trains by themselves.
    """
    places = ("", "base_layer.", "original_module.", "modules_to_save.", "token_adapter.base_layer.")
    whole = [weights.get(f"base_model.model.{name}.{place}weight") for place in places]
    sizes = [weight.shape[0] for weight in whole if weight is not None]
    trained = adapter.get("trainable_token_indices") or []
    if isinstance(trained, dict):
        trained = next((tokens for part, tokens in trained.items() if f".{name}".endswith(f".{part}")), [])
    factor = weights.get(f"base_model.model.{name}.lora_embedding_A")
    least = max(0, *(token + 1 for token in trained), 0 if factor is None else factor.shape[1])
    return sizes[0] if sizes else least, bool(sizes), set(trained)


def head_of_adapter(path: str) -> dict[str, Any]:
    """What an adapter's head is like, which its base's configuration does not say: labels, pooling, from the record."""
    model = recorded(path, "model")
    if model is None:
        return {}
    config = model["config"]
    own = ("problem_type", "pad_token_id", "classifier_pooling", "use_pooler")
    fields = {name: config[name] for name in own if config.get(name) is not None}
    if labels := config.get("id2label"):
        fields["id2label"] = {int(number): name for number, name in labels.items()}
        fields["label2id"] = {name: number for number, name in fields["id2label"].items()}
    return fields

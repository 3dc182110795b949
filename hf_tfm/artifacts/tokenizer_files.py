"""Saves tokenizer files that all supported versions of transformers read alike; special tokens, offsets."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..core.atomic_files import write_atomically
from ..core.errors import explain, reason_of, unreadable
from ..core.quiet import quiet


# In the order of their ids.
DECODER_TOKENS = {
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
    "bos_token": "<|bos|>",
    "eos_token": "<|eos|>",
    "mask_token": "<|mask|>",
}


ENCODER_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def trim_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Exclude the leading space from the offsets of a word's first token, so that an entity or answer starts at a letter.

    The ids stay the same. Tokenizers that [`train_tokenizer`] did not make, that do not join spaces to words, or that
    trim already are not changed.

    Tokenizers of encoders always trim. Those of decoders trim once the model is fine-tuned to find spans: with trimmed
    offsets, `return_assistant_tokens_mask` of `apply_chat_template`, which looks up answers by their first character,
    would find no token at a space.
    """
    if tokenizer.is_fast:
        _trim(tokenizer.backend_tokenizer)


def _trim(backend: Tokenizer) -> None:
    if _needs_trimming(json.loads(backend.to_str())):
        trim = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
        backend.post_processor = processors.Sequence([trim, backend.post_processor])


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Save a tokenizer with its chat template, in files that transformers 4 and 5 open alike."""
    tokenizer.save_pretrained(folder)
    mend_tokenizer_files(folder)


def mend_tokenizer_files(folder: str | os.PathLike[str]) -> bool:
    """
    Rewrite the tokenizer files in a folder so that transformers 4 opens them too.

    Version 5 writes a class that version 4 does not have, and a list where it expects named tokens. The offsets are
    trimmed as in [`trim_offsets`] if the folder contains an encoder or a model that finds spans. The ids stay the same.

    Returns: whether a file changed.
    """
    folder = Path(folder)
    changed = False
    path = folder / "tokenizer_config.json"
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = _rewrite(path, saved, _for_both_versions(saved))
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if _needs_trimming(saved) and (_first_tokens(saved) == list(ENCODER_TOKENS.values()) or _finds_spans(folder)):
        backend = Tokenizer.from_file(str(path))
        _trim(backend)
        write_atomically(path, backend.to_str(pretty=True))
        changed = True
    return changed


def _for_both_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `tokenizer_config.json` in a form that transformers 4 and 5 both read."""
    # Options of the last loading do not belong into the file.
    fields = {name: value for name, value in saved.items() if name not in ("is_local", "local_files_only")}
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        listed = [*fields.get("additional_special_tokens", ()), *fields.pop("extra_special_tokens")]
        fields["additional_special_tokens"] = [token for n, token in enumerate(listed) if token not in listed[:n]]
    return fields


def _finds_spans(folder: Path) -> bool:
    """Return whether a folder contains a model or adapter that labels words or finds answers in a text."""
    classes: list[str] = []
    if (folder / "config.json").is_file():
        classes += json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if (folder / "adapter_config.json").is_file():
        task = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
        classes += {"TOKEN_CLS": ["ForTokenClassification"], "QUESTION_ANS": ["ForQuestionAnswering"]}.get(task, [])
    return any(name.endswith(("ForTokenClassification", "ForQuestionAnswering")) for name in classes)


def _needs_trimming(state: Mapping[str, Any]) -> bool:
    return _joins_spaces(state) and _without_trimming(state["post_processor"]) == state["post_processor"]


def _joins_spaces(state: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer file describes byte-level BPE of [`train_tokenizer`]."""
    pre_tokenizers = [part["type"] for part in (state.get("pre_tokenizer") or {}).get("pretokenizers", ())]
    known = (list(DECODER_TOKENS.values()), list(ENCODER_TOKENS.values()))
    return (
        pre_tokenizers == ["Digits", "ByteLevel"]
        and bool(state["model"].get("merges"))
        and _first_tokens(state) in known
    )


def _first_tokens(state: Mapping[str, Any]) -> list[str]:
    return [token["content"] for token in state["added_tokens"][: len(DECODER_TOKENS)]]


def _without_trimming(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a post-processor without the step of [`trim_offsets`]."""
    if step is None or step["type"] != "Sequence":
        return step
    rest = [_without_trimming(part) for part in step["processors"] if part["type"] != "ByteLevel"]
    return rest[0] if len(rest) == 1 and len(step["processors"]) > 1 else {**step, "processors": rest}


def _rewrite(path: Path, saved: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    if fields == saved:
        return False
    write_atomically(path, json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return True


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """
    Return a SHA-256 in hex of everything that determines the ids of a text, as a key for caches of tokenized text.

    Saving and loading, padding, truncation, maximum length, chat template and [`trim_offsets`] do not change it.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["padding"] = state["truncation"] = None  # left over from the last call
    if _joins_spaces(state):
        state["post_processor"] = _without_trimming(state["post_processor"])
    state["special_tokens"] = tokenizer.special_tokens_map  # packing puts their ids around documents
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_tokenizer(path: str, trust_remote_code: bool = False, advice: str = "") -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or Hub repository. Raises `InputError`, which ends in `advice`, without one."""

    def hint(error: Exception) -> str:
        if "contains custom code" in str(error):
            return "carries code of its own: look at it and add --trust_remote_code"
        missing = "" if Path(path).exists() else "there is no such folder, and "
        return f"{missing}no tokenizer can be loaded from it ({reason_of(error)}){advice}"

    with quiet(), explain(path, hint, *unreadable(), TypeError, AttributeError):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)

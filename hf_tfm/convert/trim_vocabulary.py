"""
Trims the vocabulary of any model to the tokens of a user's text: fewer embeddings, equal outputs.

    kept        special and added tokens, single bytes or characters, tokens of the text, and those they are merged from
    tokenizer   the same tokens for every text whose tokens are all kept; other texts are cut into smaller pieces
    model       the rows of these tokens in the embeddings, the output layer and its bias, unchanged
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.compare import outputs_of
from ..artifacts.open import open_model
from ..artifacts.record import RECORD_FILE
from ..artifacts.tokenizer_files import save_tokenizer
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError
from ..core.inference import evaluation_mode
from ..data.sources import read_documents


_COMPARED_TEXTS = 8
_COMPARED_TOKENS = 128
_BATCH = 256
_ID_FIELD = re.compile(r".*_(token_id|token_ids|token_index)|(begin_)?suppress_tokens|bad_words_ids")
# Files of these names belong to the old vocabulary or describe the old model.
_LEFT_OUT = re.compile(
    r"(model|pytorch_model).*\.(safetensors|bin|json)|.*\.gguf|README\.md|tokenizer.*|vocab.*|merges\.txt|.*\.model|"
    r"special_tokens_map\.json|added_tokens\.json|checkpoint-.*|\..*"
)


@dataclass
class Trimmed:
    """
    What a trimming changed.

    Attributes:
        tokens: Number of tokens before and after.
        parameters: Number of parameters before and after.
        documents: Number of documents whose tokens were counted.
        compared: Number of them on whose beginnings the outputs of both models were compared.
        difference: Largest difference between these outputs.
    """

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    documents: int
    compared: int
    difference: float


def trim_folder(
    source: str,
    texts: Sequence[str],
    target: str | Path,
    *,
    min_count: int = 1,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Trimmed:
    """
    Write a model with the tokens of some texts only.

    Args:
        source: Folder or Hub name of a model with a fast tokenizer.
        texts: Files or folders of the text, in any form that pretraining reads.
        min_count: How often the text must have a token.
        settings: Fields of the text's sources, as for [`read_documents`].

    Raises:
        InputError: The tokenizer is of a kind that cannot be trimmed, `target` is not empty, or the outputs of the
            written model differ.
    """
    target = Path(target)
    require_empty(target)
    model, tokenizer = open_model(source, trust_remote_code=trust_remote_code)
    if hasattr(model, "peft_config"):
        raise InputError(f"{source}: is an adapter: merge it first with `hf-tfm merge {source} MERGED`")
    counts, documents, samples = count_tokens(tokenizer, read_documents(list(texts), **settings))
    required = {*find_ids(model.config.to_dict()), *find_ids(_generation_fields(model))}
    tokens = keep_tokens(tokenizer, (token for token, count in counts.items() if count >= min_count), required)
    before = len(tokenizer.get_vocab()), model.num_parameters()
    expected = [compute(model, tokenizer, text) for text in samples]
    trim_model(model, tokens)
    with atomic_directory(target) as folder:
        if Path(source).is_dir():
            _copy_other_files(Path(source), folder)
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        trim_tokenizer_files(folder, tokens, tokenizer.model_input_names)
        written, trimmed_tokenizer = open_model(str(folder), trust_remote_code=trust_remote_code)
        difference = 0.0
        for text, (names, outputs) in zip(samples, expected):
            new_names, new_outputs = compute(written, trimmed_tokenizer, text)
            if new_names != names and min_count == 1:
                raise InputError(f"{source}: the trimmed tokenizer cuts {text[:60]!r} into other tokens")
            if new_names == names:
                difference = max(difference, _largest_difference(outputs, new_outputs, tokens))
        if not difference <= 1e-5:
            raise InputError(f"{source}: the trimmed model computes other outputs (by up to {difference:.2g})")
    after = len(trimmed_tokenizer.get_vocab()), written.num_parameters()
    return Trimmed((before[0], after[0]), (before[1], after[1]), documents, len(samples), difference)


def count_tokens(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> tuple[Counter[int], int, list[str]]:
    """Returns how often each token occurs, the number of documents, and the beginnings of a few."""
    counts: Counter[int] = Counter()
    samples: list[str] = []
    total = 0
    batch: list[str] = []

    def add() -> None:
        for ids in tokenizer(batch, add_special_tokens=True, verbose=False)["input_ids"]:
            counts.update(ids)
        batch.clear()

    for document in documents:
        total += 1
        batch.append(document)
        if len(samples) < _COMPARED_TEXTS:
            samples.append(document[: 4 * _COMPARED_TOKENS])
        if len(batch) == _BATCH:
            add()
    if batch:
        add()
    # A document that is cut inside a word may end with tokens that the whole has not.
    for text in samples:
        counts.update(tokenizer(text, verbose=False)["input_ids"])
    return counts, total, samples


def keep_tokens(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], required: Iterable[int] = ()) -> list[int]:
    """
    Returns the ids to keep, in their order: the given ones, and all without which the tokenizer would not work.

    Raises:
        InputError: The tokenizer has no tokenizer.json, or one of a kind that is not supported.
    """
    if not tokenizer.is_fast:
        raise InputError("this tokenizer has no tokenizer.json, so its vocabulary cannot be trimmed")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    kept = {number for number in (*ids, *required) if number in names}
    kept |= {token["id"] for token in state["added_tokens"]}
    kept |= {number for number, token in names.items() if _is_basic(token, model)}
    if model["type"] == "BPE":
        if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
            raise InputError("a BPE tokenizer with marks at the ends of words (as of GPT-1) cannot be trimmed")
        ranks = _merge_ranks(model)
        numbers = model["vocab"]
        for number in sorted(kept):
            kept |= {numbers[part] for part in merged_from(names[number], ranks) if part in numbers}
    elif model["type"] not in ("WordPiece", "Unigram", "WordLevel"):
        raise InputError(f"a tokenizer of the kind {model['type']} cannot be trimmed")
    return sorted(kept)


def _is_basic(token: str, model: Mapping[str, Any]) -> bool:
    """Whether a token is a byte, a character or the unknown token, into which any text can be cut."""
    if token == model.get("unk_token") or re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return True
    if model["type"] == "Unigram" and token == model["vocab"][model["unk_id"] or 0][0]:
        return True
    prefix = model.get("continuing_subword_prefix") or ""
    return len(token.removeprefix(prefix) if prefix else token) == 1


def _merge_ranks(model: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Returns the order in which a BPE model merges pairs."""
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


def merged_from(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """
    Returns all tokens that BPE makes on the way to a token.

    Merges beside a token never change those inside it: one that crosses its edge would have destroyed it.
    """
    parts, made = list(token), set(token)
    while len(parts) > 1:
        pairs = [(ranks[pair], place) for place, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]
        if not pairs:
            break
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        made.add(parts[place])
    return made


def trim_model(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """
    Keep, in place, the rows of these tokens in all weights that have one for each token.

    Raises:
        InputError: The model has embeddings of the vocabulary that it cannot resize.
    """
    others = [name for name in model.config.to_dict() if name.startswith("vocab_size_")]
    if others:
        raise InputError(f"{type(model).__name__}: has more than one vocabulary ({others[0]}), and cannot be trimmed")
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    model.resize_token_embeddings(len(ids))
    index = torch.tensor(list(ids))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            changed = [dim for dim, size in enumerate(shapes[name]) if size != tensor.shape[dim]]
            if changed:
                [dim] = changed
                tensor.copy_(weights[name].index_select(dim, index))
    numbers = {old: new for new, old in enumerate(ids)}
    renumber_config(model.config, numbers)
    if model.can_generate():
        renumber_config(model.generation_config, numbers)


def renumber_config(config: Any, numbers: Mapping[int, int]) -> None:
    """Change, in place, the token ids of a configuration and of the configurations inside it."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            renumber_config(value, numbers)
        elif _ID_FIELD.fullmatch(name) and value is not None:
            setattr(config, name, _renumber(value, numbers))


def _renumber(value: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [_renumber(entry, numbers) for entry in value]
    return numbers.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def find_ids(fields: Mapping[str, Any]) -> set[int]:
    """Returns the token ids in the fields of a configuration."""
    ids: set[int] = set()

    def add(value: Any) -> None:
        if isinstance(value, list | tuple):
            for entry in value:
                add(entry)
        elif isinstance(value, int) and not isinstance(value, bool):
            ids.add(value)

    for name, value in fields.items():
        if isinstance(value, Mapping):
            ids |= find_ids(value)
        elif _ID_FIELD.fullmatch(str(name)):
            add(value)
    return ids


def _generation_fields(model: PreTrainedModel) -> dict[str, Any]:
    return model.generation_config.to_dict() if model.can_generate() else {}


def trim_tokenizer_files(folder: Path, ids: Sequence[int], input_names: Sequence[str]) -> None:
    """
    Rewrite the tokenizer's files of a folder with these tokens, whose new ids are their places in `ids`.

    Args:
        input_names: Inputs that the tokenizer makes, which the class of the old tokenizer may imply.
    """
    numbers = {old: new for new, old in enumerate(ids)}
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["added_tokens"] = [{**token, "id": numbers[token["id"]]} for token in state["added_tokens"]]
    state["model"] = _trim_state(state["model"], numbers)
    state["post_processor"] = _renumber_processor(state["post_processor"], numbers)
    if state.get("padding"):
        state["padding"]["pad_id"] = numbers[state["padding"]["pad_id"]]
    Tokenizer.from_str(json.dumps(state))  # raises now rather than at the user's first text
    path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # other classes may make the state anew
    config["model_input_names"] = list(input_names)
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {
            str(numbers[int(number)]): token for number, token in config["added_tokens_decoder"].items()
        }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    for name in ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "spiece.model", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)


def _trim_state(model: dict[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Returns the vocabulary and the merges of a tokenizer's state with the kept tokens only."""
    if model["type"] == "Unigram":
        vocabulary = [entry for number, entry in enumerate(model["vocab"]) if number in numbers]
        unknown = None if model["unk_id"] is None else numbers[model["unk_id"]]
        return {**model, "vocab": vocabulary, "unk_id": unknown}
    vocabulary = {token: numbers[number] for token, number in model["vocab"].items() if number in numbers}
    trimmed = {**model, "vocab": vocabulary}
    if model["type"] == "BPE":
        trimmed["merges"] = [
            list(pair)
            for pair in _merge_ranks(model)
            if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary
        ]
    return trimmed


def _renumber_processor(processor: Any, numbers: Mapping[int, int]) -> Any:
    """Returns a post-processor with new ids of its special tokens."""
    if not processor:
        return processor
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumber_processor(part, numbers) for part in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [numbers[number] for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": tokens}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return processor | {name: [processor[name][0], numbers[processor[name][1]]] for name in ("sep", "cls")}
    return processor


def compute(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Returns the tokens of a text, and the model's outputs for them."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=_COMPARED_TOKENS)
    names = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with evaluation_mode(model):
        return names, outputs_of(model, **inputs)


def _largest_difference(
    expected: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], ids: Sequence[int]
) -> float:
    """Returns the largest difference of outputs; logits of a vocabulary are compared on the kept tokens."""
    largest = 0.0
    for name, values in expected.items():
        if values.shape[-1] != outputs[name].shape[-1]:
            values = values[..., list(ids)]
        scale = max(1.0, values.abs().max().item())
        largest = max(largest, (values - outputs[name]).abs().max().item() / scale)
    return largest


def _copy_other_files(source: Path, folder: Path) -> None:
    """Copy what else a model's folder has, such as modules of sentence-transformers and the run record."""
    for path in source.iterdir():
        if path.name == RECORD_FILE or not _LEFT_OUT.fullmatch(path.name):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)

"""A language model as a teacher: its tokens compared with the student's, and its probabilities of a whole text."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.open import open_model
from ..core.errors import InputError
from ..core.inference import is_bidirectional, unwrap_adapter
from ..data.cache import digest
from ..data.soft_targets import TARGETS_LAYOUT, SoftTargets, TargetsFile, Windows
from ..data.tokens import TokenStore
from .pretrain_model import check_fit
from .report import print_line
from .soft_loss import SoftLabels


# Largest number of logits at once, in fp32: 512 MiB.
_LOGITS = 1 << 27


def load_teacher(path: str, auto_class: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """
    Return a teacher, frozen.

    Args:
        auto_class: `AutoModelForCausalLM` or `AutoModelForMaskedLM`.
        tokenizer: the student's.

    Raises:
        InputError: there is no such model, its tokens have other ids than the student's, or no embeddings, or it is not
            causal where it should be.
    """
    model, own_tokenizer = open_model(path, auto_class)
    model = unwrap_adapter(model)
    _require_same_tokens(path, own_tokenizer, tokenizer)
    check_fit(model, tokenizer, length=1)
    if auto_class == "AutoModelForCausalLM" and is_bidirectional(model):
        raise InputError(f"--teacher {path}: {type(model).__name__} is not causal: its output depends on later tokens")
    return model.requires_grad_(False)


def _require_same_tokens(
    path: str, teacher_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids, own_ids = teacher_tokenizer.get_vocab(), tokenizer.get_vocab()
    differing = sorted(token for token, number in own_ids.items() if ids.get(token) != number)
    if not differing and len(ids) == len(own_ids):
        return
    if own_ids.keys() < ids.keys():
        advice = (
            f"the student's tokens are a part of the teacher's: trim the teacher by the same text, with "
            f"`hf-tfm trim-vocab {path} TEXT TRIMMED`, and give TRIMMED as the teacher"
        )
    else:
        advice = "leave out --tokenizer, so that the student takes the teacher's, or give a teacher with the student's"
    example = f", such as {differing[0]!r}" if differing else ""
    raise InputError(
        f"--teacher {path}: its tokenizer is another one ({len(ids):,} tokens, the student's {len(own_ids):,}; "
        f"{len(differing):,} of the student's have another id or none{example}): {advice}"
    )


def teacher_targets(
    teacher: PreTrainedModel,
    key: dict[str, Any],
    store: TokenStore,
    *,
    k: int,
    temperature: float,
    length: int,
    vocab_size: int,
    begin_ids: list[int],
    bf16: bool,
) -> SoftTargets:
    """
    Return a causal teacher's targets of a store; they are computed once and kept beside the store.

    All processes must call this. They share the work and the cache, which must be on a disk that all of them see. The
    teacher reads each window of a text alone, in rows of similar length.

    Args:
        key: identifies the teacher.
        k: number of tokens with a probability of their own; see `SoftLabels.of_logits`.
        length: tokens of a window; see `Windows`.
        vocab_size: number of tokens of the tokenizer; a model may have more logits, for no token.
        begin_ids: ids in front of each window, for stores without ends around documents.
        bf16: whether to compute under autocast.

    Raises:
        InputError: the disk has too little room.
    """
    assert store.folder is not None
    settings = dict(k=min(k, vocab_size), temperature=temperature, length=length, begin_ids=begin_ids, bf16=bf16)
    folder = store.folder / f"targets{TARGETS_LAYOUT}-{digest({**key, **settings})}"
    state = PartialState()
    # One process holds the lock for all of them.
    with FileLock(f"{folder}.lock") if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()
        if not folder.exists():
            file = TargetsFile(folder, store.num_tokens, min(k, vocab_size), vocab_size)
            windows = Windows.of(store, length - len(begin_ids))
            parts = windows.parts()
            if state.is_main_process:
                file.begin(len(parts))
            state.wait_for_everyone()
            with torch.no_grad(), torch.autocast(state.device.type, torch.bfloat16, enabled=bf16):
                _compute(teacher.to(state.device), store, windows, parts, file, temperature, begin_ids, state)
            state.wait_for_everyone()
            if state.is_main_process:
                file.finish({**key, **settings})
            state.wait_for_everyone()
    return SoftTargets.open(folder)


def _compute(
    teacher: PreTrainedModel,
    store: TokenStore,
    windows: Windows,
    parts: list[np.ndarray],
    file: TargetsFile,
    temperature: float,
    begin_ids: list[int],
    state: PartialState,
) -> None:
    done = file.done()
    missing = [
        number for number in np.flatnonzero(~done).tolist() if number % state.num_processes == state.process_index
    ]
    if not missing:
        return
    sizes = windows.ends - windows.starts
    most = _LOGITS // teacher.get_output_embeddings().weight.shape[0]

    def compute(batch: np.ndarray) -> tuple[SoftLabels, np.ndarray]:
        return _targets(teacher, store, windows, batch, file, temperature, begin_ids)

    batch = next(_batches(parts[missing[0]], sizes, most))
    compute(batch)  # the first one allocates memory
    started = time.time()
    compute(batch)
    total = sum(int(sizes[parts[number]].sum()) for number in missing)
    minutes = (time.time() - started) / int(sizes[batch].sum()) * total / 60
    rest = f" ({done.mean():.0%} of the text is done)" if done.any() else ""
    print_line(
        "teacher",
        f"reads {total:,} tokens{rest}, about {minutes:.1f} minutes; probabilities of the {file.k} likeliest tokens at "
        f"each take {file.num_bytes / 1e9:.2f} GB on disk",
    )
    with tqdm(total=total, unit="tokens", unit_scale=True, desc="Teacher", disable=not state.is_main_process) as bar:
        for number in missing:
            part = parts[number]
            first, last = int(windows.firsts[part[0]]), int(windows.ends[part[-1]])
            ids = np.zeros((last - first, file.k), np.int64)
            log_probs = np.full((last - first, file.k + 1), -np.inf, np.float32)
            log_probs[:, -1] = 0  # a document's first token, which nothing predicts
            for batch in _batches(part, sizes, most):
                soft, places = compute(batch)
                ids[places - first], log_probs[places - first] = soft.ids.cpu().numpy(), soft.log_probs.cpu().numpy()
                bar.update(int(sizes[batch].sum()))
            file.write(number, first, ids, log_probs)


def _batches(part: np.ndarray, sizes: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield the windows of a part, longest first, in batches of at most so many tokens, or one window."""
    part = part[np.argsort(-sizes[part], kind="stable")]
    while len(part):
        count = max(1, most // int(sizes[part[0]]))
        yield part[:count]
        part = part[count:]


def _targets(
    teacher: PreTrainedModel,
    store: TokenStore,
    windows: Windows,
    batch: np.ndarray,
    file: TargetsFile,
    temperature: float,
    begin_ids: list[int],
) -> tuple[SoftLabels, np.ndarray]:
    """Return the targets of some windows, and their places in the store."""
    sizes, num_before = windows.ends[batch] - windows.starts[batch], len(begin_ids)
    columns = np.arange(num_before + int(sizes.max()))
    places = windows.starts[batch][:, None] + columns - num_before
    # A causal model needs no mask for what is behind a text.
    input_ids = store.tokens.take(places, mode="clip").astype(np.int64)
    input_ids[:, :num_before] = begin_ids
    is_target = (places >= windows.firsts[batch][:, None]) & (places < windows.ends[batch][:, None]) & (columns > 0)
    device = teacher.device
    logits = teacher(input_ids=torch.from_numpy(input_ids).to(device)).logits[:, :-1]
    logits = logits[torch.from_numpy(is_target[:, 1:]).to(device)][:, : file.vocab_size]
    return SoftLabels.of_logits(logits, file.k, temperature), places[is_target]

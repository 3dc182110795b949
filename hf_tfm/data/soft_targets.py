"""
A teacher's probabilities for every token of a store: the likeliest tokens, and one more outcome for all others.

    store      t0 t1 t2 t3 …            the token at each place
    windows    [t0 ……… t7]              what the teacher reads at once, from the start of each document
                    [t4 ……… t11]        the beginning of a later window is only its context
    targets    – p1 p2 p3 …             p_i: probabilities of the token at place i, given those before it

Probabilities of the likeliest tokens alone, scaled to sum to 1, teach a student to be too sure (Anshumann et al. 2025,
"Sparse logit sampling", https://huggingface.co/papers/2503.16870). With the outcome "any other token" they sum to 1 as
they are. They are indexed by places in the store, so they hold for every packing of its documents.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.atomic_files import partial_path, write_atomically
from ..core.errors import InputError
from .batches import IGNORED
from .cache import CACHE_HINT, explain_unwritable, open_arrays
from .objectives import causal
from .tokens import TokenStore


# Part of the name of targets on disk: raise it when the same teacher and text would give others.
TARGETS_LAYOUT = 1

# Tokens whose targets are written together; a killed computation loses no more of them.
_PART = 1 << 12


@dataclass(frozen=True)
class Windows:
    """
    What a teacher reads at once: pieces of documents, in the order of the text.

    Args:
        starts, ends: Places in the store of each window, (num_windows,).
        firsts: Place of the first token of each window whose target it gives; those before are context.
    """

    starts: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, store: TokenStore, length: int) -> "Windows":
        """
        Cuts documents into windows of `length` tokens.

        A document that is longer has several, each with an eighth of its tokens as context from the one before.
        """
        context = length // 8
        sizes = np.diff(store.offsets)
        counts = np.where(sizes > length, -(-(sizes - context) // (length - context)), sizes > 0)
        document = np.repeat(np.arange(len(sizes)), counts)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = store.offsets[document] + nth * (length - context)
        ends = np.minimum(starts + length, store.offsets[document + 1])
        return cls(starts, starts + np.where(nth > 0, context, 0), ends)

    def __len__(self) -> int:
        return len(self.starts)

    def parts(self) -> list[np.ndarray]:
        """Returns the numbers of consecutive windows, in parts that are computed and written together."""
        part = (self.ends - self.ends[0]) // _PART
        return np.split(np.arange(len(self)), np.flatnonzero(np.diff(part)) + 1)


class SoftTargets:
    """
    The targets of a store's tokens on disk.

    Args:
        ids: The likeliest tokens, likeliest first, (num_tokens, k).
        log_probs: Their logarithms of probabilities, and of all other tokens together, (num_tokens, k + 1), float16.
    """

    def __init__(self, ids: np.ndarray, log_probs: np.ndarray):
        self.ids, self.log_probs = ids, log_probs

    @classmethod
    def open(cls, folder: Path) -> "SoftTargets":
        """Opens targets on disk without reading them."""
        arrays, meta = open_arrays(folder)
        k = meta["k"]
        return cls(arrays["ids"].reshape(-1, k), arrays["log_probs"].reshape(-1, k + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens, int64, and logarithms of probabilities, float32, which sum to 1 at each of some places."""
        log_probs = self.log_probs[places].astype(np.float32)
        log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))  # what rounding to 16 bits changed
        return self.ids[places].astype(np.int64), log_probs


@dataclass
class TargetsFile:
    """
    Targets that are being computed, part by part; a later process goes on where an earlier one was killed.

    Args:
        folder: Where the targets will be once they are complete.
        num_tokens: Tokens of the store.
        k: Number of tokens with a probability of their own.
        vocab_size: Decides the type of ids.
    """

    folder: Path
    num_tokens: int
    k: int
    vocab_size: int

    @property
    def id_type(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.num_tokens * (self.k * np.dtype(self.id_type).itemsize + 2 * (self.k + 1))

    @property
    def staging(self) -> Path:
        return partial_path(self.folder)

    def begin(self, num_parts: int) -> None:
        """Makes the files, unless an earlier process did. Raises `InputError` if the disk has too little room."""
        with explain_unwritable(self.folder):
            if (self.staging / "done.bin").exists():
                return
            self.staging.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(self.staging).free) < self.num_bytes:
                raise InputError(
                    f"{self.folder}: the teacher's probabilities need {self.num_bytes / 1e9:.2f} GB and the disk has "
                    f"{free / 1e9:.2f} GB left: {CACHE_HINT}, or give a smaller --top_k"
                )
            for name in ("ids", "log_probs"):
                (self.staging / f"{name}.bin").touch()
            write_atomically(self.staging / "done.bin", "\0" * num_parts)

    def done(self) -> np.ndarray:
        """Returns which parts are written, (num_parts,) bool."""
        return np.fromfile(self.staging / "done.bin", bool)

    def write(self, part: int, first: int, ids: np.ndarray, log_probs: np.ndarray) -> None:
        """Writes the targets of a part, whose tokens begin at the place `first`."""
        with explain_unwritable(self.folder):
            self._put("ids", first * self.k, ids.astype(self.id_type))
            self._put("log_probs", first * (self.k + 1), log_probs.astype(np.float16))
            self._put("done", part, np.ones(1, bool))

    def _put(self, name: str, first: int, values: np.ndarray) -> None:
        with open(self.staging / f"{name}.bin", "r+b") as file:
            file.seek(first * values.itemsize)
            file.write(np.ascontiguousarray(values).data)

    def finish(self, meta: dict[str, Any]) -> None:
        """Gives the complete targets their name."""
        arrays = {
            "ids": {"dtype": str(np.dtype(self.id_type)), "length": self.num_tokens * self.k},
            "log_probs": {"dtype": "float16", "length": self.num_tokens * (self.k + 1)},
        }
        with explain_unwritable(self.folder):
            (self.staging / "meta.json").write_text(json.dumps({**meta, "k": self.k, "arrays": arrays}, indent=1))
            self.staging.rename(self.folder)
            (self.folder / "done.bin").unlink()


@dataclass
class SoftCausal:
    """
    Next-token prediction with a teacher's probabilities of each predicted token.

    Args:
        targets: The targets of each store of the batches, in the order of their `token_numbers`.
    """

    targets: Sequence[SoftTargets]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """
        Returns the inputs of [`causal`], and of each predicted token, row after row, the `teacher_ids`, (predicted, k),
        and the `teacher_log_probs` of these and of all other tokens together, (predicted, k + 1).
        """
        inputs = causal(batch)
        labels = inputs["labels"].numpy()[:, 1:]
        is_predicted = labels != IGNORED
        labels, places = labels[is_predicted], batch["token_numbers"][:, 1:][is_predicted]
        k = self.targets[0].ids.shape[1]
        # The ends that packing puts around pieces are no tokens of a store: they are certain.
        ids, log_probs = np.repeat(labels[:, None], k, axis=1), np.full((len(labels), k + 1), -np.inf, np.float32)
        log_probs[:, 0] = 0
        first = 0
        for targets in self.targets:
            is_inside = (places >= first) & (places < first + len(targets))
            ids[is_inside], log_probs[is_inside] = targets.take(places[is_inside] - first)
            first += len(targets)
        return {**inputs, "teacher_ids": torch.from_numpy(ids), "teacher_log_probs": torch.from_numpy(log_probs)}

"""The tracks of the speedrun, and the files that they are run on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hf_tfm.core.errors import InputError
from measure import MASKED_TOKENIZER, read_texts


HERE = Path(__file__).parent
TEXTS = HERE.parents[1] / "data/text"
# SHA-256 of the files that all entries share.
HASHES = {
    "train.jsonl.gz": "dc551f86b31c5fc7f55572a62a39eea9551f4db1439c4c81e53a37794edcb5b2",
    "test.jsonl.gz": "dbb6c644a95aa677cc30a70ebb9ba9c60a9b11332fca11c82f9b2d4962ad6465",
    "tokenizer.json": "707308390d95f701da4b15c0a870d9d9d82066f244d68cdcce6826c53eb6fd45",
    "tokenizer_config.json": "36d284a22c46f53e71f068217f34c09caf0c8c3c243f392e11a95979a1c07936",
}


@dataclass(frozen=True)
class Track:
    """
    What a run is measured by.

    Attributes:
        kind: `causal` (bits per byte) or `masked` (nats per masked token).
        minutes: wall clock after which a run is stopped and refused.
        race: the fewest minutes win, rather than the lowest loss.
        target: the loss that a race must reach. It is the lowest that the baseline passes, rounded up to 0.01; None
            until the baseline has been run on an idle machine.
        train_bytes: bytes of text to train on, from the beginning of the file; by default all of them.
        held_out_documents: documents to measure, from the beginning of the file; by default all of them.
    """

    kind: str
    minutes: float
    race: bool = True
    target: float | None = None
    train_bytes: int | None = None
    held_out_documents: int | None = None


TRACKS = {
    "causal": Track("causal", minutes=20),
    "masked": Track("masked", minutes=30),
    "small_text": Track("causal", minutes=60, race=False, train_bytes=5_000_000),
    # For trying an entry and the runner, in seconds: any loss will do.
    "test": Track("causal", minutes=3, target=100.0, train_bytes=200_000, held_out_documents=2),
    "test_masked": Track("masked", minutes=3, target=100.0, train_bytes=200_000, held_out_documents=2),
}


def write_training_text(target: Path, max_bytes: int | None) -> None:
    """Write the first documents of the training text, up to so many bytes of text, as JSON lines with a field text."""
    total = 0
    with target.open("w", encoding="utf-8") as file:
        for text in read_texts(TEXTS / "train.jsonl.gz"):
            total += len(text.encode())
            if max_bytes is not None and total > max_bytes:
                return
            file.write(json.dumps({"text": text}) + "\n")


def check_shared_files() -> None:
    """Raise `InputError` unless text and tokenizer are those that all entries share."""
    for name, digest in HASHES.items():
        file = (TEXTS if name.endswith(".gz") else MASKED_TOKENIZER) / name
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise InputError(f"{file} is not the file of the rules: its SHA-256 is not {digest}")

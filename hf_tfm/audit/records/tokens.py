"""Texts as tokens: lengths against the limit, unknown tokens, begin tokens, special tokens in texts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...artifacts.tokenizer_files import load_tokenizer
from ...core.errors import explain
from ...data.records import Records
from ..report import Report
from .subject import DataSubject, list_places, tell_share
from .texts import Record, input_of, texts_of


MOST_RECORDS, MOST_CHARACTERS = 10_000, 6_000_000  # of a split that are encoded
_CHUNK = 500  # records
_NO_LIMIT = 1_000_000  # tokens; a tokenizer without a limit names a much larger one
_RARE = 0.001
_CHATS = ("chat", "preferences", "prompts")


def open_tokenizer(tokenizer: Any, template: str | Path | None) -> PreTrainedTokenizerBase:
    """
    Returns a tokenizer with the chat template of a file.

    Args:
        tokenizer: A folder, a name on the Hub, a tokenizer.json, or a tokenizer.

    Raises:
        InputError: The tokenizer or the template cannot be read.
    """
    if isinstance(tokenizer, str | Path):
        if str(tokenizer).endswith(".json"):
            with explain(tokenizer, "cannot be read as a tokenizer ({reason})", Exception):
                tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        else:
            tokenizer = load_tokenizer(str(tokenizer))
    if template is not None:
        with explain(template, "cannot be read ({reason})", OSError, UnicodeDecodeError):
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    return tokenizer


@dataclass
class Lengths:
    """
    Lengths of the rows of a split.

    Attributes:
        numbers: Number of the record of each row.
        tokens: Number of tokens of each row, shape (rows,).
        unknown: Number of unknown tokens of each row, shape (rows,).
        refused: Numbers of records that the chat template refuses.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    unknown: np.ndarray
    refused: list[int]


class RowEncoder:
    """Encodes records as rows of tokens, those of chats by the tokenizer's chat template."""

    def __init__(self, job: str, tokenizer: PreTrainedTokenizerBase):
        self.job, self.tokenizer = job, tokenizer
        self.renders = job in _CHATS and bool(tokenizer.chat_template)

    def rows_of(self, record: Record) -> list[str]:
        """Returns the texts that become rows of a record. Raises the template's error for a chat that it refuses."""
        if self.job == "chat":
            return [self._render(record["messages"], record)]
        if self.job == "preferences":
            return [self._render([*record["prompt"], *record[side]], record) for side in ("chosen", "rejected")]
        if self.job == "prompts":
            return [self._render(record["prompt"], record, add_generation_prompt=True)]
        if self.job == "pairs":
            return [record["text"], record["text_pair"], *record.get("negative", [])]
        if self.job == "translation":
            return [record[name] for name in ("source", "target") if name in record]
        if self.job == "choices":
            question = "\n".join(record[name] for name in ("context", "question") if name in record)
            return [f"{question}\n{option}" for option in record["options"]]
        return [input_of(self.job, record)]

    def _render(self, messages: Sequence[dict[str, Any]], record: Record, **options: Any) -> str:
        if not self.renders:
            return "\n".join(message["content"] for message in messages)
        return str(self.tokenizer.apply_chat_template(messages, tools=record.get("tools"), tokenize=False, **options))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of texts. A rendered chat has its begin token already."""
        return self.tokenizer(
            list(texts), add_special_tokens=not self.renders, verbose=False, return_attention_mask=False
        )["input_ids"]


def measure_lengths(encoder: RowEncoder, records: Records) -> Lengths:
    """Returns the lengths of the rows of all records, or of so many as are encoded in seconds, evenly drawn."""
    # Byte-level tokenizers name the end token as the unknown one, which they never need.
    ends = (encoder.tokenizer.eos_token_id, encoder.tokenizer.bos_token_id)
    unknown_id = None if encoder.tokenizer.unk_token_id in ends else encoder.tokenizer.unk_token_id
    numbers: list[int] = []
    tokens: list[int] = []
    unknown: list[int] = []
    refused: list[int] = []
    for chunk in _chunks(_drawn(encoder, records)):
        texts: list[str] = []
        owners: list[int] = []
        for number in chunk:
            try:
                rows = encoder.rows_of(records[number])
            except Exception:  # the template's own; `check_template` tells why
                refused.append(number)
                continue
            texts += rows
            owners += [number] * len(rows)
        for number, ids in zip(owners, encoder.encode(texts) if texts else []):
            numbers.append(number)
            tokens.append(len(ids))
            unknown.append(0 if unknown_id is None else ids.count(unknown_id))
    return Lengths(np.array(numbers, dtype=int), np.array(tokens, dtype=int), np.array(unknown, dtype=int), refused)


def _drawn(encoder: RowEncoder, records: Records) -> list[int]:
    """Numbers of at most `MOST_RECORDS` records that have about `MOST_CHARACTERS`, evenly over the file."""
    sample = range(0, len(records), max(1, len(records) // 1000))
    mean = sum(sum(map(len, texts_of(encoder.job, records[number]))) for number in sample) / len(sample)
    count = min(len(records), MOST_RECORDS, max(100, int(MOST_CHARACTERS / mean)))
    return [number * len(records) // count for number in range(count)]


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), _CHUNK):
        yield numbers[start : start + _CHUNK]


def check_tokens(
    subject: DataSubject, tokenizer: PreTrainedTokenizerBase, max_length: int | None, report: Report
) -> None:
    """Report rows that are longer than the limit, unknown tokens, and chats that the template refuses."""
    encoder = RowEncoder(subject.job, tokenizer)
    limit = max_length or (tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None)
    if limit is None:
        report.cannot_see("lengths against a limit: neither --max-length nor the tokenizer names one")
    for split, records in subject.splits.items():
        lengths = measure_lengths(encoder, records)
        measured = len(set(lengths.numbers.tolist())) + len(lengths.refused)
        if measured < len(records):
            report.facts[f"{split} tokens"] = f"counted in {measured:,} of {len(records):,} records"
        if lengths.refused and not _is_reported(report, "P007"):
            report.add("P007", f"the chat template refuses {tell_share(len(lengths.refused), measured)} of the {split} "
                       "split", list_places(records, lengths.refused))  # fmt: skip
        if not len(lengths.tokens):
            continue
        median, most = np.percentile(lengths.tokens, (50, 95))
        report.facts[f"{split} lengths"] = (
            f"median {median:,.0f}, 95% up to {most:,.0f}, longest {lengths.tokens.max():,} tokens"
        )
        if limit is not None and subject.job != "text":
            _report_long(subject, encoder, split, lengths, limit, report)
        _report_unknown(subject, encoder, split, lengths, report)


def _is_reported(report: Report, *codes: str) -> bool:
    """Whether a sampled check has found the same already."""
    return any(finding.code in codes for finding in report.findings)


def _report_long(
    subject: DataSubject, encoder: RowEncoder, split: str, lengths: Lengths, limit: int, report: Report
) -> None:
    is_long = lengths.tokens > limit
    if not is_long.any():
        return
    records = subject.splits[split]
    lost = (lengths.tokens[is_long] - limit).sum() / lengths.tokens.sum()
    owners = list(dict.fromkeys(lengths.numbers[is_long].tolist()))
    what = (
        f"{tell_share(int(is_long.sum()), len(is_long), 'rows')} of the {split} split are longer than {limit:,} "
        f"tokens, and {lost:.1%} of all tokens are lost"
    )
    if subject.job == "chat":
        cut = sum(records[number]["messages"][-1]["role"] == "assistant" for number in owners)
        none = sum(_first_answer_starts(encoder, records[number]) >= limit for number in owners[:_CHUNK])
        of_how_many = f" (of the first {_CHUNK})" if len(owners) > _CHUNK else ""
        what += f"; the last answer is cut in {cut:,}, and {none:,}{of_how_many} have no token of an answer within"
    is_much = lost >= 0.01 or is_long.mean() >= 0.05
    report.add("P611", what, list_places(records, owners), level=None if is_much else "note")


def _first_answer_starts(encoder: RowEncoder, record: Record) -> int:
    """Number of tokens in front of the first answer."""
    first = next(number for number, message in enumerate(record["messages"]) if message["role"] == "assistant")
    if not first:
        return 0
    return len(encoder.encode(encoder.rows_of(record | {"messages": record["messages"][:first]}))[0])


def _report_unknown(subject: DataSubject, encoder: RowEncoder, split: str, lengths: Lengths, report: Report) -> None:
    count, total = int(lengths.unknown.sum()), int(lengths.tokens.sum())
    if not count:
        return
    records, owners = subject.splits[split], list(dict.fromkeys(lengths.numbers[lengths.unknown > 0].tolist()))
    signs = _unknown_signs(encoder, [records[number] for number in owners[:50]])
    report.add(
        "P011",
        f"{tell_share(count, total, 'tokens')} of the {split} split are unknown, such as {', '.join(signs)}",
        list_places(records, owners),
        level=None if count >= _RARE * total else "note",
    )


def _unknown_signs(encoder: RowEncoder, records: Sequence[Record]) -> list[str]:
    """What stands at unknown tokens, the first few different ones."""
    signs: dict[str, None] = {}
    for record in records:
        for text in encoder.rows_of(record):
            encoded = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
                if token == encoder.tokenizer.unk_token_id:
                    signs.setdefault(repr(text[start:end]))
    return list(signs)[:5]


def check_special_tokens_in_texts(subject: DataSubject, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """Report texts that hold special tokens, and texts whose begin token is written twice."""
    added = tokenizer.added_tokens_decoder
    words = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    pattern = re.compile("|".join(sorted(map(re.escape, filter(None, words)), key=len, reverse=True)) or r"(?!)")
    for split, records in subject.splits.items():
        holding: dict[int, str] = {}
        for number, record in enumerate(records):
            if match := pattern.search(subject.whole(record)):
                holding[number] = match[0]
        if not holding:
            continue
        listed = ", ".join(map(repr, list(dict.fromkeys(holding.values()))[:4]))
        doubled = [
            number
            for number in holding
            if subject.job not in _CHATS and _begins_twice(subject, number, split, tokenizer)
        ]
        if doubled:
            report.add("P001", f"{tell_share(len(doubled), len(records))} of the {split} split begin with "
                       f"{tokenizer.bos_token!r}, and the tokenizer writes another one",
                       list_places(records, doubled),
                       mend="Take the begin token out of the texts.")  # fmt: skip
        others = [number for number in holding if number not in set(doubled)]
        if others and not _is_reported(report, "P013", "P017"):
            report.add("P013", f"{tell_share(len(others), len(records))} of the {split} split hold special tokens of "
                       f"the tokenizer: {listed}", list_places(records, others),
                       level=None if len(others) >= _RARE * len(records) else "note")  # fmt: skip


def _begins_twice(subject: DataSubject, number: int, split: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text that begins with the begin token gets another one."""
    text, begin = input_of(subject.job, subject.splits[split][number]), tokenizer.bos_token
    if not begin or not text.lstrip().startswith(begin):
        return False
    return tokenizer(text, verbose=False)["input_ids"][:2] == [tokenizer.bos_token_id] * 2


def require_template(subject: DataSubject, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """Report chats for a tokenizer without a template; prompts with an answer can be trained without one."""
    if subject.job not in _CHATS or tokenizer.chat_template:
        return
    records = next(iter(subject.splits.values()))
    is_written = {"messages"} & set(records.names) or any(
        isinstance(value, list) for row in records.rows[:1] for value in row.values()
    )
    report.add("P012", "the tokenizer has no chat template, so that the texts of messages are measured as they stand",
               level=None if is_written else "note")  # fmt: skip

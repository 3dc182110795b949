"""Duplicates of records, exact and near, within a split and between splits; equal texts with different labels."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

from .data_subject import DataSubject, list_places, tell_share
from .record_texts import normalise
from .report import Report


SHINGLE = 5  # words
PERMUTATIONS = 64
SIMILARITY = 0.8  # of the sets of shingles (Jaccard)
MOST_TEXTS, MOST_WORDS = 100_000, 1_000
# Texts of fewer words differ in most shingles as soon as one word differs, or are equal by chance.
_FEWEST_WORDS = 12
# Share of a split below which equal records are chance, such as "Thank you." twice.
_FEW = 0.002
# Jobs in which equal inputs have one right outcome. People translate and reply in several ways.
_ONE_OUTCOME = ("classification", "tags", "choices", "pairs")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def check_duplicates(subject: DataSubject, report: Report) -> None:
    """Report records that a split has more than once."""
    for split, records in subject.splits.items():
        firsts: dict[tuple[int, int], int] = {}
        repeated: list[int] = []
        for number, key in enumerate(zip(subject.input_keys(split), subject.outcome_keys(split))):
            if firsts.setdefault(key, number) != number:
                repeated.append(number)
        if not repeated:
            continue
        keys = list(zip(subject.input_keys(split), subject.outcome_keys(split)))
        pairs = [f"{records.places[number]} = {records.places[firsts[keys[number]]]}" for number in repeated[:3]]
        report.add(
            "P602",
            f"{tell_share(len(repeated), len(records))} of the {split} split repeat an earlier one, whatever its case "
            "and blanks",
            "; ".join(pairs) + (" …" if len(repeated) > 3 else ""),
            level=None if len(repeated) >= 0.01 * len(records) else "note",
        )


def check_conflicts(subject: DataSubject, report: Report) -> None:
    """Report equal texts that have different labels, and preferences that contradict one another."""
    for split, records in subject.splits.items():
        if subject.job == "preferences":
            conflicting = _contradictions(subject, split)
        elif subject.job in _ONE_OUTCOME:
            conflicting = _conflicting_labels(subject, split)
        else:
            continue
        if conflicting:
            report.add(
                "P613",
                f"{tell_share(len(conflicting), len(records))} of the {split} split have a text that another one has "
                "with another label",
                list_places(records, conflicting),
                level=None if len(conflicting) >= 0.01 * len(records) else "note",
            )


def _conflicting_labels(subject: DataSubject, split: str) -> list[int]:
    """Numbers of the records whose input others have with another outcome, the conflicting ones side by side."""
    groups: dict[int, dict[int, list[int]]] = {}
    for number, (key, outcome) in enumerate(zip(subject.input_keys(split), subject.outcome_keys(split))):
        groups.setdefault(key, {}).setdefault(outcome, []).append(number)
    return [
        number for outcomes in groups.values() if len(outcomes) > 1 for same in outcomes.values() for number in same
    ]


def _contradictions(subject: DataSubject, split: str) -> list[int]:
    """Numbers of preferences whose better answer is the worse one elsewhere."""
    sides: dict[tuple[int, int, int], int] = {}
    contradicting: list[int] = []
    for number, (key, record) in enumerate(zip(subject.input_keys(split), subject.splits[split])):
        chosen, rejected = (hash(normalise(record[side][0]["content"])) for side in ("chosen", "rejected"))
        if (key, rejected, chosen) in sides:
            contradicting += [sides[key, rejected, chosen], number]
        sides.setdefault((key, chosen, rejected), number)
    return list(dict.fromkeys(contradicting))


def check_overlap(subject: DataSubject, report: Report) -> None:
    """Report records whose input another split has, too."""
    for one, other in _pairs_of_splits(subject):
        firsts: dict[int, int] = {}
        for number, key in enumerate(subject.input_keys(one)):
            firsts.setdefault(key, number)
        common = [(number, firsts[key]) for number, key in enumerate(subject.input_keys(other)) if key in firsts]
        if not common:
            continue
        records, size = subject.splits[other], len(subject.splits[other])
        pairs = [f"{records.places[number]} = {subject.splits[one].places[first]}" for number, first in common[:3]]
        trained = one == "train"
        level = "error" if trained and len(common) >= 0.01 * size else "warning"
        report.add(
            "P604",
            f"{tell_share(len(common), size)} of the {other} split have the {subject.input_name} of a record of the "
            f"{one} split",
            "; ".join(pairs) + (" …" if len(common) > 3 else ""),
            level=level if len(common) >= _FEW * size else "note",
            why=None if trained else "The checkpoint is chosen by records that it is then measured on.",
        )


def _pairs_of_splits(subject: DataSubject) -> Iterable[tuple[str, str]]:
    names = list(subject.splits)
    return [(one, other) for number, one in enumerate(names) for other in names[number + 1 :]]


def check_near_duplicates(subject: DataSubject, report: Report) -> None:
    """
    Report records that share most of their word 5-grams with an earlier one, by MinHash (Broder, 1997) and LSH.

    Exact duplicates are left out, and of equal contexts of questions all but the first.
    """
    entries = _distinct_texts(subject)
    if len(entries) > MOST_TEXTS:
        step = len(entries) / MOST_TEXTS
        report.facts["near duplicates"] = f"looked for among {MOST_TEXTS:,} of {len(entries):,} different texts"
        entries = [entries[int(number * step)] for number in range(MOST_TEXTS)]
    near = find_near_duplicates([text for _, _, text in entries])
    within: dict[str, list[tuple[int, int]]] = {}
    across: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, first in near:
        (split, record, _), (first_split, first_record, _) = entries[number], entries[first]
        if split == first_split:
            within.setdefault(split, []).append((record, first_record))
        else:
            across.setdefault((first_split, split), []).append((record, first_record))
    for split, pairs in within.items():
        report.add("P603", f"{tell_share(len(pairs), len(subject.splits[split]))} of the {split} split share "
                   f"{SIMILARITY:.0%} of their word {SHINGLE}-grams with an earlier one",
                   _tell_pairs(subject, pairs, split, split))  # fmt: skip
    for (first_split, split), pairs in across.items():
        size = len(subject.splits[split])
        report.add("P604", f"{tell_share(len(pairs), size)} of the {split} split are nearly equal to one of the "
                   f"{first_split} split: {SIMILARITY:.0%} of their word {SHINGLE}-grams",
                   _tell_pairs(subject, pairs, split, first_split),
                   level="warning" if first_split == "train" and len(pairs) >= 0.01 * size else "note")  # fmt: skip


def _tell_pairs(subject: DataSubject, pairs: Sequence[tuple[int, int]], split: str, first_split: str) -> str:
    places, first_places = subject.splits[split].places, subject.splits[first_split].places
    listed = [f"{places[number]} ≈ {first_places[first]}" for number, first in pairs[:3]]
    return "; ".join(listed) + (" …" if len(pairs) > 3 else "")


def _distinct_texts(subject: DataSubject) -> list[tuple[str, int, str]]:
    """Split, number and text of the records whose text is not the same as an earlier one's."""
    seen: set[int] = set()
    entries = []
    for split in subject.splits:
        for number, text in enumerate(subject.compared_texts(split)):
            key = hash(normalise(text))
            if key not in seen:
                seen.add(key)
                entries.append((split, number, text))
    return entries


def find_near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """
    Returns numbers of texts that are nearly equal to an earlier one, with the number of that.

    Of texts that are all nearly equal only the first is compared with later ones, so that a thousand variants of one
    text cost a thousand comparisons and not a million.
    """
    shingles, numbers = [], []
    vocabulary: dict[str, int] = {}
    for number, text in enumerate(texts):
        words = _WORD.findall(text.casefold())[:MOST_WORDS]
        if len(words) >= _FEWEST_WORDS:
            shingles.append(_hash_shingles([vocabulary.setdefault(word, len(vocabulary)) for word in words]))
            numbers.append(number)
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    hashes: dict[int, MinHash] = {}
    near = []
    for number, signature in zip(numbers, MinHash.generator(shingles, num_perm=PERMUTATIONS, hashfunc=int)):
        similar = [other for other in index.query(signature) if signature.jaccard(hashes[other]) >= SIMILARITY]
        if similar:
            near.append((number, min(similar)))
        else:
            index.insert(number, signature, check_duplication=False)
            hashes[number] = signature
    return near


def _hash_shingles(words: Sequence[int]) -> np.ndarray:
    """Returns a hash of 32 bits for each run of `SHINGLE` words."""
    ids = np.asarray(words, dtype=np.uint64) + np.uint64(1)
    count = len(ids) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        # Fibonacci hashing: an odd multiplier of 64 bits mixes all bits of what came so far.
        hashes = (hashes ^ ids[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes >> np.uint64(32)

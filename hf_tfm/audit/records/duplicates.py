"""Duplicates of records, exact and near, within a split and between splits; equal texts with different labels."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ..report import Report
from .subject import DataSubject, Part, add_parts, list_pairs, list_places, tell_share
from .texts import input_of, normalise


SIMILARITY = 0.8  # of the sets of shingles (Jaccard)
SHINGLE = 5  # words
PERMUTATIONS = 64
MOST_TEXTS = 100_000
MOST_WORDS = 500  # of a text
# Texts of fewer words differ in most shingles as soon as one word differs, or are equal by chance.
FEWEST_WORDS = 12
# In scripts without blanks each character is taken for a word: Thai, Lao, Burmese, Khmer, kana, ideographs.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
# Shares of a split from which equal records are a fault, or chance below.
_MANY, _FEW = 0.01, 0.002
_SHORT = 5  # words of a text that people write several times
# Jobs in which equal inputs have one right outcome. People translate and reply in several ways.
_ONE_OUTCOME = ("classification", "tags", "choices", "pairs")


def check_duplicates(subject: DataSubject, report: Report) -> None:
    """Report records that a split has more than once; those of a split that measures weigh little."""
    parts = []
    for split, records in subject.splits.items():
        keys = list(zip(subject.input_keys(split), subject.outcome_keys(split)))
        firsts: dict[tuple[int, int], int] = {}
        repeated = [number for number, key in enumerate(keys) if firsts.setdefault(key, number) != number]
        if repeated:
            is_much = split == "train" and len(repeated) >= _MANY * len(records)
            pairs = [(records.places[number], records.places[firsts[keys[number]]]) for number in repeated]
            parts.append(Part("warning" if is_much else "note",
                              f"{tell_share(len(repeated), len(records))} of the {split} split repeat an earlier one, "
                              "whatever its case and blanks", list_pairs(pairs, "=")))  # fmt: skip
    add_parts(report, "P602", parts)


def check_conflicts(subject: DataSubject, report: Report) -> None:
    """Report equal texts that have different labels, and preferences that contradict one another."""
    if subject.job not in (*_ONE_OUTCOME, "preferences"):
        return
    find = _contradictions if subject.job == "preferences" else _conflicting_labels
    parts = []
    for split, records in subject.splits.items():
        if conflicting := find(subject, split):
            is_much = len(conflicting) >= _MANY * len(records)
            parts.append(Part("warning" if is_much else "note",
                              f"{tell_share(len(conflicting), len(records))} of the {split} split have a text that "
                              "another one has with another label", list_places(records, conflicting)))  # fmt: skip
    add_parts(report, "P613", parts)


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
    parts = []
    for first, second in _pairs_of_splits(subject):
        firsts: dict[int, int] = {}
        for number, key in enumerate(subject.input_keys(first)):
            firsts.setdefault(key, number)
        keys, records = subject.input_keys(second), subject.splits[second]
        common = [number for number, key in enumerate(keys) if key in firsts]
        if not common:
            continue
        chance = _by_chance(subject, first, second)
        telling = sum(keys[number] not in chance for number in common)
        level = "error" if first == "train" else "warning"
        if telling < _MANY * len(records):
            level = "warning" if telling >= _FEW * len(records) else "note"
        short = len(common) - telling
        pairs = [(records.places[number], subject.splits[first].places[firsts[keys[number]]]) for number in common]
        parts.append(Part(level, f"{tell_share(len(common), len(records))} of the {second} split have the "
                          f"{subject.input_name} of a record of the {first} split"
                          + (f" ({short:,} of them a few words that occur often)" if short else ""),
                          list_pairs(pairs, "=")))  # fmt: skip
    add_parts(report, "P604", parts)


def _by_chance(subject: DataSubject, first: str, second: str) -> set[int]:
    """Keys of inputs of a few words that one of two splits has several times, such as "Thank you."."""
    return {
        key for split in (first, second) for key, count in Counter(subject.input_keys(split)).items() if count > 1
    } & {
        key
        for key, record in zip(subject.input_keys(second), subject.splits[second])
        if len(input_of(subject.job, record).split()) <= _SHORT
    }


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
    add_parts(report, "P603", [
        Part("note", f"{tell_share(len(pairs), len(subject.splits[split]))} of the {split} split share "
             f"{SIMILARITY:.0%} of their word {SHINGLE}-grams with an earlier one",
             _tell_pairs(subject, pairs, split, split))
        for split, pairs in within.items()
    ])  # fmt: skip
    add_parts(report, "P604", [
        Part("warning" if first == "train" and len(pairs) >= _MANY * len(subject.splits[split]) else "note",
             f"{tell_share(len(pairs), len(subject.splits[split]))} of the {split} split are nearly equal to one of "
             f"the {first} split: {SIMILARITY:.0%} of their word {SHINGLE}-grams",
             _tell_pairs(subject, pairs, split, first))
        for (first, split), pairs in across.items()
    ])  # fmt: skip


def _tell_pairs(subject: DataSubject, pairs: Sequence[tuple[int, int]], split: str, first_split: str) -> str:
    places, first_places = subject.splits[split].places, subject.splits[first_split].places
    return list_pairs([(places[number], first_places[first]) for number, first in pairs], "≈")


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
    from datasketch import MinHash, MinHashLSH

    numbers: list[int] = []  # of the texts that are long enough

    def read_shingles() -> Iterator[list[bytes]]:
        for number, text in enumerate(texts):
            words = _WORD.findall(text.lower())[:MOST_WORDS]
            if len(words) >= FEWEST_WORDS:
                numbers.append(number)
                yield [" ".join(words[start : start + SHINGLE]).encode() for start in range(len(words) - SHINGLE + 1)]

    index = MinHashLSH(SIMILARITY, num_perm=PERMUTATIONS)
    indexed: dict[int, MinHash] = {}
    near = []
    signatures = MinHash.generator(read_shingles(), num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    for place, signature in enumerate(signatures):
        number = numbers[place]
        candidates = index.query(signature)
        similar = [earlier for earlier in candidates if indexed[earlier].jaccard(signature) >= SIMILARITY]
        if similar:
            near.append((number, min(similar)))
        else:
            indexed[number] = signature
            index.insert(number, signature, check_duplication=False)
    return near

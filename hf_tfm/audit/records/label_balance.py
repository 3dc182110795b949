"""Labels of records: their shares, those of one split only, their order in the file, and schemes of tags."""

from collections import Counter
from itertools import groupby

from ...data.records import Records
from ..report import Report
from .subject import DataSubject, Part, add_parts, list_places, tell_share
from .texts import has_scores, labels_of


LISTED_LABELS = 10
# A label that should occur this often in a split by its share elsewhere, and does not, is missing by more than chance
# (a Poisson variable of this mean is 0 in 1 of 150 cases).
_EXPECTED = 5
_NEVER_LEARNED = 0.005  # share of a split that has labels which the training split lacks
_MOST_FREQUENT, _FEWEST, _FEW_RECORDS = 0.8, 4, 20


def check_labels_of_data(subject: DataSubject, report: Report) -> None:
    """Report labels that are alone, out of balance, sorted, or in one split only."""
    counts = {split: count_labels(subject, split) for split in subject.splits}
    if not any(counts.values()):
        return
    for split, records in subject.splits.items():
        _tell_labels(split, records, counts[split], report, words=subject.job == "tags")
    _report_missing(subject, counts, report)
    if subject.job == "tags":
        _check_scheme(subject, report)
    elif subject.job == "classification":
        _report_order(subject, report)


def count_labels(subject: DataSubject, split: str) -> Counter[str]:
    """Returns the number of records that have each label; of scores none."""
    records = subject.splits[split]
    if subject.job == "classification" and has_scores([record.get("label") for record in records]):
        return Counter()
    return Counter(label for record in records for label in labels_of(subject.job, record))


def _tell_labels(split: str, records: Records, counts: Counter[str], report: Report, words: bool) -> None:
    """Tell the shares of labels, and report one that is alone, or too frequent unless it is that of `words`."""
    listed = [f"{label} {count / len(records):.1%}" for label, count in counts.most_common(LISTED_LABELS)]
    rest = f", … ({len(counts):,} labels)" if len(counts) > LISTED_LABELS else ""
    report.facts[f"{split} labels"] = ", ".join(listed) + rest
    label, count = counts.most_common(1)[0]
    if len(counts) == 1 and len(records) >= _FEWEST:
        level = None if split == "train" else "warning"
        report.add("P117", f"all {len(records):,} records of the {split} split have the label {label!r}", level=level)
    elif count >= _MOST_FREQUENT * len(records) and not words and len(records) >= _FEW_RECORDS:
        report.add("P605", f"{tell_share(count, len(records))} of the {split} split have the label {label!r}")


def _report_missing(subject: DataSubject, counts: dict[str, Counter[str]], report: Report) -> None:
    """Report labels of a split that another split lacks, though it should have them by their share."""
    parts = []
    for split, present in counts.items():
        for other, labels in counts.items():
            missing = [label for label in present if label not in labels]
            if split == other or not missing or "train" not in (split, other):
                continue
            expected = {
                label: present[label] / len(subject.splits[split]) * len(subject.splits[other]) for label in missing
            }
            is_much = max(expected.values()) >= _EXPECTED
            if other == "train":  # such a label is never learned
                is_much = sum(present[label] for label in missing) >= _NEVER_LEARNED * len(subject.splits[split])
            listed = ", ".join(f"{label!r} ({present[label]:,})" for label in missing[:LISTED_LABELS])
            more = " …" if len(missing) > LISTED_LABELS else ""
            parts.append(Part("warning" if is_much else "note",
                              f"{len(missing):,} of {len(present):,} labels of the {split} split do not occur in the "
                              f"{other} split: {listed}{more}", ""))  # fmt: skip
    add_parts(report, "P606", parts)


def _report_order(subject: DataSubject, report: Report) -> None:
    """Report records that are sorted by their label."""
    ordered = []
    for split, records in subject.splits.items():
        labels = [str(labels_of(subject.job, record)) for record in records]
        runs, different = sum(1 for _ in groupby(labels)), len(set(labels))
        if 1 < different <= runs <= 1.5 * different and len(labels) >= max(_FEW_RECORDS, 5 * runs):
            ordered.append(f"the {len(labels):,} records of the {split} split stand in {runs} runs of equal labels")
    if ordered:
        report.add("P616", "; ".join(ordered))


def _check_scheme(subject: DataSubject, report: Report) -> None:
    """Report tags without a prefix among others with one, and I- tags that continue nothing."""
    for split, records in subject.splits.items():
        tags = Counter(str(tag) for record in records for tag in record["tags"])
        prefixed = [tag for tag in tags if tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-", "M-")]
        if not prefixed:
            continue
        bare = [tag for tag in tags if tag not in prefixed and tag not in ("O", "_")]
        if bare:
            report.add("P620", f"tags of the {split} split without a prefix among others with one: "
                       f"{', '.join(f'{tag!r} ({tags[tag]:,})' for tag in bare[:LISTED_LABELS])}")  # fmt: skip
        begins = sum(tags[tag] for tag in prefixed if tag[:2] in ("B-", "S-", "U-"))
        orphans = [
            (number, count) for number, record in enumerate(records) if (count := _count_orphans(record["tags"]))
        ]
        total = sum(count for _, count in orphans)
        if total:
            # Where most entities begin with I-, as in CoNLL-2003's own files, that is the scheme (IOB1).
            report.add("P620", f"{tell_share(total, total + begins, 'entities')} of the {split} split begin with an I-",
                       list_places(records, [number for number, _ in orphans]),
                       level=None if 0.01 * begins <= total < begins else "note")  # fmt: skip


def _count_orphans(tags: list[str]) -> int:
    """Number of I- tags (M- and E- too) behind another type or behind none."""
    orphans, previous = 0, "O"
    for tag in map(str, tags):
        if tag[:2] in ("I-", "M-", "E-", "L-") and (
            previous[2:] != tag[2:] or previous[:2] in ("E-", "S-", "L-", "U-")
        ):
            orphans += 1
        previous = tag
    return orphans

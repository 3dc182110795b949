"""Forms of classification as other programs write them: Label Studio, doccano, the Stanford Sentiment Treebank."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..tables import BadRow
from .form import FormRow, NoRecord, Placed, Reading, Record, lines, rows


_LABELS = ("label_name", "label_text", "label")
_TREE = re.compile(r"\((\S+) .*\)")
_LEAF = re.compile(r"\(\S+ ([^()\s]+)\)")
_BRACKETS = {"-LRB-": "(", "-RRB-": ")"}


def _choices(annotation: Mapping[str, Any]) -> list[Any]:
    """The classes that an annotation of Label Studio gives to the whole text."""
    results = [result for result in annotation["result"] if result.get("type") == "choices"]
    return [choice for result in results for choice in result["value"]["choices"]]


@rows(
    "classification",
    "label-studio",
    "an export of Label Studio: data with the text, annotations with results of the type choices",
    {"text": ("data.text", "data.content", "data.sentence"), "label": ("annotations", "completions")},
    recognise=lambda sample: sample.reading.labelled,
    shape=lambda values: any(_choices(annotation) for annotation in values["label"]),
    example={
        "export.json": '[{"id": 1, "data": {"text": "It rains."}, "annotations": [{"result": [\n'
        '{"type": "choices", "value": {"choices": ["weather"]}}]}]}]'
    },
    gives=[{"text": "It rains.", "label": ["weather"]}],
)
def read_label_studio_choices(row: FormRow) -> Record:
    """Of several annotations the first one that was not cancelled is read."""
    annotations = [annotation for annotation in row["label"] if not annotation.get("was_cancelled")]
    if not annotations:
        raise NoRecord("no annotation that was not cancelled")
    if len(annotations) > 1:
        row.sample.count("texts have several annotations: the first one is read")
    return {"text": row.text("text"), "label": _checked(_choices(annotations[0]), row)}


@rows(
    "classification",
    "doccano-annotations",
    "an export of doccano before version 1.3: a text with annotations, which have a label each",
    {"text": ("text",), "label": ("annotations",)},
    recognise=lambda sample: sample.reading.labelled,
    shape=lambda values: all(
        "label" in annotation and "start_offset" not in annotation for annotation in values["label"]
    ),
    example={"export.jsonl": '{"id": 1, "text": "It rains.", "annotations": [{"label": 2, "user": 1}]}\n'},
    gives=[{"text": "It rains.", "label": ["2"]}],
)
def read_doccano_annotations(row: FormRow) -> Record:
    """Labels of several users are read once each; names are read where the export has them beside numbers."""
    labels = [next(note[name] for name in _LABELS if note.get(name) is not None) for note in row["label"]]
    return {"text": row.text("text"), "label": _checked(list(dict.fromkeys(labels)), row)}


def _checked(labels: Sequence[Any], row: FormRow) -> list[str]:
    if not labels:
        raise NoRecord(f"no label, field {row.names['label']!r} has none for the text")
    return [str(label) for label in labels]


@lines(
    "classification",
    "sentiment-trees",
    "the Stanford Sentiment Treebank's own files: a tree a line, whose root has the label",
    lambda sample: (
        all(_TREE.fullmatch(line.strip()) and _LEAF.search(line) for line in sample if line.strip()) and any(sample)
    ),
    suffixes=(".txt", ".ptb"),
    example={"trees/train.txt": "(3 (2 (2 The) (2 song)) (4 (2 is) (4 fine)))\n(1 (2 It) (1 rains))\n"},
    gives=[{"text": "The song is fine", "label": "3"}, {"text": "It rains", "label": "1"}],
)
def read_sentiment_trees(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    """The words stand with blanks between them, with brackets for -LRB- and -RRB- and slashes for `\\/`."""
    for place, line in placed:
        if not line.strip():
            continue
        tree, words = _TREE.fullmatch(line.strip()), _LEAF.findall(line)
        if tree is None or not words:
            yield place, BadRow("the line is no tree in brackets", f"{line!r:.40}")
            continue
        text = " ".join(_BRACKETS.get(word, word.replace("\\/", "/")) for word in words)
        yield place, {"text": text, "label": tree[1]} if reading.labelled else {"text": text}

"""Forms of tagging with spans of a text (doccano, Label Studio, spaCy, Prodigy), which are laid on its words."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..records import as_list
from ..tables import BadRow
from ..text import find_words
from .form import FormRow, NoRecord, Record, Sample, check_text, rows, skip_rejected


_STARTS = ("start", "start_offset", "start_char", "begin")
_ENDS = ("end", "end_offset", "end_char", "stop")
_LABELS = ("label", "labels", "tag", "type", "entity", "entity_group", "entity_type", "category", "class")
_TEXTS = ("text", "data", "sentence", "content", "document", "data.text")
_FIELDS = ("entities", "spans", "ents", "label", "labels", "annotations", "tags", "ner", "ner_tags")
_ANN = [{"tokens": ["Ann", "sang", "in", "Bonn", "."], "tags": ["B-PER", "O", "O", "B-LOC", "O"]}]


class Span(NamedTuple):
    """A part of a text with its label; `text` is what its annotator saw there, if the file tells it."""

    start: int
    end: int
    label: str
    text: str | None = None


def read_span(value: Any) -> Span | None:
    """Returns a span as programs write it: [start, end, label], or a mapping with such fields; None for others."""
    text = None
    if isinstance(value, Mapping):
        start, end, label = (
            next((value[name] for name in names if value.get(name) is not None), None)
            for names in (_STARTS, _ENDS, _LABELS)
        )
        text = value.get("text")
    elif isinstance(value, (list, tuple)) and len(value) == 3:
        start, end, label = value
    else:
        return None
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not (isinstance(start, int) and isinstance(end, int)) or isinstance(start, bool) or isinstance(end, bool):
        return None
    if not isinstance(label, str) or not label.strip():
        return None
    return Span(start, end, label.strip(), text if isinstance(text, str) else None)


def _are_spans(value: Any) -> bool:
    spans = as_list(value)
    return spans is not None and all(map(read_span, spans))


@rows(
    "tags",
    "spans",
    "a text with spans: [start, end, tag], or start, end and label (doccano, spaCy, Prodigy, Label Studio's JSON-MIN)",
    {"text": _TEXTS, "tags": _FIELDS},
    recognise=lambda sample: (
        sample.reading.labelled and any(_are_spans(row.get(sample.name_of("tags", _FIELDS))) for row in sample.rows)
    ),
    shape=lambda values: isinstance(values["text"], str) and (values["tags"] is None or _are_spans(values["tags"])),
    example={
        "doccano.jsonl": '{"text": "Ann sang in Bonn.", "label": [[0, 3, "PER"], [12, 16, "LOC"]]}\n',
        "spacy.jsonl": '["Ann sang in Bonn.", {"entities": [[0, 3, "PER"], [12, 16, "LOC"]]}]\n',
    },
    gives=_ANN * 2,
)
def read_text_and_spans(row: FormRow) -> Record:
    skip_rejected(row)
    text, name = row.text("text"), row.names["tags"]
    if row.get("tags") is None and "annotator" in row.row:
        row.sample.count("texts of Label Studio have no spans")
        value: list[Any] | None = []
    else:
        value = as_list(row["tags"])
    if value is None:
        raise BadRow(f"field {name!r} is no list of spans", f"{row['tags']!r:.40}")
    tokens = row.raw("tokens")
    words = _places_of(tokens, text) if isinstance(tokens, list) else find_words(text)
    return tag_spans(text, _read_spans(value, f"field {name!r}"), row.sample, words)


@rows(
    "tags",
    "label-studio",
    "an export of Label Studio: data with the text, annotations with results of the type labels",
    {"text": ("data.text", "data.content", "data.sentence"), "tags": ("annotations", "completions")},
    recognise=lambda sample: sample.reading.labelled,
    shape=lambda values: all(_may_have_spans(annotation["result"]) for annotation in values["tags"]),
    example={
        "export.json": '[{"id": 1, "data": {"text": "Ann sang in Bonn."}, "annotations": [{"result": [\n'
        '{"type": "labels", "value": {"start": 0, "end": 3, "text": "Ann", "labels": ["PER"]}},\n'
        '{"type": "labels", "value": {"start": 12, "end": 16, "text": "Bonn", "labels": ["LOC"]}}]}]}]'
    },
    gives=_ANN,
)
def read_label_studio(row: FormRow) -> Record:
    """Of several annotations the first one that was not cancelled is read."""
    text = row.text("text")
    annotations = [annotation for annotation in row["tags"] if not annotation.get("was_cancelled")]
    if not annotations:
        raise NoRecord("no annotation that was not cancelled")
    if len(annotations) > 1:
        row.sample.count("texts have several annotations: the first one is read")
    results = [result for result in annotations[0]["result"] if _is_span(result)]
    if len(results) < len(annotations[0]["result"]):
        row.sample.count("texts have results that are no spans, which are left out")
    return tag_spans(text, _read_spans([result.get("value") for result in results], "the result"), row.sample)


def _is_span(result: Mapping[str, Any]) -> bool:
    return result.get("type", "labels").endswith("labels")


def _may_have_spans(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are spans or nothing: choices alone are classes of the text."""
    return not results or any(map(_is_span, results))


@rows(
    "tags",
    "spacy-json",
    "spaCy 2's JSON: paragraphs with sentences of tokens, which have orth and ner (BILUO)",
    {"tags": ("paragraphs",)},
    recognise=lambda sample: sample.reading.labelled,
    shape=lambda values: all("sentences" in paragraph for paragraph in values["tags"]),
    example={
        "train.json": '[{"id": 0, "paragraphs": [{"sentences": [{"tokens": [{"orth": "Ann", "ner": "U-PER"}, '
        '{"orth": "sang", "ner": "O"}]}]}]}]'
    },
    gives=[{"tokens": ["Ann", "sang"], "tags": ["U-PER", "O"]}],
)
def read_spacy_json(row: FormRow) -> list[Record | BadRow]:
    records: list[Record | BadRow] = []
    for paragraph in row["tags"]:
        for number, sentence in enumerate(paragraph.get("sentences") or [], 1):
            tokens = sentence.get("tokens") or []
            words, tags = ([token.get(name) for token in tokens] for name in ("orth", "ner"))
            if words and all(isinstance(part, str) and part.strip() for part in (*words, *tags)):
                records.append({"tokens": words, "tags": tags})
            else:
                records.append(BadRow("a token has no orth or no ner", part=f"sentence {number}"))
    return records


def _read_spans(values: Sequence[Any], where: str) -> list[Span]:
    spans = []
    for value in values:
        span = read_span(value)
        if span is None:
            raise BadRow(f"{where} has an entry that is no span with start, end and label", f"{value!r:.60}")
        spans.append(span)
    return spans


def _places_of(tokens: Sequence[Any], text: str) -> list[tuple[int, int]]:
    """The places of the tokens that spaCy and Prodigy write."""
    places = [
        (token["start"], token["end"])
        for token in tokens
        if isinstance(token, Mapping) and isinstance(token.get("start"), int) and isinstance(token.get("end"), int)
    ]
    if len(places) != len(tokens) or any(not text[start:end] for start, end in places):
        raise BadRow("a token has no start and end in the text")
    return [(start, end) for start, end in places if text[start:end].strip()]


def tag_spans(
    text: str, spans: Sequence[Span], sample: Sample, words: Sequence[tuple[int, int]] | None = None
) -> Record:
    """
    Returns the words of a text, with tags B- and I- for those in spans. A word that a span begins or ends in is cut
    there; of spans that overlap the longest stay. Both are counted.

    Raises:
        BadRow: A span is not in the text, is blank, or has another text there than its annotator saw.
    """
    check_text(text, "the text")
    placed = [_place(span, text, sample) for span in spans]
    kept: list[Span] = []
    for span in sorted(dict.fromkeys(placed), key=lambda span: (span.start - span.end, span.start)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
        else:
            sample.count("spans overlap a longer one, and are left out")
    kept.sort()
    cuts = {place for span in kept for place in (span.start, span.end)}
    tokens, tags = [], []
    for start, end in words or find_words(text) or [(0, len(text))]:
        inside = sorted(place for place in cuts if start < place < end)
        if inside:
            sample.count("words are cut, because a span begins or ends in them")
        for first, last in zip([start, *inside], [*inside, end]):
            span = next((span for span in kept if span.start <= first < span.end), None)
            tokens.append(text[first:last])
            tags.append("O" if span is None else f"{'B' if first == span.start else 'I'}-{span.label}")
    return {"tokens": tokens, "tags": tags}


def _place(span: Span, text: str, sample: Sample) -> Span:
    """A span without blanks at its ends, counted in characters of Python."""
    start, end, label, seen = span
    shown = f"{label} {start}–{end} in a text of {len(text)} characters"
    if seen is not None and text[start:end] != seen:
        start, end = (
            len(text.encode("utf-16-le")[: 2 * place].decode("utf-16-le", "ignore")) for place in (start, end)
        )
        if text[start:end] != seen:
            raise BadRow("a span has another text than the one at its place", f"{seen!r:.30} at {shown}")
        sample.count("spans are counted in UTF-16, as JavaScript does: placed by their text")
    if not 0 <= start < end <= len(text):
        raise BadRow("a span is not in the text", shown)
    inside = text[start:end]
    if not inside.strip():
        raise BadRow("a span is blank", shown)
    start += len(inside) - len(inside.lstrip())
    return Span(start, start + len(inside.strip()), label)

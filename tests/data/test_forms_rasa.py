"""Rasa's nlu.yml gives classes by intent and tags by marked entities."""

import pytest

from hf_tfm import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records
from hf_tfm.data.tables import ReadingOptions


NLU = """version: "3.1"

nlu:
- intent: yes
  examples: |
    - yes
    - right, thank you: "fine"
- intent: chat+weather
  examples:
  - text: |
      Is it hot?
- intent: search
  examples: |
    - a place in the [north](area:role) of town
    - [chines]{"entity": "cuisine", "value": "chinese"} food in [New York](city)
- synonym: chinese
  examples: |
    - chines
- regex: zip
  examples: |
    - [0-9]{5}
"""
TEXTS = [
    ("yes", "yes"),
    ('right, thank you: "fine"', "yes"),
    ("Is it hot?", "chat+weather"),
    ("a place in the north of town", "search"),
    ("chines food in New York", "search"),
]


def write(tmp_path, text):
    (tmp_path / "nlu.yml").write_text(text)
    return tmp_path / "nlu.yml"


def test_intents_are_classes(tmp_path):
    records = read_records(write(tmp_path, NLU), Reading("classification"))
    assert list(records) == [{"text": text, "label": intent} for text, intent in TEXTS]
    assert records.places[-1].endswith("nlu.yml, intent search, example 2")
    assert "not read: regex, synonym" in records.reports[0].notes


def test_entities_are_tags(tmp_path):
    records = read_records(write(tmp_path, NLU), Reading("tags"))
    assert records.values("tokens")[3:] == [text.split() for text, _ in TEXTS[3:]]
    assert records.values("tags")[3:] == [
        ["O", "O", "O", "O", "B-area", "O", "O"], ["B-cuisine", "O", "O", "B-city", "I-city"],
    ]  # fmt: skip
    assert not {tag for tags in records.values("tags")[:3] for tag in tags} - {"O"}


def test_faults_are_named(tmp_path):
    bad = NLU.replace('{"entity": "cuisine", ', "{")
    with pytest.raises(InputError, match="intent search, example 2: a mark names no entity"):
        read_records(write(tmp_path, bad), Reading("tags"))
    with pytest.raises(InputError, match="nlu.yml: is no YAML: "):
        read_records(write(tmp_path, NLU + "  bad: [\n"), Reading("classification"))
    stories = write(tmp_path, "version: 3\nstories: []\n")
    with pytest.raises(InputError, match="nlu.yml: is plain text, which has no form of classification"):
        read_records(stories, Reading("classification"))
    with pytest.raises(InputError, match="nlu.yml: has no list `nlu` with intents and their examples"):
        read_records(stories, Reading("classification", options=ReadingOptions(format="rasa")))

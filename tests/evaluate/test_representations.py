"""`training/compare_representations.py`: each representation against its definition, and a run from end to end."""

import json
from pathlib import Path

import compare_representations as script
import numpy as np
import pytest
import torch
from finetune_checks import write
from tiny import CORPUS, build, build_tokenizer

from hf_tfm.data.records import Records
from hf_tfm.evaluate import representations
from hf_tfm.evaluate.predict import Predictor


def test_static_and_contextual_are_means_of_vectors(tokenizer):
    model = build("TfmEncoderModel")
    predictor = Predictor(model, tokenizer, "AutoModel", {"text_field": "text"}, 32, pooling="mean")
    texts = ["the cat sat on the mat", "rain"]
    ids = tokenizer(texts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    weight = model.get_input_embeddings().weight.detach()
    np.testing.assert_allclose(
        representations.static_embeddings(predictor, texts)[0], weight[ids[0]].mean(0), atol=1e-6
    )
    with torch.no_grad():
        states = model(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0]
    records = Records([{"text": text} for text in texts], ["it"] * 2, "it")
    np.testing.assert_allclose(representations.contextual_embeddings(predictor, records)[0], states.mean(0), atol=1e-5)


def test_scaling_knows_the_training_texts_alone():
    train, test = np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[4.0, 6.0]])
    scaled, other = representations.standardize(train, test)
    np.testing.assert_allclose(scaled, [[-1, 0], [1, 0]], atol=1e-4)
    assert other[0, 0] == pytest.approx(3, abs=1e-4)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Texts about ships and about cats, which a bag of words tells apart."""
    build("TfmEncoderForMaskedLM").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    about = {"cat": CORPUS[0], "ship": CORPUS[4]}
    rows = [
        {"text": " ".join(np.random.default_rng(n).permutation(about[label].split())[:5]) + f" {label}", "label": label}
        for n in range(40)
        for label in about
    ]
    return {"train": write(tmp_path / "train.jsonl", rows[:60]), "test": write(tmp_path / "test.jsonl", rows[60:])}


def test_sets_of_one_name_or_one_label_are_refused(files, tmp_path, capsys):
    twice = ["--train_file", files["train"], files["train"], "--test_file", files["test"], files["test"]]
    assert script.main(list(map(str, ["--model", tmp_path / "model", *twice]))) == 2
    assert "two test files are called" in capsys.readouterr().err
    rows = [json.loads(line) for line in files["train"].read_text().splitlines()]
    one_each = [next(row for row in rows if row["label"] == label) for label in ("cat", "ship")]
    write(files["train"], one_each)
    assert run(files, tmp_path) == 2
    assert "2 training records are too few" in capsys.readouterr().err


def run(files: dict[str, Path], tmp_path: Path, **more: str) -> int:
    fields = {
        "model": tmp_path / "model", "train_file": files["train"], "test_file": files["test"],
        "output_dir": tmp_path / "out", **more,
    }  # fmt: skip
    return script.main([part for name, value in fields.items() for part in (f"--{name}", str(value))])


def test_a_comparison_from_end_to_end(files, tmp_path, capsys):
    assert run(files, tmp_path) == 0
    [rows] = json.loads((tmp_path / "out/results.json").read_text())["accuracy"].values()
    assert set(rows) == {
        "commonest label", "bag of words", "static", "contextual", "contextual − bag of words", "contextual − static",
    }  # fmt: skip
    assert all(row["n"] == 20 and row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert rows["commonest label"]["value"] == 0.5 and rows["bag of words"]["value"] == 1.0
    assert rows["contextual − static"]["value"] == pytest.approx(rows["contextual"]["value"] - rows["static"]["value"])
    first = capsys.readouterr().out
    assert "bag of words" in first and "n 20" in first
    assert run(files, tmp_path) == 0 and capsys.readouterr().out == first


@pytest.mark.parametrize(
    "more, message",
    [
        ({"label_field": "tag"}, "no field 'tag'"),
        ({"text_field": "words"}, "no field 'words'"),
        ({"max_train": "5"}, "max_train 5 leaves too little"),
        ({"model": "nowhere"}, "nowhere"),
        ({"output_dir": __file__}, "is a file"),
        ({"max_length": "0"}, "--max_length 0: must be at least 1"),
    ],
)
def test_wrong_input_is_one_line(files, tmp_path, capsys, more, message):
    assert run(files, tmp_path, **more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()

"""`hf-tfm predict`: every head, files, adapters, chunks; predictions equal those for single records."""

import csv
import gzip
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_checks import write
from peft import LoraConfig, get_peft_model
from tiny import build, build_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from hf_tfm.apps.cli import main
from hf_tfm.core.errors import InputError
from hf_tfm.data.forms.reader import RecordReader
from hf_tfm.data.tokens import document_ends
from hf_tfm.evaluate import predict
from hf_tfm.evaluate.predict import Predictor, open_predictor, predict_file
from hf_tfm.tasks.spans import encode_questions, find_answers
from hf_tfm.tasks.squad import Question


TEXTS = [
    "the cat sat on the mat",
    "rain",
    "who reads the last page first knows how it ends",
    "seven ships sailed south and six of them came home",
    "a small model learns what a small text can teach and then it reads again",
]
OWN = {
    "TfmEncoderForSequenceClassification": dict(num_labels=3, problem_type="single_label_classification"),
    "TfmDecoderForSequenceClassification": dict(num_labels=3, problem_type="single_label_classification"),
    "TfmEncoderForTokenClassification": dict(id2label={0: "O", 1: "B-x", 2: "I-x"}),
    "TfmEncoderForQuestionAnswering": {},
    "TfmDecoderForQuestionAnswering": {},
    "TfmEncoderForMultipleChoice": {},
    "TfmEncoderForNextSentencePrediction": {},
    "TfmEncoderForMaskedLM": {},
    "TfmEncoderForPreTraining": {},
    "TfmDecoderForCausalLM": {},
    "TfmEncoderModel": {},
    "TfmDecoderModel": {},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A tiny model of every class, each in a folder of its name."""
    root = tmp_path_factory.mktemp("models")
    for name, switches in OWN.items():
        build(name, **switches).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    return root


def run(folder: Path, records: list[dict], tmp_path: Path, *options: str, out: str = "out.jsonl") -> list[dict]:
    """The output of the command for some records."""
    source = write(tmp_path / "in.jsonl", records)
    assert main(["predict", str(folder), str(source), "--out", str(tmp_path / out), *options]) == 0
    return [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]


def outputs_alone(folder: Path, *texts: str):
    """The model's outputs for a single record, without padding."""
    predictor = open_predictor(str(folder))
    with torch.no_grad():
        return predictor.model(**predictor.tokenizer(*texts, return_tensors="pt"))


@pytest.mark.parametrize("name", ["TfmEncoderForSequenceClassification", "TfmDecoderForSequenceClassification"])
def test_one_label(folders, tmp_path, name):
    rows = run(folders / name, [{"id": n, "text": text} for n, text in enumerate(TEXTS)], tmp_path, "--top", "2")
    for number, (row, text) in enumerate(zip(rows, TEXTS, strict=True)):
        assert row["id"] == number and row["text"] == text, "records keep their order and their fields"
        shares = outputs_alone(folders / name, text).logits[0].softmax(-1)
        best = shares.topk(2)
        assert row["predicted_label"] == f"LABEL_{best.indices[0]}"
        assert row["predicted_score"] == pytest.approx(float(best.values[0]), abs=1e-5)
        assert list(row["predicted_scores"].values()) == pytest.approx(best.values.tolist(), abs=1e-5)


def test_multiple_labels_numbers_and_pairs(tmp_path):
    pairs = [{"first": text, "second": TEXTS[0]} for text in TEXTS]
    switches = ("--text-field", "first", "--text-pair-field", "second")
    for problem_type, labels in (("multi_label_classification", 4), ("regression", 1)):
        folder = tmp_path / problem_type
        build("TfmEncoderForSequenceClassification", num_labels=labels, problem_type=problem_type).save_pretrained(
            folder
        )
        build_tokenizer().save_pretrained(folder)
        for row, pair in zip(run(folder, pairs, tmp_path, *switches), pairs, strict=True):
            logits = outputs_alone(folder, pair["first"], pair["second"]).logits[0]
            if labels == 1:
                assert row["predicted_number"] == pytest.approx(float(logits), abs=1e-5)
            else:
                assert set(row["predicted_labels"]) == {f"LABEL_{n}" for n in range(4) if logits[n] > 0}
                assert row["predicted_scores"].keys() >= set(row["predicted_labels"])


def test_next_sentences(folders, tmp_path):
    folder = folders / "TfmEncoderForNextSentencePrediction"
    [row] = run(folder, [{"text": "a", "next": "b"}], tmp_path, "--text-pair-field", "next")
    share = float(outputs_alone(folder, "a", "b").logits[0].softmax(-1)[0])
    assert row["predicted_score"] == pytest.approx(share, abs=1e-5) and row["predicted_follows"] == (share > 0.5)


def test_tags_of_words_and_of_running_text(folders, tmp_path):
    folder = folders / "TfmEncoderForTokenClassification"
    lists = [{"tokens": text.split()} for text in TEXTS]
    rows = run(folder, lists, tmp_path)
    for row, text in zip(rows, TEXTS, strict=True):
        predictor = open_predictor(str(folder))
        encoded = predictor.tokenizer(text)
        logits = outputs_alone(folder, text).logits[0]
        # A word's first token begins where the word (or the blank in front of it) begins.
        starts = [encoded.char_to_token(i) for i in range(len(text)) if i == 0 or text[i] == " "]
        assert row["predicted_tags"] == [
            predictor.model.config.id2label[int(logits[column].argmax())] for column in starts
        ]
        assert all(0 < score <= 1 for score in row["predicted_scores"])
        words = [word for entity in row["predicted_entities"] for word in entity["text"].split()]
        assert len(words) == sum(tag != "O" for tag in row["predicted_tags"])
    again = run(folder, [{"text": text} for text in TEXTS], tmp_path, "--text-field", "text")
    assert [row["predicted_tags"] for row in again] == [row["predicted_tags"] for row in rows]
    [row] = run(folder, [{"text": "rain, or (so-so)?"}], tmp_path, "--text-field", "text")
    assert row["tokens"] == ["rain", ",", "or", "(", "so", "-", "so", ")", "?"]
    text = "हिन्दी, cafe\u0301s می\u200cخواهم 猫。 👩\u200d👧"
    [row] = run(folder, [{"text": text}], tmp_path, "--text-field", "text")
    assert row["tokens"] == ["हिन्दी", ",", "cafe\u0301s", "می\u200cخواهم", "猫", "。", "👩\u200d", "👧"]


@pytest.mark.parametrize("name", ["TfmEncoderForQuestionAnswering", "TfmDecoderForQuestionAnswering"])
def test_answers_with_their_positions(folders, tmp_path, name):
    questions = [{"question": "what", "context": " and ".join(TEXTS[: n + 1])} for n in range(4)]
    rows = run(folders / name, questions, tmp_path, "--top", "4", "--max-length", "32")
    predictor = open_predictor(str(folders / name))
    for row, question in zip(rows, questions, strict=True):
        examples = [Question(**question)]
        inputs, windows = encode_questions(predictor.tokenizer, predictor.model, examples, 32, 8)
        logits = []
        for inside in inputs:
            with torch.no_grad():
                out = predictor.model(**{key: torch.tensor([ids]) for key, ids in inside.items()})
            logits.append(torch.stack([out.start_logits[0], out.end_logits[0]], -1).numpy())
        [answer] = find_answers(logits, windows, [question["context"]])
        assert row["predicted_answer"] == answer.spans[0].text
        listed = row["predicted_answers"]
        assert [(span["start"], span["end"]) for span in listed] == [(s.start, s.end) for s in answer.spans[:4]]
        assert all(question["context"][span["start"] : span["end"]] == span["text"] for span in listed)
        assert listed[0]["score"] == row["predicted_score"] == pytest.approx(answer.probabilities()[0], abs=1e-4)
    refused = run(folders / name, questions, tmp_path, "--threshold", "-99999")
    assert all(row["predicted_answer"] == "" for row in refused)


def test_options(folders, tmp_path):
    folder = folders / "TfmEncoderForMultipleChoice"
    questions = [{"question": "who", "options": TEXTS[: n + 2]} for n in range(3)]
    for row, choice in zip(run(folder, questions, tmp_path), questions, strict=True):
        predictor = open_predictor(str(folder))
        pairs = predictor.tokenizer(
            ["who"] * len(choice["options"]), choice["options"], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            shares = predictor.model(**{key: value[None] for key, value in pairs.items()}).logits[0].softmax(-1)
        assert row["predicted_scores"] == pytest.approx(shares.tolist(), abs=1e-5)
        assert row["predicted_text"] == choice["options"][row["predicted_option"]]


def test_likelihoods(folders, tmp_path):
    rows = run(folders / "TfmDecoderForCausalLM", [{"text": text} for text in TEXTS], tmp_path)
    predictor = open_predictor(str(folders / "TfmDecoderForCausalLM"))
    for row, text in zip(rows, TEXTS, strict=True):
        model, tokenizer = predictor.model, predictor.tokenizer
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        begun = torch.tensor([*document_ends(tokenizer)[0][-1:], *ids])
        with torch.no_grad():
            nats = model(begun[None]).logits[0, :-1].log_softmax(-1).gather(1, begun[1:, None]).sum()
        assert row["log_likelihood"] == pytest.approx(float(nats), rel=1e-4) and row["tokens"] == len(ids)
        assert row["bits_per_byte"] == pytest.approx(-float(nats) / math.log(2) / len(text), rel=1e-4)
    for name in ("TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"):
        [row] = run(folders / name, [{"text": "rain"}], tmp_path)
        predictor = open_predictor(str(folders / name))
        whole = predictor.tokenizer("rain", return_tensors="pt")["input_ids"]
        nats = 0.0
        for place in range(1, whole.shape[1] - 1):
            masked = whole.clone()
            masked[0, place] = predictor.tokenizer.mask_token_id
            with torch.no_grad():
                nats += float(predictor.model(masked)[0][0, place].log_softmax(-1)[whole[0, place]])
        assert row["log_likelihood"] == pytest.approx(nats, rel=1e-4)


def test_embeddings_of_every_pooling(folders, tmp_path):
    records = [{"text": text} for text in TEXTS]
    for name, default in (("TfmEncoderModel", "mean"), ("TfmDecoderModel", "last")):
        for pooling in ("mean", "max", "cls", "last", None):
            rows = run(folders / name, records, tmp_path, *(["--pooling", pooling] if pooling else []))
            for row, text in zip(rows, TEXTS, strict=True):
                states = outputs_alone(folders / name, text).last_hidden_state[0]
                pooled = {"mean": states.mean(0), "max": states.amax(0), "cls": states[0], "last": states[-1]}[
                    pooling or default
                ]
                np.testing.assert_allclose(row["embedding"], pooled, atol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "max"])
def test_embeddings_are_sentence_transformers(mode, folders, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "embedder"
    shutil.copytree(folders / "TfmEncoderModel", tmp_path / "base")
    try:
        from sentence_transformers.models import Normalize, Pooling, Transformer
    except ImportError:
        pytest.skip("another layout of sentence-transformers")
    parts = [Transformer(str(tmp_path / "base")), Pooling(32, pooling_mode=mode), Normalize()]
    embedder = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    embedder.save(str(folder))
    rows = run(folder, [{"text": text} for text in TEXTS], tmp_path)
    np.testing.assert_allclose([row["embedding"] for row in rows], embedder.encode(TEXTS), atol=1e-5)


# Folders whose embeddings need more than pooling: arguments of Pooling, of modules behind it, of SentenceTransformer.
FURTHER_STEPS = {
    "default prompt": ({}, [], {"prompts": {"query": "the moon and "}, "default_prompt_name": "query"}),
    "prompt outside of the pooling": (
        {"include_prompt": False}, [], {"prompts": {"query": "the moon and "}, "default_prompt_name": "query"}
    ),
    "dense": ({}, [("Dense", {"in_features": 32, "out_features": 8})], {}),
    "weighted mean": ({"pooling_mode": "weightedmean"}, [("Normalize", {})], {}),
    "two poolings": ({"pooling_mode": ("mean", "max")}, [("Normalize", {})], {}),
    "short": ({}, [("Normalize", {})], {"truncate_dim": 5}),
    "cut": ({}, [], {"max_seq_length": 4}),
    "lower case": ({}, [], {"do_lower_case": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", FURTHER_STEPS)
def test_embeddings_equal_those_of_encode(case, folders, tmp_path):
    """Also of texts beyond the folder's length, and for a prompt, a module or a cut behind the pooling."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    pooling, behind, options = FURTHER_STEPS[case]
    of_transformer = {name: options[name] for name in ("max_seq_length", "do_lower_case") if name in options}
    parts = [
        modules.Transformer(str(shutil.copytree(folders / "TfmEncoderModel", tmp_path / "base")), **of_transformer),
        modules.Pooling(32, **{"pooling_mode": "mean", **pooling}),
        *(getattr(modules, name)(**fields) for name, fields in behind),
    ]
    options = {name: value for name, value in options.items() if name not in of_transformer}
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu", **options).save(str(tmp_path / "embedder"))
    texts = [*TEXTS, TEXTS[-1].upper(), " ".join(TEXTS * 4)]
    rows = run(tmp_path / "embedder", [{"text": text} for text in texts], tmp_path)
    expected = sentence_transformers.SentenceTransformer(str(tmp_path / "embedder"), device="cpu").encode(texts)
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)


def test_a_missing_sentence_transformers_is_named(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders / "TfmEncoderModel", tmp_path / "embedder")
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    monkeypatch.setitem(sys.modules, "hf_tfm.tasks.embeddings", None)
    with pytest.raises(InputError, match="go through Dense, which only .*pip install 'hf-tfm\\[embed\\]'"):
        open_predictor(str(folder))


def test_fields_and_lengths_come_from_the_run_record(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "TfmEncoderForSequenceClassification", folder)
    record = {"fields": {"text_field": "first", "text_pair_field": "second"}, "max_length": 12}
    (folder / "run_record.json").write_text(json.dumps(record))
    [row] = run(folder, [{"first": TEXTS[4], "second": TEXTS[2], "text": "no"}], tmp_path)
    predictor = open_predictor(str(folder))
    assert predictor.max_length == 12
    cut = predictor.tokenizer(TEXTS[4], TEXTS[2], truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        shares = predictor.model(**cut).logits[0].softmax(-1)
    assert row["predicted_score"] == pytest.approx(float(shares.max()), abs=1e-5)
    [row] = run(folder, [{"other": "rain", "second": "cat"}], tmp_path, "--text-field", "other")
    assert row["other"] == "rain"


def test_a_native_model_and_an_adapter_on_it(tmp_path):
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**size, max_position_embeddings=64, num_labels=2))
    for folder in ("base", "adapter"):
        build_tokenizer().save_pretrained(tmp_path / folder)
    model.save_pretrained(tmp_path / "base")
    plain = run(tmp_path / "base", [{"text": text} for text in TEXTS], tmp_path)
    model.name_or_path = str(tmp_path / "base")
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with torch.no_grad():
        wrapped.base_model.model.classifier.modules_to_save["default"].bias.add_(torch.tensor([0.0, 20.0]))
    wrapped.save_pretrained(tmp_path / "adapter")
    rows = run(tmp_path / "adapter", [{"text": text} for text in TEXTS], tmp_path)
    assert all(row["predicted_label"] == "LABEL_1" and row["predicted_score"] > 0.99 for row in rows) and rows != plain
    shutil.move(tmp_path / "base", tmp_path / "moved")
    assert main(["predict", str(tmp_path / "adapter"), str(tmp_path / "in.jsonl")]) == 2
    assert run(tmp_path / "adapter", [{"text": "rain"}], tmp_path, "--base", str(tmp_path / "moved"))


def test_csv_files_and_lines_on_the_screen(folders, tmp_path, capsys):
    folder = str(folders / "TfmEncoderForSequenceClassification")
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["1", 'a "cat", and\nrain'], ["2", "moon"]])
    for name, opened in (("out.csv", open), ("deep/out.csv.gz", gzip.open)):
        assert main(["predict", folder, str(tmp_path / "in.csv"), "--out", str(tmp_path / name)]) == 0
        assert "2 records" in capsys.readouterr().out
        with opened(tmp_path / name, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["text"] for row in rows] == ['a "cat", and\nrain', "moon"] and [row["id"] for row in rows] == [
            "1",
            "2",
        ]
        assert max(json.loads(rows[0]["predicted_scores"]).values()) == float(rows[0]["predicted_score"])
    assert main(["predict", folder, str(tmp_path / "in.csv")]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["predicted_label"] for row in printed] == [row["predicted_label"] for row in rows]
    assert not list(tmp_path.rglob(".*partial"))


def test_chunks_of_long_files_do_not_change_predictions(folders, tmp_path, monkeypatch):
    folder = folders / "TfmEncoderForSequenceClassification"
    records = [{"text": " ".join(TEXTS[n % 5].split()[: 1 + n % 7])} for n in range(50)]
    at_once = run(folder, records, tmp_path)
    seen, read = [], []
    monkeypatch.setattr(predict, "CHUNK", 8)
    real = RecordReader.__iter__
    monkeypatch.setattr(RecordReader, "__iter__", lambda self: (read.append(1) or item for item in real(self)))
    predictor = open_predictor(str(folder), batching={"batch_tokens": 64})
    real_call = Predictor.__call__

    def watched(predictor, records):
        seen.append((len(records), len(read)))
        return real_call(predictor, records)

    monkeypatch.setattr(Predictor, "__call__", watched)
    assert predict_file(predictor, str(tmp_path / "in.jsonl"), str(tmp_path / "again.jsonl")) == 50
    assert seen == [(8, 8 * n) for n in range(1, 7)] + [(2, 50)], "no more is read than is predicted"
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [row["predicted_label"] for row in again] == [row["predicted_label"] for row in at_once]
    for row, row_again in zip(at_once, again, strict=True):
        assert row["predicted_score"] == pytest.approx(row_again["predicted_score"], abs=1e-5)


WRONG = {
    "no folder": ("{root}/nowhere {file}", "nowhere"),
    "no file": ("{classifier} {file}.not", "no such file"),
    "empty file": ("{classifier} {empty}", "empty.jsonl: holds no records"),
    "field missing": (
        "{classifier} {file} --text-field body",
        "in.jsonl: no field 'body' (--text-field), there are text",
    ),
    "blank text later": ("{classifier} {blank}", "blank.jsonl, line 2: field 'text' is blank"),
    "kind of output": ("{classifier} {file} --out {out}/x.txt", "x.txt: the name must end in .jsonl or .csv"),
    "too long": ("{classifier} {file} --max-length 65", "max_length 65"),
    "one sentence": ("{root}/TfmEncoderForNextSentencePrediction {file}", "--text-pair-field"),
    "no words": ("{root}/TfmEncoderForTokenClassification {numbers}", "no field 'tokens' (--words-field names it)"),
    "lists as text": (
        "{root}/TfmEncoderForTokenClassification {lists} --text-field tokens",
        "--words-field tokens reads them",
    ),
    "no question": ("{root}/TfmEncoderForQuestionAnswering {file}", "no field 'question'"),
    "no options": ("{root}/TfmEncoderForMultipleChoice {file} --question-field text", "no field 'options'"),
    "pooling": ("{root}/TfmEncoderModel {file} --pooling sum", "is not one of"),
    "not finite": ("{classifier} {nan}", "nan.jsonl, line 1: a number is not finite"),
    "other fields in CSV": ("{classifier} {ragged} --out {out}/o.csv", "ragged.jsonl, line 2: has a field 'more'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_line_and_writes_nothing(folders, tmp_path, capsys, case):
    command, complaint = WRONG[case]
    files = {
        "file": [{"text": "rain"}],
        "blank": [{"text": "rain"}, {"text": " "}],
        "nan": [{"text": "rain", "x": float("nan")}],
        "ragged": [{"text": "rain"}, {"text": "rain", "more": 1}],
        "numbers": [{"number": 1}],
        "lists": [{"tokens": ["rain", "falls"]}],
        "empty": [],
    }
    names = {name: write(tmp_path / f"{'in' if name == 'file' else name}.jsonl", rows) for name, rows in files.items()}
    before = sorted(tmp_path.rglob("*"))
    words = command.format(
        root=folders, classifier=folders / "TfmEncoderForSequenceClassification", out=tmp_path, **names
    )
    try:
        code = main(["predict", *words.split()])
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    assert code == 2 and printed.err.count("\n") == 1 and complaint in printed.err, printed.err
    assert sorted(tmp_path.rglob("*")) == before and not printed.out

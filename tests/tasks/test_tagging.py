"""Fine-tuning a tagger: entities and parts of speech, words and tokens, errors for wrong input."""

import json
import random
from pathlib import Path

import evaluate_model
import finetune_tokens
import numpy as np
import pytest
import seqeval.metrics
import torch
from finetune_checks import (
    arguments,
    check_adapter,
    check_equal_training,
    check_evaluation_batches,
    check_refusal,
    check_resumption,
    check_whole_folder,
    record_of,
    write,
)
from peft import AutoPeftModelForTokenClassification
from tiny import build_tokenizer
from transformers import AutoModelForTokenClassification, AutoTokenizer

from hf_tfm.apps.cli import main
from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_rows
from hf_tfm.data.records import Records
from hf_tfm.tasks import tagging
from hf_tfm.tasks.tagging import TaggedWords
from hf_tfm.tasks.task import Split
from hf_tfm.tasks.words import WordWindow, encode_words, values_of_words
from hf_tfm.train.adapters import merge_adapter
from hf_tfm.train.finetuning_trainer import FinetuningTrainer
from hf_tfm.train.recipe import parse_recipe


PHRASES = {"animal": [["cat"], ["small", "hen"]], "ship": [["ships"], ["the", "seven", "ships"]]}
FILLERS = ["and", "a", "on", "of", "what", "them"]


def sentences(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags, kinds = [], [], []
        for _ in range(draw.randint(1, 5)):
            if draw.random() < 0.4:
                kind = draw.choice(list(PHRASES))
                phrase = draw.choice(PHRASES[kind])
                tags += [f"B-{kind}", *[f"I-{kind}"] * (len(phrase) - 1)]
                kinds += ["NAME"] * len(phrase)
                words += phrase
            else:
                words.append(draw.choice(FILLERS))
                tags.append("O")
                kinds.append("REST")
        rows.append({"tokens": words, "ner_tags": tags, "upos": kinds, "text": " ".join(words)})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write(root / "train.jsonl", sentences(80, 1))
    write(root / "test.jsonl", sentences(30, 2))
    return root


@pytest.fixture
def in_memory(monkeypatch):
    """The outputs that a run measured on its last split, before it saved the model."""
    kept = []
    real = FinetuningTrainer.predict_in_order
    monkeypatch.setattr(FinetuningTrainer, "predict_in_order", lambda *args: kept.append(real(*args)) or kept[-1])
    return kept


def tags_one_by_one(folder: Path, rows: list[dict], model=None) -> list[list[str]]:
    """The tags of each record by the folder's model, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (model or AutoModelForTokenClassification.from_pretrained(folder)).eval()
    inputs, windows = encode_words(tokenizer, 64, [row["tokens"] for row in rows])
    assert [window.record for window in windows] == list(range(len(rows))), "every record fits in one row"
    predicted = []
    for row, window in zip(inputs, windows):
        with torch.no_grad():
            logits = model(**{name: torch.tensor([ids]) for name, ids in row.items()}).logits[0]
        predicted.append([model.config.id2label[int(tag)] for tag in logits.argmax(-1)[window.columns]])
    return predicted


def test_entities_with_an_encoder(models, files, tmp_path, capsys):
    out = tmp_path / "run"
    argv = arguments(
        models / "encoder", files / "train.jsonl", out, test_file=files / "test.jsonl", num_train_epochs=5,
        baselines="true",
    )  # fmt: skip
    assert finetune_tokens.main(argv) == 0
    shown = capsys.readouterr().out
    assert "2 types of entities in 5 tags" in shown and "/B-" in shown and "dictionary" in shown
    rows = sentences(30, 2)
    predicted = tags_one_by_one(out, rows)
    actual = [row["ner_tags"] for row in rows]
    results = record_of(out)["results"]
    for name, score in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        assert results[name]["value"] == pytest.approx(getattr(seqeval.metrics, score)(actual, predicted))
    assert results["f1"]["value"] > 0.7 and results["f1 of animal"]["low"] <= results["f1 of animal"]["value"]
    assert record_of(out)["fields"]["words_field"] == "tokens"
    for folder in (out, *complete_checkpoints(out)):
        check_whole_folder(folder)
    assert "AutoModelForTokenClassification" in (out / "README.md").read_text()
    assert finetune_tokens.main(argv) == 2, "a finished run is not overwritten"


@pytest.mark.parametrize("base", ["decoder", "llama"])
def test_parts_of_speech_with_decoders(models, files, tmp_path, base):
    out = tmp_path / "run"
    argv = arguments(
        models / base, files / "train.jsonl", out, test_file=files / "test.jsonl", tags_field="upos",
        label_smoothing_factor=0.1, bf16="true", num_train_epochs=3,
    )  # fmt: skip
    assert finetune_tokens.main(argv) == 0
    rows = sentences(30, 2)
    predicted, actual = tags_one_by_one(out, rows), [row["upos"] for row in rows]
    results = record_of(out)["results"]
    assert results["accuracy"]["value"] == pytest.approx(seqeval.metrics.accuracy_score(actual, predicted))
    # "the" begins an entity or not, which a causal model cannot know yet.
    assert results["accuracy"]["value"] > 0.75 and "f1 of NAME" in results


@pytest.mark.parametrize(("variant", "base", "head"), [("lora", "encoder", "classifier"), ("dora", "llama", "score")])
def test_adapters_are_saved_with_the_whole_head(models, files, tmp_path, in_memory, variant, base, head):
    out = tmp_path / "run"
    argv = arguments(
        models / base, files / "train.jsonl", out, test_file=files / "test.jsonl", lora="true", lora_variant=variant,
        lora_rank=4, learning_rate=2e-2, num_train_epochs=3,
    )  # fmt: skip
    assert finetune_tokens.main(argv) == 0
    check_adapter(out, head)
    rows = sentences(30, 2)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = {}
    exec(code.replace('path = "."', f"path = {str(out)!r}"), loaded)
    predicted = tags_one_by_one(out, rows, loaded["model"])
    value = record_of(out)["results"]["f1"]["value"]
    assert (
        value == pytest.approx(seqeval.metrics.f1_score([row["ner_tags"] for row in rows], predicted)) and value > 0.4
    )
    auto = AutoPeftModelForTokenClassification.from_pretrained(out, num_labels=5)
    auto.config.id2label = loaded["model"].config.id2label
    assert tags_one_by_one(out, rows, auto) == predicted
    assert tags_one_by_one(out, rows, merge_adapter(loaded["model"])) == predicted


def test_the_evaluation_loss_does_not_depend_on_its_batches(models, files, tmp_path):
    def run(out: Path, **more) -> list[str]:
        return arguments(models / "encoder", files / "train.jsonl", out, validation_file=files / "test.jsonl", **more)

    check_evaluation_batches(finetune_tokens, run, tmp_path)


def test_stopped_and_resumed_run_equals_one_without_a_stop(models, files, tmp_path, monkeypatch, capsys):
    def run(out: Path, **more) -> list[str]:
        return arguments(models / "encoder", files / "train.jsonl", out, validation_file=files / "test.jsonl", **more)

    check_resumption(finetune_tokens, run, tmp_path, monkeypatch, capsys, lora="true", lora_dropout=0.1)


@pytest.mark.parametrize("base", ["bert", "decoder"])
def test_accumulated_batches_and_the_padding_side_change_nothing(models, files, tmp_path, base):
    check_equal_training(finetune_tokens, models / base, files / "train.jsonl", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "left").padding_side == "left", "the tokenizer stays what it was"


@pytest.mark.parametrize("seed", range(20))
def test_entities_are_seqevals(seed):
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(seed)
    tags = draw.choices(["O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-a"], k=30)
    assert tagging.find_entities(tags) == set(get_entities(tags))
    for letters in ("BILU", "BMES"):  # the same tags in other schemes
        renamed = [tag[0].translate(str.maketrans("BIES", letters)) + tag[1:] for tag in tags]
        assert tagging.find_entities(renamed) == tagging.find_entities(tags)


def tagging_task(names: list[str]) -> tagging.Tagging:
    task = tagging.Tagging()
    task.tags = tagging.Tags(names, {}, default=0)
    return task


def test_figures_of_tags_are_scikit_learns():
    import sklearn.metrics

    draw = random.Random(0)
    task = tagging_task(["a", "b", "c", "never"])
    actual = [draw.choices(range(3), k=draw.randint(1, 6)) for _ in range(20)]
    guess = [[tag if draw.random() < 0.6 else draw.randrange(3) for tag in tags] for tags in actual]
    flat = lambda rows: [tag for row in rows for tag in row]  # noqa: E731
    split = Split(Records([], [], ""), [tagging.TaggedWords([], tags) for tags in actual])
    figures = task.figures(guess, split)
    assert figures["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(flat(actual), flat(guess)))
    assert figures["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(flat(actual), flat(guess), average="macro"))
    estimates = task.estimates(guess, split)
    assert "f1 of a" in estimates and "f1 of never" not in estimates
    assert estimates["accuracy"].low < estimates["accuracy"].value < estimates["accuracy"].high


def test_words_have_the_tokens_of_running_text_and_none_is_lost():
    tokenizer = build_tokenizer()
    words = ["ships", "sailed", "zzz", "\u200bquestion", "unbelievable"]
    rows, [window] = encode_words(tokenizer, 64, [words])
    assert rows[0]["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert window.words == [0, 1, 2, 3, 4] and window.columns[0] == 1
    tagging.Tagging().add_labels(Split(Records([], [], ""), [TaggedWords(words, [5, 6, 7, 8, 9])], rows, [window]))
    assert [label for label in rows[0]["labels"] if label != -100] == [5, 6, 7, 8, 9]
    assert all(rows[0]["labels"][column] != -100 for column in window.columns)

    long = [f"{word}{n}" for n in range(40) for word in ("cat", "q" * (n % 7))]
    rows, windows = encode_words(tokenizer, 16, [words, long, ["q" * 99, "cat"]])
    assert all(len(row["input_ids"]) <= 16 for row in rows) and len(windows) > 5
    assert [word for window in windows if window.record == 1 for word in window.words] == list(range(len(long)))
    values = values_of_words(np.arange(16)[None].repeat(len(rows), 0), windows, [words, long, ["q", "cat"]], -1)
    assert values[2] == [1, 1] and -1 not in values[1], "a word longer than a row keeps its first tokens"
    assert tokenizer.backend_tokenizer.truncation is None

    # The first word of a row that continues a sentence has as many tokens as in the sentence.
    vocabulary = "cat mat moon small learns last page first rain roof kettle ships sailed south answer book".split()
    several = [random.Random(seed).choices(vocabulary, k=30) for seed in range(20)]
    _, windows = encode_words(tokenizer, 12, several)
    assert sum(len(window.words) for window in windows) == 600


def test_words_without_tokens_get_the_default():
    values = values_of_words(np.array([[7, 8, 9]]), [WordWindow(1, [0, 2], [1, 2])], [["a"], ["b", "", "c"]], 0)
    assert values == [[0], [8, 0, 9]]


def test_dictionary_tags_new_words_by_their_case():
    words = [["The", "cat", "sat"], ["the", "cat", "Tom"], ["a", "cat", "Ann", "dog"]]
    tags = [[0, 1, 2], [0, 1, 3], [0, 2, 3, 1]]
    assert tagging.dictionary_tags(words, tags, [["cat", "Bob", "The"], ["sat"], []]) == [[1, 3, 0], [2], []]


def test_every_form_of_words_is_read():
    for value, words in (
        (["a", "b c"], ["a", "b c"]),
        ("a b  c", ["a", "b", "c"]),
        ('["a", "b c"]', ["a", "b c"]),
        ("[ a ]", ["[", "a", "]"]),
        ("['a', \"it's\"]", ["a", "it's"]),
    ):
        [record] = read_rows([{"w": value}], Reading("tags", {"tokens": "w"}, labelled=False))
        assert record["tokens"] == words
    with pytest.raises(InputError, match="no list of words"):  # NumPy writes lists like this
        read_rows([{"w": "['EU' 'rejects']"}], Reading("tags", {"tokens": "w"}, labelled=False))


def test_every_form_of_tags_is_read(tmp_path):
    def tags_of(*tags):
        rows = [{"t": tag, "w": ["x"] * len(tag)} for tag in tags]
        return tagging.read_tags(read_rows(rows, Reading("tags", {"tokens": "w", "tags": "t"}), str(tmp_path / "f")))

    assert tags_of(["B-a", "O"], ["I-a"]).names == ["O", "B-a", "I-a"]
    assert tags_of(["N", "V", "V"]).default == 1 and not tags_of(["N", "V"]).mark_entities
    assert tags_of([0, 1], [1]).ids == {"0": 0, "1": 1}
    (tmp_path / "labels.json").write_text('{"t": ["O", "B-a", "B-rare"]}')
    task = tags_of(["B-a", "O"], [1])
    assert task.names == ["O", "B-a", "B-rare"] and task.ids["2"] == task.ids["B-rare"] == 2


def test_numbers_without_names_are_said_and_named_ones_keep_their_order(tmp_path):
    rows = [{"tokens": ["Ann", "sings"], "ner_tags": [1, 0]}]
    task, records = tagging.Tagging(), read_rows(rows, Reading("tags"), str(tmp_path / "f"))
    task.learn_labels(records)
    note, *_ = task.notes("train", task.read(records))
    assert "numbers without names" in note and "labels.json" in note and task.metrics[0] == "accuracy"
    names = ["O", "B-PER", "B-NEVER", "I-PER"]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    task.learn_labels(records)
    assert task.tags.names == names and task.metrics[0] == "f1"
    assert "numbers" not in " ".join(task.notes("train", task.read(records)))
    (tmp_path / "labels.json").unlink()
    named = read_rows([{"tokens": ["Ann", "sings"], "ner_tags": ["B-PER", "O"]}], Reading("tags"), str(tmp_path / "f"))
    named.reports[0].classes = {"tags": names}  # as the features of a Parquet file tell
    task.learn_labels(named)
    assert task.tags.names == names and task.read(named).examples[0].tags == [1, 0]


def test_spans_are_trained_and_found_in_running_text(models, tmp_path, capsys):
    """The same split of text in training, measuring and predicting; entities have their places in the text."""
    rows = [
        {"text": row["text"], "label": spans_of(row["tokens"], row["ner_tags"])} for row in sentences(160, 1)
    ]  # fmt: skip
    train, test = write(tmp_path / "train.jsonl", rows[:120]), write(tmp_path / "test.jsonl", rows[120:])
    out = tmp_path / "run"
    argv = arguments(models / "encoder", train, out, test_file=test, num_train_epochs=5)
    assert finetune_tokens.main(argv) == 0
    assert "form spans, 120 rows → 120 records" in capsys.readouterr().out
    results = record_of(out)["results"]
    assert results["f1"]["value"] > 0.7 and record_of(out)["fields"]["text_field"] == "text"
    assert (
        evaluate_model.main(["--model", str(out), "--test_file", str(test), "--output_dir", str(tmp_path / "e")]) == 0
    )
    [measured] = json.loads((tmp_path / "e" / "evaluation.json").read_text())["tasks"]
    assert measured["results"] == results
    assert main(["predict", str(out), str(test), "--out", str(tmp_path / "predicted.jsonl")]) == 0
    right = predicted = 0
    for line, row in zip((tmp_path / "predicted.jsonl").read_text().splitlines(), rows[120:], strict=True):
        entities = json.loads(line)["predicted_entities"]
        assert all(entity["text"] == row["text"][entity["start"] : entity["end"]] for entity in entities)
        found = {(entity["start"], entity["end"], entity["type"]) for entity in entities}
        right, predicted = right + len(found & set(map(tuple, row["label"]))), predicted + len(found)
    assert right / predicted == pytest.approx(results["precision"]["value"])


def spans_of(words: list[str], tags: list[str]) -> list[list]:
    spans, place = [], 0
    for word, tag in zip(words, tags):
        if tag[0] == "B":
            spans.append([place, place + len(word), tag[2:]])
        elif tag[0] == "I":
            spans[-1][1] = place + len(word)
        place += len(word) + 1
    return spans


def test_conll_files_are_trained_on(models, tmp_path, capsys):
    lines = ["-DOCSTART- -X- O", ""]
    for row in sentences(60, 1):
        lines += [f"{word} {pos} {tag}" for word, pos, tag in zip(row["tokens"], row["upos"], row["ner_tags"])] + [""]
    (tmp_path / "train.conll").write_text("\n".join(lines))
    fields = dict(tags_field="pos", max_steps=2)
    argv = arguments(models / "bert", tmp_path / "train.conll", tmp_path / "run", **fields)
    assert finetune_tokens.main([*argv, "--columns", "tokens", "pos", "ner"]) == 0
    assert "60 records" in capsys.readouterr().out
    assert set(record_of(tmp_path / "run")["model"]["config"]["label2id"]) == {"NAME", "REST"}


def test_tags_without_a_prefix_are_said_where_they_are_no_mistake_of_a_record(tmp_path):
    """Names of a file or of a model; the records themselves have prefixes."""
    (tmp_path / "labels.json").write_text('["O", "B-PER", "PER"]')
    records = Records([{"tokens": ["x", "y"], "tags": ["O", "B-PER"]}], ["line 1"], str(tmp_path / "f"))
    task = tagging.Tagging()
    task.learn_labels(records)
    assert task.metrics[0] == "accuracy"
    split = task.read(records)
    assert [*task.notes("train", split)][0].endswith("PER have no prefix")
    assert not tagging.Tags(["N", "V"], {}, 0).without_prefix


@pytest.mark.parametrize(
    ("sequences", "breaks"),
    [
        (["O B-PER I-PER O", "B-PER B-PER"], ["", ""]),
        (["O B-PER I-PER", "O I-PER", "B-LOC I-PER"], ["", "I-PER after O", "I-PER after B-LOC"]),
        (["I-PER I-PER O I-PER", "I-PER B-PER"], ["", ""]),  # IOB1
        (["S-PER I-PER", "S-PER B-PER E-PER"], ["I-PER after S-PER", ""]),
        (["B-PER I-PER E-PER S-LOC", "B-PER O", "O B-PER", "O E-PER"],
         ["", "O after B-PER", "O after B-PER", "E-PER after O"]),
        (["U-PER B-LOC I-LOC L-LOC", "B-LOC U-PER"], ["", "U-PER after B-LOC"]),
        (["B-PER M-PER M-PER E-PER", "M-PER E-PER"], ["", "M-PER after O"]),
    ],
)  # fmt: skip
def test_sequences_that_break_their_scheme_are_found(sequences, breaks):
    assert tagging.scheme_breaks([tags.split() for tags in sequences]) == breaks


def test_a_broken_scheme_is_said_with_its_place():
    rows = [["S-PER", "O"], ["S-PER", "I-PER"]]
    records = Records([{"tokens": ["x", "y"], "tags": tags} for tags in rows], ["f, line 1", "f, line 2"], "f")
    task = tagging.Tagging()
    task.learn_labels(records)
    [note] = [note for note in task.notes("train", task.read(records)) if "break" in note]
    assert note.startswith("1 train records break the scheme of their tags, first f, line 2: I-PER after S-PER")


def _set(name, value, which=slice(2, 3)):
    return lambda rows: [row.__setitem__(name, value) for row in rows[which]]


def _drop_prefix(rows):
    rows[2].update(tokens=["a", "cat"], ner_tags=["O", "animal"])


def _cut_tags(rows):
    rows[2]["ner_tags"] = rows[2]["ner_tags"][:-1]


BAD_RECORDS = {
    "counts that differ": (_cut_tags, "train.jsonl, line 3: "),
    "no words": (_set("tokens", []), "train.jsonl, line 3: field 'tokens' is no list of words, or an empty one"),
    "a number as word": (_set("tokens", ["a", 5]), "train.jsonl, line 3: field 'tokens' is no list of words"),
    "null words": (_set("tokens", None), "train.jsonl, line 3: field 'tokens' is null"),
    "NaN tag": (_set("ner_tags", [float("nan")] * 2), "line 3: a tag in field 'ner_tags' is no text (tag 1 is nan)"),
    "no prefix": (_drop_prefix, "train.jsonl, line 3: tag 2 in field 'ner_tags' is 'animal', without a prefix"),
    "null tag": (_set("ner_tags", ["O", None]), "line 3: a tag in field 'ner_tags' is no text (tag 2 is None)"),
    "no tags": (_set("ner_tags", 7), "train.jsonl, line 3: field 'ner_tags' is a int, not a list of tags"),
    "one tag": (lambda rows: [r.update(ner_tags=["O"] * len(r["tokens"])) for r in rows], "all words have the tag 'O'"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_end_in_one_line(models, tmp_path, capsys, case):
    spoil, complaint = BAD_RECORDS[case]
    rows = sentences(30, 1)
    spoil(rows)
    train, out = write(tmp_path / "train.jsonl", rows), tmp_path / "out"
    check_refusal(finetune_tokens, arguments(models / "bert", train, out), complaint, out, capsys)


def test_wrong_fields_and_tags_end_in_one_line(models, files, tmp_path, capsys):
    out = tmp_path / "out"
    unseen = write(
        tmp_path / "unseen.jsonl", [{"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": ["b"], "ner_tags": ["B-x"]}]
    )
    for changes, complaint in (
        (dict(words_field="words"), "train.jsonl: no field 'words' (--words_field), there are tokens, ner_tags, upos"),
        (
            dict(tags_field="uppos"),
            "no field 'uppos' (--tags_field), there are tokens, ner_tags, upos, text; did you mean 'upos'?",
        ),
        (dict(test_file=unseen), "unseen.jsonl, line 2: tag 'B-x' in field 'ner_tags' is not among those of training"),
        (dict(validation_file=unseen), "unseen.jsonl, line 2: tag 'B-x'"),
        (dict(metric_for_best_model="accuracy"), "must be one of f1, precision, recall, loss"),
    ):
        check_refusal(
            finetune_tokens, arguments(models / "bert", files / "train.jsonl", out, **changes), complaint, out, capsys
        )

    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow cannot tell words apart"):
        encode_words(Slow(), 64, [["a"]])


@pytest.mark.parametrize("name", ["finetune_wnut17", "finetune_ewt"])
def test_recipes_have_known_fields(name):
    path = Path(__file__).parents[2] / "training" / "recipes" / f"{name}.yaml"
    recipe, args = parse_recipe([str(path)], finetune_tokens.TaggingRecipe, finetune_tokens.FinetuningArguments)
    assert recipe.test_file and recipe.validation_file and args.output_dir

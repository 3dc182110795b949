"""Fine-tuning for multiple choice: options in every form and number, errors for wrong input."""

import csv
import random
from pathlib import Path

import finetune_multiple_choice
import numpy as np
import pytest
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
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.data.batches import RightPadding
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.records import Records
from hf_tfm.evaluate.predict import open_predictor
from hf_tfm.tasks import multiple_choice as mc
from hf_tfm.tasks.task import Split
from hf_tfm.train.adapters import merge_adapter
from hf_tfm.train.recipe import parse_recipe


FILLERS = ["the", "and", "a", "on", "of", "what", "small", "them"]


def choices(count: int, seed: int) -> list[dict]:
    """The right option is the one with ships in it, of two to four."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        options = [" ".join(draw.choices(FILLERS, k=draw.randint(1, 4))) + f" {n}" for n in range(draw.randint(2, 4))]
        right = draw.randrange(len(options))
        options[right] = f"ships {options[right]}"
        rows.append({"question": " ".join(draw.choices(FILLERS, k=3)), "options": options, "answer": "ABCD"[right]})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write(root / "train.jsonl", choices(80, 1))
    write(root / "test.jsonl", choices(30, 2))
    return root


def accuracy_one_by_one(folder: Path, rows: list[dict], model=None) -> float:
    """The accuracy of the folder's model on single records, padded only within each record's options."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (model or AutoModelForMultipleChoice.from_pretrained(folder)).eval()
    hits = 0
    for row in rows:
        pairs = tokenizer([row["question"]] * len(row["options"]), row["options"], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: tensor[None] for name, tensor in pairs.items()}).logits[0]
        hits += "ABCD"[int(logits.argmax())] == row["answer"]
    return hits / len(rows)


@pytest.mark.parametrize("base", ["encoder", "bert"])
def test_records_with_different_numbers_of_options(models, files, tmp_path, base, capsys):
    out = tmp_path / "run"
    argv = arguments(
        models / base, files / "train.jsonl", out, test_file=files / "test.jsonl", baselines="true", num_train_epochs=3,
        bf16="true", options_fields="options",
    )  # fmt: skip
    assert finetune_multiple_choice.main(argv) == 0
    shown = capsys.readouterr().out
    assert "of 2 options" in shown and "longest option" in shown and "ships" in shown
    record = record_of(out)
    right = accuracy_one_by_one(out, choices(30, 2))
    assert record["results"]["accuracy"]["value"] == pytest.approx(right) and right > 0.7
    expected = np.mean([1 / len(row["options"]) for row in choices(30, 2)])
    assert record["baselines"]["chance"]["accuracy"]["value"] == pytest.approx(expected)
    assert record["fields"]["options_fields"] == ["options"]
    for folder in (out, *complete_checkpoints(out)):
        check_whole_folder(folder)


def test_options_in_columns_of_csv(models, tmp_path):
    rows = [row for row in choices(400, 1) if len(row["options"]) == 3][:60]
    with open(tmp_path / "train.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["q", "one", "two", "three", "right"])
        table.writerows([row["question"], *row["options"], "ABC".index(row["answer"])] for row in rows)
    out = tmp_path / "run"
    argv = arguments(
        models / "encoder", tmp_path / "train.csv", out, question_field="q", answer_field="right", num_train_epochs=3
    ) + ["--options_fields", "one", "two", "three"]
    assert finetune_multiple_choice.main(argv) == 0
    assert accuracy_one_by_one(out, rows) > 0.6


def test_adapters_are_saved_with_the_whole_head(models, files, tmp_path):
    out = tmp_path / "run"
    argv = arguments(
        models / "encoder", files / "train.jsonl", out, test_file=files / "test.jsonl", lora="true", lora_rank=4,
        learning_rate=1e-2,
    )  # fmt: skip
    assert finetune_multiple_choice.main(argv) == 0
    check_adapter(out, "classifier")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = {}
    exec(code.replace('path = "."', f"path = {str(out)!r}"), loaded)
    right = accuracy_one_by_one(out, choices(30, 2), loaded["model"])
    assert record_of(out)["results"]["accuracy"]["value"] == pytest.approx(right) and right > 0.5
    assert accuracy_one_by_one(out, choices(30, 2), merge_adapter(loaded["model"])) == pytest.approx(right)
    predicted = open_predictor(str(out))(read_records(files / "test.jsonl", Reading("choices")))
    hits = [
        "ABCD"[one["predicted_option"]] == row["answer"] for one, row in zip(predicted, choices(30, 2), strict=True)
    ]
    assert np.mean(hits) == pytest.approx(right)


def test_the_evaluation_loss_does_not_depend_on_its_batches(models, files, tmp_path):
    def run(out: Path, **more) -> list[str]:
        return arguments(models / "encoder", files / "train.jsonl", out, validation_file=files / "test.jsonl", **more)

    check_evaluation_batches(finetune_multiple_choice, run, tmp_path)


def test_stopped_and_resumed_run_equals_one_without_a_stop(models, files, tmp_path, monkeypatch, capsys):
    def run(out: Path, **more) -> list[str]:
        return arguments(models / "encoder", files / "train.jsonl", out, validation_file=files / "test.jsonl", **more)

    check_resumption(finetune_multiple_choice, run, tmp_path, monkeypatch, capsys)


def test_accumulated_batches_and_the_padding_side_change_nothing(models, files, tmp_path):
    check_equal_training(finetune_multiple_choice, models / "bert", files / "train.jsonl", tmp_path)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_mean_over_records_and_ignores_missing_options(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([[2, 4], [1, 2], [0, 3]])
    expected = sum(
        F.cross_entropy(row[:options][None], answer[None], label_smoothing=smoothing)
        for row, (answer, options) in zip(logits, labels)
    )
    loss = mc.choice_loss(smoothing)
    torch.testing.assert_close(loss({"logits": logits}, labels), expected / 3)
    torch.testing.assert_close(loss({"logits": logits}, labels, num_items_in_batch=torch.tensor(20)), expected / 10)
    loss({"logits": logits}, labels).backward()
    assert logits.grad.isfinite().all() and not logits.grad[1, 2:].any() and logits.grad[2, :3].all()


def split(questions: list[mc.ChoiceQuestion]) -> Split:
    return Split(Records([], [], ""), questions)


def test_batches_have_options_as_a_dimension(tokenizer):
    several = [
        mc.ChoiceQuestion("the", "", ("cat", "small moon")),
        mc.ChoiceQuestion("a", "", ("cat", "hen", "rain fell")),
    ]
    rows = mc.encode_choices(tokenizer, several, 16)
    batch = RightPadding(tokenizer)(rows)
    assert batch["input_ids"].shape == (2, 3, 8)
    assert batch["input_ids"][0, 2].tolist() == batch["input_ids"][0, 1].tolist(), "the last option is repeated"
    assert batch["attention_mask"][1].sum(-1).tolist() == [len(row) for row in rows[1]["input_ids"]]
    assert mc.MultipleChoice().decide(np.array([[0.0, 1.0, 9.0]] * 2), split(several)).tolist() == [1, 2]


def test_a_long_context_is_cut_but_not_question_and_option(tokenizer):
    [row] = mc.encode_choices(tokenizer, [mc.ChoiceQuestion("who", "the cat " * 30, ("moon", "rain"))], 24)
    for ids, option in zip(row["input_ids"], ("moon", "rain")):
        assert len(ids) == 24 and tokenizer.decode(ids, skip_special_tokens=True).endswith(f"who {option}")
    assert tokenizer.backend_tokenizer.truncation is None


def rows_of(*rows) -> list[dict]:
    return [{"question": "q", "answer": 0, **row} for row in rows]


def test_every_form_of_answers_is_read():
    for options, answer, number in (
        (["x", "y", "z"], 2, 2),
        (["x", "y", "z"], 2.0, 2),
        (["x", "y", "z"], "1", 1),
        (["x", "y", "z"], "B", 1),
        (["x", "y", "z"], "c", 2),
        (["x", "y", "z"], "z", 2),
        (["4", "1", "0"], "1", 1),
        ([4, 1, 0], "0", 2),
        ([4, 1, 0], 0, 0),
        ('["x y", "z"]', "z", 1),
        ({"text": ["x", "y"], "label": ["B", "A"]}, "A", 1),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", 1),
    ):
        task = mc.MultipleChoice()
        records = read_rows(rows_of({"options": options, "answer": answer}), task.reading())
        [choice] = task.read(records).examples
        assert choice.answer == number, (options, answer)
    rows = rows_of({"a": "x", "b": "y", "context": "c"}, {"a": "x", "b": "y", "context": None})
    task = mc.MultipleChoice(options_fields=["a", "b"], context_field="context")
    read = task.read(read_rows(rows, task.reading(labelled=False)), labelled=False).examples
    assert [choice.options for choice in read] == [("x", "y")] * 2 and read[0].answer is None
    assert [choice.context for choice in read] == ["c", ""]


def test_baselines_follow_simple_rules():
    several = [
        mc.ChoiceQuestion("the cat sat", "", ("a dog ran far", "the cat"), 1),
        mc.ChoiceQuestion("rain", "it fell", ("fell", "something long", "x"), 1),
    ]
    figures = {
        name: row["accuracy"].value for name, row in mc.MultipleChoice().baselines(split([]), split(several)).items()
    }
    assert figures == {"chance": pytest.approx(5 / 12), "longest option": 0.5, "most words in common": 0.5}


BAD = {
    "one option": ({"options": ["x"]}, "field 'options' must hold two options or more"),
    "no list": ({"options": "x or y"}, "field 'options' must hold two options or more"),
    "blank option": ({"options": ["x", " "]}, "an option in field 'options' is no text (' ')"),
    "null option": ({"options": ["x", None]}, "an option in field 'options' is no text (None)"),
    "null options": ({"options": None}, "field 'options' is null"),
    "number too high": ({"answer": 2}, "2 of 2 options"),
    "negative": ({"answer": -2}, "-2 of 2 options"),
    "a fraction": ({"answer": 0.5}, "0.5 of 2 options"),
    "letter too high": ({"answer": "C"}, "'C' of 2 options"),
    "another text": ({"answer": "neither"}, "'neither' of 2 options"),
    "NaN": ({"answer": float("nan")}, "field 'answer' is nan"),
    "blank question": ({"question": " "}, "field 'question' is blank"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_named(case):
    change, complaint = BAD[case]
    good = {"options": ["x", "y"]}
    with pytest.raises(InputError) as error:
        mc.MultipleChoice().read(read_rows(rows_of(good, {**good, **change}), Reading("choices"), "f"))
    assert str(error.value).startswith("f, row 2: ") and complaint in str(error.value)
    assert "\n" not in str(error.value) and "--skip_bad" in str(error.value)


def test_wrong_input_ends_in_one_line(models, files, tmp_path, capsys):
    out = tmp_path / "out"
    same = write(tmp_path / "same.jsonl", [{**row, "answer": 0} for row in choices(20, 1)])
    for base, changes, complaint in (
        ("decoder", {}, "is a tfm_decoder, and AutoModelForMultipleChoice has no class for that"),
        ("llama", {}, "is a llama, and AutoModelForMultipleChoice has no class for that"),
        ("bert", dict(train_file=same), "the right option has the same number, 0, in all records"),
        ("bert", dict(context_field="story"), "no field 'story'"),
        ("bert", dict(options_fields="endings"), "--options_fields"),
        ("bert", dict(answer_field="key"), "--answer_field"),
        ("bert", dict(max_length=65), "max_length 65"),
        ("bert", dict(metric_for_best_model="f1"), "must be one of accuracy, loss"),
    ):
        changes = {"train_file": files / "train.jsonl", **changes}
        argv = arguments(models / base, changes.pop("train_file"), out, **changes)
        check_refusal(finetune_multiple_choice, argv, complaint, out, capsys)


def test_recipe_has_known_fields():
    path = Path(__file__).parents[2] / "training" / "recipes" / "finetune_multiple_choice.yaml"
    script = finetune_multiple_choice
    recipe, args = parse_recipe([str(path)], script.ChoiceRecipe, script.FinetuningArguments)
    assert recipe.test_file and recipe.validation_file and args.output_dir

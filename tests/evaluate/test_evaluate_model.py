"""The evaluation script from end to end: every kind of model and task, resumption, the card, errors."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import evaluate_model
import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from parity_table import native_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import build_tokenizer
from transformers import AutoTokenizer

from hf_tfm import TfmEncoderForMultipleChoice
from hf_tfm.artifacts.card_values import results_text
from hf_tfm.artifacts.record import RunRecord, model_facts
from hf_tfm.evaluate import language_model


WORDS = ["the", "cat", "rain", "moon", "ships", "small", "book", "six"]


def write(path: Path, rows: list[dict]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write(root / "text.jsonl.gz", [{"text": t, "source": "ab"[n % 2]} for n, t in enumerate(tiny.CORPUS[:6])])
    pairs = [
        {"sentence_good": f"the {a} {b}", "sentence_bad": f"{b} the {a}", "UID": a} for a in WORDS[:3] for b in WORDS
    ]
    write(root / "pairs.jsonl", pairs)
    rows = [{"source": a, "text": f"{a} {b}", "label": n % 2, "label_text": ["bad", "good"][n % 2]}
            for n, (a, b) in enumerate(zip(WORDS * 3, WORDS[3:] * 6))]  # fmt: skip
    write(root / "labels.jsonl", rows)
    write(root / "tags.jsonl", [{"tokens": ["the", "cat", "sat"], "tags": ["O", "B-X", "O"]}] * 3)
    answers = {"text": ["cat"], "answer_start": [4]}
    options = [WORDS[n : n + 2 + n % 2] for n in range(5)]
    write(root / "choices.jsonl", [{"question": f"{a} is?", "options": o, "answer": 1} for a, o in zip(WORDS, options)])
    write(root / "qa.jsonl", [{"question": "who sat?", "context": "the cat sat on the mat", "answers": answers}] * 3)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, model in {
        "decoder": tiny.build("TfmDecoderForCausalLM"),
        "encoder": tiny.build("TfmEncoderForMaskedLM"),
        "classifier": tiny.build("TfmEncoderForSequenceClassification", id2label={0: "bad", 1: "good"}),
        "tagger": tiny.build("TfmEncoderForTokenClassification", id2label={0: "O", 1: "B-X"}),
        "answers": tiny.build("TfmEncoderForQuestionAnswering"),
        "choices": tiny.build("TfmEncoderForMultipleChoice"),
        "base": tiny.build("TfmEncoderModel"),
        "gpt2": native_model("gpt2", "CausalLM", vocab_size=tiny.VOCAB_SIZE),
        "bert": native_model("bert", "MaskedLM", vocab_size=tiny.VOCAB_SIZE),
    }.items():
        model.save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    adapter = get_peft_model(
        tiny.build("TfmDecoderForCausalLM"), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.nn.init.normal_(adapter.get_submodule("base_model.model.model.layers.0.mlp.up_proj.lora_B.default").weight)
    adapter.peft_config["default"].base_model_name_or_path = str(root / "decoder")
    adapter.save_pretrained(root / "adapter")
    build_tokenizer().save_pretrained(root / "adapter")
    return root


def measured(model: Path, out: Path, *arguments) -> dict:
    """Run the script and return the tasks of `evaluation.json` by name."""
    assert evaluate_model.main(["--model", str(model), "--output_dir", str(out), *map(str, arguments)]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert str(model.parent) not in json.dumps(found), "results name folders of this machine"
    return {task["task"]: task for task in found["tasks"]}


@pytest.mark.parametrize("name", ["decoder", "gpt2", "adapter"])
def test_a_causal_model_is_measured_on_everything(name, models, data, tmp_path, capsys):
    tasks = measured(
        models / name, tmp_path / "out",
        "--text", data / "text.jsonl.gz", "--source_field", "source", "--window", 16,
        "--minimal_pairs", data / "pairs.jsonl",
        "--test_file", data / "labels.jsonl", "--train_file", data / "labels.jsonl", "--examples", 1,
        "--template", "{source}, {text}: {label}", "--label_words", "good=very good",
        "--prompts", "the cat", "--max_new_tokens", 4,
    )  # fmt: skip
    assert set(tasks) == {"text", "minimal pairs", "1-shot classification", "samples"}
    text = tasks["text"]
    assert set(text["results"]) == {"bits_per_byte", "perplexity", "bits_per_byte, a", "bits_per_byte, b"}
    assert text["by_source"]["all"]["bytes"] == sum(len(t) for t in tiny.CORPUS[:6]) and text["data"].endswith(
        "/text.jsonl.gz"
    )
    pairs = tasks["minimal pairs"]
    assert set(pairs["by_group"]) == {"all", *WORDS[:3]} and pairs["results"]["accuracy by log-likelihood"]["n"] == 24
    shots = tasks["1-shot classification"]
    assert shots["settings"]["words"] == ["bad", "very good"] and len(shots["results"]) == 9
    assert tasks["samples"]["samples"][0].startswith("the cat")
    for task in tasks.values():
        for figure in task["results"].values():
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] > 0
    assert "bits_per_byte" in capsys.readouterr().out


def test_adapter_differs_from_its_base(models, data, tmp_path):
    values = [
        measured(models / name, tmp_path / name, "--text", data / "text.jsonl.gz")["text"]["results"]["perplexity"]
        for name in ("decoder", "adapter")
    ]
    assert values[0]["value"] != values[1]["value"]


@pytest.mark.parametrize("name", ["encoder", "bert"])
def test_a_masked_model_is_measured_by_pseudo_likelihood(name, models, data, tmp_path, capsys):
    arguments = ["--text", data / "text.jsonl.gz", "--max_documents", 2, "--minimal_pairs", data / "pairs.jsonl"]
    measured(models / name, tmp_path, *arguments, "--pairs_per_group", 2)
    assert "reads a piece once for each token in it" in capsys.readouterr().out
    tasks = measured(models / name, tmp_path, "--minimal_pairs", data / "pairs.jsonl", "--by_word", "true")
    found = json.loads((tmp_path / "evaluation.json").read_text())["tasks"]
    assert [task["task"] for task in found] == ["text", "minimal pairs", "minimal pairs"], "earlier figures are kept"
    assert set(tasks["text"]["results"]) == {"pseudo-bits_per_byte", "pseudo-perplexity"}
    assert set(tasks["minimal pairs"]["results"]) == {"accuracy by PLL-word-l2r"}


@pytest.mark.parametrize(
    "name, arguments, metric, value",
    [
        ("classifier", ["--test_file", "labels.jsonl", "--label_field", "label_text"], "accuracy", None),
        ("tagger", ["--test_file", "tags.jsonl", "--words_field", "tokens"], "f1", None),
        ("answers", ["--test_file", "qa.jsonl"], "exact_match", None),
        ("choices", ["--test_file", "choices.jsonl"], "accuracy", None),
    ],
)
def test_heads_do_not_depend_on_the_batch(name, arguments, metric, value, models, data, tmp_path):
    arguments = [data / part if part.endswith(".jsonl") else part for part in arguments]
    figures = []
    for batch_tokens in (1, 10_000):
        task = measured(models / name, tmp_path / str(batch_tokens), *arguments, "--batch_tokens", batch_tokens)
        figures.append(next(iter(task.values()))["results"])
    assert figures[0] == figures[1] and figures[0][metric]["n"] in (24, 3, 5)


def test_accuracy_of_choices_equals_the_models_choices(models, data, tmp_path):
    model = TfmEncoderForMultipleChoice.from_pretrained(models / "choices").eval()
    tokenizer, right = AutoTokenizer.from_pretrained(models / "choices"), 0
    records = [json.loads(line) for line in (data / "choices.jsonl").read_text().splitlines()]
    for record in records:
        rows = [tokenizer(record["question"], option, return_tensors="pt").input_ids for option in record["options"]]
        with torch.no_grad():
            right += int(torch.cat([model(row[None]).logits[0] for row in rows]).argmax()) == record["answer"]
    tasks = measured(models / "choices", tmp_path, "--test_file", data / "choices.jsonl")
    assert tasks["MultipleChoice"]["results"]["accuracy"]["value"] == right / len(records)


def test_classifier_equals_the_pipeline(models, data, tmp_path):
    from transformers import pipeline

    rows = [json.loads(line) for line in (data / "labels.jsonl").read_text().splitlines()]
    guesses = pipeline("text-classification", model=str(models / "classifier"))([row["text"] for row in rows])
    right = sum(guess["label"] == row["label_text"] for guess, row in zip(guesses, rows, strict=True))
    for field in ("label", "label_text"):  # by number and by name
        results = measured(
            models / "classifier", tmp_path / field, "--test_file", data / "labels.jsonl", "--label_field", field
        )["SequenceClassification"]["results"]
        assert results["accuracy"]["value"] == right / len(rows)


def test_the_test_split_of_a_folder_is_measured(models, data, tmp_path):
    lines = (data / "labels.jsonl").read_text().splitlines()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(lines[:10]))
    (folder / "test.jsonl").write_text("\n".join(lines[10:]))
    figures = [
        measured(models / "classifier", tmp_path / name, "--test_file", path, "--label_field", "label_text")
        for name, path in (("folder's", folder), ("file's", folder / "test.jsonl"))
    ]
    one, other = (found["SequenceClassification"]["results"] for found in figures)
    assert one == other and one["accuracy"]["n"] == len(lines) - 10


def test_a_stopped_evaluation_resumes(models, data, tmp_path, monkeypatch):
    arguments = ["--minimal_pairs", data / "pairs.jsonl", "--text", data / "text.jsonl.gz"]
    whole = measured(models / "decoder", tmp_path / "whole", *arguments)
    calls = []
    real = language_model.minimal_pairs

    def dies_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(language_model, "minimal_pairs", dies_at_the_third)
    given = ["--model", models / "decoder", "--output_dir", tmp_path / "out", *arguments]
    assert evaluate_model.main([str(argument) for argument in given]) == 130
    monkeypatch.setattr(language_model, "bits_per_byte", pytest.fail)  # if it were computed again
    assert measured(models / "decoder", tmp_path / "out", *arguments) == whole
    assert len(calls) == 4, "finished groups were computed again"


def test_figures_are_added_to_the_card(models, data, tmp_path):
    model = tiny.build("TfmDecoderForCausalLM")
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    record = RunRecord("pretrain_clm", 0)
    record["model"] = model_facts(model)
    record["block_length"] = 24
    record.write(folder)
    arguments = ["--text", data / "text.jsonl.gz", "--prompts", "the cat", "--max_new_tokens", 3, "--card", "true"]
    tasks = measured(folder, tmp_path / "out", *arguments)
    assert tasks["text"]["settings"]["window"] == 24, "as in training"
    card = (folder / "README.md").read_text()
    figure = tasks["text"]["results"]["bits_per_byte"]
    assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in card
    assert f"```text\n{tasks['samples']['samples'][0]}\n```" in card


HUB = ["--label_field", "label_text", "--hub_dataset", "someone/pairs:plain:validation"]


def on_the_hub(place: Path) -> list:
    """What `.eval_results/` of a folder says, as the Hub reads it."""
    (file,) = (place / ".eval_results").iterdir()
    return parse_eval_result_entries(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("has_record", [True, False])
def test_figures_on_a_hub_data_set_are_written_for_the_hub(has_record, models, data, tmp_path):
    """They stand beside the model once somebody says which data set it is, also after other measurements."""
    folder = shutil.copytree(models / "classifier", tmp_path / "model")
    if has_record:
        record = RunRecord("finetune_classification", 0)
        record["model"] = model_facts(tiny.build("TfmEncoderForSequenceClassification"))
        record.write(folder)
    file = ["--test_file", data / "labels.jsonl", "--card", "true"]
    measured(folder, tmp_path / "out", *file)
    assert not (folder / ".eval_results").exists(), "nobody said what the file is"
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/mine.yaml").write_text("- by hand\n")
    results = measured(folder, tmp_path / "out", *file, *HUB)["SequenceClassification"]["results"]
    (folder / ".eval_results/mine.yaml").replace(tmp_path / "mine.yaml")
    (entry,) = on_the_hub(folder)
    assert (entry.dataset_id, entry.task_id) == ("someone/pairs", "plain")
    assert entry.value == results["accuracy"]["value"] and entry.date is not None
    assert entry.notes.startswith("accuracy, SequenceClassification") and entry.notes.endswith("split validation")
    measured(folder, tmp_path / "again", *file, *HUB, "--hub_task", "hard")
    assert [entry.task_id for entry in on_the_hub(folder)] == ["hard"]
    if has_record:
        found = ModelCard.load(folder / "README.md").data.eval_results
        named = {(one.dataset_type, one.dataset_config, one.dataset_split) for one in found}
        assert named - {("other", None, None)} == {("someone/pairs", "plain", "validation")}
    (tmp_path / "mine.yaml").replace(folder / ".eval_results/mine.yaml")
    measured(folder, tmp_path / "third", *file)
    assert {path.name for path in (folder / ".eval_results").iterdir()} == {"mine.yaml", "someone--pairs.yaml"}


def recorded_model(folder: Path, model_class: str) -> Path:
    """Return a folder with a run record, and therefore a card, of a model in it."""
    record = RunRecord("a run", 0)
    record["model"] = model_facts(tiny.build(model_class))
    record.write(folder)
    return folder


@pytest.mark.parametrize("arguments", [[], ["--card", "false"]])
def test_a_models_folder_is_left_alone_if_results_go_elsewhere(arguments, models, data, tmp_path):
    folder = recorded_model(
        shutil.copytree(models / "classifier", tmp_path / "m"), "TfmEncoderForSequenceClassification"
    )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    measured(folder, out, "--test_file", data / "labels.jsonl", *HUB, *arguments)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before and on_the_hub(out)


def test_figures_of_another_test_file_stand_beside_the_earlier_ones(models, data, tmp_path, monkeypatch, capsys):
    """In folder and card, by default: also of a file with the same name, and computed in another precision."""
    folder = recorded_model(
        shutil.copytree(models / "classifier", tmp_path / "m"), "TfmEncoderForSequenceClassification"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    lines = (data / "labels.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other" / "labels.jsonl").write_text("".join(lines[: len(lines) // 2]))
    files = [data / "labels.jsonl", tmp_path / "other" / "labels.jsonl"]

    def rows() -> list[tuple[str, int]]:
        tasks = json.loads((folder / "evaluation.json").read_text())["tasks"]
        return [(task["data_sha256"], task["results"]["accuracy"]["n"]) for task in tasks]

    for number, file in enumerate([*files, files[0]]):
        bf16 = ["--bf16", "true"] if number == 1 else []
        assert evaluate_model.main(["--model", str(folder), "--test_file", str(file), *bf16]) == 0
    assert sorted(n for _, n in rows()) == [len(lines) // 2, len(lines)] and len({sha for sha, _ in rows()}) == 2
    card = (folder / "README.md").read_text()
    table = [
        line for line in card.splitlines() if line.startswith("| SequenceClassification") and "| accuracy |" in line
    ]
    names = {line.split("|")[2] for line in table}
    assert len(table) == len(names) == 2, "two files of one name cannot be told apart"

    weights = load_file(folder / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert evaluate_model.main(["--model", str(folder), "--test_file", str(files[0])]) == 0
    assert "dropped    1 earlier results" in capsys.readouterr().out and len(rows()) == 1


def test_figures_of_two_runs_keep_their_commands(models, data, tmp_path, monkeypatch):
    folder = shutil.copytree(models / "decoder", tmp_path / "model")
    record = RunRecord("pretrain_clm", 0)
    record["model"] = model_facts(tiny.build("TfmDecoderForCausalLM"))
    record.write(folder)
    for number, arguments in enumerate((["--text", data / "text.jsonl.gz"], ["--prompts", "the cat"])):
        monkeypatch.setattr(sys, "argv", ["evaluate_model.py", f"--run={number}"])
        measured(folder, tmp_path / "out", *arguments, "--card", "true")
        card = (folder / "README.md").read_text()
        assert [f"--run={n}" in card for n in range(2)] == [True, number == 1]


def test_prompts_alone_give_no_empty_table(models, tmp_path):
    measured(models / "decoder", tmp_path, "--prompts", "the cat", "--max_new_tokens", 2)
    text = results_text(json.loads((tmp_path / "evaluation.json").read_text()))
    assert "```text\nthe cat" in text and "|" not in text.partition("```text")[0]


WRONG = {
    "no documents": (["--text", "{data}/text.jsonl.gz", "--max_documents", "-1"], "--max_documents -1: must be"),
    "no pairs": (["--minimal_pairs", "{data}/pairs.jsonl", "--pairs_per_group", "0"], "--pairs_per_group 0"),
    "negative seed": (["--prompts", "the", "--seed", "-1"], "--seed -1: must be at least 0"),
    "no temperature": (["--prompts", "the", "--temperature", "nan"], "--temperature nan"),
    "no such task": (["--test_file", "{data}/labels.jsonl", "--hub_task", "x"], "--hub_dataset tells"),
    "hub of what": (["--text", "{data}/text.jsonl.gz", "--hub_dataset", "a/b"], "--hub_dataset tells"),
    "no such hub": (["--test_file", "{data}/labels.jsonl", "--hub_dataset", "a/b:c:d:e"], "'a/b:c:d:e' is no dataset"),
    "nothing to do": ([], "nothing to measure: give one of --text, --minimal_pairs"),
    "no such model": (["--model", "{models}/nowhere", "--text", "{data}/text.jsonl.gz"], "nowhere: no such folder"),
    "a base model": (["--model", "{models}/base", "--text", "{data}/text.jsonl.gz"], "is no language model"),
    "no head": (["--model", "{models}/base", "--test_file", "{data}/labels.jsonl"], "cannot be measured on labels"),
    "no template": (["--test_file", "{data}/labels.jsonl"], "write one as --template"),
    "no examples": (
        ["--test_file", "{data}/labels.jsonl", "--template", "{{text}} {{label}}", "--examples", "2"], "--train_file"
    ),
    "missing data": (["--text", "{data}/none.jsonl"], "none.jsonl"),
    "wrong field": (["--minimal_pairs", "{data}/pairs.jsonl", "--good_field", "better"], "no field 'better'"),
    "window": (["--text", "{data}/text.jsonl.gz", "--window", "65"], "takes 1 to 64 tokens"),
    "unknown label": (
        ["--model", "{models}/classifier", "--test_file", "{data}/labels.jsonl", "--label_field", "text"],
        "label 'the moon'",
    ),
    "label without words": (
        ["--test_file", "{data}/labels.jsonl", "--template", "{{text}}:{{label}}", "--label_words", "bad="],
        "a label has no words",
    ),
    "prompted encoder": (
        ["--model", "{models}/encoder", "--test_file", "{data}/labels.jsonl", "--template", "{{text}} {{label}}"],
        "with a causal LM",
    ),
    "adapter without its base": (
        ["--model", "{models}/adapter", "--base_model", "{models}/gone", "--text", "{data}/text.jsonl.gz"], "gone"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_one_line(case, models, data, tmp_path, capsys):
    arguments, said = WRONG[case]
    arguments = [part.format(models=models, data=data) for part in arguments]
    if "--model" not in arguments:
        arguments = ["--model", str(models / "decoder"), *arguments]
    assert evaluate_model.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], errors
    assert not (tmp_path / "out/evaluation.json").exists()

"""Mistakes in the arguments are answered before torch is imported, and nothing right is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_tfm.apps.cli import cli
from hf_tfm.core.declared_fields import fields_of_script
from hf_tfm.data.forms.early_check import SCRIPT_FILES, find_mistake, find_mistake_of_prediction
from hf_tfm.data.forms.form import forms_of


REPOSITORY = Path(__file__).parents[2]
SCRIPTS = {path.stem: path for path in sorted((REPOSITORY / "training").glob("*.py"))}
WITHOUT_FILES = {"make_sums", "quickstart"}


def answer_of(command, folder):
    """Runs a command, which must end with one line before torch is imported; returns the line."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    lines = [line for line in done.stderr.splitlines() if line not in imports]
    assert done.returncode == 2 and len(lines) == 1, done.stderr[-2000:]
    assert "hf_tfm_light" in names and not names & {"torch", "transformers", "hf_tfm"}
    return lines[0]


def test_every_script_with_files_is_checked():
    assert SCRIPT_FILES.keys() == SCRIPTS.keys() - WITHOUT_FILES
    for name in SCRIPT_FILES:
        text = SCRIPTS[name].read_text()
        assert text.index("check_data(__file__)") < text.index("\nimport sys")


@pytest.mark.parametrize("script", SCRIPT_FILES)
def test_a_missing_file_is_answered_before_torch_is_imported(script, tmp_path):
    option = next(iter(SCRIPT_FILES[script]))
    arguments = ["--base", '{"data": "nowhere.jsonl"}'] if script == "ablate" else [f"--{option}", "nowhere.jsonl"]
    line = answer_of([SCRIPTS[script], *arguments], tmp_path)
    assert line.startswith("error: nowhere.jsonl: no such file")


@pytest.mark.parametrize(
    "command",
    ["train classification --train_file x.csv --text_field sentense", "evaluate infilling --text x.csv --txt_field b",
     "predict /nowhere x.csv", "predict . nowhere.csv"],
)  # fmt: skip
def test_the_command_answers_before_torch_is_imported(command, tmp_path):
    (tmp_path / "x.csv").write_text("sentence,label\na,b\n")
    line = answer_of(["-m", "hf_tfm_command", *command.split()], tmp_path)
    if "--t" in command:
        assert "did you mean" in line
    else:
        assert "/nowhere: no such folder" in line or "nowhere.csv: no such file" in line


@pytest.mark.parametrize("script", [name for name in SCRIPT_FILES if "parse_recipe(" in SCRIPTS[name].read_text()])
def test_unknown_options_are_answered_with_the_nearest_one(script):
    assert "unknown field 'no_such_option'" in (find_mistake(SCRIPTS[script], ["--no_such_option", "1"]) or "")
    assert find_mistake(SCRIPTS[script], ["--no-such-option", "1", "--help"]) is None


def test_fields_of_transformers_are_known():
    for script in ("finetune_classification", "finetune_embeddings", "finetune_translation", "pretrain_clm"):
        assert find_mistake(SCRIPTS[script], ["--learning_rate", "1e-3", "--save_total_limit=2"]) is None
        assert "did you mean learning_rate" in find_mistake(SCRIPTS[script], ["--lerning_rate", "1e-3"])


def recipes():
    """Yields the recipes with their scripts, as the table of jobs names them."""
    for row in (REPOSITORY / "training/README.md").read_text().splitlines():
        for name in re.findall(r"`(\w+\.yaml)`", row):
            yield from ((name, script) for script in re.findall(r"`training/(\w+)\.py", row)[:1])
    for path in (REPOSITORY / "training/recipes/ablations").glob("*.yaml"):
        yield f"ablations/{path.name}", "ablate"


@pytest.mark.parametrize(("recipe", "script"), sorted(set(recipes())))
def test_recipes_are_not_refused(recipe, script, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if script not in WITHOUT_FILES:
        mistake = find_mistake(SCRIPTS[script], [recipe]) or ""
        place = mistake.partition(":")[0]
        assert mistake == "" or ("no such file" in mistake and not Path(place).exists()), mistake


CASES = [
    (script, form)
    for script, files in SCRIPT_FILES.items()
    for job in dict.fromkeys(files.values())
    for form in forms_of(job)
    if form.name != "running-text" and script.startswith("finetune_")
]


@pytest.mark.parametrize(("script", "form"), CASES, ids=lambda value: getattr(value, "name", value))
def test_examples_of_forms_are_not_refused_and_wrong_names_are(script, form, tmp_path):
    for name, text in form.example.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    roots = sorted({str(tmp_path / name.partition("/")[0]) for name in form.example})
    assert find_mistake(SCRIPTS[script], ["--train_file", *roots]) is None


def test_what_cannot_be_judged_is_left_to_the_script():
    for arguments in (["--data", "hub:roneneldan/TinyStories", "books=hub:a/b"], ["--data"], [], ["--data", ""]):
        assert find_mistake(SCRIPTS["pretrain_clm"], arguments) is None
    assert find_mistake(SCRIPTS["finetune_classification"], ["--model", "user/name", "--test_file", ""]) is None


def test_predictions_look_for_the_fields_of_the_models_head(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["TfmEncoderForQuestionAnswering"]}')
    (tmp_path / "a.jsonl").write_text('{"frage": "Who?", "context": "Ann sings."}\n')
    files = [str(tmp_path / "a.jsonl")]
    assert "a.jsonl: " in find_mistake_of_prediction(str(tmp_path), files, {})
    assert find_mistake_of_prediction(str(tmp_path), files, {"question_field": "frage", "context_field": None}) is None
    (tmp_path / "run_record.json").write_text('{"fields": {"question_field": "frage"}}')
    assert find_mistake_of_prediction(str(tmp_path), files, {}) is None


# Each script's options that name files, and those of fields, are its own: nothing reads an option that is not there.
OPTIONS = {"format", "separator", "encoding", "no_header", "columns", "skip_bad", "ignore_fields"}


@pytest.mark.parametrize("script", [name for name in SCRIPT_FILES if name != "ablate"])
def test_every_script_with_files_has_the_common_options_and_its_jobs_fields(script):
    fields = fields_of_script(SCRIPTS[script])
    assert OPTIONS | SCRIPT_FILES[script].keys() <= fields
    source = {"evaluate_model": "hf_tfm/evaluate/measure_model.py"}.get(script, f"training/{script}.py")
    for option in SCRIPT_FILES[script]:
        if match := re.search(rf"^    {option}: ([^=\n]*)", (REPOSITORY / source).read_text(), re.MULTILINE):
            assert match[1].startswith("list[str]") or option == "minimal_pairs"


def test_commands_have_the_common_options():
    for name in ("predict", "index"):
        options = {option.name for option in cli.commands[name].params}
        assert OPTIONS <= options
        assert any(option.nargs == -1 for option in cli.commands[name].params)

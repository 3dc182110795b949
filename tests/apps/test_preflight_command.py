"""`hf-tfm preflight`: a run or data, exit codes, JSON, codes, and one line for wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_logs import learning_curve, write_run

from hf_tfm.apps.cli import main
from hf_tfm.audit.catalogue import CATALOGUE


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def good(tmp_path):
    return write_run(tmp_path / "good", learning_curve())


@pytest.fixture
def zero_rate(tmp_path):
    return write_run(tmp_path / "zero", learning_curve(), rates=lambda done: 0.0)


def test_a_run_is_read_without_torch(zero_rate):
    command = [sys.executable, "-X", "importtime", "-m", "hf_tfm_command", "preflight", str(zero_rate)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    imports = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imports & {"torch", "transformers", "datasets"}
    assert done.returncode == 1
    assert "P703 error: the learning rate is 0 in all 60 logged steps" in done.stdout


def test_exit_codes_and_ignored_codes(good, zero_rate, capsys):
    assert main(["preflight", str(good)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert main(["preflight", str(zero_rate)]) == 1
    assert main(["preflight", str(zero_rate), "--ignore", "P701", "p703"]) == 0
    assert "1 ignored (P703)" in capsys.readouterr().out


def test_json_alone_is_printed(zero_rate, capsys):
    assert main(["preflight", str(zero_rate), "--json"]) == 1
    captured = capsys.readouterr()
    assert [finding["code"] for finding in json.loads(captured.out)["findings"]] == ["P703"]
    assert captured.err == ""


def test_a_page_is_written(good, tmp_path, capsys):
    assert main(["preflight", str(good), "--html", str(tmp_path / "page.html")]) == 0
    assert "0 errors" in (tmp_path / "page.html").read_text()


def test_codes_are_listed(capsys):
    assert main(["preflight", "--codes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == list(CATALOGUE)
    assert all(CATALOGUE[line[:4]].title in line for line in lines)


def test_data_are_checked(tmp_path, capsys):
    """The same record in both splits."""
    record = json.dumps({"text": "the cat sat on the mat", "label": "animal"})
    others = [json.dumps({"text": f"{number} ships sailed south", "label": "ship"}) for number in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join([record, *others]))
    (tmp_path / "test.jsonl").write_text(record)
    files = [str(tmp_path / "train.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    code = main(["preflight", *files, "--job", "classification", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == any(finding["level"] == "error" for finding in report["findings"])
    assert report["facts"]["job"] == "classification"
    assert any("test" in finding["what"] + finding["where"] for finding in report["findings"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "name the folder of a run or files of data"),
        (["{folder}/nothing.jsonl"], "nothing.jsonl: no such file"),
        (["{folder}"], "holds no file"),
        (["{good}", "--ignore", "P999"], "no finding has the code P999"),
        (["{good}", "--tokenizer", "gpt2"], "--tokenizer is for data"),
        (["{good}", "--skip-bad"], "--skip-bad is for data"),
        (["{good}", "{folder}/nothing.jsonl"], "is the folder of a run, which is checked alone"),
        (["{good}", "--html", "{folder}/nowhere/page.html"], "nowhere/page.html"),
        (["{good}", "--max-length", "0"], "must be at least 1, not 0"),
    ],
    ids=str,
)
def test_wrong_input_is_answered_in_one_line(arguments, answer, good, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(folder=tmp_path / "empty", good=good) for argument in arguments]
    assert main(["preflight", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert answer in captured.err

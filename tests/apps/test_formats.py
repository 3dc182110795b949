"""`hf-tfm formats`: every job and form is listed, with its fields and its example, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_tfm.apps.cli import main
from hf_tfm.data.forms.form import forms_of
from hf_tfm.data.forms.jobs import JOBS


REPOSITORY = Path(__file__).parents[2]


def test_formats_lists_all_forms_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "hf_tfm_command", "formats"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imports = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imports & {"torch", "transformers", "datasets", "numpy", "pyarrow", "huggingface_hub"}
    assert "\x1b" not in done.stdout
    for job, facts in JOBS.items():
        assert f"{job}: {facts.summary}" in done.stdout
        for form in forms_of(job):
            assert f"  {form.name} " in done.stdout and form.summary in done.stdout


@pytest.mark.quick
@pytest.mark.parametrize("job", JOBS)
def test_formats_of_a_job_show_fields_options_and_examples(job, capsys):
    assert main(["formats", job]) == 0
    shown = capsys.readouterr().out
    for field in JOBS[job].fields.values():
        assert field.option is None or f"--{field.option}" in shown
    for form in forms_of(job):
        assert f"{form.name}: {form.summary}" in shown
        for name, text in form.example.items():
            assert f"  {name}\n" in shown
            assert all(f"    {line}".rstrip() in shown for line in text.splitlines())


def test_an_unknown_job_is_answered_with_the_known_ones(capsys):
    assert main(["formats", "nothing"]) == 2
    answer = capsys.readouterr().err
    assert all(job in answer for job in JOBS)

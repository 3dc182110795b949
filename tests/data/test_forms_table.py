"""The table of forms in training/README.md, the example files and the registry are equal; `make forms` writes them."""

import importlib
import re

import pytest
from forms_table import FOLDER, FORMS, MARKS, PAGE, page_with_table

from hf_tfm.data.forms.early_check import SCRIPT_FILES
from hf_tfm.data.forms.jobs import JOBS


ADVICE = "differs from the declared forms: run `make forms`"


def test_the_page_has_todays_table():
    page = PAGE.read_text(encoding="utf-8")
    assert all(page.count(mark.strip()) == 1 for mark in MARKS)
    assert page_with_table(page) == page, f"{PAGE} {ADVICE}"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.job}-{form.name}")
def test_example_files_are_the_declared_ones(form):
    folder = FOLDER / form.job / form.name
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {name: text.encode() for name, text in form.example.items()}, f"{folder} {ADVICE}"


def test_there_are_no_other_examples():
    assert {(path.parent.name, path.name) for path in FOLDER.glob("*/*")} == {(form.job, form.name) for form in FORMS}


def test_every_job_has_a_script_and_every_option_is_explained():
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("## Your data")[2].partition("\n## ")[0]
    jobs = {job for files in SCRIPT_FILES.values() for job in files.values()}
    assert set(JOBS) <= jobs
    options = ("format", "separator", "encoding", "no_header", "columns", "skip_bad", "ignore_fields")
    for option in (*options, "text_unit", "strip_gutenberg"):
        assert re.search(rf"`--{option}\b", section), option
    for feature in ("labels.json", "_text", "hf-tfm formats", "zip", "glob"):
        assert feature in section, feature


@pytest.mark.parametrize("script", ["finetune_classification", "finetune_tokens"])
def test_help_says_where_names_of_numbers_come_from(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main.__wrapped__(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "labels.json" in shown and "train, dev, test" in shown and "`hf-tfm formats`" in shown

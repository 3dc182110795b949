"""Writes the table of forms into training/README.md, and their examples into tests/data/forms (`make forms`)."""

import re
import shutil
from pathlib import Path

from hf_tfm.data.forms.description import EXAMPLES, table_of_forms, write_example
from hf_tfm.data.forms.form import forms_of
from hf_tfm.data.forms.jobs import JOBS


REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "training/README.md"
FOLDER = PAGE.parent.joinpath(EXAMPLES).resolve()
MARKS = ("<!-- forms -->\n", "\n<!-- end of forms -->")
FORMS = [form for job in JOBS for form in forms_of(job)]


def page_with_table(text: str) -> str:
    """Returns the page with today's table between its marks."""
    before, after = MARKS
    found = re.escape(before) + ".*?" + re.escape(after)
    return re.sub(found, lambda match: before + table_of_forms(EXAMPLES) + after, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.rmtree(FOLDER, ignore_errors=True)
    for form in FORMS:
        write_example(form, FOLDER / form.job / form.name)

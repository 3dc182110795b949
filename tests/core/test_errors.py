"""A user reads one line instead of a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_tfm import InputError
from hf_tfm.core.errors import cannot_write, explain


TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = {
    "finetune_preference": ("trl", "align"),
    "finetune_rlvr": ("trl", "align"),
    "finetune_embeddings": ("sentence_transformers", "embed"),
    "finetune_translation": ("sacrebleu", "metrics"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_its_extra_names_what_to_install(script):
    package, extra = SCRIPTS[script]
    hidden = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv = ['x']; "
    run = subprocess.run(
        [sys.executable, "-c", f"{hidden}runpy.run_path({str(TRAINING / script)!r} + '.py', run_name='__main__')"],
        capture_output=True,
        text=True,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert last == f"error: the package {package} is not installed: pip install 'hf-tfm[{extra}]'"


def message_of(error, *arguments):
    with pytest.raises(InputError) as caught:
        with explain("here", *arguments):
            raise error
    assert caught.value.__cause__ is error or caught.value is error
    return str(caught.value)


def test_explain_makes_one_line_of_an_error():
    assert message_of(ValueError("two\n  lines")) == "here: two lines"
    assert message_of(EOFError()) == "here: EOFError"
    assert message_of(FileNotFoundError(2, "No such file", "x.json")) == "here: No such file: x.json"
    assert message_of(KeyError("k"), "bad ({reason}); mend it") == "here: bad ('k'); mend it"
    assert (
        message_of(OSError(28, "Full", "tmp"), cannot_write("free space"))
        == "here: cannot be written (Full); free space"
    )
    assert len(message_of(ValueError("long " * 1000))) < 320


def test_explain_passes_other_errors():
    assert message_of(InputError("as it is")) == "as it is"
    with pytest.raises(ValueError, match="^x$"):
        with explain("here", "{reason}", OSError):
            raise ValueError("x")
    with pytest.raises(AssertionError):
        with explain("here"):
            raise AssertionError

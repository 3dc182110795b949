"""What a person reads in place of a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest


TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = {
    "finetune_preference": ("trl", "align"),
    "finetune_rlvr": ("trl", "align"),
    "finetune_embeddings": ("sentence_transformers", "embed"),
    "finetune_translation": ("sacrebleu", "metrics"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_its_extra_says_what_to_install(script):
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

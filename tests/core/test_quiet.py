"""No command prints another library's messages, and what a user has to know still comes through."""

import ast
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
from small_runs import TRAINING, build_inputs, command_runs, script_runs
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from hf_tfm.apps import cli
from hf_tfm.apps.cli.app import Command
from hf_tfm.core.quiet import no_bars, quiet, quiet_command, quiet_imports


REPOSITORY = TRAINING.parent
SCRIPTS = sorted(path.stem for path in TRAINING.glob("*.py"))
COMMAND_RUNS = list(command_runs(Path()))
SCRIPT_RUNS = list(script_runs(Path()))
SLOW_RUNS = ("export.onnx", "inspect.picture", "verify.everything", "push.adapter", "refresh")
SERVERS = ("serve", "demo")  # run until they are stopped
FAST_SCRIPTS = ("pretrain_clm", "finetune_classification")


def environment(**variables: str) -> dict[str, str]:
    """What a user has, without the settings of the tests."""
    changed = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]), **variables}
    unset = ("TOKENIZERS_PARALLELISM", "HF_TFM_VERBOSE", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in unset} | changed


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    build_inputs(folder)
    return folder


def run_all(jobs: dict[str, list[str]], folder: Path) -> Path:
    """Runs commands one after the other; returns the folder that has what each printed."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests/helpers/run_commands.py", folder / "jobs.json", folder],
        input="hello\n", capture_output=True, text=True, cwd=folder, env=environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in folder.glob("*.err"))
    return folder


def check(printed: Path, name: str, code: int = 0) -> str:
    """Nothing on standard error where nothing went wrong, else one line; returns standard output."""
    error = (printed / f"{name}.err").read_text()
    assert (printed / f"{name}.code").read_text() == str(code), error
    if code:
        assert error.startswith("error: ") and error.count("\n") == 1, error
    else:
        assert error == ""
    return (printed / f"{name}.out").read_text()


def run_commands(root: Path, folder: Path, slow: bool) -> Path:
    runs = command_runs(root).items()
    return run_all({name: ["hf-tfm", *arguments] for name, arguments in runs if (name in SLOW_RUNS) == slow}, folder)


@pytest.fixture(scope="module")
def fast_commands(root, tmp_path_factory) -> Path:
    return run_commands(root, tmp_path_factory.mktemp("fast"), slow=False)


@pytest.fixture(scope="module")
def slow_commands(root, tmp_path_factory) -> Path:
    return run_commands(root, tmp_path_factory.mktemp("slow"), slow=True)


@pytest.mark.parametrize("name", [name for name in COMMAND_RUNS if name not in SLOW_RUNS])
def test_a_command_prints_nothing_on_standard_error(fast_commands, name):
    assert check(fast_commands, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_RUNS)
def test_a_longer_command_prints_nothing_on_standard_error(slow_commands, name):
    assert check(slow_commands, name)


def test_no_command_is_forgotten():
    own = {name for name, command in cli.cli.commands.items() if isinstance(command, Command)}
    assert {name.partition(".")[0] for name in COMMAND_RUNS} | set(SERVERS) == own


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_prints_nothing_of_other_libraries(root, name, tmp_path):
    pytest.importorskip({"serve": "openai", "demo": "gradio"}[name])  # the server reads requests by openai's types
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_tfm_command", name, str(root / "chat"), "--port", str(port)]
    with open(tmp_path / "stderr", "w") as stderr, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, env=environment(), cwd=tmp_path
    ) as server:  # fmt: skip
        page = {"serve": "health", "demo": ""}[name]
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://localhost:{port}/{page}", timeout=5)
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "stderr").read_text()
                    time.sleep(0.5)
            server.send_signal(signal.SIGINT)
            server.wait(60)
        finally:
            server.kill()  # a server that does not stop fails the test, and does not hold it up
    # The server's log: which model it loads, where it listens, when it stops.
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert [line for line in lines if not line.startswith(("INFO: ", "[transformers] Loading "))] == []


def test_each_script_has_a_small_run():
    assert not set(SCRIPTS) - set(SCRIPT_RUNS), "add a small run of the new script to tests/helpers/small_runs.py"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST_SCRIPTS else pytest.mark.slow) for name in SCRIPT_RUNS]
)
def test_a_script_prints_nothing_on_standard_error(root, name):
    done = subprocess.run(
        [sys.executable, TRAINING / f"{name.partition('.')[0]}.py", *script_runs(root)[name]],
        capture_output=True, text=True, cwd=root, env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout


@pytest.fixture(scope="module")
def printed_by_scripts(tmp_path_factory) -> Path:
    jobs = {}
    for name in SCRIPTS:
        script = str(TRAINING / f"{name}.py")
        jobs[f"{name}.help"] = [script, "--help"]
        jobs[f"{name}.wrong"] = [script, "--no_such_field", "1"]
    return run_all(jobs, tmp_path_factory.mktemp("scripts"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_mistakes_of_a_script(printed_by_scripts, name):
    assert "usage:" in check(printed_by_scripts, f"{name}.help")
    assert check(printed_by_scripts, f"{name}.wrong", 2) == ""


@pytest.mark.parametrize("path", sorted(TRAINING.rglob("*.py")), ids=lambda path: path.stem)
def test_a_script_imports_this_package_before_transformers(path):
    """While `hf_tfm` imports transformers, what other libraries say is silenced; ruff sorts by training/ruff.toml."""
    imported = [
        name.partition(".")[0]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    ours = {"hf_tfm", *(other.stem for other in TRAINING.rglob("*.py"))}
    loud = {"transformers", "datasets", "peft", "trl", "sentence_transformers", "accelerate"}
    relevant = [name for name in imported if name in ours | loud]
    assert not ours & set(relevant) or relevant[0] in ours  # entries of the speedrun do without this package


def test_a_mistake_in_a_new_process_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hf_tfm.apps.cli", "inspect", "nowhere"],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1, done.stderr


def test_the_package_imports_quietly_and_changes_no_settings(tmp_path):
    program = (
        "import logging, hf_tfm, transformers\n"
        "names = ('', 'torchao', 'torch.utils._pytree', 'transformers')\n"
        "print([logging.getLogger(name).level for name in names], transformers.utils.logging.is_progress_bar_enabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert (done.stdout, done.stderr) == ("[30, 0, 0, 30] True\n", "")


def messages(capfd) -> str:
    """What is shown of a library's messages, a deprecation, a warning for the user, and a bar."""
    capfd.readouterr()
    handler = logging.StreamHandler()
    library, trainer = logging.getLogger("torchao"), transformers_logging.get_logger("transformers.trainer")
    for logger in (library, trainer):
        logger.addHandler(handler)
    library.warning("from a library about itself")
    library.error("an error of a library")
    trainer.warning("about the training")
    for logger in (library, trainer):
        logger.removeHandler(handler)
    warnings.warn("for programmers", FutureWarning, stacklevel=1)
    warnings.warn("for the user", UserWarning, stacklevel=1)
    list(tqdm(range(2), desc="a bar"))
    return capfd.readouterr().err


def show_warning(message, *_, **__) -> None:
    """In place of what pytest does with warnings, which is to collect them."""
    print(message, file=sys.stderr)


CONTEXTS = {
    "none": (None, {"itself", "an error", "programmers", "the user", "the training", "a bar"}),
    "imports": (quiet_imports, {"an error", "programmers", "the user", "the training", "a bar"}),
    "command": (quiet_command, {"an error", "the user", "the training"}),
    "hf-tfm": (lambda: quiet_command(transformers_warnings=False), {"an error", "the user"}),
    "no bars": (no_bars, {"itself", "an error", "programmers", "the user", "the training"}),
    "quiet": (quiet, {"itself", "an error", "a bar"}),
}


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_silenced_and_restored(capfd, monkeypatch, context, verbose):
    monkeypatch.setenv("HF_TFM_VERBOSE", str(int(verbose)))
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(warnings, "showwarning", show_warning)
    everything = CONTEXTS["none"][1]
    make, expected = CONTEXTS[context]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        if make is not None:
            with make():
                text = messages(capfd)
            assert {words for words in everything if words in text} == (everything if verbose else expected)
        text = messages(capfd)
        assert {words for words in everything if words in text} == everything


def test_filters_that_the_user_chose_stay(capfd, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["always"])
    monkeypatch.setattr(warnings, "showwarning", show_warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with quiet_command():
            assert "for programmers" in messages(capfd)

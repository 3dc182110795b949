"""
What the README shows works: blocks marked `<!-- runnable -->` are run as they stand, and every other command, script,
option and path that is mentioned exists.
"""

import argparse
import gzip
import importlib
import itertools
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import typer
from packaging.requirements import Requirement

from hf_tfm.apps import cli
from hf_tfm.apps.cli import training
from hf_tfm.core.errors import InputError, OneLineParser
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.train import recipe


REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "model_cards/README.md")
MARK = "<!-- runnable -->"
# A block of the README without the mark has one of these: a second environment, the Hub, or text of one's own. Those of
# the other page are about models and files of one's own.
NOT_HERE = ("make ", "hf-tfm push ", " texts/ ")
SLOW = ("finetune_", "export")


class Block(NamedTuple):
    page: str
    line: int
    marked: bool
    language: str
    text: str


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^({re.escape(MARK)}\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: match.start(2)].count("\n") + 1, bool(match[1]), match[2], match[3]) for match in found]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def as_parameter(block: Block):
    slow = block.language == "bash" and any(word in block.text for word in SLOW)
    first = block.text.split("\n")[0].split("  ")[0]
    return pytest.param(block, id=f"{block.page}: {first}", marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def working_copy(tmp_path_factory) -> Path:
    """The repository's scripts and data, and what `make quickstart` leaves behind, each as small as it can be."""
    copy = tmp_path_factory.mktemp("working copy")
    (copy / "model_cards").symlink_to(REPOSITORY / "model_cards")
    for parts in ("training", "training/data", "training/data/banking77"):
        (copy / parts).mkdir()
        for path in (REPOSITORY / parts).iterdir():
            if path.name not in ("data", "banking77", "train.jsonl.gz", "__pycache__"):
                (copy / parts / path.name).symlink_to(path)
    banking = "training/data/banking77/train.jsonl.gz"
    with gzip.open(REPOSITORY / banking, "rt") as everything, gzip.open(copy / banking, "wt") as some:
        some.writelines(itertools.islice(everything, 0, None, 30))  # the records stand in the order of their labels

    for style, name in (("decoder", "TfmDecoderForCausalLM"), ("encoder", "TfmEncoderForMaskedLM")):
        tokenizer = train_tokenizer(tiny.CORPUS, vocab_size=tiny.VOCAB_SIZE, min_frequency=1, style=style)
        special = {key: value for key in ("bos", "eos", "pad", "cls", "sep", "mask")
                   if (value := getattr(tokenizer, f"{key}_token_id")) is not None}  # fmt: skip
        model = tiny.build(name, intermediate_size=64, **{f"{key}_token_id": value for key, value in special.items()})
        for folder in (f"runs/quickstart/tokenizer-{style}", f"runs/quickstart/{style}"):
            tokenizer.save_pretrained(copy / folder)
        model.save_pretrained(copy / f"runs/quickstart/{style}")

    # What a block installs is there already, or the block is skipped.
    pip = copy / "bin/pip"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    return copy


def missing_packages(extra: str) -> list[str]:
    """What the package's extra asks for and is not installed here."""
    missing = []
    for needed in map(Requirement, metadata.requires("hf-tfm")):
        if needed.marker and needed.marker.evaluate({"extra": extra}):
            try:
                metadata.distribution(needed.name)
            except metadata.PackageNotFoundError:
                missing.append(needed.name)
    return missing


@pytest.mark.parametrize("block", [as_parameter(block) for block in BLOCKS if block.marked])
def test_a_marked_block_runs_as_it_stands(block, working_copy):
    for extra in re.findall(r"pip install 'hf-tfm\[(\w+)\]'", block.text):
        if missing := missing_packages(extra):
            pytest.skip(f"not installed: {', '.join(missing)}")
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-euc", block.text]
    path = os.pathsep.join([str(working_copy / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=working_copy, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{block.page}, line {block.line}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_no_block_that_could_run_lacks_the_mark():
    for block in read_blocks("README.md"):
        assert block.marked != any(word in block.text for word in NOT_HERE), f"{block.page}, line {block.line}"
    assert any(block.marked for block in BLOCKS)


# What is mentioned


class Mention(NamedTuple):
    """A command or option as a page has it; `whole` where it stands in a block and has to be complete."""

    words: list[str]
    whole: bool
    where: str


def mentions() -> Iterator[Mention]:
    """Every `hf-tfm …`, `training/….py …` and bare `--option …` in blocks and between backticks."""
    for page in PAGES:
        lines = [(block.line, block.text.replace("\\\n", " "), True) for block in BLOCKS if block.page == page]
        prose = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"),
                       (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)  # fmt: skip
        for match in re.finditer(r"`([^`\n]+)`", prose):
            lines.append((prose[: match.start()].count("\n") + 1, match[1], False))
        for line, text, whole in lines:
            for command in re.split(r"&&|\n|\$\(", text):
                if re.search(r"\bhf-tfm |training/\w+\.py|^--\w", command):
                    end_of_outer = ')"' if command.count('"') % 2 else ")"
                    words = shlex.split(command.rstrip(end_of_outer), comments=True)
                    words = words[1:] if words[0] == "python" else words
                    remarked = re.findall(r"#.*?(--[\w-]+)", command)
                    yield Mention(words, whole, f"{page}, line {line}: {command}")
                    yield from (Mention([option], False, f"{page}, line {line}") for option in remarked)


MENTIONS = list(mentions())


class Accepted(Exception):
    """A script's arguments were read and found right."""


class Refused(Exception):
    """A script's arguments are wrong."""


@pytest.fixture
def read_arguments(monkeypatch):
    """Reads arguments as a script does, by its `main`, and stops there; raises `Refused` where they are wrong."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(str(REPOSITORY / "training"))
    parse_recipe, parse_args = recipe.parse_recipe, argparse.ArgumentParser.parse_args

    def refuse(parser, message):
        raise Refused(message)

    def parse_and_stop(parse):
        def stop(*args, **kwargs):
            try:
                parse(*args, **kwargs)
            except InputError as error:
                raise Refused(str(error)) from error
            raise Accepted

        return stop

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    monkeypatch.setattr(OneLineParser, "error", refuse)

    def read(script: str, arguments: list[str]) -> None:
        module = importlib.import_module(Path(script).stem)
        main = getattr(module.main, "__wrapped__", module.main)  # under `one_line_errors`
        with monkeypatch.context() as patch, pytest.raises(Accepted):
            if hasattr(module, "parse_recipe"):
                patch.setattr(module, "parse_recipe", parse_and_stop(parse_recipe))
            else:
                patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop(parse_args))
            main(arguments)

    return read


def test_commands_that_are_mentioned_exist(read_arguments):
    seen = set()
    scripts = {training.command_names(path.stem): path.stem for path in training.SCRIPTS.glob("*.py")}
    for words, whole, where in MENTIONS:
        if words[0] != "hf-tfm" or words[1] in ("--install-completion", "--show-completion"):
            continue
        seen.add(words[1])
        assert words[1] in cli.cli.commands, where
        if not whole and len(words) <= 2:
            continue
        script = next((script for name, script in scripts.items() if name == tuple(words[1 : 1 + len(name)])), None)
        try:
            if script is None:
                cli.cli.commands[words[1]].make_context(words[1], words[2:])
            else:
                read_arguments(f"training/{script}.py", words[1 + len(training.command_names(script)) :])
        except (typer.TyperException, Refused) as error:
            pytest.fail(f"{where}: {error}")
    assert len(seen) > 10


def test_scripts_that_are_mentioned_take_what_they_are_given(read_arguments):
    seen = set()
    for words, whole, where in MENTIONS:
        if not words[0].startswith("training/"):
            continue
        seen.add(words[0])
        assert (REPOSITORY / words[0]).is_file(), where
        try:
            read_arguments(words[0], words[1:])
        except Refused as error:
            assert not whole and "arguments are required" in str(error), f"{where}: {error}"
    assert len(seen) > 10


def test_options_that_are_mentioned_alone_belong_to_a_command_or_script(read_arguments):
    of_commands = {name for each in cli.cli.commands.values() for option in each.params for name in option.opts}
    scripts = {mention.words[0] for mention in MENTIONS if mention.words[0].startswith("training/")}

    def takes(script: str, words: list[str]) -> bool:
        try:
            read_arguments(script, words)
        except Refused as error:
            return "arguments are required" in str(error) or "expected one argument" in str(error)
        return True

    recipes = sorted(scripts - {"training/train_tokenizer.py", "training/quickstart.py"})
    alone = [mention for mention in MENTIONS if mention.words[0].startswith("--") and mention.words[0] != "--field"]
    for words, _, where in alone:
        assert words[0] in of_commands or any(takes(script, words) for script in recipes), where
    assert not any(takes(script, ["--no_such_field"]) for script in recipes)
    assert len(alone) > 3


def test_files_targets_extras_and_names_that_are_mentioned_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    extras = metadata.metadata("hf-tfm").get_all("Provides-Extra")
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for path in re.findall(r"\b(?:hf_tfm|training|tests|model_cards)/[\w./-]*[\w/]", text):
            assert path.endswith("/NAME") or (REPOSITORY / path).exists(), f"{page}: {path}"
        for target in re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"
        for extra in re.findall(r"hf-tfm\[(\w+)\]", text):
            assert extra in extras, f"{page}: {extra}"
        for name in re.findall(r"`(hf_tfm(?:\.\w+)+)`", text):
            assert pkgutil.resolve_name(name), f"{page}: {name}"

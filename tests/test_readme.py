"""
README and the guides are true: blocks marked `<!-- runnable -->` run as they stand, sample outputs are today's, figures
equal their source, and every command, script, option, path and link that a page mentions exists.
"""

import argparse
import gzip
import importlib
import itertools
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import typer
from packaging.requirements import Requirement

import hf_tfm_command
from hf_tfm.apps import cli
from hf_tfm.apps.ablation.report import INDEX, index_row
from hf_tfm.apps.cli import training
from hf_tfm.core.errors import InputError, OneLineParser
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.train import recipe


REPOSITORY = Path(__file__).parents[1]
GUIDES = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "training/docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", "training/README.md", "model_cards/README.md", *GUIDES)
PAGES = tuple(page for page in PAGES if (REPOSITORY / page).exists())
MARK = "<!-- runnable -->"
# Blocks of README and the guides that need another environment, the Hub, or a person's own text or model are not run.
NOT_RUN = ("make ", "hf-tfm push ", " texts/ ", "runs/classifier ")
SLOW = ("finetune_", "export")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    marked: bool
    language: str
    text: str


def read_page(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def read_blocks(page: str) -> list[Block]:
    text = read_page(page)
    matches = re.finditer(rf"^({re.escape(MARK)}\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text[: match.start(2)].count("\n") + 1, bool(match[1]), match[2], match[3]) for match in matches
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def as_parameter(block: Block):
    slow = block.language == "bash" and any(word in block.text for word in SLOW)
    first = block.text.split("\n")[0].split("  ")[0]
    return pytest.param(block, id=f"{block.page}: {first}", marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def working_copy(tmp_path_factory) -> Path:
    """A folder with the repository's scripts, a part of its data, and tiny models in the places of the quickstart."""
    copy = tmp_path_factory.mktemp("working copy")
    (copy / "model_cards").symlink_to(REPOSITORY / "model_cards")
    for parts in ("training", "training/data", "training/data/banking77"):
        (copy / parts).mkdir()
        for path in (REPOSITORY / parts).iterdir():
            if path.name not in ("data", "banking77", "train.jsonl.gz", "__pycache__"):
                (copy / parts / path.name).symlink_to(path)
    banking = "training/data/banking77/train.jsonl.gz"
    with gzip.open(REPOSITORY / banking, "rt") as everything, gzip.open(copy / banking, "wt") as part:
        part.writelines(itertools.islice(everything, 0, None, 30))  # records are sorted by label

    for style, name in (("decoder", "TfmDecoderForCausalLM"), ("encoder", "TfmEncoderForMaskedLM")):
        tokenizer = train_tokenizer(tiny.CORPUS, vocab_size=tiny.VOCAB_SIZE, min_frequency=1, style=style)
        special = {key: value for key in ("bos", "eos", "pad", "cls", "sep", "mask")
                   if (value := getattr(tokenizer, f"{key}_token_id")) is not None}  # fmt: skip
        model = tiny.build(name, intermediate_size=64, **{f"{key}_token_id": value for key, value in special.items()})
        for folder in (f"runs/quickstart/tokenizer-{style}", f"runs/quickstart/{style}"):
            tokenizer.save_pretrained(copy / folder)
        model.save_pretrained(copy / f"runs/quickstart/{style}")

    # Blocks may call pip; their packages are installed already, or the block is skipped.
    pip = copy / "bin/pip"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    return copy


def missing_packages(extra: str) -> list[str]:
    """Returns the packages of an extra that are not installed."""
    missing = []
    for requirement in map(Requirement, metadata.requires("hf-tfm")):
        if requirement.marker and requirement.marker.evaluate({"extra": extra}):
            try:
                metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                missing.append(requirement.name)
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


def test_every_block_that_can_run_has_the_mark():
    for block in BLOCKS:
        if block.page in ("README.md", *GUIDES) and block.language in ("bash", "python"):
            needs_more = any(words in block.text for words in NOT_RUN)
            assert block.marked != needs_more, f"{block.page}, line {block.line}"
    assert any(block.marked for block in BLOCKS)


def read_samples() -> Iterator[tuple[list[str], str]]:
    """Yields the commands of console blocks, each with the output below it."""
    for block in BLOCKS:
        if block.language == "console":
            for sample in block.text.removeprefix("$ ").split("\n$ "):
                command, _, output = sample.partition("\n")
                yield shlex.split(command), output


@pytest.mark.parametrize(("command", "output"), list(read_samples()))
def test_a_sample_output_is_what_its_command_prints(command, output, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert hf_tfm_command.main(command[1:]) in (0, None)
    assert capsys.readouterr().out.split() == output.split()


def test_readme_fits_on_a_page():
    lines = read_page("README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


# Rows of the speed tables, and their names in results/summary.json.
SPEEDS = {
    "time to tuned Llama's loss, next token": "causal_time_to_loss",
    "time to tuned ModernBERT's loss, masked tokens": "masked_time_to_loss",
    "time to the tuned opponent's loss, next token": "causal_time_to_loss",
    "the same at ten times the tokens": "causal_time_to_loss_long",
    "time to the tuned opponent's loss, masked tokens": "masked_time_to_loss",
    "training step, next token": "causal_step",
    "training step, masked tokens": "masked_step",
    "generating text, one row (`hf_tfm.cpu.generate`)": "decode_1",
    "generating text, sixteen rows (`hf_tfm.cpu.generate`)": "decode_16",
    "encoding texts": "encoder_inference",
    "packing and batching": "packing",
}


@pytest.mark.parametrize("page", ["README.md", "training/docs/speed.md"])
def test_speeds_are_those_of_the_benchmarks(page):
    text = read_page(page).partition("without bf16")[0]
    summary = json.loads((REPOSITORY / "training/benchmarks/results/summary.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| *([\d.]*) *\|", text, re.MULTILINE)
    assert len(rows) >= 5
    for name, speed, same_memory in rows:
        assert speed == f"{summary[SPEEDS[name]]:.2f}", name
        if same_memory:
            assert same_memory == f"{summary[SPEEDS[name] + '_same_memory']:.2f}", name


def test_figures_of_released_models_stand_on_their_cards():
    rows = re.findall(r"^\| `(tfm-[\w-]+)`[^|]*\| ([^|]+) \|$", read_page("README.md"), re.MULTILINE)
    assert {name for name, _ in rows} >= {f"tfm-{family}-6m" for family in ("decoder", "encoder")}
    for name, text in rows:
        card = read_page(f"model_cards/{name}/README.md")
        for figure in re.findall(r"\d+\.\d+", text):
            assert figure in card or f"{float(figure) / 100:.3f}" in card, f"{name}: {figure}"


# Mentions of commands, options, files and names


class Mention(NamedTuple):
    """A command or option on a page; a `whole` one stands in a block and is complete."""

    words: list[str]
    whole: bool
    where: str


def mentions() -> Iterator[Mention]:
    """Yields every `hf-tfm …`, `training/….py …` and bare `--option …` of blocks and between backticks."""
    for page in PAGES:
        lines = [(block.line, block.text.replace("\\\n", " "), True) for block in BLOCKS if block.page == page]
        prose = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"),
                       read_page(page), flags=re.MULTILINE | re.DOTALL)  # fmt: skip
        for match in re.finditer(r"`([^`\n]+)`", prose):
            lines.append((prose[: match.start()].count("\n") + 1, match[1], False))
        for line, text, whole in lines:
            for command in re.split(r"&&|\n|\$\(", text):
                command = command.removeprefix("$ ").replace(" …", "")
                if re.search(r"\bhf-tfm |training/\w+\.py|^--\w", command):
                    end_of_outer = ')"' if command.count('"') % 2 else ")"
                    words = shlex.split(command.rstrip(end_of_outer), comments=True)
                    words = words[1:] if words[0] == "python" else words
                    remarked = re.findall(r"#.*?(--[\w-]+)", command)
                    yield Mention(words, whole, f"{page}, line {line}: {command}")
                    yield from (Mention([option], False, f"{page}, line {line}") for option in remarked)


MENTIONS = list(mentions())


class Accepted(Exception):
    """A script accepted its arguments."""


class Refused(Exception):
    """A script refused its arguments."""


@pytest.fixture
def read_arguments(monkeypatch):
    """A function that runs a script's `main` until its arguments are read; wrong arguments raise `Refused`."""
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
            if whole or "required" not in str(error):
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
    of_commands.add("--help")
    scripts = {mention.words[0] for mention in MENTIONS if mention.words[0].startswith("training/")}

    def takes(script: str, words: list[str]) -> bool:
        try:
            read_arguments(script, words)
        except Refused as error:
            return bool(re.search("arguments are required|expected (at least )?one argument", str(error)))
        return True

    recipes = sorted(scripts - {"training/quickstart.py"})
    alone = [
        mention
        for mention in MENTIONS
        if mention.words[0].startswith("--") and mention.words[0] not in ("--field", "--help")
    ]
    for words, _, where in alone:
        assert words[0] in of_commands or any(takes(script, words) for script in recipes), where
    # argparse reports missing arguments before unknown ones; the other scripts read recipes.
    by_argparse = {"training/make_sums.py", "training/train_tokenizer.py"}
    assert {script for script in recipes if takes(script, ["--no_such_field"])} <= by_argparse
    assert len(alone) > 3


def test_files_targets_extras_and_names_that_are_mentioned_exist():
    makefile = read_page("Makefile")
    extras = tomllib.loads(read_page("pyproject.toml"))["project"]["optional-dependencies"]
    for page in PAGES:
        text = read_page(page)
        for path in re.findall(r"\b(?:hf_tfm|training|tests|model_cards)/[\w./-]*[\w/]", text):
            assert path.endswith("/NAME") or (REPOSITORY / path).exists(), f"{page}: {path}"
        for targets in re.findall(r"(?:`|^)make ([\w -]+)", text, re.MULTILINE):
            for target in targets.split():
                assert re.search(rf"^([\w ]+ )?{target}( \w+)*:", makefile, re.MULTILINE), f"{page}: make {target}"
        for extra in re.findall(r"hf-tfm\[(\w+)\]", text):
            assert extra in extras, f"{page}: {extra}"
        for name in re.findall(r"`(hf_tfm(?:\.\w+)+)`", text):
            assert pkgutil.resolve_name(name), f"{page}: {name}"


def test_the_index_of_the_log_lists_its_entries():
    log = read_page("training/LOG.md")
    headings = re.findall(r"^## (.*)$", log, re.MULTILINE)
    assert headings and [heading[:10] for heading in headings] == sorted((h[:10] for h in headings), reverse=True)
    assert INDEX + "".join(map(index_row, headings)) + "\n## " in log


def test_entries_of_the_log_have_four_fixed_lines():
    for entry in read_page("training/LOG.md").split("\n## ")[1:]:
        names = re.findall(r"^- \*\*(\w+)\*\*: ", entry, re.MULTILINE)
        assert names == ["Question", "Command", "Result", "Consequence"], entry.partition("\n")[0]


def test_quoted_headings_of_the_log_exist():
    headings = re.findall(r"^## (.*)$", read_page("training/LOG.md"), re.MULTILINE)
    files = [path for part in ("hf_tfm", "training", "tests") for path in (REPOSITORY / part).rglob("*")]
    for path in [*REPOSITORY.glob("*.md"), REPOSITORY / "Makefile", *files]:
        if path.name == "Makefile" or path.suffix in (".md", ".py", ".yaml"):
            for title in re.findall(r'LOG\.md, "([^"]+)"', path.read_text(encoding="utf-8")):
                assert any(title in heading for heading in headings), f"{path}: {title}"


def test_links_lead_to_files():
    for page in (*PAGES, "CHANGELOG.md", "training/LOG.md", "training/data/README.md", "training/benchmarks/parity.md"):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read_page(page)):
            assert link.startswith("https://") or (REPOSITORY / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_the_table_of_jobs_names_every_script_and_recipe():
    text = read_page("training/README.md")
    scripts = {path.name for path in (REPOSITORY / "training").glob("*.py")}
    recipes = {path.name for path in (REPOSITORY / "training/recipes").glob("*.yaml")}
    assert {name for name in scripts if f"training/{name}" not in text} == set()
    assert set(re.findall(r"`(\w+\.yaml)`", text)) - {"recipe.yaml"} == recipes


def test_new_modules_of_the_changelog_exist():
    names = re.findall(r"^\| `hf_tfm\.[^|]+ \| (.+) \|$", read_page("CHANGELOG.md"), re.MULTILINE)
    assert len(names) > 30
    for name in re.findall(r"`([\w.]+)`", " ".join(names)):
        path = REPOSITORY / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), name


def test_quick_tests_cover_every_package():
    for package in (REPOSITORY / "hf_tfm").glob("*/__init__.py"):
        files = (REPOSITORY / "tests" / package.parent.name).glob("test_*.py")
        assert any(".mark.quick" in path.read_text(encoding="utf-8") for path in files), package.parent.name


def test_the_file_map_names_modules():
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", read_page("CONTRIBUTING.md"), re.MULTILINE))
    packages = [path.parent for path in (REPOSITORY / "hf_tfm").glob("*/__init__.py")]
    assert rows.keys() == {package.name for package in packages}
    for package in packages:
        parts = {path.name for path in package.glob("*.py")} - {"__init__.py"}
        parts |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
        assert set(re.findall(r"`(\w+(?:\.py|/))`", rows[package.name])) - {"app.py"} <= parts, package.name

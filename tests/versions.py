"""
Runs the version-dependent tests with several sets of package versions, each in a separate environment:

    python tests/versions.py oldest newest v4      tests these sets (`make test-versions` adds `pinned`)
    python tests/versions.py --freeze newest       writes constraints-newest.txt: the newest releases (`make newest`)
    python tests/versions.py --freeze oldest       writes constraints-oldest.txt: the lower bounds of pyproject.toml
    python tests/versions.py --canary              tests today's newest releases without constraints (`make canary`)

It prints a table of passed, failed and skipped tests. All environments link to the torch of the current environment:
torch takes gigabytes, and its CPU build comes from another index.
"""

import argparse
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


ROOT = Path(__file__).parents[1]
PINNED = "constraints.txt"
EXTRAS = ("align", "embed", "metrics")
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
SUITES = {
    "public API": ["test_public_api", "core/test_version"],
    "models": [
        "models/test_modeling",
        "models/test_padding_and_packing",
        "models/test_padding_and_packing",
        "models/test_cross_attention",
        "models/test_prefix",
        "models/test_configuration",
    ],
    "generation": ["models/test_generation", "cpu/test_cpu_generation"],
    "Trainer": ["models/test_modeling_training", "train/test_trainer"],
    "remote code, pipelines": ["test_remote_code"],
    "released folders": ["artifacts/test_released", "artifacts/test_refresh"],
    "PEFT, TRL, s.-transformers": ["test_ecosystem", "train/test_adapters"],
    "verify": ["artifacts/test_verify"],
    "preflight": ["audit/test_trainer_subject", "audit/test_planted_losses", "audit/test_planted_batches"],
}
# transformers 4 cannot run this package; it reads the exports of the pinned environment.
READERS = {"native exports, tokenizers": ["convert/test_older_readers"]}


class Environment:
    """A virtual environment with separate packages, except for torch."""

    def __init__(self, name: str):
        self.name = name
        self.folder = ROOT / f".venv-{name}"
        self.python = self.folder / "bin" / "python"

    def install(self, requirements: list[str], constraints: Path | None) -> None:
        """Creates the environment unless it exists for the same requirements."""
        inputs = "\n".join([*requirements, (ROOT / "pyproject.toml").read_text(encoding="utf-8")])
        inputs += constraints.read_text(encoding="utf-8") if constraints else ""
        stamp, digest = self.folder / "installed", hashlib.sha256(inputs.encode()).hexdigest()
        if constraints and stamp.is_file() and stamp.read_text() == digest:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, with_pip=True)
        site = next((self.folder / "lib").glob("python*/site-packages"))
        (site / "shared_torch.pth").write_text(f"{link_torch(self.folder / 'shared')}\n")
        limits = ["-c", str(constraints)] if constraints else []
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
        subprocess.run([*pip, *limits, torch, *requirements], cwd=ROOT, check=True)
        stamp.write_text(digest)

    def freeze(self) -> str:
        """Returns the installed packages without this one, and torch as in the pinned environment."""
        command = [str(self.python), "-m", "pip", "freeze", "--exclude-editable", "--disable-pip-version-check"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        lines = [line for line in lines if not line.startswith(("torch==", "hf-tfm", "hf_tfm", "torch @"))]
        torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
        return "\n".join(sorted([*lines, torch], key=str.lower)) + "\n"

    def version(self, package: str) -> str:
        code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
        return subprocess.run([str(self.python), "-c", code], capture_output=True, text=True).stdout.strip()


def link_torch(folder: Path) -> Path:
    """Fills a folder with links to the installed torch and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    distribution = importlib.metadata.distribution("torch")
    parts = {Path(file).parts[0] for file in distribution.files or ()} - {"..", "bin"}
    for part in parts:
        source = Path(str(distribution.locate_file(part)))
        if source.exists():
            (folder / part).symlink_to(source)
    return folder


def requirements() -> list[str]:
    return ["-e", f".[{','.join(EXTRAS)}]", *TOOLS]


def lower_bounds() -> str:
    """Returns constraints with the lower bound of each direct dependency in pyproject.toml, except the shared torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    lines = [*project["dependencies"], *extras]
    bounds = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line.replace(" ", "")) for line in lines]
    return "".join(f"{bound[1]}=={bound[2]}\n" for bound in bounds if bound and bound[1] != "torch")


def freeze(name: str) -> None:
    """Writes the constraints file of an environment from the registry."""
    target = ROOT / f"constraints-{name}.txt"
    with tempfile.TemporaryDirectory() as work:
        constraints = None
        if name == "oldest":
            constraints = Path(work) / "bounds.txt"
            constraints.write_text(lower_bounds())
        environment = Environment(f"{name}-new")
        environment.install(requirements(), constraints)
    content = {"oldest": "The lower bounds of pyproject.toml", "newest": "The newest releases"}[name]
    head = f"# {content} and their dependencies. Written by `python tests/versions.py --freeze {name}`.\n"
    target.write_text(head + environment.freeze(), encoding="utf-8")
    shutil.rmtree(environment.folder)
    print(f"wrote {target.name}: transformers {re.search('^transformers==(.*)$', target.read_text(), re.M)[1]}")


def run_tests(python: Path, suites: dict[str, list[str]], workers: int, extra: dict[str, str]) -> dict[str, Counter]:
    """Runs suites in an environment and returns their counts of outcomes."""
    modules = {module: suite for suite, modules in suites.items() for module in modules}
    files = [str(file) for module in modules if (file := ROOT / "tests" / f"{module}.py").is_file()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    counts = {suite: Counter() for suite in suites}
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        options = ["-n", str(workers), "--dist", "loadfile", "-q", "--junitxml", str(report), "-p", "no:cacheprovider"]
        command = [str(python), "-m", "pytest", *options, *files]
        done = subprocess.run(command, cwd=ROOT, env={**environment, **extra}, check=False)
        if not report.is_file():
            raise SystemExit(f"{' '.join(command)}: ended with {done.returncode} before any test")
        for case in ElementTree.parse(report).iter("testcase"):
            suite = modules[case.get("classname", "").removeprefix("tests.").replace(".", "/")]
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            counts[suite][outcome] += 1
    return counts


def table(results: dict[str, dict[str, Counter]]) -> str:
    """Formats a Markdown table: a row for each suite, a column for each environment."""
    suites = list(dict.fromkeys(suite for counts in results.values() for suite in counts))
    rows = [["passed / failed / skipped", *results]]
    for suite in suites:
        cells = [results[name].get(suite) for name in results]
        rows.append([suite, *("–" if c is None else f"{c['passed']} / {c['failed']} / {c['skipped']}" for c in cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("environments", nargs="*", choices=["oldest", "pinned", "newest", "v4", []])
    parser.add_argument("--freeze", choices=["oldest", "newest"])
    parser.add_argument("--canary", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.freeze:
        freeze(args.freeze)
        return 0
    results = {}
    for name in ["canary"] if args.canary else args.environments:
        environment = Environment(name)
        if name == "pinned":
            environment.python = Path(sys.executable)
        elif name == "v4":
            environment.install(["transformers", "numpy"], ROOT / "constraints-v4.txt")
        else:
            environment.install(requirements(), None if args.canary else ROOT / f"constraints-{name}.txt")
        title = f"{name}: transformers {environment.version('transformers')}"
        print(f"\n{title}", flush=True)
        if name == "v4":
            variables = {"HF_TFM_V4_PYTHON": str(environment.python)}
            results[title] = run_tests(Path(sys.executable), READERS, args.workers, variables)
        else:
            results[title] = run_tests(environment.python, SUITES, args.workers, {})
    print(f"\n{table(results)}")
    return int(any(counts["failed"] for suites in results.values() for counts in suites.values()))


if __name__ == "__main__":
    sys.exit(main())

"""
Runs transformers' common test suites over its own Llama and BERT and over the models of this package, and prints the
outcomes of each and every test that the reference passes and ours does not:

    python tests/upstream/compare.py                   # one process
    python tests/upstream/compare.py -n 2              # more arguments go to pytest
"""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest


FOLDER = Path(__file__).parent
REFERENCES = {"test_upstream_decoder": "LlamaTest", "test_upstream_encoder": "BertTest"}
SEVERITY = ("passed", "skipped", "failed")


class Outcomes:
    """Collects the outcomes of the tests of each class and the reasons of skips."""

    def __init__(self):
        self.classes: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records a test; a skipped or failed subtest makes the test skipped or failed."""
        if report.when != "call" and report.passed:
            return
        path, suite, test = report.nodeid.split("::")
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
        tests = self.classes.setdefault((Path(path).stem, suite), {})
        tests[test] = max(tests.get(test, ("passed", "")), (report.outcome, reason), key=lambda x: SEVERITY.index(x[0]))


def summary(tests: dict[str, tuple[str, str]]) -> str:
    counts = Counter(outcome for outcome, _ in tests.values())
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in SEVERITY)


def main(arguments: list[str]) -> int:
    os.environ["UPSTREAM_REFERENCE"] = "1"
    outcomes = Outcomes()
    pytest.main(["-m", "upstream", str(FOLDER), "-q", "--tb=short", *arguments], plugins=[outcomes])
    failed = False
    for (module, suite), tests in sorted(outcomes.classes.items()):
        print(f"\n{suite}: {summary(tests)}")
        reference = outcomes.classes.get((module, REFERENCES[module]), {})
        for test, (outcome, reason) in sorted(tests.items()):
            failed |= outcome == "failed" and suite != REFERENCES[module]
            if outcome != "passed" and reference.get(test, ("",))[0] == "passed":
                print(f"  {REFERENCES[module]} passes {test}, here: {outcome}{reason and f' ({reason})'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

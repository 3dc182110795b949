"""Findings of a preflight, and the report that collects them."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ..core.errors import InputError, reason_of
from .catalogue import CATALOGUE


class Level(StrEnum):
    """
    How serious a finding is.

    An error makes the run's result wrong or useless. A warning is a fault in most runs. A note reports something
    unusual that is right in some runs.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_STYLES = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.NOTE: "cyan"}


@dataclass(frozen=True)
class Finding:
    """
    A finding of a preflight: one line of its report.

    Attributes:
        code: A code of the catalogue, such as `P104`.
        what: The fault, with figures.
        where: The record, token, weight or step; empty if the finding concerns the whole subject.
        why: The consequence of the fault.
        mend: The way to mend the fault.
    """

    code: str
    level: Level
    what: str
    where: str
    why: str
    mend: str


class PreflightError(InputError):
    """The report of a preflight has findings of a level that its caller refuses."""

    def __init__(self, report: "Report", findings: list[Finding]):
        self.report = report
        super().__init__("preflight: " + "; ".join(f"{finding.code} {finding.what}" for finding in findings))


@dataclass
class Report:
    """
    The findings of a preflight.

    Args:
        ignore: Codes of findings that are not reported.

    Attributes:
        findings: In the order of the checks.
        facts: Figures that describe the subject, by their names.
        unseen: Parts that could not be checked, with the reasons.
        pictures: Rows of tokens and tables, as Rich renders them.
        checks: Names of the checks that ran.
        ignored: The number of ignored findings by code.
    """

    ignore: frozenset[str] = frozenset()
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    pictures: list[RenderableType] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ignore = frozenset(code.strip().upper() for code in self.ignore)
        if unknown := sorted(self.ignore - CATALOGUE.keys()):
            raise InputError(
                f"ignore: no finding has the code {', '.join(unknown)}; `hf-tfm preflight --codes` lists them"
            )

    def add(
        self,
        code: str,
        what: str,
        where: str = "",
        level: str | None = None,
        why: str | None = None,
        mend: str | None = None,
    ) -> None:
        """
        Add a finding.

        Args:
            code: A code of the catalogue. Its entry supplies `level`, `why` and `mend` where they are None.
        """
        entry = CATALOGUE[code]
        if code in self.ignore:
            self.ignored[code] = self.ignored.get(code, 0) + 1
            return
        finding = Finding(code, Level(level or entry.level), what, where, why or entry.why, mend or entry.mend)
        if finding not in self.findings:
            self.findings.append(finding)

    def run(self, name: str, check: Callable[..., None], *arguments: Any) -> None:
        """Run a check. If it raises an error, the report says so, and the other checks still run."""
        self.checks.append(name)
        try:
            check(*arguments)
        except Exception as error:
            self.cannot_see(f"{name} failed: {type(error).__name__}: {reason_of(error)}")

    def join_equal_codes(self) -> None:
        """Join findings with the same code and level, such as the same fault in several splits."""
        groups: dict[tuple[str, Level], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.level), []).append(finding)
        self.findings = [
            replace(
                group[0],
                what="; ".join(finding.what for finding in group),
                where="; ".join(finding.where for finding in group if finding.where),
            )
            for group in groups.values()
        ]

    def cannot_see(self, what: str) -> None:
        """Note something that this preflight does not check, with the reason."""
        if what not in self.unseen:
            self.unseen.append(what)

    def of_level(self, level: str) -> list[Finding]:
        """Returns the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def errors(self) -> list[Finding]:
        return self.of_level(Level.ERROR)

    @property
    def warnings(self) -> list[Finding]:
        return self.of_level(Level.WARNING)

    @property
    def codes(self) -> set[str]:
        """Codes of the errors and warnings."""
        return {finding.code for finding in self.findings if finding.level != Level.NOTE}

    @property
    def exit_code(self) -> int:
        return int(bool(self.errors))

    def raise_on(self, level: str | None) -> None:
        """Raise `PreflightError` if there are findings of this level or of a more serious one."""
        if level is None:
            return
        levels = list(Level)[: list(Level).index(Level(level)) + 1]
        if findings := [finding for finding in self.findings if finding.level in levels]:
            raise PreflightError(self, findings)

    def as_json(self) -> str:
        """Returns the whole report except its pictures as JSON."""
        values = {
            "findings": [asdict(finding) for finding in self.findings],
            "facts": self.facts,
            "unseen": self.unseen,
            "checks": self.checks,
            "ignored": self.ignored,
        }
        return json.dumps(values, indent=2, ensure_ascii=False, default=str)

    def lines(self) -> Iterable[Text]:
        """Yields the findings as lines, the most serious first, and a last line with their number."""
        for level in Level:
            for finding in self.of_level(level):
                where = f" [{finding.where}]" if finding.where else ""
                line = Text(f"{finding.code} {level}: ", style=_STYLES[level])
                yield line + Text(f"{finding.what}{where}. {finding.why} {finding.mend}", style="default")
        yield Text(self.summary(), style="bold")

    def summary(self) -> str:
        """Returns the number of findings in one line."""
        counts = [(len(self.of_level(level)), level) for level in Level]
        totals = ", ".join(f"{count} {level}{'s' * (count != 1)}" for count, level in counts)
        ignored = f", {sum(self.ignored.values())} ignored ({', '.join(self.ignored)})" if self.ignored else ""
        seconds = f" in {self.facts['seconds']:.1f} s" if "seconds" in self.facts else ""
        return f"preflight: {totals}{ignored} by {len(self.checks)} checks{seconds}"

    def render(self, short: bool = False) -> RenderableType:
        """Returns the report for a Rich console; a short report has only the findings and their number."""
        if short:
            return Group(*self.lines())
        facts = [Text(f"{name}: {value}") for name, value in self.facts.items() if name != "seconds"]
        unseen = [Text(f"not checked: {what}", style="dim") for what in self.unseen]
        return Group(*self.pictures, *facts, *unseen, *self.lines())

    def save_html(self, path: str | Path) -> None:
        """Write the whole report, with its colours, as a page."""
        console = Console(
            record=True, width=120, file=io.StringIO(), force_terminal=True, markup=False, highlight=False
        )
        console.print(self.render())
        # Rich's page does not wrap lines: a narrow window would cut off their ends.
        page = console.export_html().replace('<pre style="', '<pre style="white-space: pre-wrap; ', 1)
        Path(path).write_text(page, encoding="utf-8")

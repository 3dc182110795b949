"""Continuations of several decoding methods on a terminal, with the colours and tables of Rich."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.visible_text import escape_controls, visible
from ..tasks.decoding import Decoding, TokenCandidate, TokenChoice
from .formatting import SCALE, colour_of, figures_table, percent


_CANDIDATE_COLUMNS = ("token", "model", "adjusted", "entropy", "rank", "left", "candidates: model → adjusted")


def open_console() -> Console:
    """Return a console for standard output; without a terminal it has no colours and wraps no lines."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def print_comparison(
    prompt: str, decodings: Sequence[Decoding], candidates: bool = False, console: Console | None = None
) -> None:
    """
    Print continuations one below the other, and a table of their figures.

    Tokens have the more red the less probable they were. Text of models and prompts is printed with its control
    characters escaped.

    Args:
        candidates: also list each token with the candidates it was chosen from.
    """
    console = console or open_console()
    for decoding in decodings:
        console.print(f"── {decoding.method} ".ljust(72, "─"), soft_wrap=True)
        text = Text(escape_controls(prompt))
        for choice in decoding.choices:
            text.append(escape_controls(choice.text), style=_style(choice.probability))
        console.print(text, soft_wrap=True)
        for alternative in decoding.alternatives:
            console.print(f"   alternative: {visible(alternative.strip())}", soft_wrap=True)
        if candidates:
            console.print()
            console.print(_table([_CANDIDATE_COLUMNS, *map(_candidate_row, decoding.choices)]))
        console.print()
    if console.is_terminal and not console.no_color:
        legend = Text(" ").join(Text(f" {share:g} ", style=_style(share)) for share in SCALE)
        console.print(Text("the model's probability: ") + legend, end="\n\n")
    console.print(_table(figures_table(decodings)))
    console.print("\nsurprise and entropy in bits a token, of the model's own", soft_wrap=True)


def _style(probability: float) -> str:
    red, green, blue = colour_of(probability)
    return f"rgb(31,35,40) on rgb({red},{green},{blue})"


def _table(rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without lines: the first column and a last one of texts to the left, figures to the right."""
    header, *body = rows
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for number, name in enumerate(header):
        is_text = number == 0 or name == _CANDIDATE_COLUMNS[-1]
        table.add_column(Text(name), justify="left" if is_text else "right")
    for row in body:
        table.add_row(*map(Text, row))
    return table


def _candidate_row(choice: TokenChoice) -> list[str]:
    return [
        repr(visible(choice.text)),
        percent(choice.probability),
        percent(choice.adjusted),
        f"{choice.entropy:.2f}",
        str(choice.rank),
        "–" if choice.num_remaining is None else f"{choice.num_remaining:,}",
        ", ".join(f"{visible(each.text)!r} {_probabilities(each)}" for each in choice.candidates),
    ]


def _probabilities(candidate: TokenCandidate) -> str:
    if candidate.adjusted is None:
        return percent(candidate.probability)
    return f"{percent(candidate.probability)} → {percent(candidate.adjusted) if candidate.adjusted else 'cut'}"

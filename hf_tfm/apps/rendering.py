"""What models say, as colours on a terminal and as HTML: everything that comes from a model or a person is escaped."""

import colorsys
import math
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from pathlib import Path

from ..core.errors import InputError
from ..tasks.decoding import Decoding, TokenCandidate, TokenChoice


# Surprise in bits from which on a token is fully red.
_RED = 10.0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SCALE = (1.0, 0.5, 0.1, 0.01, 0.001)

# Each rule names the class twice, to come before those of the page around it, in its light and in its dark colours.
STYLE = """
<style>
.tfm.tfm {font: 15px/1.7 system-ui, sans-serif; color: #1f2328; background: #fff; border-radius: 8px;
  padding: 10px 14px; overflow-wrap: anywhere}
.tfm.tfm * {color: inherit}
.tfm.tfm .grid {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px}
.tfm.tfm .card {position: relative; background: #fff; border: 1px solid #d0d7de; border-radius: 8px; padding: 12px 14px}
.tfm.tfm h2, .tfm.tfm h3 {font-size: 15px; font-weight: 600; margin: 0 0 6px; color: #1f2328 !important}
.tfm.tfm .prompt, .tfm.tfm .note, .tfm.tfm .note * {color: #57606a}
.tfm.tfm .note {font-size: 13px; margin: 6px 0}
.tfm.tfm .said {font-size: 19px; margin: 0}
.tfm.tfm .text {white-space: pre-wrap; margin: 0 0 8px}
.tfm.tfm .tok, .tfm.tfm mark {color: #1f2328; border-radius: 3px; padding: 1px 0; cursor: help}
.tfm.tfm .tok:hover, .tfm.tfm .tok:focus {outline: 2px solid #0969da}
.tfm.tfm .tip {display: none; position: absolute; z-index: 9; left: 14px; right: 14px; margin-top: 1.8em;
  background: #fff; border: 1px solid #8c959f; border-radius: 8px; padding: 8px 10px; font-size: 13px; line-height: 1.5;
  box-shadow: 0 6px 20px #0003; white-space: normal; cursor: default}
.tfm.tfm .tok:hover .tip, .tfm.tfm .tok:focus .tip {display: block}
.tfm.tfm table {border-collapse: collapse; font-size: 13px; line-height: 1.5; margin: 0; border: 0}
.tfm.tfm tr {border: 0; background: none}
.tfm.tfm td, .tfm.tfm th {padding: 1px 10px 1px 0; white-space: nowrap; text-align: left; border: 0; font-weight: 400}
.tfm.tfm .name {max-width: 360px; overflow: hidden; text-overflow: ellipsis}
.tfm.tfm th {color: #57606a}
.tfm.tfm .number {text-align: right; font-variant-numeric: tabular-nums}
.tfm.tfm .chosen td {font-weight: 600}
.tfm.tfm .cut {color: #8c959f}
.tfm.tfm code {font: 12.5px ui-monospace, monospace; background: #f0f2f4; padding: 0 3px; border: 0}
.tfm.tfm mark {padding: 2px 4px; cursor: auto}
.tfm.tfm mark small {font-weight: 600; margin-left: 5px; color: #424a53}
.tfm.tfm .bar {height: 14px; background: #0b4f9e; border-radius: 2px}
.tfm.tfm .scroll {overflow-x: auto}
.tfm.tfm svg {background: #fff; max-width: none}
</style>
"""


def colour_of(probability: float) -> tuple[int, int, int]:
    """From green, for what the model was sure of, to red: equal steps for equal surprise, in bits."""
    surprise = -math.log2(max(probability, 1e-30))
    hue = 0.38 * (1.0 - min(surprise, _RED) / _RED)
    red, green, blue = colorsys.hls_to_rgb(hue, 0.80, 0.72)
    return round(255 * red), round(255 * green), round(255 * blue)


def _css(probability: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(probability))


def percent(share: float | None) -> str:
    """A probability with as many digits as say something."""
    if share is None:
        return "–"
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.0e}"


def visible(text: str) -> str:
    """Text with blanks and control characters that can be seen."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\n", "↵").replace("\t", "⇥"))


def comparison_as_text(prompt: str, decodings: Sequence[Decoding], colours: bool, candidates: bool = False) -> str:
    """
    Continuations for a terminal, under one another, and a table of their figures.

    Args:
        colours: by 24-bit escape codes, the more surprising the redder.
        candidates: list each token with what it was chosen from.
    """
    lines = []
    for decoding in decodings:
        title = f"── {decoding.method} "
        lines += [title + "─" * max(0, 72 - len(title))]
        lines += [_safe(prompt) + "".join(_coloured(choice, colours) for choice in decoding.choices)]
        lines += [f"   second to it: {visible(text.strip())}" for text in decoding.alternatives]
        if candidates:
            lines += ["", *_listed(decoding)]
        lines += [""]
    if colours:
        painted = " ".join(_painted(f" {share:g} ", share) for share in _SCALE)
        lines += [f"the model's probability: {painted}", ""]
    lines += [*_aligned(_figures_table(decodings)), "", "surprise and entropy in bits a token, of the model's own"]
    return "\n".join(lines)


def _safe(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))


def _painted(text: str, probability: float) -> str:
    red, green, blue = colour_of(probability)
    return f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;31;35;40m{text}\x1b[0m"


def _coloured(choice: TokenChoice, colours: bool) -> str:
    text = _safe(choice.text)
    if not colours:
        return text
    # A background would run on to the end of the line.
    return "\n".join(_painted(part, choice.probability) if part else "" for part in text.split("\n"))


def _listed(decoding: Decoding) -> list[str]:
    rows = [("token", "model", "adjusted", "entropy", "rank", "left", "likeliest, of the model → adjusted")]
    for choice in decoding.choices:
        others = ", ".join(f"{visible(one.text)!r} {_both(one)}" for one in choice.candidates)
        rows.append(
            (
                repr(visible(choice.text)),
                percent(choice.probability),
                percent(choice.adjusted),
                f"{choice.entropy:.2f}",
                str(choice.rank),
                "–" if choice.num_remaining is None else f"{choice.num_remaining:,}",
                others,
            )
        )
    return _aligned(rows)


def _both(candidate: TokenCandidate) -> str:
    if candidate.adjusted is None:
        return percent(candidate.probability)
    return f"{percent(candidate.probability)} → {percent(candidate.adjusted) if candidate.adjusted else 'cut'}"


def _figures_table(decodings: Sequence[Decoding]) -> list[list[str]]:
    figures = [decoding.figures() for decoding in decodings]
    return [["", *figures[0]]] + [
        [decoding.method, *(f"{value:,}" if name == "tokens" else f"{value:.2f}" for name, value in one.items())]
        for decoding, one in zip(decodings, figures)
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width each: the first and a last one of texts to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if column in (0, last) and (column == 0 or width > 20) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def comparison_as_html(prompt: str, decodings: Sequence[Decoding]) -> str:
    """Continuations side by side; whoever points at a token, or tabs to it, sees what it was chosen from."""
    scale = " ".join(
        f'<span class="tok" style="background:{_css(share)}">&nbsp;{share:g}&nbsp;</span>' for share in _SCALE
    )
    cards = "".join(_card(prompt, decoding) for decoding in decodings)
    return (
        f'{STYLE}<div class="tfm"><p class="note">Colour: the model\'s probability of the token, {scale}; '
        "line under it: the thicker, the more entropy. Point at a token to see what it was chosen from.</p>"
        f'<div class="grid">{cards}</div><h3 style="margin-top:18px">Repetition and surprise</h3>'
        f'<div class="scroll">{_html_table(_figures_table(decodings))}</div><p class="note">Adjusted: behind penalty, '
        "temperature and cuts, as it was drawn. Surprise: −log₂ of the "
        "model's own probability, in bits, mean over the tokens. Entropy: of its distribution at each place, in "
        "bits. distinct-n: different n-grams among all. repeat-4: 4-grams that were there before.</p></div>"
    )


def write_page(path: str, title: str, body: str) -> None:
    """A whole HTML file that needs nothing else. Raises `InputError` if it cannot be written."""
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        '<body style="margin:0;background:#f6f8fa">'
        '<main class="tfm" style="max-width:1280px;margin:auto;padding:24px;background:none">'
        f'<h2 style="font-size:19px">{escape(title)}</h2>{body}</main></body></html>\n'
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _card(prompt: str, decoding: Decoding) -> str:
    tokens = "".join(
        f'<span class="tok" tabindex="0" style="{_look(choice)}">{_shown(choice.text)}'
        f'<span class="tip">{_tip(choice)}</span></span>'
        for choice in decoding.choices
    )
    others = "".join(f'<p class="note">second to it: {escape(text)}</p>' for text in decoding.alternatives)
    return (
        f'<section class="card"><h3>{escape(decoding.method)}</h3><div class="text">'
        f'<span class="prompt">{escape(prompt)}</span>{tokens}</div>{others}</section>'
    )


def _look(choice: TokenChoice) -> str:
    return f"background:{_css(choice.probability)};box-shadow:inset 0 -{min(choice.entropy / 3, 4):.1f}px #57606a88"


def _shown(text: str) -> str:
    """A token in the text: what would leave no trace is given a sign."""
    if not text:
        return "·"
    return escape(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)).replace("\n", "↵\n")


def _tip(choice: TokenChoice) -> str:
    left = "" if choice.num_remaining is None else f", {choice.num_remaining:,} tokens left"
    rows = "".join(
        f"<tr{' class=chosen' * (one.token == choice.token)}><td><code>{escape(visible(one.text)) or '·'}</code></td>"
        f'<td class="number">{percent(one.probability)}</td><td class="number{" cut" * (one.adjusted == 0)}">'
        f"{'cut' if one.adjusted == 0 else percent(one.adjusted)}</td></tr>"
        for one in choice.candidates
    )
    return (
        f"entropy {choice.entropy:.2f} bits, rank {choice.rank}{left}"
        f'<table><tr><th>token</th><th class="number">model</th><th class="number">adjusted</th></tr>{rows}</table>'
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    cells = "".join(f"<th{' class=number' * bool(n)}>{escape(cell)}</th>" for n, cell in enumerate(header))
    lines = "".join(
        "<tr>" + "".join(f"<td{' class=number' * bool(n)}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in body
    )
    return f"<table><tr>{cells}</tr>{lines}</table>"


def marked_text(text: str, spans: Iterable[tuple[int, int, str, float]]) -> str:
    """
    A text with spans marked, each with its label.

    Args:
        spans: first character and the one behind the last, label, and probability, which colours the mark. Of those
            that overlap the first is shown.
    """
    parts, shown = [], []
    for span in spans:
        if all(span[1] <= start or end <= span[0] for start, end, *_ in shown):
            shown.append(span)
    place = 0
    for start, end, label, share in sorted(shown):
        name = f"<small>{escape(label)} {percent(share)}</small>" if label else ""
        parts.append(escape(text[place:start]))
        parts.append(f'<mark style="background:{_css(share)}">{escape(text[start:end])}{name}</mark>')
        place = end
    return f'{STYLE}<div class="tfm"><p class="text">{"".join(parts)}{escape(text[place:])}</p></div>'


def bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Names with their probabilities as bars, under a title for each group."""
    parts = []
    for title, rows in groups:
        lines = "".join(
            f'<tr><td class="name"><code>{escape(visible(name)) or "·"}</code></td>'
            f'<td class="number">{percent(share)}</td><td style="width:60%">'
            f'<div class="bar" style="width:{max(share, 0.002):.1%}"></div></td></tr>'
            for name, share in rows
        )
        parts.append(f'<h3>{escape(title)}</h3><table style="width:100%;margin-bottom:14px">{lines}</table>')
    return f'{STYLE}<div class="tfm">{"".join(parts)}</div>'


def note(said: str, about: str) -> str:
    """One thing that a model says, in large letters."""
    return f'{STYLE}<div class="tfm"><p class="said">{escape(said)}</p><p class="note">{escape(about)}</p></div>'


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str, numbers: bool = False
) -> str:
    """
    Weights as squares, the darker the more.

    Args:
        values: of each row for each column; what is below 0 is white.
        numbers: write the values into larger squares.
    """
    size, letters = (44, 60) if numbers else (20, 24)
    names, heads = (
        [escape(cut if len(cut := visible(text)) <= letters else cut[: letters - 1] + "…") or "·" for text in texts]
        for texts in (rows, columns)
    )
    left, top = (12 + 7 * max(len(unescape(text)) for text in texts) for texts in (names, heads))
    most = max(max(row) for row in values) or 1.0
    cells = []
    for number, line in enumerate(values):
        for column, value in enumerate(line):
            x, y, share = left + size * column, top + size * number, max(value / most, 0.0)
            cells.append(
                f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="#0b4f9e" fill-opacity="{share:.3f}">'
                f"<title>{names[number]} → {heads[column]}: {value:.3f}</title></rect>"
            )
            if numbers:
                ink = "#fff" if share > 0.55 else "#1f2328"
                middle = f'x="{x + size / 2}" y="{y + size / 2 + 4}" text-anchor="middle"'
                cells.append(f'<text {middle} fill="{ink}" pointer-events="none">{value:.2f}</text>')
    side = "".join(
        f'<text x="{left - 6}" y="{top + size * (n + 0.5) + 4}" text-anchor="end">{name}</text>'
        for n, name in enumerate(names)
    )
    above = "".join(
        f'<text transform="translate({left + size * (n + 0.5) + 4},{top - 6}) rotate(-90)">{name}</text>'
        for n, name in enumerate(heads)
    )
    width, height = left + size * len(heads) + 10, top + size * len(names) + 10
    frame = f'<rect x="{left}" y="{top}" width="{size * len(heads)}" height="{size * len(names)}"'
    legend = "" if numbers else f'<p class="note">Rows look at columns; full colour is {most:.2f}.</p>'
    return (
        f'{STYLE}<div class="tfm"><h3>{escape(title)}</h3><div class="scroll"><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="12" font-family="system-ui, sans-serif" fill="#1f2328">'
        f'{"".join(cells)}{frame} fill="none" stroke="#d0d7de" pointer-events="none"/>{side}{above}</svg></div>'
        f"{legend}</div>"
    )

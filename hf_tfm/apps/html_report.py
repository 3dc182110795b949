"""Parts of HTML pages that show model outputs; everything that comes from a model or a person is escaped."""

from collections.abc import Iterable, Sequence
from html import escape, unescape
from pathlib import Path

from ..core.errors import InputError
from ..tasks.decoding import Decoding, TokenChoice
from .formatting import SCALE, colour_of, escape_controls, figures_table, percent, visible


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


def _css(probability: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour_of(probability))


def comparison_as_html(prompt: str, decodings: Sequence[Decoding]) -> str:
    """Return continuations side by side; pointing at a token, or tabbing to it, shows its candidates."""
    scale = " ".join(
        f'<span class="tok" style="background:{_css(share)}">&nbsp;{share:g}&nbsp;</span>' for share in SCALE
    )
    cards = "".join(_card(prompt, decoding) for decoding in decodings)
    return (
        f'{STYLE}<div class="tfm"><p class="note">Colour: the model\'s probability of the token, {scale}; '
        "line under it: the thicker, the more entropy. Point at a token to see its candidates.</p>"
        f'<div class="grid">{cards}</div><h3 style="margin-top:18px">Repetition and surprise</h3>'
        f'<div class="scroll">{_html_table(figures_table(decodings))}</div><p class="note">Adjusted: after penalty, '
        "temperature and cuts, as it was sampled. Surprise: −log₂ of the "
        "model's own probability, in bits, mean over the tokens. Entropy: of its distribution at each place, in "
        "bits. distinct-n: share of different n-grams. repeat-4: share of 4-grams that occurred before.</p></div>"
    )


def write_page(path: str, title: str, body: str) -> None:
    """Write a self-contained HTML file. Raises `InputError` if it cannot be written."""
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
        f'<span class="tok" tabindex="0" style="{_look(choice)}">{_token_html(choice.text)}'
        f'<span class="tip">{_tip(choice)}</span></span>'
        for choice in decoding.choices
    )
    others = "".join(f'<p class="note">alternative: {escape(text)}</p>' for text in decoding.alternatives)
    return (
        f'<section class="card"><h3>{escape(decoding.method)}</h3><div class="text">'
        f'<span class="prompt">{escape(prompt)}</span>{tokens}</div>{others}</section>'
    )


def _look(choice: TokenChoice) -> str:
    return f"background:{_css(choice.probability)};box-shadow:inset 0 -{min(choice.entropy / 3, 4):.1f}px #57606a88"


def _token_html(text: str) -> str:
    """Return the escaped text of a token, with signs for invisible characters."""
    if not text:
        return "·"
    return escape(escape_controls(text)).replace("\n", "↵\n")


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
    Return a text with marked spans and their labels.

    Args:
        spans: start and end in characters, label, and probability, which gives the colour. Of overlapping spans the
            first is shown.
    """
    parts, marked = [], []
    for span in spans:
        if all(span[1] <= start or end <= span[0] for start, end, *_ in marked):
            marked.append(span)
    place = 0
    for start, end, label, share in sorted(marked):
        name = f"<small>{escape(label)} {percent(share)}</small>" if label else ""
        parts.append(escape(text[place:start]))
        parts.append(f'<mark style="background:{_css(share)}">{escape(text[start:end])}{name}</mark>')
        place = end
    return f'{STYLE}<div class="tfm"><p class="text">{"".join(parts)}{escape(text[place:])}</p></div>'


def bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Return names with their probabilities as bars, under a title for each group."""
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


def note(text: str, caption: str) -> str:
    """Return one output of a model in large letters, with a caption."""
    return f'{STYLE}<div class="tfm"><p class="said">{escape(text)}</p><p class="note">{escape(caption)}</p></div>'


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str, numbers: bool = False
) -> str:
    """
    Return a matrix as squares; larger values are darker.

    Args:
        values: (rows, columns); values below 0 are white.
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
    legend = "" if numbers else f'<p class="note">Rows attend to columns; full colour is {most:.2f}.</p>'
    return (
        f'{STYLE}<div class="tfm"><h3>{escape(title)}</h3><div class="scroll"><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="12" font-family="system-ui, sans-serif" fill="#1f2328">'
        f'{"".join(cells)}{frame} fill="none" stroke="#d0d7de" pointer-events="none"/>{side}{above}</svg></div>'
        f"{legend}</div>"
    )

"""Parts of HTML pages that show model outputs; everything that comes from a model or a person is escaped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..core.errors import InputError
from ..core.visible_text import escape_controls, visible
from ..tasks.decoding import Decoding
from .formatting import SCALE, colour_of, figures_table, percent


_pages = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_pages.filters |= {
    "colour": lambda probability: "#{:02x}{:02x}{:02x}".format(*colour_of(probability)),
    "escape_controls": escape_controls,
    "percent": percent,
    "visible": visible,
}
_template: Any = _pages.get_template("html_report.html", globals={"scale": SCALE}).module


def comparison_as_html(prompt: str, decodings: Sequence[Decoding]) -> str:
    """Return continuations side by side; pointing at a token, or tabbing to it, shows its candidates."""
    return _template.comparison(prompt, decodings, figures_table(decodings))


def matrix(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str, numbers: bool = False
) -> str:
    """
    Return a matrix as squares; larger values are darker.

    Args:
        values: (rows, columns); values below 0 are white.
        numbers: write the values into the squares.
    """
    return _template.matrix(rows, columns, values, title, numbers)


def write_page(path: str, title: str, body: str) -> None:
    """Write a self-contained HTML file. Raises `InputError` if it cannot be written."""
    try:
        Path(path).write_text(_template.page(title, body), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None

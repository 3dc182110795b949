"""Model outputs as text: probabilities and colours."""

import colorsys
import math
from collections.abc import Sequence

from ..tasks.decoding import Decoding


# Probabilities that a legend shows.
SCALE = (1.0, 0.5, 0.1, 0.01, 0.001)

_MAX_SURPRISAL = 10.0  # in bits; from there on a token is fully red


def colour_of(probability: float) -> tuple[int, int, int]:
    """Return a colour from green (certain) to red; equal steps of hue are equal steps of surprisal in bits."""
    surprisal = -math.log2(max(probability, 1e-30))
    hue = 0.38 * (1.0 - min(surprisal, _MAX_SURPRISAL) / _MAX_SURPRISAL)
    red, green, blue = colorsys.hls_to_rgb(hue, 0.80, 0.72)
    return round(255 * red), round(255 * green), round(255 * blue)


def percent(share: float | None) -> str:
    """Return a probability with its significant digits."""
    if share is None:
        return "–"
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.0e}"


def figures_table(decodings: Sequence[Decoding]) -> list[list[str]]:
    """Return the figures of decodings as rows of cells, the header first."""
    figures = [decoding.figures() for decoding in decodings]
    rows = [
        [decoding.method, *(f"{value:,}" if name == "tokens" else f"{value:.2f}" for name, value in row.items())]
        for decoding, row in zip(decodings, figures)
    ]
    return [["", *figures[0]], *rows]

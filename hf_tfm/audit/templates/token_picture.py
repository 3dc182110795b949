"""A row of tokens as a picture: what is trained, who speaks, which tokens are special."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ...core.visible_text import visible
from .pieces import decode_pieces
from .turns import Turn


SHOWN_TOKENS = 200

TRAINED = "black on #8fd694"
UNTRAINED = "dim"
SPECIAL = "bold"
ROLE = "bold cyan"


def legend(kind: str) -> Text:
    """Returns what the colours and signs mean."""
    text = Text("tokens of the first rows: ")
    text.append("⟦trained⟧", TRAINED)
    text.append(" ")
    text.append("not trained", UNTRAINED)
    text.append(" ")
    text.append("special", SPECIAL)
    if kind == "masked":
        text.append(", a masked token with its label: [MASK]→label")
    return text


def picture_of_row(tokenizer: Any, input_ids: Sequence[int], trained: Sequence[bool], turns: Sequence[Turn]) -> Text:
    """
    Returns a row token by token: ⟦trained tokens⟧ on a background, others dim, special ones bold, a line for each turn.

    Rows of more than `SHOWN_TOKENS` tokens are cut to those around the first trained one.
    """
    pieces = decode_pieces(tokenizer, input_ids)
    special = set(tokenizer.all_special_ids)
    roles = {turn.start: turn.role for turn in turns}
    first = next((place for place, is_trained in enumerate(trained) if is_trained), 0)
    start = max(0, min(first - SHOWN_TOKENS // 4, len(pieces) - SHOWN_TOKENS))
    end = min(len(pieces), start + SHOWN_TOKENS)
    text = Text()
    if start:
        text.append(f"… {start} tokens … ", UNTRAINED)
    is_open = False
    for place in range(start, end):
        is_trained = bool(trained[place]) if place < len(trained) else False
        is_closed = is_open and (not is_trained or place in roles)
        if is_closed:
            text.append("⟧", TRAINED)
            is_open = False
        if place in roles:
            text.append(("\n" if text.plain else "") + f"{roles[place]}: ", ROLE)
        if is_trained and not is_open:
            text.append("⟦", TRAINED)
            is_open = True
        style = f"{SPECIAL} {TRAINED}" if is_trained else UNTRAINED
        if input_ids[place] in special and not is_trained:
            style = SPECIAL
        elif input_ids[place] not in special and is_trained:
            style = TRAINED
        text.append(visible(pieces[place]), style)
    if is_open:
        text.append("⟧", TRAINED)
    if end < len(pieces):
        text.append(f" … {len(pieces) - end} tokens", UNTRAINED)
    return text

"""
Finds the turns of a conversation in a row of tokens, by the texts that a chat template puts around contents.

    row        <s><|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n
    turns         ╰─ header ──────╯╰──╯╰─ stop ─╯   ╰─ header ──────────╯╰───────╯╰─ stop ─╯

`turn_markers.py` learns these texts.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .turn_markers import TemplateMarkers


@dataclass(frozen=True)
class Turn:
    """
    A turn of a conversation, by places of tokens in its row.

    Attributes:
        role: system, user, assistant or tool.
        start: First token of the header; the header ends before `content_start`.
        content_start: First token of the content.
        answer_start: First token behind what the template itself puts at the beginning of an answer, such as an empty
            block of reasoning; usually `content_start`.
        content_end: Behind the last token of the content; here the stop marker begins.
        end: Behind the last token of the stop marker.
        complete: Whether the turn has its stop marker, or the template writes none.
    """

    role: str
    start: int
    content_start: int
    answer_start: int
    content_end: int
    end: int
    complete: bool


class TurnFinder(TemplateMarkers):
    """Finds turns in rows of tokens, also in packed rows and in rows that are truncated."""

    def find(self, ids: Sequence[int]) -> list[Turn]:
        """Returns the turns of a row in their order; an empty list if it has neither a user nor an assistant."""
        if not self._headers:
            return []
        pieces = self.decode(ids)
        ends = list(itertools.accumulate(map(len, pieces)))
        starts = [end - len(piece) for piece, end in zip(pieces, ends)]

        def first_in(place: int) -> int:
            # A token belongs to the content if any of its characters does.
            return min(bisect_left(starts, place), bisect_right(ends, place))

        turns = []
        for role, spans, complete in self._find_spans("".join(pieces)):
            start, content_start, answer_start, content_end, end = spans
            first = first_in(content_start)
            last = max(first, bisect_left(starts, content_end))
            turns.append(
                Turn(
                    role,
                    min(bisect_left(starts, start), first),
                    first,
                    min(max(first, first_in(answer_start)), last),
                    last,
                    max(last, bisect_left(starts, end)),
                    complete,
                )
            )
        return turns

    def _find_headers(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yields role, start and end of each header in a text."""
        for match in self._pattern.finditer(text):
            header = self._headers[int((match.lastgroup or "h0")[1:])]
            is_strong = self._strong.search(header.text) is not None
            preceding = self._preceding.get(header.role, {""})
            # Plain words such as "User:" are a header only where one is expected.
            if is_strong or match.start() == 0 or any(text.endswith(stop, 0, match.start()) for stop in preceding):
                yield header.role, match.start(), match.end()

    def _find_spans(self, text: str) -> Iterator[tuple[str, tuple[int, int, int, int, int], bool]]:
        """Yields role, the five borders by characters, and whether the stop marker is present, of each turn."""
        headers = list(self._find_headers(text))
        if not any(role in ("user", "assistant") for role, _, _ in headers):
            return
        first_role, first_start, _ = headers[0]
        leading = text[:first_start]
        if self._special.sub("", leading).strip() and not self._is_beginning(leading, first_role):
            role = "user" if first_role == "assistant" else "assistant"
            content_end, end, complete = self._find_stop(text, role, 0, first_start, False)
            # A text without the stop marker is a system message that has no header.
            if complete and (role == "user" or self._special.search(text, content_end, end)):
                yield role, (0, 0, 0, content_end, end), complete
        for number, (role, start, content_start) in enumerate(headers):
            is_last = number + 1 == len(headers)
            limit = len(text) if is_last else headers[number + 1][1]
            if role == "system" and limit == content_start:
                continue  # a begin token alone
            answer_start = content_start
            if role == "assistant":
                answer_start += next((len(one) for one in self._extras if text.startswith(one, content_start)), 0)
            content_end, end, complete = self._find_stop(text, role, content_start, limit, is_last)
            yield role, (start, content_start, min(answer_start, content_end), content_end, end), complete

    def _is_beginning(self, leading: str, role: str) -> bool:
        """Whether a text before the first header is what the template itself begins a conversation with."""
        return any(start.startswith(leading) for start in self._starts.get(role, ()))

    def _find_stop(self, text: str, role: str, start: int, limit: int, is_last: bool) -> tuple[int, int, bool]:
        """Returns where the content and the stop marker of a turn end, and whether the marker is there."""
        region = text[start:limit]
        stops = sorted(dict.fromkeys(self._stops.get(role, ())), key=len, reverse=True)
        places: list[tuple[int, int]] = []
        for stop in stops:
            if marker := self._strong.search(stop):
                # Rows may be cut behind the marker itself, and trainers may append other tokens.
                for variant in (stop, stop[: marker.end()], marker[0]):
                    if (place := region.find(variant)) >= 0:
                        places.append((place, -len(variant)))
                        break
            elif stop.strip() and region.endswith(stop):
                places.append((len(region) - len(stop), -len(stop)))
        if places:
            place, length = min(places)
            return start + place, start + place - length, True
        writes_none = not any(stop.strip() for stop in stops)
        blank = len(region) - len(region.rstrip()) if not is_last and "" not in stops else 0
        return limit - blank, limit, writes_none or (not is_last and "" in stops)

"""
Learns the texts that a chat template puts around the contents of messages.

A template is never read. It renders conversations whose contents are words that occur nowhere else, and the texts
between these words are its headers and stop markers. They are learned from decoded tokens, not from rendered text,
because some tokenizers do not give back every space.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .pieces import PieceDecoder


# A word that stands for a content: 9 letters, because Mistral's templates ask for 9 in the ids of calls.
_SENTINEL = re.compile(r"zx[a-z]{7}")
# Text that looks like a marker, whether the tokenizer has a token for it or not.
_MARKER = r"<[^<>\s]+>|\[/?[A-Z_]+\]"
# A tag that a later tag closes, such as that of reasoning.
_OPENING = re.compile(r"<(?!/)[^<>|\s]+>|\[(?!/)[A-Z_]+\]")
# Conversations to render; a "call" is an assistant's message that calls a tool.
_CONVERSATIONS = (
    ("user", "assistant", "user", "assistant", "user", "assistant"),
    ("user", "assistant"),
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user", "assistant"),
    ("system", "user"),
    ("user", "assistant", "tool", "assistant"),
    ("user", "call", "tool", "assistant"),
    ("user", "call", "tool"),
    ("user", "call"),
)
_PROMPT_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"enable_thinking": True})


class _Header(NamedTuple):
    role: str
    text: str


def sentinel(number: int) -> str:
    """Returns a word of 9 letters that templates and texts do not contain, another one for each number."""
    letters = "bcdfghjkm"
    return "zxq" + letters[number // 81 % 9] * 2 + letters[number // 9 % 9] * 2 + letters[number % 9] * 2


def _closing(tag: str) -> str:
    return f"{tag[0]}/{tag[1:]}"


class TemplateMarkers:
    """
    The headers and stop markers of a chat template.

    Args:
        tokenizer: Tokenizer with a chat template. Without one, or with one that cannot be understood, nothing is known.
        chat_template: Template to use instead of the tokenizer's.

    Attributes:
        stop_ids: Ids of the tokens that end an assistant's turn, first those that end the last turn of a conversation.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None):
        self.tokenizer, self._template = tokenizer, chat_template
        self.decode = PieceDecoder(tokenizer)
        self._joints: dict[tuple[str, str], list[str]] = {}
        self._starts: dict[str, list[str]] = {}
        self._tails: dict[str, list[str]] = {}
        self._prompts: list[str] = []
        self._stops: dict[str, list[str]] = {}
        self._divided: dict[tuple[str, str], list[str]] = {}
        self._extras: list[str] = []
        self._preceding: dict[str, set[str]] = {}
        self._headers: list[_Header] = []
        if chat_template or getattr(tokenizer, "chat_template", None):
            self._read_template()
        self._compile_patterns()
        self._learn()
        self.stop_ids = self._find_stop_ids()

    @property
    def has_stop(self) -> bool:
        """Whether the template writes something behind an assistant's content."""
        return any(stop.strip() for stop in self._stops.get("assistant", ()))

    def constants(self, *roles: str) -> list[str]:
        """Returns the texts that the template writes around contents of some roles."""
        texts = [text for role in roles for text in [*self.headers_of(role), *self._stops.get(role, ())]]
        return list(dict.fromkeys(texts))

    @property
    def markers(self) -> set[str]:
        """Special tokens that the template writes around contents."""
        return {
            match[0]
            for text in self.constants("system", "user", "assistant", "tool")
            for match in self._special.finditer(text)
        }

    def headers_of(self, role: str) -> list[str]:
        """Returns the texts that begin a turn of a role, the longest first."""
        return [header.text for header in self._headers if header.role == role]

    def header_in(self, text: str) -> str | None:
        """Returns a header that a text holds: one with markers, or those of both the user and the assistant."""
        users, assistants = (
            [header.strip() for header in self.headers_of(role) if header.strip() in text]
            for role in ("user", "assistant")
        )
        strong = [header for header in users + assistants if self._strong.search(header)]
        return strong[0] if strong else users[0] if users and assistants else None

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
        """Returns a conversation as the template writes it; None if the template refuses it."""
        if self._template is not None:
            options["chat_template"] = self._template
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except Exception:  # a template may raise anything
            return None

    def _compile_patterns(self) -> None:
        """Compile patterns of the added tokens that occur in the template's texts: some tokenizers have thousands."""
        groups = (*self._joints.values(), *self._starts.values(), *self._tails.values(), self._prompts)
        text = "\n".join(itertools.chain(*groups))
        named = set(map(str, self.tokenizer.special_tokens_map.values()))
        self._added = {word: number for number, word in self.decode.added.items() if word in named or word in text}
        words = "|".join(map(re.escape, sorted(self._added, key=len, reverse=True))) or "(?!)"
        self._special = re.compile(words)
        self._strong = re.compile(f"{words}|{_MARKER}")
        self._atoms = re.compile(rf"{words}|{_MARKER}|\s|\w+|.", re.DOTALL)

    def _read_template(self) -> None:
        """Render conversations of sentinels, and keep the texts around these."""
        for roles in _CONVERSATIONS:
            for as_parts, as_text in ((False, False), (False, True), (True, False)):
                messages, owners = _compose(roles, as_parts, as_text)
                pieces = self._split(self.render(messages), owners)
                if pieces is not None and {owner for owner, _ in pieces[1:]} >= set(range(len(roles))) - {0}:
                    break
            else:
                continue
            self._keep(roles, pieces, prompted=False)
            if roles[-1] in ("user", "tool"):
                for options in _PROMPT_OPTIONS:
                    prompted = self._split(self.render(messages, add_generation_prompt=True, **options), owners)
                    if prompted is not None:
                        self._keep(roles, prompted, prompted=True)

    def _split(self, text: str | None, owners: Mapping[str, int]) -> list[tuple[int, str]] | None:
        """Returns the texts behind each sentinel with the message it belongs to; the first text stands before all."""
        if text is None:
            return None
        text = "".join(self.decode(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))
        pieces, owner, place = [], -1, 0
        for match in _SENTINEL.finditer(text):
            pieces.append((owner, text[place : match.start()]))
            owner, place = owners.get(match[0], owner), match.end()
        pieces.append((owner, text[place:]))
        order = [owner for owner, _ in pieces]
        return pieces if len(pieces) > 1 and order == sorted(order) else None

    def _keep(self, roles: Sequence[str], pieces: list[tuple[int, str]], prompted: bool) -> None:
        if prompted:
            if roles[-1] == "user" and pieces[-1][0] == len(roles) - 1:
                self._prompts.append(pieces[-1][1])
            return
        for (owner, text), (following, _) in itertools.pairwise(pieces):
            if owner < 0:
                self._starts.setdefault(roles[following], []).append(text)
            elif owner != following:
                self._joints.setdefault((roles[owner], roles[following]), []).append(text)
        owner, text = pieces[-1]
        self._tails.setdefault(roles[owner], []).append(text)

    def _learn(self) -> None:
        """Divide the texts between contents into stop markers and headers."""
        headers: dict[str, list[str]] = {}
        order = [("assistant", "user"), ("user", "assistant"), ("assistant", "tool"), ("call", "tool"),
                 ("tool", "assistant"), ("system", "user")]  # fmt: skip
        for role, following in order:
            joints = list(dict.fromkeys(self._joints.get((role, following), ())))
            if (role, following) == ("user", "assistant"):
                joints += self._distinct_prompts(joints)
            for joint in joints:
                stop, header = self._divide(joint, role, headers.get(following, ()))
                # Templates that do not know a role write its contents bare, behind the last stop marker.
                if header.strip() and not (following == "tool" and header in self._tails.get("assistant", ())):
                    headers.setdefault(following, []).append(header)
                    self._preceding.setdefault(following, set()).add(stop)
                    self._divided.setdefault((role, following), []).append(stop)
                    self._stops.setdefault("assistant" if role == "call" else role, []).append(stop)
        for role in ("assistant", "user", "tool", "system"):
            self._stops.setdefault(role, []).extend(self._tails.get(role, ()))
        for role, texts in self._starts.items():
            self._learn_start(role, texts, headers)
        self._share_beginnings(headers)
        self._headers = sorted(self._distinct(headers), key=lambda header: len(header.text), reverse=True)
        if self._headers:
            self._pattern = re.compile(
                "|".join(f"(?P<h{number}>{re.escape(header.text)})" for number, header in enumerate(self._headers))
            )

    def _distinct_prompts(self, joints: Sequence[str]) -> list[str]:
        """Returns what generation prompts add, if it is a header: some templates add nothing, or need not."""
        return [
            prompt for prompt in dict.fromkeys(self._prompts)
            if prompt.strip() and (prompt not in self._tails.get("user", ())
                                   or any(joint.rstrip() == prompt.rstrip() for joint in joints))
        ]  # fmt: skip

    def _distinct(self, headers: Mapping[str, list[str]]) -> Iterator[_Header]:
        """Yields the headers that tell their role: others write a system message into a user's turn, for example."""
        users, assistants = tuple(headers.get("user", ())), tuple(headers.get("assistant", ()))
        for role, texts in headers.items():
            for text in dict.fromkeys(texts):
                if role not in ("user", "assistant") and (text.endswith(users) or text.startswith(assistants)):
                    continue
                # Behind a begin token alone, another header may begin with the blank.
                begins = role == "system" and any(one.startswith(text.rstrip()) for one in self._starts.get("user", ()))
                yield _Header(role, text.rstrip() if begins else text)

    def _divide(self, joint: str, role: str, known: Sequence[str]) -> tuple[str, str]:
        """Returns the stop marker and the header that a text between two contents consists of."""
        if role == "call":
            # Behind a call stands what closes it; then the usual stop marker, or another one.
            stops = [stop for stop in self._stops.get("assistant", ()) if self._special.search(stop)]
            markers = [list(self._special.finditer(tail)) for tail in self._tails.get("call", ()) if stops]
            for stop in [*stops, *(places[-1][0] for places in markers if places)]:
                if stop in joint:
                    return stop, joint[joint.rindex(stop) + len(stop) :]
            return "", joint
        for header in sorted(known, key=len, reverse=True):
            if joint.endswith(header):
                return joint[: len(joint) - len(header)], header
        others = [tail for other, tails in self._tails.items() if other != role for tail in tails]
        for tail in [*self._tails.get(role, ()), *others]:
            stop = self._common_beginning(tail, joint)
            if stop.strip() and (stop == tail or self._special.search(stop)):
                return (stop, joint[len(stop) :]) if joint[len(stop) :].strip() else ("", joint)
        return "", joint

    def _common_beginning(self, one: str, other: str) -> str:
        pairs = zip(self._atoms.findall(one), self._atoms.findall(other))
        return "".join(first for first, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _learn_start(self, role: str, texts: Sequence[str], headers: dict[str, list[str]]) -> None:
        """Learn the header of a conversation's first message, which may follow a begin token or a default text."""
        for text in dict.fromkeys(texts):
            known = sorted(headers.get(role, ()), key=len, reverse=True)
            if role == "system":
                # The system's header is often the user's with another name, before a default text.
                known += [header.replace("user", "system") for header in headers.get("user", ()) if "user" in header]
            for header in known:
                if header in text:
                    headers.setdefault(role, []).append(header)
                    self._preceding.setdefault(role, set()).add(text[: text.rindex(header)])
                    break
            else:
                if text.strip():
                    headers.setdefault(role, []).append(text)
                    self._preceding.setdefault(role, set()).add("")

    def _share_beginnings(self, headers: dict[str, list[str]]) -> None:
        """Keep the shortest of the assistant's headers; what others have behind it may begin an answer."""
        texts = sorted(dict.fromkeys(headers.get("assistant", ())), key=len)
        blocks = [
            match[0] for text in texts for match in _OPENING.finditer(text) if _closing(match[0]) in "".join(texts)
        ]
        shortest: list[str] = []
        for text in texts:
            base = next((base for base in shortest if text.startswith(base) and text[len(base) :].strip()), None)
            if base is None:
                base = text[: min((text.find(block) for block in blocks if block in text), default=len(text))]
                shortest.append(base)
            self._extras.append(text[len(base) :])
        headers["assistant"] = list(dict.fromkeys(shortest))
        self._extras = sorted({extra for extra in self._extras if extra}, key=len, reverse=True)

    def _find_stop_ids(self) -> list[int]:
        turns_end = [*self._divided.get(("assistant", "user"), ()), *self._divided.get(("call", "tool"), ())]
        # Behind the last turn some templates write another token, which ends the whole text.
        tails = [
            tail for tail in self._tails.get("assistant", ())
            if not any(stop and tail.startswith(stop) for stop in turns_end)
        ]  # fmt: skip
        markers = [list(self._special.finditer(stop)) for stop in [*tails, *turns_end]]
        return list(dict.fromkeys(self._added[places[-1][0]] for places in markers if places))


def _compose(
    roles: Sequence[str], as_parts: bool = False, as_text: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """
    Returns messages whose texts are sentinels, and the message that each sentinel belongs to.

    Args:
        as_parts: Whether contents are lists of parts, as templates of models with images read them.
        as_text: Whether arguments of calls are a text and not a mapping.
    """
    numbers = itertools.count()
    owners: dict[str, int] = {}
    messages: list[dict[str, Any]] = []
    call_id = call_name = ""

    def word(owner: int) -> str:
        owners[text := sentinel(next(numbers))] = owner
        return text

    for place, role in enumerate(roles):
        if role == "call":
            call_id, call_name, key, value = (word(place) for _ in range(4))
            arguments: Any = json.dumps({key: value}) if as_text else {key: value}
            call = {"id": call_id, "type": "function", "function": {"name": call_name, "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            continue
        content: Any = word(place)
        if as_parts:
            content = [{"type": "text", "text": content}]
        messages.append({"role": role, "content": content})
        if role == "tool" and call_id:
            messages[-1] |= {"tool_call_id": call_id, "name": call_name}
    return messages, owners

"""Whether a chat template writes all that the messages of records say, and nothing else."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import reason_of
from ..report import Report
from .conversations import ChatTemplate, Conversation
from .turn_markers import sentinel
from .turns import TurnFinder


# Names under which templates read reasoning.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# A tag of reasoning at the beginning of a content.
_OPENING_TAG = re.compile(r"\s*(<(?!/)[^<>\s]+>|\[[A-Z_]+\])")
_REASONING_END = re.compile(r"</(think|thinking|thought|reasoning|seed:think)>|\[/THINK\]")
_TOKEN_LIKE = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,40}\]")
_KEPT_SHARE = 0.9  # a content that is shorter than this when it is written has lost something
_RENDERED_SHARE = 0.1  # of records whose contents hold whole turns; fewer may be about chat templates


@dataclass
class _Tally:
    """Counts losses by kind, with the first place of each."""

    total: Counter[str] = field(default_factory=Counter)
    lost: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def add(self, code: str, level: str, kind: str, place: str) -> None:
        self.lost.setdefault((code, level, kind), []).append(place)


def check_contents(template: ChatTemplate, conversations: Sequence[Conversation], report: Report) -> None:
    """P004, P005, P006: what the template drops or changes of the messages that the records have. P007: refusals."""
    tally = _Tally()
    refused: list[tuple[str, str]] = []
    for conversation in conversations:
        try:
            template.write(conversation)
        except Exception as error:  # a template may raise anything
            refused.append((reason_of(error), conversation.where))
            continue
        _check_messages(template, conversation, tally)
        _check_fields(template, conversation, tally)
    if refused:
        reasons = Counter(reason for reason, _ in refused)
        report.add(
            "P007",
            f"{len(refused)} of {len(conversations)} conversations: {reasons.most_common(1)[0][0]}",
            where=refused[0][1],
        )
    for (code, level, kind), places in tally.lost.items():
        text = f"{kind} in {len(places)} of {tally.total[kind]} cases" if tally.total[kind] else kind
        report.add(code, text, where=places[0], level=level)


def _check_messages(template: ChatTemplate, conversation: Conversation, tally: _Tally) -> None:
    """Put a word at the beginning and at the end of each content, and look for them in what the template writes."""
    marked = [_mark(message, 2 * number) for number, message in enumerate(conversation.messages[:300])]
    messages = [*(message for message, _ in marked), *conversation.messages[300:]]
    try:
        text = template.write(conversation, messages)
    except Exception:  # the words make it refuse what it takes without them
        return
    last_user = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
    for number, (_, content) in enumerate(marked):
        if content is None:
            continue
        place = f"{conversation.where}, message {number + 1}"
        kind = _kind(messages, number)
        start, end = text.find(sentinel(2 * number)), text.rfind(sentinel(2 * number + 1))
        dropped = f"{kind} are not written"
        tally.total[dropped] += 1
        if start < 0 and end < 0:
            if isinstance(messages[number]["content"], list):
                dropped = "contents that are lists of parts are not written"
                tally.total[dropped] += 1
            tally.add("P004", "error", dropped, place)
        elif start < 0 and _REASONING_END.search(content):
            earlier = number < last_user
            name = "earlier answers" if earlier else "answers"
            tally.add("P005", "note" if earlier else "warning", f"the reasoning of {name} is not written", place)
        elif start < 0 or end < start:
            part = "beginning" if start < 0 else "end"
            tally.add("P004", "error", f"the {part} of contents is not written ({kind})", place)
        else:
            _compare(content, text[start + len(sentinel(0)) : end], messages[number]["role"], place, tally)


def _compare(content: str, written: str, role: str, place: str, tally: _Tally) -> None:
    """Report a content that is written otherwise than by blanks."""
    before, after = "".join(content.split()), "".join(written.split())
    # Results of tools are often written as JSON.
    quoted = [json.dumps(content, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    if before == after or (
        role == "tool" and "".join(quoted[0].split()) == after or "".join(quoted[1].split()) == after
    ):
        return
    if len(after) < _KEPT_SHARE * len(before):
        tally.add("P004", "error", "a part of contents is not written", place)
    else:
        tally.add("P006", "note", "contents are written otherwise", place)


def _kind(messages: Sequence[Mapping[str, Any]], number: int) -> str:
    role = messages[number]["role"]
    if role in ("system", "developer"):
        return f"{role} messages" if number == 0 else f"{role} messages behind the first message"
    if role in ("user", "assistant"):
        name = "answers" if role == "assistant" else "messages of the user"
        return f"last {name}" if number >= len(messages) - 2 else f"earlier {name}"
    return "results of tools" if role == "tool" else f"messages of the role {role!r}"


def _mark(message: Mapping[str, Any], number: int) -> tuple[dict[str, Any], str | None]:
    """Returns a message with a word at both ends of its content, and the text of this content if it has one."""
    start, end = sentinel(number), sentinel(number + 1)
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        tag = _OPENING_TAG.match(content)
        cut = tag.end() if tag and _REASONING_END.search(content) else 0
        return {**message, "content": f"{content[:cut]}{start} {content[cut:]} {end}"}, content[cut:]
    if isinstance(content, list):
        texts = [n for n, part in enumerate(content) if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(texts) == 1:
            place = texts[0]
            parts = [dict(part) if isinstance(part, Mapping) else part for part in content]
            text = parts[place]["text"]
            parts[place]["text"] = f"{start} {text} {end}"
            return {**message, "content": parts}, text
    return dict(message), None


def _check_fields(template: ChatTemplate, conversation: Conversation, tally: _Tally) -> None:
    """P005: tools, calls, reasoning and names that the template does not write."""
    messages = conversation.messages
    plain = template.write(conversation)

    def changes(changed: Sequence[Mapping[str, Any]]) -> bool:
        try:
            return template.write(conversation, changed) != plain
        except Exception:  # it reads what was changed, and refuses it
            return True

    if conversation.tools:
        kind = "the tools that records offer are not written"
        tally.total[kind] += 1
        without = Conversation(messages, None, "", conversation.options, conversation.is_prompt)
        if template.try_render(
            messages, None, add_generation_prompt=without.is_prompt, **without.options
        ) == plain:  # fmt: skip
            tally.add("P005", "warning", kind, conversation.where)
    last_user = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=-1)
    for number, message in enumerate(messages):
        place = f"{conversation.where}, message {number + 1}"
        for name, changed in _changed_fields(message):
            is_earlier = name in REASONING_KEYS and number < last_user
            kind = f"{name} of {'earlier ' if is_earlier else ''}messages is not written"
            tally.total[kind] += 1
            if not changes([*messages[:number], changed, *messages[number + 1 :]]):
                tally.add("P005", "note" if is_earlier or name == "name" else "warning", kind, place)


def _changed_fields(message: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of a message besides its content, each with the message in which this field is another."""
    if message.get("tool_calls"):
        yield "tool_calls", {**message, "tool_calls": [_rename(call) for call in message["tool_calls"]]}
    for name in (*REASONING_KEYS, "name"):
        value = message.get(name)
        if isinstance(value, str) and value.strip() and not (name == "name" and message["role"] == "tool"):
            yield name, {**message, name: f"{value} {sentinel(0)}"}


def _rename(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call of a tool with another name."""
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": {**inner, "name": f"{inner.get('name')}{sentinel(0)}"}}
    return {**call, "name": f"{call.get('name')}{sentinel(0)}"}


def check_possible_losses(template: ChatTemplate, report: Report) -> None:
    """P004 as a note: messages that the template would drop, though no sampled record has them."""
    words = [sentinel(number) for number in range(4)]
    chats = {
        "system messages": ("system", "user", "assistant"),
        "earlier messages": ("user", "assistant", "user", "assistant"),
    }
    for kind, roles in chats.items():
        text = template.try_render([{"role": role, "content": word} for role, word in zip(roles, words)])
        # A template that writes no content at all reads them in another form.
        if text is not None and words[0] not in text and words[1] in text:
            report.add("P004", f"the template would not write {kind}; no sampled record has them", level="note")


def check_markup(
    template: ChatTemplate, finder: TurnFinder, conversations: Sequence[Conversation], report: Report
) -> None:
    """P013: special tokens in contents. P017: contents that hold whole turns, because they were rendered before."""
    tokenizer = template.tokenizer
    markers, edges = finder.markers, {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    held: dict[str, list[tuple[str, str]]] = {"rendered": [], "markers": [], "others": []}
    for conversation in conversations:
        kinds: dict[str, tuple[str, str]] = {}
        for number, message in enumerate(conversation.messages):
            place = f"{conversation.where}, message {number + 1}"
            for text in _texts_of(message.get("content")):
                if header := finder.header_in(text):
                    kinds.setdefault("rendered", (header, place))
                for token in special.intersection(_TOKEN_LIKE.findall(text)):
                    kinds.setdefault("markers" if token in markers | edges else "others", (token, place))
        for kind, value in kinds.items():
            held[kind].append(value)
    if len(held["rendered"]) > _RENDERED_SHARE * len(conversations):
        header, place = held["rendered"][0]
        report.add(
            "P017",
            f"{len(held['rendered'])} of {len(conversations)} conversations have {header!r} inside a message",
            where=place,
        )
        return
    for kind, level in (("markers", "warning"), ("others", "note")):
        if held[kind]:
            token, place = held[kind][0]
            report.add(
                "P013",
                f"{len(held[kind])} of {len(conversations)} conversations hold special tokens, such as {token!r}",
                where=place,
                level=level,
            )
            return


def _texts_of(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]

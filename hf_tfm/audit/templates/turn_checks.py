"""How a chat template writes turns: its markers, the ends of answers, the generation prompt, the marks of answers."""

import os
import re
from collections.abc import Sequence
from typing import Any

from ..report import Report
from .contents import REASONING_KEYS
from .conversations import ChatTemplate, Conversation
from .turn_markers import sentinel
from .turns import Turn, TurnFinder


# Text that looks like a special token.
_MARKER = re.compile(r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|(?<!<)<[^<>\s/][^<>\s]*>(?!>)")
_PIPED = re.compile(r"<\|?[^<>]*\|>|<\|")
# A block of reasoning, perhaps empty or open, and the channel names of Harmony's format.
_REASONING = re.compile(r"\s*(<(\w+:?\w*)>\s*(</\2>)?|\[THINK\]\s*(\[/THINK\])?|</\w+>)\s*")
_GENERATION = re.compile(r"{%-?\s*generation\b")
_CHECKED_MARKS = 50  # conversations


def has_marks(template: ChatTemplate) -> bool:
    """Whether a template has `{% generation %}` around answers."""
    return _GENERATION.search(template.source) is not None


def check_markers(template: ChatTemplate, finder: TurnFinder, report: Report) -> None:
    """P009: markers of the template that the tokenizer cuts into pieces."""
    texts = finder.constants("system", "user", "assistant")
    words = dict.fromkeys(match[0] for text in texts for match in _MARKER.finditer(text))
    cut = [word for word in words if len(template.encode(word)) > 1]
    if not cut:
        return
    # With eos_token as the end of answers, as in Zephyr's format, roles are words on purpose.
    chat = [{"role": "user", "content": sentinel(0)}, {"role": "assistant", "content": sentinel(1)}]
    word = sentinel(2)
    ends_with_eos = word in (template.try_render(chat, eos_token=word) or "").partition(sentinel(1))[2]
    piped = [word for word in cut if _PIPED.search(word)]
    pieces = template.tokenizer.convert_ids_to_tokens(template.encode((piped or cut)[0]))
    report.add(
        "P009",
        f"the tokenizer has no token for {', '.join(piped or cut)}",
        where=f"{(piped or cut)[0]!r} is {len(pieces)} tokens",
        level="warning" if piped and not ends_with_eos else "note",
    )


def check_ends(template: ChatTemplate, finder: TurnFinder, rows: Sequence[Sequence[int]], report: Report) -> None:
    """
    P003: answers that end without a token to stop at.

    Args:
        rows: Final rows of tokens, which may end with a token that the trainer appends.
    """
    if not finder.headers_of("assistant") or finder.stop_ids:
        return
    special = set(template.tokenizer.all_special_ids) | set(template.tokenizer.added_tokens_decoder)
    ends = [ids[-1] in special for ids in (_without_blank_end(template, row) for row in rows) if ids]
    if ends and sum(ends) >= 0.9 * len(ends):
        return
    chat = [{"role": role, "content": sentinel(number)} for number, role in enumerate(["user", "assistant"] * 2)]
    following = (template.try_render(chat) or "").partition(sentinel(1))[2].partition(sentinel(2))[0]
    ids = _without_blank_start(template, template.encode(following))
    if ids and ids[0] in special:
        token = template.tokenizer.convert_ids_to_tokens(ids[0])
        has_followed = any(turn.role == "assistant" for row in rows for turn in finder.find(row)[:-1])
        report.add(
            "P003",
            f"the last answer of a conversation ends without a token to stop at; others are followed by {token!r}",
            level="note" if has_followed else "warning",
        )
        return
    tail = (template.try_render(chat[:2]) or "").partition(sentinel(1))[2]
    what = f"the template writes {tail!r} behind an answer, which is no special token" if tail.strip() else (
        "the template writes no special token behind an answer"
    )  # fmt: skip
    report.add("P003", what + (f", and neither have {len(rows)} rows one at their end" if rows else ""))


def _without_blank_end(template: ChatTemplate, row: Sequence[int]) -> list[int]:
    ids = list(row)
    while ids and not template.tokenizer.decode(ids[-1:]).strip():
        ids.pop()
    return ids


def _without_blank_start(template: ChatTemplate, ids: list[int]) -> list[int]:
    return _without_blank_end(template, ids[::-1])[::-1]


def check_generation_prompt(
    template: ChatTemplate, finder: TurnFinder, conversations: Sequence[Conversation], report: Report
) -> None:
    """P008: the prompt that generation starts from against the row of training, up to the answer."""
    _check_roles(template, conversations, report)
    messages: list[Any] = [{"role": "user", "content": sentinel(0)}, {"role": "assistant", "content": ""}]
    options: dict[str, Any] = {}
    texts = _render_both(template, messages, options)
    if texts is None:
        given = next((one for one in conversations if _ends_with_answer(one)), None)
        if given is None:
            return
        messages, options = given.messages, {"tools": given.tools, **given.options}
        texts = _render_both(template, messages, options)
        if texts is None:
            return
    prompt, training, tail = texts
    bare = template.try_render(messages[:-1], add_generation_prompt=False, **options)
    _compare_prompts(prompt, training, prompt == bare, report)
    answers = [one.messages[-1]["content"] for one in conversations if _ends_with_answer(one)][:8]
    words = [answer for answer in answers if isinstance(answer, str) and answer[:1].isalnum()]
    _check_border(template, messages, options, prompt, words or ["The", "Yes", "It"], report)
    headers = [header for header in finder.headers_of("assistant") if _MARKER.search(header)]
    if any(tail.endswith(header) for header in headers):
        # As the first template of Llama 3 (huggingface/transformers#30893).
        what = "training rows end with the generation prompt, as if another answer followed"
        report.add("P008", what, where=repr(tail[-60:]))


def _render_both(
    template: ChatTemplate, messages: Sequence[Any], options: dict[str, Any]
) -> tuple[str, str, str] | None:
    """Returns the prompt for the last message, the row of training up to its content, and the text behind this."""
    word = sentinel(1)
    whole = template.try_render([*messages[:-1], {**messages[-1], "content": word}], **options)
    prompt = template.try_render(messages[:-1], add_generation_prompt=True, **options)
    if whole is None or prompt is None or word not in whole:
        return None
    training, _, tail = whole.partition(word)
    return prompt, training, tail


def _check_roles(template: ChatTemplate, conversations: Sequence[Conversation], report: Report) -> None:
    """P008: answers under another role than the assistant's, as "gpt", which generation does not prompt."""
    others = [
        one for one in conversations
        if not one.is_prompt and len(one.messages) > 1
        and all(message["role"] not in ("assistant", "tool") for message in one.messages)
        and one.messages[-1]["role"] not in ("user", "system", "developer")
    ]  # fmt: skip
    if not others or len(others) <= len(conversations) / 10:
        return
    texts = _render_both(template, others[0].messages, {"tools": others[0].tools, **others[0].options})
    if texts is not None and not texts[1].startswith(texts[0]):
        role = others[0].messages[-1]["role"]
        report.add(
            "P008",
            f"{len(others)} of {len(conversations)} conversations end with a message of the role {role!r}, which the "
            f"template writes behind {texts[1][-30:]!r}; the generation prompt ends with {texts[0][-30:]!r}",
            where=others[0].where,
        )


def _check_border(
    template: ChatTemplate,
    messages: Sequence[Any],
    options: dict[str, Any],
    prompt: str,
    answers: Sequence[str],
    report: Report,
) -> None:
    """P008: a prompt whose last token is another one if an answer follows, as a blank that belongs to the word."""
    ids = template.encode(prompt)
    ends = []
    for answer in answers:
        whole = template.try_render([*messages[:-1], {**messages[-1], "content": answer}], **options)
        if whole is None or not whole.startswith(prompt):
            return
        ends.append(template.encode(whole)[: len(ids)][-1:])
    joined = [end for end in ends if end != ids[-1:]]
    if ids and len(joined) > len(ends) / 2:
        one, other = (template.tokenizer.convert_ids_to_tokens(part)[0] for part in (ids[-1:], joined[0]))
        report.add(
            "P008",
            f"the generation prompt ends with the token {one!r}; in training rows {other!r} stands there, joined with "
            "the answer's first word",
            level="warning",
        )


def _ends_with_answer(conversation: Conversation) -> bool:
    last = conversation.messages[-1]
    return last["role"] == "assistant" and not last.get("tool_calls") and len(conversation.messages) > 1


def _compare_prompts(prompt: str, training: str, is_bare: bool, report: Report) -> None:
    """Compare the prompt of generation with the text of a training row up to the answer."""
    place = len(os.path.commonprefix([prompt, training]))
    generated, trained = prompt[place:], training[place:]
    is_usual = all(not text.strip() or _REASONING.fullmatch(text) for text in (generated, trained))
    if not generated:
        if is_usual:
            return
        if is_bare:
            report.add(
                "P008",
                f"the template has no generation prompt: training rows have {trained!r} before an answer",
                where="add_generation_prompt=True changes nothing",
            )
        else:
            report.add("P008", f"behind the generation prompt, training rows have {trained!r} before an answer",
                       level="note")  # fmt: skip
        return
    level = None
    if is_usual:
        level = "note" if generated.strip() or trained.strip() else "warning"
    report.add(
        "P008",
        f"the generation prompt goes on with {generated!r}, training rows with {trained + '…'!r}",
        where=f"behind {training[max(0, place - 30) : place]!r}",
        level=level,
    )


def check_marks(
    template: ChatTemplate,
    finder: TurnFinder,
    conversations: Sequence[Conversation],
    report: Report,
    level: str | None,
) -> None:
    """
    P020: the tokens that `{% generation %}` marks against the answers.

    Args:
        level: Level of a finding; None for that of the catalogue.
    """
    roles = ("user", "assistant", "user", "assistant")
    contents = ("Tell me of the sea.", "It is deep, and it is salt.", "Who sails on it?", "Those who must do it.")
    chat = [{"role": role, "content": content} for role, content in zip(roles, contents)]
    tested = [Conversation(chat, where="a conversation of two turns"), *conversations[:_CHECKED_MARKS]]
    repeats_header = _repeats_header(template, finder)
    faults: dict[str, list[str]] = {}
    count = 0
    for conversation in tested:
        marks = _read_marks(template, conversation)
        if marks is None:
            continue
        ids, mask = marks
        turns = finder.find(ids)
        if not any(turn.role == "assistant" for turn in turns):
            continue
        count += 1
        for fault in _compare_marks(finder, ids, mask, turns, repeats_header):
            faults.setdefault(fault, []).append(conversation.where)
    for fault, places in faults.items():
        report.add("P020", f"{fault} in {len(places)} of {count} conversations", where=places[-1], level=level)


def _read_marks(template: ChatTemplate, conversation: Conversation) -> tuple[list[int], list[int]] | None:
    """Returns the tokens of a conversation, and 1 where they are marked; None if the template refuses it."""
    options = dict(conversation.options)
    if template.text is not None:
        options["chat_template"] = template.text
    try:
        encoded = template.tokenizer.apply_chat_template(
            conversation.messages,
            tools=conversation.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **options,
        )
    except Exception:  # a template may raise anything
        return None
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def _repeats_header(template: ChatTemplate, finder: TurnFinder) -> bool:
    """Whether an answer with reasoning has two headers, so that the model itself writes one."""
    for name in REASONING_KEYS:
        answer = {"role": "assistant", "content": sentinel(1), name: sentinel(2)}
        text = template.try_render([{"role": "user", "content": sentinel(0)}, answer]) or ""
        if any(text.count(header) > 1 for header in finder.headers_of("assistant")):
            return True
    return False


def _compare_marks(
    finder: TurnFinder, ids: list[int], mask: list[int], turns: list[Turn], repeats_header: bool
) -> list[str]:
    """Returns what the marks of a row miss or have too much, in words."""
    if not any(mask):
        return ["{% generation %} marks nothing"]
    pieces = finder.decode(ids)

    def texts(start: int, end: int, marked: int) -> str:
        return "".join(piece for piece, mark in zip(pieces[start:end], mask[start:end]) if mark == marked)

    faults = []
    answers = [turn for turn in turns if turn.role == "assistant"]
    others = [turn for turn in turns if turn.role != "assistant"]
    if any(texts(turn.content_start, turn.content_end, 1).strip() for turn in others):
        faults.append("what others than the assistant say is marked")
    silent = [turn for turn in answers if not any(mask[turn.content_start : turn.end])]
    if silent and len(silent) < len(answers):
        faults.append("some answers are not marked")
    for turn in answers:
        if turn in silent:
            continue
        missing = texts(turn.answer_start, turn.content_end, 0)
        if missing.strip():
            faults.append("a part of answers is not marked")
        # Harmony's answers have several parts, each with its header, which the model writes. A header of one token
        # does no harm: TRL's templates for DeepSeek mark it.
        is_longer = turn.content_start - turn.start > 1 and not repeats_header
        if is_longer and texts(turn.start, turn.content_start, 1).strip():
            faults.append("the header of answers is marked")
    return list(dict.fromkeys(faults))


def check_date(template: ChatTemplate, report: Report) -> None:
    """P015: the template writes the day on which it is rendered."""
    chats = [[{"role": "user", "content": "x"}], [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]]
    for chat in chats:
        # A text cannot be called, so that rendering fails if the template asks for the date.
        if template.try_render(chat) is not None and template.try_render(chat, strftime_now="") is None:
            report.add("P015", "the template writes the date of the day on which rows are made")
            return

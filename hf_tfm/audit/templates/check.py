"""
Chat templates: what they drop, change and mark, and whether answers end with a token to stop at.

Nothing is read from a template's text but whether it marks answers: it renders records and conversations of words that
occur nowhere else, and these words are looked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core.errors import InputError
from ...data.chat import ChatEncoder, RefusedConversation
from ..report import Report
from .contents import check_contents, check_markup, check_possible_losses
from .conversations import (
    SAMPLED_CONVERSATIONS,
    ChatTemplate,
    Conversation,
    read_conversations,
)
from .turn_checks import (
    check_date,
    check_ends,
    check_generation_prompt,
    check_markers,
    check_marks,
    has_marks,
)
from .turn_markers import sentinel
from .turns import TurnFinder


def check_template(
    tokenizer: Any,
    conversations: Iterable[Mapping[str, Any]],
    report: Report,
    *,
    trained: str | None = None,
) -> None:
    """
    Check a tokenizer's chat template on records of data.

    Args:
        conversations: Records with `messages`, or with `prompt`, `completion`, `chosen` and `rejected`; perhaps with
            `tools`, and with their place as `where`.
        trained: "assistant" if the answers alone are trained.
    """
    records = list(conversations)
    count = min(len(records), SAMPLED_CONVERSATIONS)
    places = [number * len(records) // count for number in range(count)]
    sampled = read_conversations({"where": f"record {place + 1}", **records[place]} for place in places)
    template = ChatTemplate(tokenizer)
    if not template.source:
        if sampled:
            report.add("P012", f"the tokenizer has none, and {len(records)} records are conversations")
        return
    finder = TurnFinder(tokenizer)
    check_both(template, finder, sampled, [], report)
    if has_marks(template):
        check_marks(template, finder, sampled, report, None if trained == "assistant" else "note")
    elif trained == "assistant" and not any(finding.code == "P003" for finding in report.findings):
        _check_rendering(tokenizer, sampled, report)


def check_both(
    template: ChatTemplate,
    finder: TurnFinder,
    conversations: Sequence[Conversation],
    rows: Sequence[Sequence[int]],
    report: Report,
) -> None:
    """The checks that data and trainers have in common."""
    if not finder.headers_of("assistant"):
        report.cannot_see("turns of rows: the chat template could not be understood")
    check_contents(template, conversations, report)
    if not any(finding.code == "P004" for finding in report.findings):
        check_possible_losses(template, report)
    check_markup(template, finder, conversations, report)
    check_markers(template, finder, report)
    check_ends(template, finder, rows, report)
    check_generation_prompt(template, finder, conversations, report)
    check_date(template, report)


def _check_rendering(tokenizer: Any, conversations: Sequence[Conversation], report: Report) -> None:
    """P014: without marks, answers are found by rendering turn by turn, which not every template allows."""
    encoder = ChatEncoder(tokenizer)
    for conversation in conversations[:8]:
        if any(not isinstance(message.get("content"), str) for message in conversation.messages):
            continue
        try:
            encoder(conversation.messages, conversation.where, conversation.tools)
        except RefusedConversation:
            continue
        except InputError as error:
            report.add("P014", f"it has no {{% generation %}}, and {error}", where=conversation.where)
            return


def check_stops(
    template: ChatTemplate, finder: TurnFinder, rows: Sequence[Sequence[int]], stops: set[int], report: Report
) -> None:
    """P016: the tokens that end answers against those at which generation stops."""
    if not finder.stop_ids:
        return
    chat = [{"role": "user", "content": sentinel(0)}, {"role": "assistant", "content": sentinel(1)}]
    rendered = template.try_render(chat)
    if rendered is not None and not any(turn.role == "assistant" for row in rows for turn in finder.find(row)):
        rows = [template.encode(rendered)]
    ended = missed = 0
    for row in rows:
        answers = [turn for turn in finder.find(row) if turn.role == "assistant" and turn.end > turn.content_end]
        if answers:
            last = answers[-1]
            # Behind the marker some templates write a token that ends the text, which generation also comes to.
            ended += 1
            missed += not stops & set(row[last.content_end : last.end + 2])
    if missed > ended / 2:
        tokens = template.tokenizer.convert_ids_to_tokens(sorted(stops))
        end = template.tokenizer.convert_ids_to_tokens(finder.stop_ids[0])
        report.add(
            "P016",
            f"answers end with {end!r}, generation stops at {', '.join(map(repr, tokens)) or 'nothing'}",
            where="model.generation_config.eos_token_id",
        )

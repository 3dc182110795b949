"""
Chat templates: what they drop, change and mark, and whether answers end with a token to stop at.

Nothing is read from a template's text but whether it marks answers: it renders records and conversations of words that
occur nowhere else, and these words are looked for.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.errors import InputError
from ..data.chat import ChatEncoder, RefusedConversation
from .conversations import (
    SAMPLED_CONVERSATIONS,
    ChatTemplate,
    Conversation,
    read_conversations,
    trainer_conversations,
)
from .report import Report
from .template_contents import check_contents, check_markup, check_possible_losses
from .template_turns import (
    check_date,
    check_ends,
    check_generation_prompt,
    check_markers,
    check_marks,
    has_marks,
)
from .trainer_subject import Row, TrainerSubject
from .turn_markers import sentinel
from .turns import TurnFinder


_CHECKED_ROWS = 64
_CHECKED_TOKENS = 60_000
_CHAT_KINDS = ("causal", "preference", "online")


def check_trainer_template(subject: TrainerSubject, report: Report) -> None:
    """Check the chat template of a live trainer, if its rows are chats."""
    if subject.tokenizer is None:
        return
    conversations = trainer_conversations(subject)
    template = ChatTemplate(subject.tokenizer, subject.chat_template)
    rows = _first_rows(subject.rows)
    finder = subject.finder
    if not template.source or finder is None:
        if conversations and not subject.rows:
            report.add("P012", f"the tokenizer has none, and {len(conversations)} records are conversations")
        check_ends_of_completions(subject, rows, report)
        return
    turns = [finder.find(row.input_ids) for row in rows]
    if not conversations and not any(turns):
        check_ends_of_completions(subject, rows, report)
        return
    asks_for_marks = bool(getattr(subject.args, "assistant_only_loss", False))
    _check_both(template, finder, conversations, [row.input_ids for row in rows], report)
    if has_marks(template):
        check_marks(template, finder, conversations, report, None if asks_for_marks else "note")
    elif asks_for_marks:
        check_missing_marks(finder, rows, report)
    check_rendered_rows(finder, rows, report)
    if subject.kind in _CHAT_KINDS:
        stops = read_stops(subject)
        if stops is not None:
            check_stops(template, finder, [row.input_ids for row in rows], stops, report)


def check_template(
    tokenizer: Any,
    conversations: Iterable[Mapping[str, Any]],
    report: Report,
    *,
    trained: str | None = None,
    generation_stop_ids: Iterable[int] | None = None,
) -> None:
    """
    Check a tokenizer's chat template on records of data.

    Args:
        conversations: Records with `messages`, or with `prompt`, `completion`, `chosen` and `rejected`; perhaps with
            `tools`, and with their place as `where`.
        trained: "assistant" if the answers alone are trained.
        generation_stop_ids: Ids at which generation stops, if they are known.
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
    _check_both(template, finder, sampled, [], report)
    if has_marks(template):
        check_marks(template, finder, sampled, report, None if trained == "assistant" else "note")
    elif trained == "assistant" and not any(finding.code == "P003" for finding in report.findings):
        _check_rendering(tokenizer, sampled, report)
    if generation_stop_ids is not None:
        check_stops(template, finder, [], set(generation_stop_ids), report)


def _check_both(
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


def _first_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the first rows, as many as have `_CHECKED_TOKENS` tokens together, and at least one."""
    totals = itertools.accumulate(len(row.input_ids) for row in rows[:_CHECKED_ROWS])
    return [row for number, (row, total) in enumerate(zip(rows, totals)) if not number or total <= _CHECKED_TOKENS]


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


def check_missing_marks(finder: TurnFinder, rows: Sequence[Row], report: Report) -> None:
    """P014: a loss on answers only is asked for, without marks, and rows train what others say."""
    spoken = [
        row for row in rows
        if row.labels is not None
        and any(any(row.trained[turn.content_start : turn.content_end]) for turn in finder.find(row.input_ids)
                if turn.role == "user")
    ]  # fmt: skip
    if spoken:
        what = f"assistant_only_loss is set, and {len(spoken)} of {len(rows)} rows train what the user says"
        report.add("P014", what, where=spoken[0].where)


def check_rendered_rows(finder: TurnFinder, rows: Sequence[Row], report: Report) -> None:
    """P017: rows in which a header follows a header, because a rendered chat was rendered again."""
    doubled = [
        row.where for row in rows
        if any(one.role == "user" and one.content_start == one.end == other.start and other.role in ("user", "system")
               for turns in [finder.find(row.input_ids)] for one, other in zip(turns, turns[1:]))
    ]  # fmt: skip
    if len(doubled) > len(rows) / 10:
        report.add("P017", f"{len(doubled)} of {len(rows)} rows have a header inside of another turn", where=doubled[0])


def check_ends_of_completions(subject: TrainerSubject, rows: Sequence[Row], report: Report) -> None:
    """P003: rows of a prompt that is not trained and an answer that is, which end without a special token."""
    if subject.kind != "causal":
        return
    longest = getattr(subject.args, "max_length", None) or max((len(row.input_ids) for row in rows), default=0) + 1
    special = set(subject.tokenizer.all_special_ids) | set(subject.tokenizer.added_tokens_decoder)
    answered = [
        row for row in rows
        if len(row.input_ids) < longest and any(row.trained) and not row.trained[0] and not all(row.trained[1:])
    ]  # fmt: skip
    open_ends = [row for row in answered if row.input_ids[-1] not in special]
    if answered and len(open_ends) > 0.9 * len(answered):
        token = subject.tokenizer.convert_ids_to_tokens(open_ends[0].input_ids[-1])
        report.add(
            "P003",
            f"{len(open_ends)} of {len(answered)} rows of a prompt and an answer end with a token of text",
            where=f"{open_ends[0].where}, {token!r}",
        )


def read_stops(subject: TrainerSubject) -> set[int] | None:
    """Returns the ids at which generation stops once the trainer trains; None if the model generates nothing."""
    config = getattr(subject.base, "generation_config", None)
    if config is None:
        return None
    ids = config.eos_token_id
    # A trainer adds the tokenizer's token when it starts.
    stops = {subject.tokenizer.eos_token_id, *(ids if isinstance(ids, list | tuple) else [ids])}
    return {int(number) for number in stops if number is not None}


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

"""The chat template of a live trainer, on its records and on its rows."""

import itertools
from collections.abc import Mapping, Sequence

from ..report import Report
from ..templates.check import check_both, check_stops
from ..templates.conversations import SAMPLED_CONVERSATIONS, ChatTemplate, Conversation, read_conversations
from ..templates.turn_checks import check_marks, has_marks
from ..templates.turns import TurnFinder
from .answer_labels import generation_stops
from .rows import Row
from .subject import TrainerSubject, is_stream


_CHECKED_ROWS = 64
_CHECKED_TOKENS = 60_000
_CHAT_KINDS = ("causal", "preference", "online")
_COLUMNS = {"messages", "prompt", "completion", "chosen"}


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
            report.add(
                "P012", f"the tokenizer has no chat template, but {len(conversations)} records are conversations"
            )
        check_ends_of_completions(subject, rows, report)
        return
    turns = [finder.find(row.input_ids) for row in rows]
    if not conversations and not any(turns):
        check_ends_of_completions(subject, rows, report)
        return
    asks_for_marks = bool(getattr(subject.args, "assistant_only_loss", False))
    check_both(template, finder, conversations, [row.input_ids for row in rows], report)
    if has_marks(template):
        check_marks(template, finder, conversations, report, None if asks_for_marks else "note")
    elif asks_for_marks:
        check_missing_marks(finder, rows, report)
    check_rendered_rows(finder, rows, report)
    if subject.kind in _CHAT_KINDS:
        if getattr(subject.base, "generation_config", None) is not None:
            stops = generation_stops(subject)
            check_stops(template, finder, [row.input_ids for row in rows], stops, report)


def _first_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the first rows, as many as have `_CHECKED_TOKENS` tokens together, and at least one."""
    totals = itertools.accumulate(len(row.input_ids) for row in rows[:_CHECKED_ROWS])
    return [row for number, (row, total) in enumerate(zip(rows, totals)) if not number or total <= _CHECKED_TOKENS]


def check_missing_marks(finder: TurnFinder, rows: Sequence[Row], report: Report) -> None:
    """P014: the settings ask for a loss on answers, but the template has no marks and rows train other roles."""
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
    """P017: rows where a header follows a header, because the template was applied twice."""
    doubled = [
        row.where for row in rows
        if any(one.role == "user" and one.content_start == one.end == other.start and other.role in ("user", "system")
               for turns in [finder.find(row.input_ids)] for one, other in zip(turns, turns[1:]))
    ]  # fmt: skip
    if len(doubled) > len(rows) / 10:
        report.add("P017", f"{len(doubled)} of {len(rows)} rows have a header inside of another turn", where=doubled[0])


def check_ends_of_completions(subject: TrainerSubject, rows: Sequence[Row], report: Report) -> None:
    """P003: rows of an untrained prompt and a trained answer end without a special token."""
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


def trainer_conversations(subject: TrainerSubject) -> list[Conversation]:
    """
    Returns conversations of a trainer's dataset, evenly drawn, if their messages are still there.

    A trainer whose dataset cannot hold whole messages may have them as `conversations`.
    """
    dataset = getattr(subject.trainer, "conversations", getattr(subject.trainer, "train_dataset", None))
    columns = getattr(dataset, "column_names", None)
    if dataset is None or subject.reads_once or (columns and not _COLUMNS & set(columns)):
        return []
    if is_stream(dataset):
        places: Sequence[int] = range(SAMPLED_CONVERSATIONS)
        records = list(itertools.islice(iter(dataset), SAMPLED_CONVERSATIONS))
    else:
        count = min(len(dataset), SAMPLED_CONVERSATIONS)
        places = [number * len(dataset) // count for number in range(count)]
        records = [dataset[place] for place in places]
    # GRPO's settings hold variables of the template for all records.
    options = getattr(subject.args, "chat_template_kwargs", None) or {}
    return read_conversations(
        {"chat_template_kwargs": options, **record, "where": f"record {place + 1}"}
        for place, record in zip(places, records)
        if isinstance(record, Mapping)
    )

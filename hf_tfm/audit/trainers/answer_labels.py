"""Checks of which parts of conversations and texts are trained: answers, their ends, and what others said."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..report import Report
from ..templates.turns import Turn
from .rows import Document
from .subject import TrainerSubject


FEW = 0.2  # of the answers; what concerns fewer of them is a warning


@dataclass(frozen=True)
class Answer:
    """
    An assistant's turn.

    Attributes:
        number: Its number among the assistant's turns of the document.
        content: For each token of the content whether it is trained.
        stop: Place of the token that ends the turn; None if it has none.
        is_stop_trained: Whether that token is trained.
    """

    document: Document
    turn: Turn
    number: int
    content: list[bool]
    stop: int | None

    @property
    def is_trained(self) -> bool:
        """Whether at least half of the content is trained."""
        return bool(self.content) and 2 * sum(self.content) >= len(self.content)

    @property
    def is_stop_trained(self) -> bool:
        return self.stop is not None and self.document.trained[self.stop]

    def describe(self, place: int, tokenizer: Any) -> str:
        """Returns the answer's row and a token of it."""
        return f"{self.document.where}, token {place}: {tokenizer.decode([self.document.input_ids[place]])!r}"


def check_answers(subject: TrainerSubject, documents: Sequence[Document], report: Report) -> None:
    """Check conversations by their turns, and other texts by the token that ends them."""
    if subject.tokenizer is None:
        return
    chats = [document for document in documents if document.turns]
    answers = [answer for document in chats for answer in read_answers(document, stop_ids(subject))]
    if answers:
        check_ends(subject, answers, report)
        check_parts(subject, answers, report)
        check_others(subject, chats, answers, report)
    texts = [document for document in documents if not document.turns]
    check_text_ends(subject, texts, report)
    check_prompts(subject, documents, report)
    if subject.kind == "causal":
        check_cut(subject, documents, report)


def generation_stops(subject: TrainerSubject) -> set[int]:
    """Returns the ids at which generation stops: those of its settings, and the tokenizer's, which trainers add."""
    ids = getattr(getattr(subject.base, "generation_config", None), "eos_token_id", None)
    return {subject.tokenizer.eos_token_id, *(ids if isinstance(ids, list | tuple) else [ids])} - {None}


def stop_ids(subject: TrainerSubject) -> set[int]:
    """Returns the ids that end an answer: those at which generation stops, and those of the chat template."""
    return generation_stops(subject) | set(subject.finder.stop_ids if subject.finder is not None else ())


def read_answers(document: Document, stops: set[int]) -> Iterator[Answer]:
    """Yields the assistant's turns of a document."""
    turns = [turn for turn in document.turns if turn.role == "assistant"]
    for number, turn in enumerate(turns):
        content = document.trained[max(1, turn.answer_start) : turn.content_end]
        places = [place for place in range(turn.content_end, turn.end) if document.input_ids[place] in stops]
        if not places and turn.end == len(document.input_ids) - 1 and document.input_ids[turn.end] in stops:
            places = [turn.end]  # behind templates without a stop marker, trainers append one
        yield Answer(document, turn, number, content, places[0] if places else None)


def check_ends(subject: TrainerSubject, answers: Sequence[Answer], report: Report) -> None:
    """P104: the token that ends an answer is in the row but is not trained."""
    ended = [answer for answer in answers if answer.is_trained and answer.stop is not None]
    wrong = [answer for answer in ended if not answer.is_stop_trained]
    if not wrong or wrong[0].stop is None:
        return
    report.add(
        "P104",
        f"{len(wrong)} of {len(ended)} trained answers have an end token that is not trained",
        wrong[0].describe(wrong[0].stop, subject.tokenizer),
        level=None if len(wrong) > FEW * len(ended) else "warning",
        why=reason_of_end(subject, wrong[0].document.input_ids[wrong[0].stop]),
    )


def reason_of_end(subject: TrainerSubject, stop: int) -> str | None:
    """Returns why an end that is also padding is not trained."""
    if stop != subject.tokenizer.pad_token_id:
        return None
    return "It is also the padding token, whose id the collator masks everywhere, so the model never learns to stop."


def check_text_ends(subject: TrainerSubject, texts: Sequence[Document], report: Report) -> None:
    """P104 for texts: the end token behind a trained token is not trained."""
    end, ends, wrong = subject.tokenizer.eos_token_id, 0, []
    for text in texts:
        for place in range(2, len(text.input_ids)):
            if text.input_ids[place] == end != text.input_ids[place - 1] and text.trained[place - 1]:
                ends += 1
                if not text.trained[place]:
                    wrong.append((text, place))
    if wrong:
        text, place = wrong[0]
        report.add(
            "P104",
            f"{len(wrong)} of {ends} end tokens behind trained text are not trained",
            f"{text.where}, token {place}: {subject.tokenizer.eos_token!r}",
            level=None if len(wrong) > FEW * ends else "warning",
            why=reason_of_end(subject, end),
        )


def check_parts(subject: TrainerSubject, answers: Sequence[Answer], report: Report) -> None:
    """P110: the beginning, the end or a part of answers is not trained, or answers of some turns are not."""
    partial = [answer for answer in answers if any(answer.content) and lost_places(answer, subject)]
    trained = [answer for answer in answers if any(answer.content)]
    if partial:
        begin = [answer for answer in partial if lost_places(answer, subject)[0] == first_place(answer)]
        part = "their first token" if len(begin) > len(partial) / 2 else "a part of them"
        lost = sum(len(lost_places(answer, subject)) for answer in partial) / len(partial)
        report.add(
            "P110",
            f"{len(partial)} of {len(trained)} answers are trained without {part}, on average {lost:.0f} tokens",
            partial[0].describe(lost_places(partial[0], subject)[0], subject.tokenizer),
            level=None if len(partial) > FEW * len(trained) else "warning",
        )
    untrained = [answer for answer in answers if answer.content and not any(answer.content)]
    if not untrained or not trained or subject.kind == "preference":
        return
    last = {id(answer.document): answer.number for answer in answers}
    only_last = all((answer.number == last[id(answer.document)]) == any(answer.content) for answer in answers)
    report.add(
        "P110",
        f"{len(untrained)} of {len(answers)} answers are not trained"
        + (": only the last one of each conversation is" if only_last else ""),
        untrained[0].document.where,
        level="note",
        why="The model learns from the others only.",
        mend="Nothing, if this is meant.",
    )


def first_place(answer: Answer) -> int:
    return max(1, answer.turn.answer_start)


def lost_places(answer: Answer, subject: TrainerSubject) -> list[int]:
    """Returns the untrained tokens of a trained answer; blanks at its edges do not count."""
    start = first_place(answer)
    lost = [start + place for place, is_trained in enumerate(answer.content) if not is_trained]
    edges = {start, answer.turn.content_end - 1}
    return [
        place
        for place in lost
        if place not in edges or subject.tokenizer.decode([answer.document.input_ids[place]]).strip()
    ]


def check_others(subject: TrainerSubject, chats: Sequence[Document], answers: Sequence[Answer], report: Report) -> None:
    """P102, P115: tokens of the user, the system or a tool are trained."""
    trained, tokens, first = 0, 0, None
    untrained_turns = trained_turns = 0
    for chat in chats:
        for turn in chat.turns:
            if turn.role != "assistant":
                content = chat.trained[max(1, turn.content_start) : turn.content_end]
                tokens, trained = tokens + len(content), trained + sum(content)
                trained_turns += sum(content) > len(content) / 2
                untrained_turns += bool(content) and not any(content)
                if any(content):
                    first = first or (chat, turn)
    if first is None:
        return
    where = f"{first[0].where}, {first[1].role}"
    what = f"{trained:,} of {tokens:,} tokens that others than the assistant said are trained"
    has_answer = any(answer.is_trained for answer in answers)
    if getattr(subject.args, "assistant_only_loss", False) and trained > 0.01 * tokens:
        report.add("P102", what + ", though assistant_only_loss is set", where)
    elif not has_answer:
        report.add(
            "P102",
            what + ", and no answer is",
            where,
            why="The model learns to generate other roles' turns, but no answers.",
        )
    elif untrained_turns and trained_turns:
        report.add("P102", f"{what}, in {trained_turns} of {trained_turns + untrained_turns} turns", where, "warning")
    else:
        report.add("P115", what, where)


def check_prompts(subject: TrainerSubject, documents: Sequence[Document], report: Report) -> None:
    """P102: the settings ask for a loss on completions, but rows are trained from their first token."""
    if subject.kind != "preference" and not getattr(subject.trainer, "completion_only_loss", False):
        return
    whole = [document for document in documents if all(document.trained[1:])]
    if len(whole) > FEW * len(documents):
        report.add(
            "P102",
            f"{len(whole)} of {len(documents)} rows are trained from their first token, not only on completions",
            whole[0].where,
        )


def check_cut(subject: TrainerSubject, documents: Sequence[Document], report: Report) -> None:
    """P108: texts of the greatest length lack the end or the beginning that shorter texts have."""
    limit = max(len(document.input_ids) for document in documents)
    cut = [document for document in documents if len(document.input_ids) == limit]
    shorter = [document for document in documents if len(document.input_ids) < limit]
    is_known = limit in (
        getattr(subject.args, "max_length", None),
        getattr(subject.loader.collate_fn, "max_length", None),
    )
    if len(cut) < 2 and not is_known:
        return
    stops = stop_ids(subject)
    unended = [document for document in cut if is_unended(document, stops)]
    if subject.finder is not None and not subject.finder.has_stop and len(cut) > max(2, 0.1 * len(documents)):
        # Such a template writes no end, but texts of equal length are cut.
        unended = [document for document in cut if document.turns and document.turns[-1].role == "assistant"]
    if any(document.turns for document in documents):
        # Blocks of a stream of conversations are cut on purpose, and begin anywhere.
        whole = sum(bool(document.turns) and document.turns[0].content_start > 0 for document in cut)
        comparable = whole > 0.8 * len(cut)
    else:
        ended = sum(not is_unended(document, stops) for document in shorter)
        comparable = len(shorter) >= 3 and ended > 0.8 * len(shorter)
    if unended and comparable:
        report.add(
            "P108",
            f"{len(unended)} of {len(documents)} rows end at {limit:,} tokens without the end of their text",
            unended[0].where,
            level=None if len(unended) > 0.01 * len(documents) else "note",
        )
    firsts = [document.input_ids[0] for document in shorter]
    if len(firsts) < 3:
        return
    usual = max(set(firsts), key=firsts.count)
    late = [document for document in cut if document.input_ids[0] != usual]
    if firsts.count(usual) > 0.9 * len(firsts) and len(late) > len(cut) / 2:
        report.add(
            "P108",
            f"{len(late)} of {len(documents)} rows of {limit:,} tokens lack the beginning of their text",
            late[0].where,
            why="The model is trained on answers whose instructions or questions are cut off.",
            level=None if len(late) > 0.01 * len(documents) else "note",
        )


def is_unended(document: Document, stops: set[int]) -> bool:
    """Whether a conversation ends within an answer, or a text without an end token."""
    if document.turns:
        turn = document.turns[-1]
        return turn.role == "assistant" and not turn.complete
    return document.input_ids[-1] not in stops

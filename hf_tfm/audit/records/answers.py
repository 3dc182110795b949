"""Answers that teach nothing or little: copies of the prompt, the same one again and again, length as the only sign."""

import re
from collections import Counter

from ...data.records import Records
from ..report import Report
from .subject import DataSubject, list_places, tell_share
from .texts import answers_of, input_of, normalise


_FEWEST = 20  # records
_MOST_EQUAL = 0.9
_SHARE_OF_WARNING = 0.05
# Marks of chat templates in front of a turn.
_MARK = re.compile(
    r"<\|im_start\|>(?:system|user|assistant)|<\|start_header_id\|>|\[INST\]|<start_of_turn>|<\|(?:user|assistant)\|>"
)
_NO_TEXT = frozenset(("nan", "none", "null", "undefined", "n/a", "<na>", "[deleted]", "[removed]"))
_LONGEST_NAME = 20  # characters of one of these, with blanks
_BEGINNING = 8  # characters by which most answers are told from their prompt at once


def check_answers(subject: DataSubject, report: Report) -> None:
    """Report answers that repeat their prompt, that are all equal, or that stand for no text."""
    if subject.job not in ("chat", "preferences", "translation", "prompts"):
        return
    for split, records in subject.splits.items():
        answers = [answers_of(subject.job, record) for record in records]
        _check_copies(subject, split, records, report)
        all_answers = [answer.strip() for several in answers for answer in several if answer]
        if all_answers:
            answer, count = Counter(all_answers).most_common(1)[0]
            if len(all_answers) >= _FEWEST and count >= _MOST_EQUAL * len(all_answers):
                report.add("P618", f"{tell_share(count, len(all_answers), 'answers')} of the {split} split are "
                           f"{answer[:60]!r}")  # fmt: skip
        empty = [number for number, several in enumerate(answers) if any(map(is_no_text, several))]
        if empty:
            report.add("P601", f"{tell_share(len(empty), len(records))} of the {split} split have an answer that is no "
                       "text but the name of none (nan, None, null, [deleted])",
                       list_places(records, empty),
                       level=None if len(empty) >= 0.01 * len(records) else "note")  # fmt: skip


def check_marks_in_messages(subject: DataSubject, report: Report) -> None:
    """Report messages that hold the marks of a chat template, as if a rendered chat were a message."""
    if subject.job not in ("chat", "preferences", "prompts") or any(each.code == "P017" for each in report.findings):
        return
    for split, records in subject.splits.items():
        marked = [number for number, record in enumerate(records) if _contains_mark(subject.whole(record))]
        if marked:
            report.add("P017", f"{tell_share(len(marked), len(records))} of the {split} split have marks of a chat "
                       "template in a message", list_places(records, marked),
                       level=None if len(marked) >= len(records) / 2 else "note")  # fmt: skip


def _contains_mark(text: str) -> bool:
    return ("<" in text or "[" in text) and _MARK.search(text) is not None


def is_no_text(text: str) -> bool:
    """Whether a text is what programs write where there is none: nan, None, [deleted]."""
    return len(text) <= _LONGEST_NAME and text.strip().casefold() in _NO_TEXT


def _check_copies(subject: DataSubject, split: str, records: Records, report: Report) -> None:
    copies = [number for number, record in enumerate(records) if repeats_prompt(subject.job, record)]
    if copies:
        what = "are equal to their source" if subject.job == "translation" else "repeat their prompt"
        report.add(
            "P615",
            f"{tell_share(len(copies), len(records), 'answers')} of the {split} split {what}",
            list_places(records, copies),
            level=None if len(copies) >= _SHARE_OF_WARNING * len(records) else "note",
        )


def repeats_prompt(job: str, record: dict) -> bool:
    """Whether an answer is its prompt, or begins with all of a prompt of more than a few words."""
    if job == "chat":
        messages = record["messages"]
        pairs = [
            (prompt["content"], answer["content"])
            for prompt, answer in zip(messages, messages[1:])
            if prompt["role"] == "user" and answer["role"] == "assistant"
        ]
    elif job == "preferences":
        pairs = [(record["prompt"][-1]["content"], message["content"]) for message in record["chosen"]]
    else:
        pairs = [(input_of(job, record), answer) for answer in answers_of(job, record)]
    for prompt, answer in pairs:
        if prompt.lstrip()[:_BEGINNING].casefold() != answer.lstrip()[:_BEGINNING].casefold():
            continue
        prompt, answer = normalise(prompt), normalise(answer)
        if answer and (answer == prompt or (len(prompt) >= 40 and answer.startswith(prompt))):
            return True
    return False

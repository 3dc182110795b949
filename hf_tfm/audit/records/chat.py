"""Chats as rows for training: the first ones token by token, as `finetune_instruct` encodes them, and their roles."""

from collections import Counter
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ...core.errors import InputError
from ...data.chat import ChatEncoder
from ...data.chat_rows import find_trained
from ...data.records import Records
from ..report import Report
from ..templates.check import check_template
from ..templates.token_picture import legend, picture_of_row
from ..templates.turns import TurnFinder
from .subject import DataSubject


SHOWN_ROWS = 2


def tell_turns(subject: DataSubject, report: Report) -> None:
    """Tell the roles of chats, and how many turns they have."""
    if subject.job != "chat":
        return
    for split, records in subject.splits.items():
        roles = Counter(message["role"] for record in records for message in record["messages"])
        turns = Counter(sum(message["role"] == "assistant" for message in record["messages"]) for record in records)
        answers = ", ".join(f"{number} in {count:,} chats" for number, count in sorted(turns.items())[:5])
        report.facts[f"{split} roles"] = ", ".join(f"{role} {count:,}" for role, count in roles.most_common())
        report.facts[f"{split} answers"] = answers + (" …" if len(turns) > 5 else "")


def show_chats(subject: DataSubject, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """Add pictures of the first chats to a report, with the tokens that a loss on answers trains."""
    if subject.job not in ("chat", "preferences") or not tokenizer.chat_template:
        return
    if not tokenizer.is_fast:
        report.cannot_see("trained tokens: the tokenizer is a slow one, which does not tell where tokens stand")
        return
    records = next(iter(subject.splits.values()))
    encoder = ChatEncoder(tokenizer)
    report.pictures.append(legend("causal"))
    for number in range(min(SHOWN_ROWS, len(records))):
        try:
            report.pictures.append(picture_of_record(encoder, records, number))
        except InputError as error:
            report.cannot_see(f"trained tokens of {records.places[number]}: {error}")
            return


def picture_of_record(encoder: ChatEncoder, records: Records, number: int) -> Text:
    """Returns a chat token by token; of a preference the better answer. Raises `InputError` for one that is refused."""
    record: dict[str, Any] = records[number]
    messages = record["messages"] if "messages" in record else [*record["prompt"], *record["chosen"]]
    place = records.places[number]
    tokens = encoder(messages, place, record.get("tools"))
    trained = find_trained(tokens, messages, "assistant" if "messages" in record else "last", place)
    return picture_of_row(encoder.tokenizer, tokens.ids, trained, TurnFinder(encoder.tokenizer).find(tokens.ids))


def check_chat_template(subject: DataSubject, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """Check what the chat template makes of the records of all splits."""
    if subject.job not in ("chat", "preferences", "prompts") or not tokenizer.chat_template:
        return
    conversations = [
        {**record, "where": place}
        for records in subject.splits.values()
        for record, place in zip(records, records.places)
    ]
    check_template(tokenizer, conversations, report, trained="assistant")

"""What records of each job say: their prompts, answers, labels, and all of their texts."""

import re
from collections.abc import Sequence
from typing import Any

from ...data.conversations import texts_in


Record = dict[str, Any]
_PREFIX = re.compile(r"^[BIESLUM]-")


def input_of(job: str, record: Record) -> str:
    """Returns what a model reads of a record before it answers."""
    match job:
        case "classification":
            return "\n".join(record[name] for name in ("text", "text_pair") if name in record)
        case "tags":
            return " ".join(record["tokens"])
        case "questions":
            return f"{record['question']}\n{record['context']}"
        case "choices":
            return "\n".join([record["question"], record.get("context", ""), *record["options"]])
        case "pairs":
            return f"{record['text']}\n{record['text_pair']}"
        case "translation":
            return record["source"]
        case "chat":
            return "\n".join(message["content"] for message in record["messages"] if message["role"] != "assistant")
        case "preferences" | "prompts":
            return "\n".join(message["content"] for message in record["prompt"])
    return record["text"]


def answers_of(job: str, record: Record) -> list[str]:
    """Returns the texts that a model learns to write or to find, without calls of tools; of labels none."""
    match job:
        case "questions":
            return list(record["answers"]["text"])
        case "translation":
            return [record["target"]] if "target" in record else []
        case "chat":
            return [message["content"] for message in record["messages"] if message["role"] == "assistant"]
        case "preferences":
            return [message["content"] for side in ("chosen", "rejected") for message in record[side]]
        case "prompts":
            return [str(record["answer"])] if "answer" in record else []
    return []


def outcome_of(job: str, record: Record) -> str:
    """Returns all that is to be learned of a record as one text: answers, calls of tools, labels, scores."""
    match job:
        case "classification":
            return str(record.get("label"))
        case "tags":
            return " ".join(map(str, record["tags"]))
        case "choices":
            return str(record.get("answer"))
        case "pairs":
            return f"{record.get('score')} {' '.join(record.get('negative', []))}"
        case "chat":
            return "\n".join(
                f"{message['content']}{message.get('tool_calls', '')}"
                for message in record["messages"]
                if message["role"] == "assistant"
            )
    return "\n".join(answers_of(job, record))


def texts_of(job: str, record: Record) -> list[str]:
    """Returns all texts of a record, as a file has them."""
    match job:
        case "tags":
            return [" ".join(record["tokens"])]
        case "chat":
            return [message["content"] for message in record["messages"]]
        case "preferences" | "prompts":
            sides = [record[side] for side in ("prompt", "chosen", "rejected") if side in record]
            return [message["content"] for side in sides for message in side]
        case "questions":
            return [record["question"], record["context"], *record["answers"]["text"]]
    return list(texts_in([value for name, value in record.items() if name not in ("id", "label", "label_text")]))


def labels_of(job: str, record: Record) -> list[str]:
    """Returns the labels of a record: classes, types of tags, or the number of the right option."""
    match job:
        case "classification":
            label = record.get("label_text", record.get("label"))
            return [str(part) for part in (label if isinstance(label, list) else [label])]
        case "tags":
            return sorted({_PREFIX.sub("", str(tag)) for tag in record["tags"]})
        case "choices":
            return [f"option {record['answer'] + 1}"] if isinstance(record.get("answer"), int) else []
    return []


def has_scores(labels: Sequence[Any]) -> bool:
    """Whether labels are numbers to be estimated rather than classes: some have fractions."""
    numbers = [label for label in labels if isinstance(label, float)]
    return any(not number.is_integer() for number in numbers)


def normalise(text: str) -> str:
    """Returns a text in small letters, with single blanks."""
    return " ".join(text.casefold().split())

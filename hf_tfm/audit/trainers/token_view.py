"""The X-ray of a run: rows token by token with what is trained in colours, and the figures of the first batches."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...core.visible_text import visible
from ...data.batches import IGNORED
from ..report import Report
from ..templates.pieces import decode_pieces
from ..templates.token_picture import SHOWN_TOKENS, TRAINED, UNTRAINED, legend, picture_of_row
from .answer_labels import Answer, read_answers, stop_ids
from .rows import Document, read_columns
from .subject import TrainerSubject


SHOWN_ROWS = 2
SHOWN_TURNS = 6  # numbers of turns in the table


def show_rows(subject: TrainerSubject, report: Report) -> None:
    """Add pictures of the first rows and the figures of the first batches to a report."""
    if subject.kind == "embedding":
        report.pictures.extend(show_columns(subject))
        return
    if not subject.rows:
        report.cannot_see("rows token by token: the batches hold no input_ids of shape (rows, length)")
        return
    if subject.tokenizer is None:
        report.cannot_see("rows token by token: the trainer has no tokenizer (processing_class)")
    elif subject.kind in ("classification", "reward", "questions", "choices", "seq2seq"):
        report.pictures.extend(show_texts(subject))
    else:
        show = {"masked": show_masked, "tokens": show_tags}.get(subject.kind, show_documents)
        report.pictures.append(legend(subject.kind))
        report.pictures.extend(show(subject))
    add_figures(subject, report)


def show_documents(subject: TrainerSubject) -> Iterator[RenderableType]:
    """Yields pictures of the first documents; of a pair, the chosen and the rejected one."""
    documents = subject.documents
    chosen = documents[:SHOWN_ROWS]
    names = [document.where for document in chosen]
    if subject.kind == "preference" and len(subject.batches[0]["input_ids"]) % 2 == 0 and documents:
        chosen = [documents[0], documents[len(subject.batches[0]["input_ids"]) // 2]]
        names = ["chosen", "rejected"]
    for name, document in zip(names, chosen):
        picture = picture_of_row(subject.tokenizer, document.input_ids, document.trained, document.turns)
        padding = len(document.row.padding_labels)
        if padding and len(document.input_ids) == len(document.row.input_ids):
            picture.append(f"  + {padding} padding", UNTRAINED)
        yield Group(Text(f"{name}, {len(document.input_ids)} tokens", style="underline"), picture)


def show_masked(subject: TrainerSubject) -> Iterator[RenderableType]:
    """Yields the first rows of a masked language model: its masked tokens with their labels."""
    for row in subject.rows[:SHOWN_ROWS]:
        text = Text()
        pieces = decode_pieces(subject.tokenizer, row.input_ids)
        for place, label in list(enumerate(row.labels or [IGNORED] * len(pieces)))[:SHOWN_TOKENS]:
            if label == IGNORED:
                text.append(visible(pieces[place]), UNTRAINED)
            else:
                text.append(f"⟦{visible(pieces[place])}→{visible(subject.tokenizer.decode([label]))}⟧", TRAINED)
        yield Group(Text(f"{row.where}, {len(row.input_ids)} tokens", style="underline"), text)


def show_tags(subject: TrainerSubject) -> Iterator[RenderableType]:
    """Yields the first rows of a tagger: each token that has a tag, with the tag's name."""
    names = getattr(subject.base.config, "id2label", None) or {}
    for row in subject.rows[:SHOWN_ROWS]:
        text = Text()
        pieces = decode_pieces(subject.tokenizer, row.input_ids)
        for place, label in list(enumerate(row.labels or [IGNORED] * len(pieces)))[:SHOWN_TOKENS]:
            if label == IGNORED:
                text.append(visible(pieces[place]), UNTRAINED)
            else:
                text.append(f"⟦{visible(pieces[place])}/{names.get(label, label)}⟧", TRAINED)
        yield Group(Text(f"{row.where}, {len(row.input_ids)} tokens", style="underline"), text)


def show_texts(subject: TrainerSubject) -> Iterator[RenderableType]:
    """Yields the first texts of a classifier with the names of their labels."""
    batch = subject.batches[0]
    names = getattr(subject.base.config, "id2label", None) or {}
    labels = batch.get("labels")
    for number, row in enumerate(subject.rows[:SHOWN_ROWS]):
        text = Text(visible(subject.tokenizer.decode(row.input_ids[:SHOWN_TOKENS])))
        if isinstance(labels, torch.Tensor) and number < len(labels):
            value = labels[number].tolist()
            text.append(f"  → {names.get(value, value) if isinstance(value, int) else value}", TRAINED)
        if subject.kind == "questions" and isinstance(batch.get("start_positions"), torch.Tensor):
            start, end = batch["start_positions"][number].item(), batch["end_positions"][number].item()
            answer = subject.tokenizer.decode(batch["input_ids"][number][start : end + 1])
            text.append(f"  → {visible(answer)!r}", TRAINED)
        yield Group(Text(f"{row.where}, {len(row.input_ids)} tokens", style="underline"), text)


def show_columns(subject: TrainerSubject) -> Iterator[RenderableType]:
    """Yields the first texts of each column that a trainer of embeddings compares, and their score."""
    if not subject.batches or subject.tokenizer is None:
        return
    batch = subject.batches[0]
    for column, rows in read_columns(batch, "batch 1").items():
        for row in rows[:SHOWN_ROWS]:
            text = visible(subject.tokenizer.decode(row.input_ids[:SHOWN_TOKENS]))
            yield Group(Text(f"{column}, {len(row.input_ids)} tokens", style="underline"), Text(text))
    if isinstance(labels := batch.get("label"), torch.Tensor):
        yield Text(f"label: {', '.join(map(str, labels[:SHOWN_ROWS].tolist()))}")


def add_figures(subject: TrainerSubject, report: Report) -> None:
    """Add the figures of the first batches to the report's facts, and a table of what is trained by role and turn."""
    rows = subject.rows
    lengths = [len(row.input_ids) for row in rows]
    padding = sum(len(row.padding_labels) for row in rows)
    tokens = sum(lengths)
    report.facts |= {
        "rows": len(rows),
        "tokens": tokens,
        "median length": int(median(lengths)),
        "longest": max(lengths),
        "share padding": round(padding / max(1, padding + tokens), 3),
    }
    documents = [document for document in subject.documents if document.labels is not None]
    if not documents or subject.kind == "classification":
        return
    report.facts["documents"] = len(subject.documents)
    report.facts["share trained"] = round(sum(sum(document.trained) for document in documents) / max(1, tokens), 3)
    chats = [document for document in documents if document.turns]
    if not chats or subject.kind not in ("causal", "preference"):
        return
    by_role = shares_by_role(chats)
    report.facts["share trained by role"] = {role: round(share, 3) for (role, number), share in by_role if not number}
    answers = [answer for document in chats for answer in read_answers(document, stop_ids(subject))]
    ended = [answer for answer in answers if answer.stop is not None]
    if answers:
        report.facts["answers"] = len(answers)
        report.facts["share of answers whose stop token is trained"] = round(share_ended(answers), 3)
        report.facts["share of answers with a stop token"] = round(len(ended) / len(answers), 3)
    report.pictures.append(table_of_shares(by_role))


def share_ended(answers: Sequence[Answer]) -> float:
    return sum(answer.is_stop_trained for answer in answers) / len(answers)


def shares_by_role(chats: Sequence[Document]) -> list[tuple[tuple[str, int], float]]:
    """Returns the trained share of the contents by role and number of turn; number 0 stands for all turns."""
    trained: Counter[tuple[str, int]] = Counter()
    tokens: Counter[tuple[str, int]] = Counter()
    for chat in chats:
        numbers: Counter[str] = Counter()
        for turn in chat.turns:
            numbers[turn.role] += 1
            content = chat.trained[max(1, turn.content_start) : turn.content_end]
            for key in ((turn.role, 0), (turn.role, min(numbers[turn.role], SHOWN_TURNS))):
                trained[key] += sum(content)
                tokens[key] += len(content)
    return [(key, trained[key] / count) for key, count in sorted(tokens.items()) if count]


def table_of_shares(shares: Sequence[tuple[tuple[str, int], float]]) -> Table:
    """Returns a table of trained shares: a row for each role, a column for each of its turns."""
    values = dict(shares)
    roles = [role for role, number in values if number == 0]
    most = max(number for _, number in values)
    names = ["all", *map(str, range(1, most + 1))]
    if most == SHOWN_TURNS:
        names[-1] += " +"
    table = Table(
        "trained, turn", *names, title="share of the tokens of each role that are trained", title_justify="left"
    )
    for role in roles:
        cells = [values.get((role, number)) for number in range(most + 1)]
        table.add_row(role, *("" if share is None else f"{share:.0%}" for share in cells))
    return table

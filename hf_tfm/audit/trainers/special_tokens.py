"""Checks of special tokens: begin and end of rows, padding, unknown tokens, ids that the model has no weights for."""

from collections import Counter
from typing import Any

import torch

from ..report import Report
from .rows import Row, read_columns
from .subject import TrainerSubject


UNKNOWN_SHARE = 0.01  # of the tokens; below it unknown ones are a note


def check_special_tokens(subject: TrainerSubject, report: Report) -> None:
    """Check the special tokens of the rows, of the tokenizer and of the model."""
    check_ids(subject, report)
    if subject.tokenizer is None:
        report.cannot_see("special tokens: the trainer has no tokenizer (processing_class)")
        return
    rows = rows_of_texts(subject)
    if rows:
        check_edges(subject, rows, report)
        check_unknown(subject.tokenizer, rows, report)
    check_padding_token(subject, report)


def rows_of_texts(subject: TrainerSubject) -> list[Row]:
    """Returns all rows of tokens; for sentence-transformers those of each column of texts."""
    if subject.rows:
        return subject.rows
    return [
        row
        for number, batch in enumerate(subject.batches)
        for rows in read_columns(batch, f"batch {number + 1}").values()
        for row in rows
    ]


def find_edges(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that a tokenizer puts before and behind each text."""
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        end = start + len(plain)
        if whole[start:end] == plain:
            return whole[:start], whole[end:]
    return [], []


def check_ids(subject: TrainerSubject, report: Report) -> None:
    """P010: ids of the batches, padding included, and of the tokenizer against the rows of the input embeddings."""
    embeddings = subject.base.get_input_embeddings() if hasattr(subject.base, "get_input_embeddings") else None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, torch.Tensor) or not len(weight):
        return
    count = weight.shape[0]
    outside: Counter[int] = Counter()
    for batch in subject.batches:
        for name, ids in batch.items():
            if name.endswith("input_ids") and isinstance(ids, torch.Tensor):
                outside.update(ids[(ids < 0) | (ids >= count)].tolist())
    size = len(subject.tokenizer) if subject.tokenizer is not None else 0
    if outside:
        worst = sorted(outside)[-1]
        token = f" ({subject.tokenizer.convert_ids_to_tokens(worst)!r})" if 0 <= worst < size else ""
        report.add(
            "P010",
            f"{outside.total()} tokens of the first rows have ids that the {count:,} embeddings do not cover, "
            f"up to {worst:,}{token}",
        )
    elif size > count:
        named = [id for id in special_ids(subject.tokenizer) if id >= count]
        report.add(
            "P010",
            f"the tokenizer has {size:,} tokens, the model {count:,} embeddings; the first rows hold no other token",
            where=", ".join(subject.tokenizer.convert_ids_to_tokens(named)),
            level="warning" if named else "note",
        )


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids of the tokenizer's named special tokens."""
    return {id for id in tokenizer.all_special_ids if id is not None}


def check_edges(subject: TrainerSubject, rows: list[Row], report: Report) -> None:
    """P001: rows have two begin tokens. P002: rows lack the begin token that the tokenizer adds to texts."""
    tokenizer = subject.tokenizer
    prefix, suffix = find_edges(tokenizer)
    begins = {*prefix[:1], tokenizer.bos_token_id} - {None}
    if not any(name.endswith("attention_mask") for batch in subject.batches for name in batch):
        begins -= {tokenizer.pad_token_id}  # without a mask, padding may stand in front
    doubled = [row for row in rows if has_doubled(row, begins, {tokenizer.eos_token_id})]
    if doubled:
        token = tokenizer.convert_ids_to_tokens(doubled[0].input_ids[0])
        report.add(
            "P001",
            f"{len(doubled)} of {len(rows)} rows have two begin tokens in a row",
            where=f"{doubled[0].where}, {token!r}",
            level="error" if len(doubled) > len(rows) / 10 else "warning",
        )
    elif prefix and not writes_begin_inside(tokenizer, prefix[0]):
        inner = [row for row in rows if has_begin_at_answer(row, prefix[0], tokenizer.eos_token_id)]
        if len(inner) > len(rows) / 10:
            token = tokenizer.convert_ids_to_tokens(prefix[0])
            what = f"{len(inner)} of {len(rows)} rows have a second begin token between prompt and answer"
            report.add("P001", what, where=f"{inner[0].where}, {token!r}")
    for name, edge in (("begin", prefix), ("end", suffix)):
        if edge and not any(set(edge) & set(row.input_ids) for row in rows):
            if name == "end" and subject.kind == "causal":
                continue  # whether answers end is checked with the labels
            is_template = name == "begin" and leaves_out_begin(tokenizer, rows, edge[0])
            token = tokenizer.convert_ids_to_tokens(edge[0])
            report.add(
                "P002",
                f"none of {len(rows)} rows has the {name} token that the tokenizer adds to texts"
                + (", and neither has the chat template" if is_template else ""),
                where=repr(token),
                level="note" if is_template else "warning",
            )


def has_doubled(row: Row, begins: set[int], ends: set[int]) -> bool:
    """Whether a begin token stands twice in a document: where it begins, or anywhere if the token ends none."""
    ids = row.input_ids
    starts = {document.start for document in row.documents()}
    return any(
        token in begins and token == following and (place in starts or token not in ends) and place + 1 not in starts
        for place, (token, following) in enumerate(zip(ids, ids[1:]))
    )


def has_begin_at_answer(row: Row, begin: int, end: int | None) -> bool:
    """Whether a row begins with a begin token, and another one stands where its answer begins, behind no end token."""
    ids, trained = row.input_ids, row.trained
    if ids[:1] != [begin] or len(row.documents()) > 1 or True not in trained[2:]:
        return False
    first = trained.index(True, 2)
    return any(
        place > 1 and ids[place] == begin and ids[place - 1] != end and not trained[place - 1]
        for place in (first - 1, first)
    )


def writes_begin_inside(tokenizer: Any, begin: int) -> bool:
    """Whether the chat template writes the begin token in front of turns as well."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    try:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    except Exception:  # templates may refuse such a conversation in any way
        return False
    return begin in ids[1:]


def leaves_out_begin(tokenizer: Any, rows: list[Row], begin: int) -> bool:
    """Whether rows start as the chat template does, and the template writes no begin token."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    for messages in ([{"role": "user", "content": "x"}], [{"role": "system", "content": "x"}]):
        try:
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        except Exception:  # templates may refuse such a conversation in any way
            continue
        firsts = [row.input_ids[0] for row in rows if row.input_ids]
        if ids and ids[0] != begin and firsts.count(ids[0]) > len(firsts) / 2:
            return True
    return False


def check_unknown(tokenizer: Any, rows: list[Row], report: Report) -> None:
    """P011: the share of unknown tokens. Byte-level tokenizers name another special token as the unknown one."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    counts = [row.input_ids.count(unknown) for row in rows]
    total = sum(len(row.input_ids) for row in rows)
    if not sum(counts):
        return
    worst = rows[counts.index(max(counts))]
    place = worst.input_ids.index(unknown)
    report.add(
        "P011",
        f"{sum(counts)} of {total:,} tokens are unknown",
        where=f"{worst.where}: {tokenizer.decode(worst.input_ids[max(0, place - 8) : place + 4])!r}",
        level="warning" if sum(counts) > UNKNOWN_SHARE * total else "note",
    )


def check_padding_token(subject: TrainerSubject, report: Report) -> None:
    """P018: padding is the end token. P019, P021: the model finds the last token by a wrong padding id, or by none."""
    tokenizer = subject.tokenizer
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        report.add("P018", "pad_token is eos_token", where=repr(tokenizer.pad_token))
    if subject.kind not in ("classification", "reward") or not pools_last_token(subject.base):
        return
    pad = subject.base.config.get_text_config().pad_token_id
    if pad is None:
        if subject.batch_size > 1:
            report.add("P019", "the model has no pad_token_id, by which it finds the last token of each row")
        return
    used = padding_ids(subject)
    if wrong := used - {pad}:
        report.add(
            "P021",
            f"rows are padded with {sorted(wrong)}, and the model's pad_token_id is {pad}: the model reads its answer "
            "at a padding token",
            level="error",
        )


def pools_last_token(model: Any) -> bool:
    """Whether a classifier reads the last token that is not padding, as decoders of transformers do."""
    return hasattr(model, "score") and hasattr(model.config.get_text_config(), "pad_token_id")


def padding_ids(subject: TrainerSubject) -> set[int]:
    """Returns the ids at places that the attention mask hides."""
    ids: set[int] = set()
    for batch in subject.batches:
        tokens, mask = batch.get("input_ids"), batch.get("attention_mask")
        if isinstance(tokens, torch.Tensor) and isinstance(mask, torch.Tensor) and tokens.shape == mask.shape:
            ids.update(tokens[mask == 0].tolist())
    return ids

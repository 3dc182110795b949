"""Padding, packing and neighbours: nothing of them may change what the model computes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .batch_content import (
    Padding,
    content_of,
    documents_of,
    lengths_of_documents,
    places_of_record,
    places_within,
    same_shape,
)
from .probe import Call, body_of, catch_call, computing
from .report import Report
from .trainer_subject import IGNORED, TrainerSubject


FEW_LAYERS = 2
_WHOLE_MODEL = ("classification", "reward", "choices")  # kinds whose own outputs are compared


@dataclass(frozen=True)
class BatchRow:
    """A row of a batch with its record, its mask, and the places of its tokens and documents."""

    where: str
    ids: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    labels: torch.Tensor | None
    record: list[int] | None
    content: list[int]
    documents: list[list[int]]
    known_documents: int

    @property
    def is_padded(self) -> bool:
        return len(self.content) < len(self.ids)

    @property
    def is_padded_left(self) -> bool:
        return bool(self.content) and self.content[0] > 0


def read_batch_rows(subject: TrainerSubject) -> list[BatchRow]:
    """Returns the rows of the sampled batches that hold `input_ids` of shape (rows, length) and no other masks."""
    pad, found = padding_of(subject), []
    for number, (features, batch) in enumerate(zip(subject.batch_features, subject.batches)):
        ids = batch.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            continue
        ids = ids.cpu()
        mask, positions, labels = (
            None if (value := same_shape(batch.get(name), batch["input_ids"])) is None else value.cpu()
            for name in ("attention_mask", "position_ids", "labels")
        )
        if mask is None and batch.get("attention_mask") is not None:
            continue
        contents, lengths = content_of(ids, mask, features, pad), lengths_of_documents(features, len(ids))
        for row, content in enumerate(contents):
            known, given = lengths[row], None if positions is None else positions[row]
            found.append(
                BatchRow(
                    where=f"batch {number + 1}, row {row + 1}",
                    ids=ids[row],
                    mask=None if mask is None else mask[row],
                    positions=given,
                    labels=None if labels is None else labels[row],
                    record=places_of_record(ids[row], features[row], pad) if len(features) == len(ids) else None,
                    content=content,
                    documents=documents_of(content, given, known),
                    known_documents=len(known) if known and sum(known) == len(content) else 0,
                )
            )
    return found


def padding_of(subject: TrainerSubject) -> Padding:
    """Returns the padding token: the tokenizer's, or else the model's."""
    names = subject.tokenizer or getattr(subject.base, "config", None)
    token, bos, eos = (getattr(names, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id"))
    return Padding(token, token is not None and token in (bos, eos))


def check_positions(subject: TrainerSubject, report: Report) -> None:
    """Look at masks, positions and edges of documents in the sampled batches, without computing with the model."""
    check_columns(subject, report)
    rows = read_batch_rows(subject)
    check_lengths(subject, rows, report)
    check_missing_masks(subject, rows, report)
    check_masks_over_padding(subject, rows, report)
    check_masks_over_text(rows, report)
    check_first_tokens(subject, rows, report)
    check_edges(subject, rows, report)
    check_position_ids(subject, rows, report)


def check_columns(subject: TrainerSubject, report: Report) -> None:
    """P207: columns of numbers that the trainer takes away before the collator sees them."""
    columns, kept = (
        getattr(data, "column_names", None) for data in (subject.trainer.train_dataset, subject.loader.dataset)
    )
    if not isinstance(columns, list) or not isinstance(kept, list):
        return
    if any(cls.__module__.startswith("trl.") for cls in type(subject.trainer).__mro__):
        return  # TRL's trainers make their columns themselves
    features = subject.trainer.train_dataset.features
    dropped = [name for name in columns if name not in kept and name not in ("id", "idx", "index", "token_type_ids")]
    if numeric := [name for name in dropped if is_numeric(features[name])]:
        report.add("P207", f"columns that are dropped: {', '.join(numeric)}")


def is_numeric(feature: Any) -> bool:
    """Whether a column of `datasets` holds numbers, or lists of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", "string").startswith(("int", "float", "uint", "bool"))


def learned_positions(model: nn.Module) -> nn.Embedding | None:
    """Returns the embedding of positions that a model learns; None if it computes them."""
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        is_position = "position" in last or last in ("wpe", "pos_embed", "pos_embedding")
        if is_position and isinstance(module, nn.Embedding) and "Sinusoid" not in type(module).__name__:
            return module
    return None


def first_position(table: nn.Embedding | None) -> int:
    """Returns the position of a first token: behind the padding token's, in models like RoBERTa."""
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def check_lengths(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P204: rows that are longer than the positions that the model has."""
    config = getattr(subject.base, "config", None)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if not isinstance(limit, int) or limit < 1:
        return
    table = learned_positions(subject.base)
    limit -= first_position(table)
    lengths = [
        len(row.ids) if row.positions is None else int(row.positions[row.content].max()) + 1
        for row in rows
        if row.content
    ]
    if longer := [length for length in lengths if length > limit]:
        report.add(
            "P204",
            f"{len(longer)} of {len(lengths)} rows are longer than the model's {limit} positions: up to {max(longer)}",
            level="warning" if table is None else "error",
        )


def is_harmless(subject: TrainerSubject, row: BatchRow) -> bool:
    """Whether tokens cannot see the padding in any case: they come before it, in a causal model."""
    return subject.kind == "causal" and not row.is_padded_left


def check_missing_masks(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P205: padded rows without an attention mask."""
    padded = [row for row in rows if row.mask is None and row.positions is None and row.is_padded]
    if padded:
        report.add(
            "P205",
            f"{len(padded)} of {len(rows)} rows are padded, and the batch has no attention mask",
            padded[0].where,
            level="note" if all(is_harmless(subject, row) for row in padded) else "error",
        )


def check_masks_over_padding(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P205: the attention mask is 1 on padding."""
    pad, wrong = padding_of(subject), []
    for row in rows:
        if row.mask is None:
            continue
        content = row.record or places_within(row.ids, pad)
        places = sorted(set(row.mask.nonzero().flatten().tolist()) - set(content))
        if places and all(row.ids[place] == pad.token for place in places):
            wrong.append((row, places))
    if wrong:
        row, places = wrong[0]
        report.add(
            "P205",
            f"the attention mask is 1 on padding in {len(wrong)} of {len(rows)} rows, here on {len(places)} tokens",
            f"{row.where}, token {places[0] + 1}",
            level="warning" if all(is_harmless(subject, row) for row, _ in wrong) else "error",
        )


def check_masks_over_text(rows: Sequence[BatchRow], report: Report) -> None:
    """P205: the attention mask is 0 on tokens of the text."""
    hidden = []
    for row in rows:
        if row.mask is None or not bool(row.mask.any()):
            continue
        content = row.record or row.content
        if places := [place for place in content if not row.mask[place]]:
            hidden.append((row, places, places[0] < int(row.mask.nonzero().max())))
    if hidden:
        row, places, _ = next((one for one in hidden if one[2]), hidden[0])
        report.add(
            "P205",
            f"the mask is 0 on tokens of the text in {len(hidden)} of {len(rows)} rows, here on {len(places)}",
            f"{row.where}, token {places[0] + 1}",
            level="error" if any(is_inner for _, _, is_inner in hidden) else "note",
        )


def check_first_tokens(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P206: first tokens of packed documents are trained."""
    if subject.kind != "causal":
        return
    first = [
        (row, document[0])
        for row in rows
        if row.labels is not None and row.positions is not None
        for document in row.documents[1:]
        if len(document) > 1
    ]
    trained = [(row, place) for row, place in first if row.labels is not None and row.labels[place] != IGNORED]
    if trained:
        row, place = trained[0]
        report.add(
            "P206",
            f"{len(trained)} of {len(first)} first tokens of packed documents are trained",
            f"{row.where}, token {place + 1}",
        )


def check_edges(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P208: rows of equal length that hold several documents, without positions that tell them."""
    tokenizer = subject.tokenizer
    lengths = {len(row.ids) for row in rows}
    if tokenizer is None or len(rows) < 2 or len(lengths) > 1 or subject.kind not in ("causal", "masked"):
        return
    edges = {tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    inner = [row for row in rows if sum(int(token) in edges for token in row.ids[1:-1]) and row.positions is None]
    if inner and not any(row.is_padded for row in rows):
        report.add("P208", f"{len(inner)} of {len(rows)} rows hold begin or end tokens inside", inner[0].where)


def check_position_ids(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P209: `position_ids` that do not count the tokens of each document."""
    given = [row for row in rows if row.positions is not None and len(row.content) > 1]
    table = learned_positions(subject.base)
    first = first_position(table)
    broken, shifted = [], []
    for row in given:
        positions = row.positions.tolist() if row.positions is not None else []
        jumps = [
            place
            for document in row.documents
            for previous, place in zip(document, document[1:])
            if positions[place] != positions[previous] + 1
        ]
        single = [document[0] for document in row.documents if len(document) == 1]
        if jumps or (not row.known_documents and 2 * len(single) > len(row.content)):
            broken.append((row, (jumps or single)[0]))
        # The first document of a packed row may be the rest of a longer one.
        starts = row.documents if len(row.documents) == 1 else row.documents[1:]
        if late := [document[0] for document in starts if positions[document[0]] != first]:
            shifted.append((row, late[0]))
    if broken:
        row, place = broken[0]
        what = f"the positions of {len(broken)} of {len(given)} rows do not go up by one"
        report.add("P209", what, f"{row.where}, token {place + 1}")
    elif shifted:
        row, place = shifted[0]
        value = int(row.positions[place]) if row.positions is not None else first
        what = (
            f"documents of {len(shifted)} of {len(given)} rows begin at other positions than {first}, here at {value}"
        )
        # Rotary positions are relative: where a document begins changes nothing in it.
        is_absolute = table is not None or any(row.known_documents > 1 for row, _ in shifted)
        report.add("P209", what, f"{row.where}, token {place + 1}", level="error" if is_absolute else "warning")


@dataclass(frozen=True)
class Document:
    """A document in a row of a call, with how much its outputs differ from those that it has alone."""

    row: int
    places: list[int]
    is_packed: bool
    difference: float


def check_padding_and_packing(subject: TrainerSubject, report: Report) -> None:
    """P201, P202, P203: a document's outputs in the trainer's batch are those that it has alone."""
    features = subject.short_features
    if subject.kind == "online" or not features:
        report.cannot_see("padding and packing: the trainer generates its rows while it trains")
        return
    batch = subject.collate(features)
    with subject.few_layers(FEW_LAYERS), computing(subject):
        call = find_call(subject, batch)
        if call is None:
            report.cannot_see("padding and packing: the loss does not give token ids to the model")
            return
        documents = list(compare_documents(subject, call, batch, features))
        worst = max(documents, key=lambda document: document.difference, default=None)
        if worst is None or worst.difference <= subject.tolerance:
            return
        if not torch.equal(call.compute(), call.compute()):
            report.cannot_see("padding and packing: the model computes the same rows differently each time")
            return
        report_differences(subject, call, batch, documents, report)


def find_call(subject: TrainerSubject, batch: Mapping[str, Any]) -> Call | None:
    """Returns the call of the part of the model whose outputs are compared."""
    modules = [body_of(subject.base), subject.base]
    if subject.kind in _WHOLE_MODEL:
        modules.insert(0, subject.base)
    elif subject.kind == "embedding":
        modules.insert(0, subject.model)
    for module in modules:
        if call := catch_call(subject, batch, module):
            return call
    return None


def compare_documents(
    subject: TrainerSubject, call: Call, batch: Mapping[str, Any], features: Sequence[Any]
) -> Iterator[Document]:
    """Yields the documents of a call with the relative difference between their outputs in it and alone."""
    ids = call.ids
    is_batch = same_shape(batch.get("input_ids"), ids) is not None
    mask = same_shape(call.inputs.get("attention_mask"), ids)
    records = features if is_batch else []
    positions = same_shape(call.inputs.get("position_ids"), ids)
    lengths = lengths_of_documents(records, len(ids)) if is_batch else [None] * len(ids)
    contents = content_of(ids, mask, records, padding_of(subject))
    outputs = call.compute()
    pairs = []
    for row, content in enumerate(contents):
        documents = documents_of(content, None if positions is None else positions[row], lengths[row])
        for places in documents:
            alone = call.alone(row, places).compute()[0]
            pairs.append((row, places, len(documents) > 1, outputs_of(call, outputs, batch, row, places), alone))
    scale = torch.cat([alone.reshape(-1, alone.shape[-1]) for *_, alone in pairs]).float().norm(dim=-1).mean().item()
    for row, places, is_packed, together, alone in pairs:
        alone = (
            alone
            if alone.dim() == 1 or len(alone) == len(together)
            else outputs_of(call, alone[None], batch, row, places, 0)
        )
        difference = (together.float() - alone.float()).norm(dim=-1).max().item()
        yield Document(row, places, is_packed, difference / max(scale, 1e-12))


def outputs_of(
    call: Call, outputs: torch.Tensor, batch: Mapping[str, Any], row: int, places: Sequence[int], at: int | None = None
) -> torch.Tensor:
    """Returns the outputs of a document: one for each of its tokens, or of its labels, or one for the row."""
    vectors = outputs[row if at is None else at]
    if vectors.dim() == 1:
        return vectors
    if "decoder_input_ids" not in call.inputs and len(vectors) == call.ids.shape[1]:
        return vectors[list(places)]
    labels = batch.get("labels")
    if isinstance(labels, torch.Tensor) and labels.shape[:1] == call.ids.shape[:1] and labels.shape[-1] == len(vectors):
        return vectors[labels[row] != IGNORED]
    return vectors


def report_differences(
    subject: TrainerSubject, call: Call, batch: Mapping[str, Any], documents: Sequence[Document], report: Report
) -> None:
    """Tell by what outputs are changed: documents of the same row, other rows, or padding."""
    changed = [document for document in documents if document.difference > subject.tolerance]
    outputs, seen = call.compute(), set()
    for document in sorted(changed, key=lambda one: -one.difference):
        others = torch.ones_like(call.ids, dtype=torch.bool)
        others[document.row] = False
        neighbours = others & False
        neighbours[document.row] = document.is_packed
        neighbours[document.row, document.places] = False
        figure = f"by {document.difference:.0%} of their size"
        where = f"row {document.row + 1}, tokens {document.places[0] + 1} to {document.places[-1] + 1}"
        if document.is_packed and depends_on(subject, call, outputs, batch, document, neighbours):
            given = "position_ids" in call.inputs or "seq_lengths" in batch
            level = "error" if given or has_lengths(subject) else "warning"
            finding = ("P203", f"outputs of a packed document are changed {figure} by the documents beside it", level)
        elif len(call.ids) > 1 and depends_on(subject, call, outputs, batch, document, others):
            finding = ("P202", f"outputs of a row are changed {figure} by the rows beside it", None)
        elif document.is_packed:
            finding = ("P209", f"outputs of a packed document differ {figure} from those alone, by its positions", None)
        elif len(document.places) == call.ids.shape[1]:
            finding = (
                "P209",
                f"outputs of a row differ {figure} from those without the batch's masks and positions",
                None,
            )
        else:
            finding = ("P201", f"outputs of a row are changed {figure} by its padding", None)
        code, what, level = finding
        if code not in seen:
            seen.add(code)
            report.add(code, what, where, level=level)


def has_lengths(subject: TrainerSubject) -> bool:
    """Whether the records say the lengths of their documents."""
    return any(isinstance(feature, Mapping) and "seq_lengths" in feature for feature in subject.short_features)


def depends_on(
    subject: TrainerSubject,
    call: Call,
    outputs: torch.Tensor,
    batch: Mapping[str, Any],
    document: Document,
    others: torch.Tensor,
) -> bool:
    """Whether the outputs of a document change with the tokens at other places."""
    pad = padding_of(subject)
    chosen = others & (call.ids != pad.token) if pad.token is not None else others
    ids = call.ids.clone()
    ids[chosen] = ids[chosen].flip(0).roll(1)
    one, other = (
        outputs_of(call, values, batch, document.row, document.places).float()
        for values in (outputs, call.with_ids(ids).compute())
    )
    scale = one.norm(dim=-1).mean().item()
    return (one - other).norm(dim=-1).max().item() > subject.tolerance * max(scale, 1e-12)

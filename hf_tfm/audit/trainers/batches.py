"""Padding, packing and the other rows of a batch must not change the outputs of a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..report import Report
from .batch_content import (
    Padding,
    content_of,
    documents_of,
    lengths_of_documents,
    places_of_record,
    places_within,
)
from .probe import Call, body_of, catch_call, computing
from .rows import same_shape
from .subject import IGNORED, TrainerSubject


FEW_LAYERS = 2
COMPUTED_DOCUMENTS = 12  # of each packed row
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
    pad, rows = padding_of(subject), []
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
            known, places = lengths[row], None if positions is None else positions[row]
            rows.append(
                BatchRow(
                    where=f"batch {number + 1}, row {row + 1}",
                    ids=ids[row],
                    mask=None if mask is None else mask[row],
                    positions=places,
                    labels=None if labels is None else labels[row],
                    record=places_of_record(ids[row], features[row], pad) if len(features) == len(ids) else None,
                    content=content,
                    documents=documents_of(content, places, known),
                    known_documents=len(known) if known and sum(known) == len(content) else 0,
                )
            )
    return rows


def padding_of(subject: TrainerSubject) -> Padding:
    """Returns the padding token: the tokenizer's, or else the model's."""
    names = subject.tokenizer or getattr(subject.base, "config", None)
    token, bos, eos = (getattr(names, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id"))
    return Padding(token, token is not None and token in (bos, eos))


def check_positions(subject: TrainerSubject, report: Report) -> None:
    """Check masks, positions and boundaries of documents in the sampled batches without a forward pass."""
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
    """P207: columns of numbers that the trainer removes before the collator gets them."""
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
        report.add("P207", f"the trainer drops the columns {', '.join(numeric)}")


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
    """Whether padding cannot change the outputs of tokens, because a causal model reads it after them."""
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
        row, places, _ = next((entry for entry in hidden if entry[2]), hidden[0])
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
    """P208: rows of equal length contain several documents, without positions that separate them."""
    tokenizer = subject.tokenizer
    lengths = {len(row.ids) for row in rows}
    if tokenizer is None or len(rows) < 2 or len(lengths) > 1 or subject.kind not in ("causal", "masked"):
        return
    edges = {tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    inner = [row for row in rows if sum(int(token) in edges for token in row.ids[1:-1]) and row.positions is None]
    if inner and not any(row.is_padded for row in rows):
        report.add(
            "P208",
            f"{len(inner)} of {len(rows)} rows contain begin or end tokens between their documents",
            inner[0].where,
        )


def check_position_ids(subject: TrainerSubject, rows: Sequence[BatchRow], report: Report) -> None:
    """P209: `position_ids` that do not count the tokens of each document."""
    positioned = [row for row in rows if row.positions is not None and len(row.content) > 1]
    table = learned_positions(subject.base)
    first = first_position(table)
    broken, shifted = [], []
    for row in positioned:
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
        what = f"the positions of {len(broken)} of {len(positioned)} rows do not go up by one"
        report.add("P209", what, f"{row.where}, token {place + 1}")
    elif shifted:
        row, place = shifted[0]
        value = int(row.positions[place]) if row.positions is not None else first
        what = f"documents of {len(shifted)} of {len(positioned)} rows begin at position {value} instead of {first}"
        # Rotary positions are relative: where a document begins changes nothing, if it is not behind another one.
        is_harmful = table is not None or any(goes_on(row) for row, _ in shifted)
        report.add("P209", what, f"{row.where}, token {place + 1}", level="error" if is_harmful else "warning")


def goes_on(row: BatchRow) -> bool:
    """Whether positions of a packed row continue across the boundaries of its documents."""
    edges = [(document[-1], following[0]) for document, following in pairwise(row.documents)]
    return row.positions is not None and any(row.positions[end] + 1 == row.positions[start] for end, start in edges)


@dataclass(frozen=True)
class DocumentOutputs:
    """
    A document in a row of a call, with the outputs of its tokens.

    Attributes:
        number: Its place among the documents of the row.
        places: Places of its tokens.
        together: Its outputs in the batch, of shape (tokens, size), or (size,) if there is one for the row.
        alone: Its outputs without the batch.
    """

    row: int
    number: int
    is_packed: bool
    places: list[int]
    together: torch.Tensor
    alone: torch.Tensor

    def difference(self, other: torch.Tensor, scale: float) -> float:
        """Returns the largest distance of the document's outputs from other outputs, divided by `scale`."""
        return (self.together.float() - other.float()).norm(dim=-1).max().item() / max(scale, 1e-12)

    @property
    def where(self) -> str:
        return f"row {self.row + 1}, tokens {self.places[0] + 1} to {self.places[-1] + 1}"


def check_padding_and_packing(subject: TrainerSubject, report: Report) -> None:
    """P201, P202, P203, P209: a document's outputs in the trainer's batch differ from its outputs alone."""
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
        documents = list(read_document_outputs(subject, call, batch, features))
        findings = list(find_differences(subject, call, batch, documents))
        if findings and not torch.equal(call.compute(), call.compute()):
            report.cannot_see("padding and packing: the model computes the same rows differently each time")
            return
        for code, what, where, level in findings:
            report.add(code, what, where, level=level)


def find_differences(
    subject: TrainerSubject, call: Call, batch: Mapping[str, Any], documents: Sequence[DocumentOutputs]
) -> Iterator[tuple[str, str, str, str | None]]:
    """Yields code, text, place and level of findings about documents, rows or padding that change outputs."""
    if not documents:
        return
    vectors = torch.cat([document.alone.reshape(-1, document.alone.shape[-1]) for document in documents])
    scale = vectors.float().norm(dim=-1).mean().item()
    packed = [document for document in documents if document.is_packed]
    leak = dependence(subject, call, batch, packed, scale, [document.number % 2 == 0 for document in packed])
    if leak:
        is_separated = "position_ids" in call.inputs or has_lengths(subject)
        what = f"outputs of a packed document change by {leak[0]:.1%} of their size with the documents beside it"
        yield "P203", what, leak[1].where, "error" if is_separated else "warning"
    mixing = dependence(subject, call, batch, documents, scale, [document.row % 2 == 0 for document in documents])
    if mixing:
        what = f"outputs of a row change by {mixing[0]:.1%} of their size with the rows beside it"
        yield "P202", what, mixing[1].where, None
    rest = [document for document in documents if not mixing and not (leak and document.is_packed)]
    differences = [document.difference(document.alone, scale) for document in rest]
    if not rest or max(differences) <= subject.tolerance:
        return
    document = rest[differences.index(max(differences))]
    figure = f"by {max(differences):.1%} of their size"
    if document.is_packed:
        yield "P209", f"outputs of a packed document differ {figure} from those alone", document.where, None
    elif len(document.places) == call.ids.shape[1]:
        what = f"outputs of a row differ {figure} from those without the batch's masks and positions"
        yield "P209", what, document.where, None
    else:
        yield "P201", f"outputs of a row are changed {figure} by its padding", document.where, None


def dependence(
    subject: TrainerSubject,
    call: Call,
    batch: Mapping[str, Any],
    documents: Sequence[DocumentOutputs],
    scale: float,
    is_changed: Sequence[bool],
) -> tuple[float, DocumentOutputs] | None:
    """Returns the largest change of a document's outputs by changed tokens of other documents; None if negligible."""
    ids = call.ids.clone()
    for document, changes in zip(documents, is_changed):
        if changes:
            ids[document.row, document.places] = ids[document.row, document.places].flip(0)
    others = [document for document, changes in zip(documents, is_changed) if not changes]
    if not others or torch.equal(ids, call.ids):
        return None
    outputs = call.with_ids(ids).compute()
    differences = [
        document.difference(outputs_of(call, outputs, batch, document.row, document.places), scale)
        for document in others
    ]
    # The shapes are the same, so that even half precision computes almost the same.
    worst = max(differences)
    return (worst, others[differences.index(worst)]) if worst > subject.tolerance / 10 else None


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


def read_document_outputs(
    subject: TrainerSubject, call: Call, batch: Mapping[str, Any], features: Sequence[Any]
) -> Iterator[DocumentOutputs]:
    """Yields the documents of a call with their outputs in the batch and alone."""
    ids = call.ids
    records = features if same_shape(batch.get("input_ids"), ids) is not None else []
    mask = same_shape(call.inputs.get("attention_mask"), ids)
    positions = same_shape(call.inputs.get("position_ids"), ids)
    lengths = lengths_of_documents(records, len(ids))
    outputs = call.compute()
    for row, content in enumerate(content_of(ids, mask, records, padding_of(subject))):
        documents = documents_of(content, None if positions is None else positions[row], lengths[row])
        for number, places in enumerate(documents[:COMPUTED_DOCUMENTS]):
            together = outputs_of(call, outputs, batch, row, places)
            alone = call.alone(row, places).compute()
            if alone[0].shape != together.shape:
                alone = outputs_of(call, alone, batch, row, places, at=0)[None]
            yield DocumentOutputs(row, number, len(documents) > 1, places, together, alone[0])


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


def has_lengths(subject: TrainerSubject) -> bool:
    """Whether the records have the lengths of their documents (`seq_lengths`)."""
    return any(isinstance(feature, Mapping) and "seq_lengths" in feature for feature in subject.short_features)

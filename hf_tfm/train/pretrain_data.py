"""The data of a pretraining run: training batches by number, evaluation batches, and facts for the record."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..artifacts.packing_support import sentence_label
from ..core.errors import InputError
from ..data.cache import default_cache_dir, file_hash
from ..data.objectives import Masked, masked_next_token
from ..data.packed_blocks import PackedBlocks, iter_eval_blocks
from ..data.sentence_pairs import SentencePairs
from ..data.sources import Source
from ..data.step_batches import StepBatches
from ..data.tokens import TokenStore, TokenStream, boundary_ids, piece_ends
from .pretrain_recipe import PretrainingRecipe
from .run_identity import data_seed
from .schedule import RunPlan


Objective = Callable[[dict[str, np.ndarray]], dict[str, torch.Tensor]]

# A record names up to this many files, each with its hash; of more files it has the number and one hash.
_MAX_FILES = 10


@dataclass
class PretrainingData:
    """
    Training batches by number, evaluation batches, and the facts about both for the record.

    Attributes:
        count_tokens: tokens of so many steps without padding, None where that is not known.
        passes: how often the run reads each of its texts, if known.
        reading: lines on what was read of each file.
        stores: the training text as tokens, to which the batches' `token_numbers` refer.
    """

    train: StepBatches
    evaluation: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    tokens_per_step: int
    count_tokens: Callable[[int], int | None] = lambda steps: None
    passes: Sequence[float | None] = ()
    reading: Sequence[str] = ()
    stores: Sequence[TokenStore | TokenStream] = ()


def prepare_data(
    recipe: PretrainingRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    objective: Objective,
    evaluation_objective: Objective | None = None,
    plan: RunPlan | None = None,
) -> PretrainingData:
    """
    Tokenize both texts (or find them in the cache), pack the training text, and make the evaluation batches.

    A tokenizer with a cls token puts cls and sep around each piece of text; one without puts bos and eos around each
    document.

    Args:
        objective: turns a batch into inputs and labels.
        evaluation_objective: the objective of evaluation, if it differs.
        plan: the steps of the run, if its decay may begin early.

    Raises:
        InputError: the text cannot be read, has ids without an embedding, or leaves nothing to predict.
    """
    piece_ids = None if tokenizer.cls_token_id is None else piece_ends(tokenizer)
    wrap: Literal["document", "piece"] = "document" if piece_ids is None else "piece"
    reading: dict[str, Any] = dict(cache_dir=recipe.cache_dir)
    rows, accumulation = args.per_device_train_batch_size * args.world_size, args.gradient_accumulation_steps
    micro_steps = args.max_steps * accumulation
    blocks = PackedBlocks.from_sources(
        recipe.training_sources(),
        tokenizer,
        recipe.block_length,
        wrap=wrap,
        streaming=recipe.streaming,
        seed=data_seed(args),
        blocks_read=rows * micro_steps,
        **reading,
        **({} if recipe.streaming else {"progress": args.process_index == 0}),
    )
    validation = TokenStore.build(recipe.validation_sources(), tokenizer, wrap=wrap == "document", **reading)
    for store in (blocks, validation):
        store.check_vocab(model.get_input_embeddings().weight.shape[0])

    evaluation, measured_tokens = _evaluation_batches(
        recipe,
        args,
        evaluation_objective or objective,
        validation,
        boundary_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id or 0,
        piece_ids=piece_ids,
    )
    facts = [
        *describe_text("train", recipe.training_sources(), blocks.stores, recipe),
        *describe_text("validation", recipe.validation_sources(), [validation], recipe),
    ]
    facts[-1]["measured_tokens"] = measured_tokens
    return PretrainingData(
        train=StepBatches(
            blocks.rows,
            rows,
            micro_steps,
            schedule=recipe.parse_length_schedule(),
            planned_step=None if plan is None else lambda step: plan.planned_step(step, accumulation),
            transform=objective,
            rank=args.process_index,
            world_size=args.world_size,
            accumulation=accumulation,
        ),
        evaluation=evaluation,
        facts=facts,
        tokens_per_step=rows * accumulation * recipe.block_length,
        count_tokens=lambda steps: blocks.count_tokens(rows * accumulation * steps),
        passes=blocks.epochs(rows * micro_steps),
        reading=_reading_of([*blocks.stores, *([validation] if recipe.validation_data else [])]),
        stores=blocks.stores,
    )


def _evaluation_batches(
    recipe: PretrainingRecipe,
    args: TrainingArguments,
    objective: Objective,
    validation: TokenStore,
    boundaries: list[int],
    **packing: Any,
) -> tuple[list[dict[str, Any]], int]:
    """Return the evaluation batches with `num_bytes` and `num_text_tokens`, and the number of their tokens."""
    batch_size = args.per_device_eval_batch_size
    batches: list[dict[str, Any]] = []
    measured_tokens = 0
    blocks = iter_eval_blocks(
        validation, recipe.block_length, batch_size, max_tokens=recipe.validation_tokens, **packing
    )
    for batch in blocks:
        batch["rows"] = len(batches) * batch_size + np.arange(len(batch["input_ids"]))
        inputs = objective(batch)
        tokens = int(batch["num_tokens"].sum())
        text_tokens = int(((batch["sequence_ids"] > 0) & ~np.isin(batch["input_ids"], boundaries)).sum())
        batches.append({**inputs, "num_bytes": int(batch["num_bytes"].sum()), "num_text_tokens": text_tokens})
        measured_tokens += tokens
    if all(bool((torch.as_tensor(batch["labels"]) == -100).all()) for batch in batches):
        text = ", ".join(map(describe_source, recipe.validation_sources()))
        raise InputError(f"validation_data {text}: too little text, nothing is predicted")
    return batches, measured_tokens


def masked_evaluation(data: PretrainingData, masked: Masked) -> list[dict[str, Any]]:
    """Return the evaluation batches of a causal LM with masks, for a model trained on both objectives."""
    batches, rows = [], 0
    for batch in data.evaluation:
        arrays = {name: batch[name].numpy() for name in ("input_ids", "position_ids")}
        arrays["sequence_ids"] = ((batch["labels"].numpy() != -100) | (arrays["position_ids"] == 0)).astype(int)
        arrays["rows"] = rows + np.arange(len(arrays["input_ids"]))
        rows += len(arrays["rows"])
        batches.append({**masked_next_token(masked, arrays), "num_bytes": 0})
    return batches


def prepare_pairs(
    recipe: PretrainingRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    objective: Objective,
    evaluation_objective: Objective,
    task: Literal["next_sentence", "sentence_order"],
) -> PretrainingData:
    """
    Like `prepare_data`, with rows of two segments for a sentence task.

    Raises:
        InputError: the model has no head for the task, or the text cannot be read or gives no pairs.
    """
    label = sentence_label(model)
    if label is None:
        raise InputError(f"sentence_task {task}: {type(model).__name__} has no head for it")

    def with_model_label(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {label if name == "next_sentence_label" else name: value for name, value in inputs.items()}

    reading: dict[str, Any] = dict(cache_dir=recipe.cache_dir, wrap=False)
    texts = (recipe.training_sources(), recipe.validation_sources())
    stores = [TokenStore.build(text, tokenizer, **reading) for text in texts]
    for store in stores:
        store.check_vocab(model.get_input_embeddings().weight.shape[0])
    train, validation = (
        SentencePairs(store, tokenizer, recipe.block_length, task=task, seed=seed)
        for store, seed in zip(stores, (data_seed(args), 0), strict=True)  # the validation set is alike for every seed
    )
    rows, eval_rows = args.per_device_train_batch_size * args.world_size, args.per_device_eval_batch_size
    numbers = np.arange(-(-recipe.validation_tokens // recipe.block_length))
    batches = [validation.batch(numbers[i : i + eval_rows]) for i in range(0, len(numbers), eval_rows)]
    return PretrainingData(
        train=StepBatches(
            train.batch,
            rows,
            args.max_steps * args.gradient_accumulation_steps,
            transform=lambda batch: with_model_label(objective(batch)),
            rank=args.process_index,
            world_size=args.world_size,
        ),
        evaluation=[{**with_model_label(evaluation_objective(batch)), "num_bytes": 0} for batch in batches],
        facts=[
            *describe_text("train", recipe.training_sources(), stores[:1], recipe),
            *describe_text("validation", recipe.validation_sources(), stores[1:], recipe),
        ],
        tokens_per_step=rows * args.gradient_accumulation_steps * recipe.block_length,
        reading=_reading_of(stores if recipe.validation_data else stores[:1]),
    )


def describe_text(
    split: str, sources: list[Source], stores: Sequence[TokenStore | TokenStream], recipe: PretrainingRecipe
) -> list[dict[str, Any]]:
    """Return the facts about a text for the record: names without folders, hashes, and counts if known."""
    files = [path for source in sources if not source.hub for path in _paths(source)]
    facts: dict[str, Any] = {"name": ", ".join(map(describe_source, sources)), "split": split}
    if not (recipe.streaming and split == "train"):  # hashing would read all of a stream
        hashes = [file_hash(path, Path(recipe.cache_dir or default_cache_dir())) for path in files]
        if len(hashes) > _MAX_FILES:
            hashes = [f"{hashlib.sha256(' '.join(sorted(hashes)).encode()).hexdigest()} (of the sorted hashes)"]
        facts["sha256"] = ", ".join(hashes)
    complete_stores = [store for store in stores if isinstance(store, TokenStore)]
    if len(complete_stores) == len(stores):
        facts |= {
            "documents": sum(map(len, complete_stores)),
            "bytes": sum(store.num_bytes for store in complete_stores),
            "tokens": sum(store.num_tokens for store in complete_stores),
        }
    return [facts]


def _paths(source: Source) -> list[Path]:
    """Return the files of a source, each archive once (`list_files` has it for each file inside)."""
    return list(dict.fromkeys(file.path for file in source.list_files()))


def _reading_of(stores: Sequence[TokenStore | TokenStream]) -> list[str]:
    """Return lines on what was read of each file; none of text that is read during the training."""
    return [line for store in stores if isinstance(store, TokenStore) for line in store.meta.get("read", ())]


def describe_source(source: Source) -> str:
    """Return the name of a source without folders, with its selection of records or share of documents."""
    names = [source.location] if source.hub else [path.name for path in _paths(source)]
    if len(names) > _MAX_FILES:
        names = [f"{Path(source.location).name} ({len(names):,} files)"]
    selection = [f"{field}: {', '.join(values)}" for field, values in (source.where or {}).items()]
    if not source.is_whole:
        selection.append(f"{source.part[1] - source.part[0]:.3g} of the documents")
    return ", ".join(names) + (f" ({'; '.join(selection)})" if selection else "")


def notes_on_text(recipe: PretrainingRecipe, facts: list[dict[str, Any]]) -> list[str]:
    """Return warnings about the text: files left out, read twice, or both trained on and measured."""
    notes = []
    for source in [*recipe.training_sources(), *(recipe.validation_sources() if recipe.validation_data else [])]:
        for reason, files in source.list_skipped_files().items():
            names = ", ".join(path.name for path in files[:3]) + (", …" if len(files) > 3 else "")
            notes.append(f"{len(files):,} left out of {source.location}, {reason}: {names}")
    if any(source.where for source in recipe.training_sources() + recipe.validation_sources()):
        return notes  # different records of one file
    train, validation = (fact.get("sha256", "").split(", ") for fact in (facts[0], facts[-1]))
    if len(set(train)) < len(train):
        notes.append("a file of the training text is in it twice")
    if recipe.validation_data and set(train) & set(validation) - {""}:
        notes.append("a file of the validation text is trained on: its figures say little about other text")
    return notes

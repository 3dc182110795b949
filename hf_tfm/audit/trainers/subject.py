"""
The subject of a preflight: a live trainer with its model, tokenizer and first batches, which stay unchanged.

Trainers of transformers, TRL and sentence-transformers are recognised by the contents of their batches, and by their
names only where that is not possible.
"""

import contextlib
import copy
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.trainer_utils import align_special_tokens

from ...core.inference import unwrap_adapter
from ...core.quiet import quiet
from ...data.batches import IGNORED
from ...data.objectives import spread_labels
from ..templates.turns import TurnFinder
from .rows import Document, Row, read_documents, read_rows


# Private names of transformers and torch in this package, besides those in gradients.py: no public name does the job.
# tests/audit/test_trainer_subject.py fails when one of them changes, and when a name in use is missing here.
PRIVATE_NAMES = {
    "_prepare_inputs": "method of Trainer: moves a batch to the device; TRL's online trainers generate answers in it",
    "_keys_to_ignore_on_save": "attribute of PreTrainedModel: weights that checkpoints leave out (resume.py)",
    "_last_lr": "key of a saved scheduler: the learning rates of its last step (resume.py)",
}
SAMPLED_ROWS = 256  # for statistics of labels and masks
COMPUTED_ROWS = 4  # for checks that compute with the model
COMPUTED_TOKENS = 384  # of each of these rows
HALF_TOLERANCE = 0.15  # relative difference that rounding makes in half precision


@dataclass
class TrainerSubject:
    """
    A trainer before its first step.

    Args:
        trainer: `transformers.Trainer` or one of its subclasses.
        depth: Number of layers to compute with; None computes with all.

    Attributes:
        model: The model without wrappers of accelerate or torch.compile; a PEFT model stays wrapped.
        tokenizer: The trainer's tokenizer; None if it has none.
        kind: One of causal, masked, seq2seq, classification, tokens, questions, choices, preference, reward, online,
            embedding, unknown.
        features: The records that the collator gets, or the rows of a dataset of whole batches.
        has_batches: Whether the items of the trainer's dataset are whole batches, which no collator changes.
    """

    trainer: Any
    depth: int | None = None
    features: list[Any] = field(default_factory=list)
    has_batches: bool = False

    @property
    def args(self) -> Any:
        return self.trainer.args

    @cached_property
    def model(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @cached_property
    def pretrained(self) -> PreTrainedModel | None:
        """The model of transformers inside wrappers of PEFT, sentence-transformers or a user; None if there is none."""
        return next((module for module in self.model.modules() if isinstance(module, PreTrainedModel)), None)

    @cached_property
    def base(self) -> Any:
        """The model of transformers or, if there is none, the model without an adapter."""
        return unwrap_adapter(self.model) if self.pretrained is None else self.pretrained

    @cached_property
    def is_adapted(self) -> bool:
        return hasattr(self.model, "peft_config")

    @cached_property
    def learns_prompt(self) -> bool:
        """Whether an adapter puts learned vectors in front of each row, as prompt and prefix tuning do."""
        return self.is_adapted and any(config.is_prompt_learning for config in self.model.peft_config.values())

    @cached_property
    def tokenizer(self) -> Any:
        processor = getattr(self.trainer, "processing_class", None)
        processor = getattr(processor, "tokenizer", processor)
        return processor if hasattr(processor, "convert_ids_to_tokens") else None

    @cached_property
    def kind(self) -> str:
        names = {cls.__name__ for cls in type(self.trainer).__mro__}
        if names & {"GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer", "PPOTrainer"}:
            return "online"
        if any("SentenceTransformer" in name or "CrossEncoder" in name or "SparseEncoder" in name for name in names):
            return "embedding"
        if names & {"RewardTrainer"}:
            return "reward"
        if names & {"DPOTrainer", "KTOTrainer", "ORPOTrainer", "CPOTrainer"}:
            return "preference"
        kinds = {
            "XLNetLMHeadModel": "unknown",  # predicts tokens in any order
            "WithLMHeadModel": "masked",  # XLM and FlauBERT
            "ElectraForPreTraining": "tokens",  # whether each token was replaced
            "ForCausalLM": "causal",
            "LMHeadModel": "causal",
            "ForMaskedLM": "masked",
            "ForPreTraining": "masked",
            "ForSequenceClassification": "classification",
            "ForTokenClassification": "tokens",
            "ForQuestionAnswering": "questions",
            "ForMultipleChoice": "choices",
            "ForConditionalGeneration": "seq2seq",
            "EncoderDecoderModel": "seq2seq",
        }
        for cls in type(self.base).__mro__:
            for ending, kind in kinds.items():
                if cls.__name__.endswith(ending):
                    if kind == "seq2seq" and not self.base.config.is_encoder_decoder:
                        return "causal"  # models that read images or sounds and write text
                    return "seq2seq" if kind == "causal" and self.base.config.is_encoder_decoder else kind
        return "unknown"

    @cached_property
    def loader(self) -> Any:
        """The trainer's own loader, without worker processes."""
        workers = ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
        previous = {name: getattr(self.args, name) for name in workers if hasattr(self.args, name)}
        try:
            for name, value in zip(workers, (0, False, None)):
                if name in previous:
                    setattr(self.args, name, value)
            return self.trainer.get_train_dataloader()
        finally:
            for name, value in previous.items():
                setattr(self.args, name, value)

    @cached_property
    def reads_once(self) -> bool:
        """Whether the dataset is a stream that gives each record only once, even to another iterator."""
        dataset = self.trainer.train_dataset
        return is_stream(dataset) and iter(dataset) is iter(dataset)

    def read_features(self) -> None:
        """Read at most `SAMPLED_ROWS` of the records that the collator gets, evenly over the dataset."""
        dataset = self.loader.dataset
        if not is_stream(dataset):
            count = min(len(dataset), SAMPLED_ROWS)
            places = [number * len(dataset) // count for number in range(count)]
            self.features = [dataset[place] for place in places]
        elif not self.reads_once:  # such records are left to the training
            self.features = list(itertools.islice(iter(dataset), SAMPLED_ROWS))
        if self.features and is_batch(self.features[0]):
            self.has_batches = True
            rows = (row for batch in self.features for row in rows_of_batch(batch))
            self.features = list(itertools.islice(rows, SAMPLED_ROWS))

    def collate(self, features: Sequence[Any]) -> dict[str, Any]:
        """Returns a batch of the trainer's own collator, on the model's device."""
        copies = [copy.copy(feature) if isinstance(feature, dict) else feature for feature in features]
        batch = stack(copies) if self.has_batches else self.loader.collate_fn(copies)
        if not isinstance(batch, Mapping):
            return {"features": batch}
        return {name: move(value, self.device) for name, value in batch.items()}

    @cached_property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def batch_size(self) -> int:
        return max(1, self.args.per_device_train_batch_size)

    @cached_property
    def batches(self) -> list[dict[str, Any]]:
        """The sampled records in batches of the trainer's size, in the order of the dataset."""
        return [self.collate(chunk) for chunk in self.batch_features]

    @cached_property
    def batch_features(self) -> list[list[Any]]:
        """The records of each batch in `batches`."""
        return [chunk for form in group_by_form(self.features) for chunk in chunks(form, self.batch_size)]

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of `batches`; none if the batches have no token ids."""
        return [row for number, batch in enumerate(self.batches) for row in read_rows(batch, f"batch {number + 1}")]

    @cached_property
    def finder(self) -> TurnFinder | None:
        """Finds the turns of conversations by the tokenizer's chat template; None without one."""
        template = self.chat_template
        if self.tokenizer is None or not (template or getattr(self.tokenizer, "chat_template", None)):
            return None
        return TurnFinder(self.tokenizer, template)

    @cached_property
    def chat_template(self) -> str | None:
        """The template that the trainer or its processor uses instead of the tokenizer's; None if it uses that."""
        swapped = getattr(self.trainer, "chat_template", None)
        if isinstance(swapped, str):
            return swapped
        processor = getattr(self.trainer, "processing_class", None)
        text = getattr(processor, "chat_template", None)
        return text if isinstance(text, str) and processor is not self.tokenizer else None

    @cached_property
    def documents(self) -> list[Document]:
        """The texts and conversations of the rows; a packed row has several."""
        return read_documents(self.rows, self.finder)

    @cached_property
    def short_features(self) -> list[Any]:
        """
        A few records to compute with: short ones of different lengths that have trained tokens, cut to
        `COMPUTED_TOKENS` tokens where they are tokens already.
        """
        form = next(iter(group_by_form(self.features)), [])
        cut = shorten_rows(form, [max(COMPUTED_TOKENS, first_trained_place(feature) + 64) for feature in form])
        trained = [feature for feature in cut if has_trained_token(feature)] or cut
        by_length: dict[int, Any] = {}
        for feature in sorted(trained, key=length_of):
            by_length.setdefault(length_of(feature), feature)
        distinct = list(by_length.values())[:COMPUTED_ROWS]
        identities = set(map(id, distinct))
        return (distinct + [feature for feature in trained if id(feature) not in identities])[:COMPUTED_ROWS]

    def loss(self, batch: Mapping[str, Any], num_items: Any = None, train: bool = False) -> torch.Tensor:
        """Returns the trainer's own loss of a batch, in evaluation mode unless `train`."""
        self.trainer.model.train(train)
        with self.trainer.compute_loss_context_manager(), self.trainer.accelerator.autocast():
            inputs = self.trainer._prepare_inputs(copy.copy(dict(batch)))
            return self.trainer.compute_loss(self.trainer.model, inputs, num_items_in_batch=num_items)

    @contextlib.contextmanager
    def left_as_it_was(self) -> Iterator[None]:
        """
        Restore random states, gradients, modes and the trainer's counters after the block.

        Inside the block the model has the tokenizer's special tokens, as in training.
        """
        values = [part for value in vars(self.trainer).values() for part in parts_of(value)]
        modules = {id(value): value for value in values if isinstance(value, nn.Module)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved_randomness())
            stack.enter_context(preserved_attributes(self.trainer))
            # `train` sets it before the first step, and losses may divide by it.
            self.trainer.current_gradient_accumulation_steps = 1
            stack.enter_context(aligned_special_tokens(self.trainer))
            for module in modules.values():
                stack.enter_context(preserved_model(module))
            yield

    @contextlib.contextmanager
    def few_layers(self, most: int | None = None) -> Iterator[int]:
        """
        Compute only with the first layers inside the block: `depth` of the subject or else at most `most`.

        The layers are not copied, so this works for models of any size, with adapters and heads.
        Yields the number of layers; all of them if the model has no list of layers.
        """
        depth = self.depth or most
        layers = find_layers(self.base)
        if layers is None or depth is None or len(layers[1]) <= depth:
            yield len(layers[1]) if layers else 0
            return
        owner, stack, name = layers[0], layers[1], layers[2]
        config = self.base.config.get_text_config()
        count = config.num_hidden_layers
        types = list(getattr(config, "layer_types", None) or [])[:count]
        if self.depth is None and types:  # a layer of each type is among them
            depth = max(depth, *(types.index(kind) + 1 for kind in set(types)))
        setattr(owner, name, nn.ModuleList(list(stack)[:depth]))
        try:
            config.num_hidden_layers = depth
            yield depth
        finally:
            config.num_hidden_layers = count
            setattr(owner, name, stack)

    @cached_property
    def tolerance(self) -> float:
        """Relative difference that rounding may make in outputs of this model as the trainer computes it."""
        mixed = self.trainer.accelerator.mixed_precision not in ("no", None)
        return HALF_TOLERANCE if mixed else tolerance(self.model)


def find_layers(model: Any) -> tuple[nn.Module, nn.ModuleList, str] | None:
    """Returns the module that owns the list of a model's layers, the list, and its name; None if there is none."""
    if not isinstance(model, PreTrainedModel):
        return None
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count and count:
                return owner, child, name
    return None


def is_stream(dataset: Any) -> bool:
    """Whether a dataset yields records only in sequence, without an index."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def is_batch(item: Any) -> bool:
    """Whether an item of a dataset is a whole batch: its `input_ids` have the shape (rows, length)."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else None
    return isinstance(ids, torch.Tensor) and ids.dim() == 2


def rows_of_batch(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a batch; each row gets a value unchanged if it does not have one element for each row."""
    batch, count = spread_labels(batch), len(batch["input_ids"])
    for number in range(count):
        yield {
            name: value[number] if isinstance(value, torch.Tensor) and value.dim() and len(value) == count else value
            for name, value in batch.items()
        }


def stack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns rows of equal length as a batch."""
    length = min(len(row["input_ids"]) for row in rows)
    batch: dict[str, Any] = {}
    for name, value in rows[0].items():
        if isinstance(value, torch.Tensor):
            batch[name] = torch.stack([row[name][:length] if value.dim() else row[name] for row in rows])
        else:
            batch[name] = value
    return batch


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items, the last one perhaps shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def group_by_form(features: Sequence[Any]) -> list[list[Any]]:
    """
    Returns the records in lists of those that may share a batch.

    A trainer of several datasets makes each batch of one of them: of the same columns, and the same `dataset_name`.
    """
    groups: dict[Any, list[Any]] = {}
    for feature in features:
        form = (frozenset(feature), feature.get("dataset_name")) if isinstance(feature, Mapping) else None
        groups.setdefault(form, []).append(feature)
    return list(groups.values())


def move(value: Any, device: torch.device) -> Any:
    """Returns a value of a batch on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: move(part, device) for name, part in value.items()}
    return [move(part, device) for part in value] if isinstance(value, list) else value


def length_of(feature: Any) -> int:
    """Returns the number of tokens of a record, of its longest list, or of its characters."""
    if not isinstance(feature, Mapping):
        return 0
    return max((len(value) for value in feature.values() if hasattr(value, "__len__")), default=0)


def shorten(feature: Any, most: int) -> Any:
    """
    Returns a record whose tokens are cut to `most`, and with them the lists that are as long as they.

    A record without `input_ids` has each list of numbers cut, and each text cut to `8 * most` characters.
    """
    if not isinstance(feature, Mapping):
        return feature
    ids = feature.get("input_ids")
    length, cut = len(ids) if is_numbers(ids) else None, dict(feature)
    for name, value in feature.items():
        if name == "seq_lengths":
            ends = [min(end, most) for end in itertools.accumulate(value)]
            cut[name] = [end - start for start, end in zip([0, *ends], ends) if end > start]
        elif isinstance(value, str):
            cut[name] = value[: 8 * most]
        elif is_numbers(value) and length in (None, len(value)):
            cut[name] = value[:most]
    return cut


def shorten_rows(features: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """Returns records cut to these lengths; records of equal length stay so, because their collator may not pad."""
    if len({length_of(feature) for feature in features}) == 1:
        lengths = [max(lengths)] * len(features)
    return [shorten(feature, length) for feature, length in zip(features, lengths)]


def is_numbers(value: Any) -> TypeGuard[Any]:
    """Whether a value is a list, array or tensor of numbers in one dimension."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 1
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], int | float | np.number)


def first_trained_place(feature: Any) -> int:
    """Returns the place of a record's first trained label; 0 if the record has no labels."""
    labels = feature.get("labels") if isinstance(feature, Mapping) else None
    if not is_numbers(labels):
        return 0
    return next((place for place, label in enumerate(labels) if place and label != IGNORED), 0)


def has_trained_token(feature: Any) -> bool:
    """Whether a record has a trained label, or no labels at all."""
    labels = feature.get("labels") if isinstance(feature, Mapping) else None
    if labels is None or not hasattr(labels, "__len__"):
        return True
    return any(label != IGNORED for label in list(labels)[1:])


@contextlib.contextmanager
def preserved_randomness() -> Iterator[None]:
    """Restore the states of all random generators after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [torch.cuda.get_rng_state(number) for number in range(torch.cuda.device_count())]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for number, state in enumerate(devices):
            torch.cuda.set_rng_state(state, number)


def parts_of(value: Any) -> list[Any]:
    """Returns the values of a dictionary or list, or the value itself."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


class WithoutDropout(TorchFunctionMode):
    """Leaves dropout out, also inside of attention, so that a model in training mode computes the same twice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.dropout:
            return args[0] if args else kwargs["input"]
        if func is nn.functional.scaled_dot_product_attention and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        elif func is nn.functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextlib.contextmanager
def preserved_attributes(trainer: Any) -> Iterator[None]:
    """Restore the trainer's attributes that are plain values, or collections of them, after the block."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(is_plain(part) for part in value.values())
        if isinstance(value, list | tuple | set | deque):
            return all(is_plain(part) for part in value)
        return value is None or isinstance(value, bool | int | float | str)

    previous = {name: copy.deepcopy(value) for name, value in vars(trainer).items() if is_plain(value)}
    try:
        yield
    finally:
        for name in [name for name, value in vars(trainer).items() if is_plain(value) and name not in previous]:
            delattr(trainer, name)
        for name, value in previous.items():
            setattr(trainer, name, value)


@contextlib.contextmanager
def aligned_special_tokens(trainer: Any) -> Iterator[None]:
    """Set the special tokens of the model's configurations to the tokenizer's inside the block, as training does."""
    model, tokenizer = trainer.model, getattr(trainer, "processing_class", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase | ProcessorMixin) or not hasattr(model, "config"):
        yield
        return
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    configs = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    previous = [
        (config, {name: copy.copy(getattr(config, name)) for name in names if hasattr(config, name)})
        for config in configs
        if config is not None
    ]
    try:
        with quiet():
            align_special_tokens(model, tokenizer)
        yield
    finally:
        for config, values in previous:
            for name in names:
                if name in values:
                    setattr(config, name, values[name])
                elif hasattr(config, name):
                    delattr(config, name)


@contextlib.contextmanager
def preserved_model(model: nn.Module) -> Iterator[None]:
    """Restore gradients, buffers and the mode of each module after the block."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    for weight, _ in gradients:
        weight.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, gradient in gradients:
            weight.grad = gradient
        with torch.no_grad():
            for buffer, previous in buffers:
                buffer.copy_(previous)


def relative_difference(outputs: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest distance of vectors (…, size) from their references, relative to these' mean length."""
    if outputs.numel() == 0:
        return 0.0
    outputs, reference = outputs.float(), reference.float()
    scale = reference.norm(dim=-1).mean().item()
    difference = (outputs - reference).norm(dim=-1).max().item()
    return math.inf if not math.isfinite(difference) else difference / max(scale, 1e-12)


def tolerance(model: nn.Module) -> float:
    """Returns the relative difference that rounding may make in outputs of a model of this precision."""
    dtypes = {weight.dtype for weight in model.parameters()}
    if dtypes & {torch.bfloat16, torch.float16}:
        return HALF_TOLERANCE
    return 2e-4 if torch.get_float32_matmul_precision() == "highest" else 5e-3

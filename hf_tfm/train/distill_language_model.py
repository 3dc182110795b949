"""Distillation of language models: the recipe, and the Trainer that learns from a teacher beside the text."""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.open import fingerprint
from ..artifacts.packing_support import PackedRows
from ..artifacts.record import base_model_name
from ..core.errors import InputError
from ..core.limits import longest_input
from ..data.objectives import causal
from ..data.soft_targets import SoftCausal
from ..data.step_batches import StepBatches
from ..data.tokens import TokenStore, TokenStream, piece_ends
from .pretrain import PretrainingTrainer
from .pretrain_model import check_fit
from .pretrain_recipe import PretrainingRecipe
from .recipe import refuse_below
from .soft_loss import LinearSoftLoss, SoftLabels, SoftLoss
from .teacher import teacher_targets


# Windows of a teacher by default; longer ones take more memory for little more context.
_WINDOW = 1024


@dataclass
class LanguageModelDistillation(PretrainingRecipe):
    """Fields of the distillation of causal and masked language models."""

    task: str | None = field(default=None, metadata={"help": "causal_lm or masked_lm."})
    teacher: str = field(default="", metadata={"help": "Folder of the model to learn from, or its name on the Hub."})
    keep_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Of a model folder keep only some layers: how many, evenly spaced, or their numbers from 0, as in "
            "0 2 5."
        },
    )
    soft_weight: float = field(default=0.5, metadata={"help": "Share of the teacher's probabilities in the loss."})
    temperature: float = field(
        default=1.0, metadata={"help": "Divisor of the logits of both models; a higher one shows unlikely tokens."}
    )
    top_k: int = field(
        default=32,
        metadata={"help": "Number of likeliest tokens whose probabilities are learned; all others are one outcome."},
    )
    teacher_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that a causal teacher reads at once; by default as many as it can, at most 1024."},
    )
    masking_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Share of tokens masked (masked_lm): one rate, or several that the run passes through. Standard: "
            "0.3 0.15."
        },
    )
    masking_unit: Literal["token", "word", "span"] = field(
        default="token", metadata={"help": "token, word or span (masked_lm)."}
    )

    def __post_init__(self) -> None:
        if not self.teacher:
            raise InputError("--teacher: name the folder of the model to learn from")
        self.tokenizer = self.tokenizer or self.teacher
        self.recipe = self.recipe or "standard"  # the table was measured without a teacher
        super().__post_init__()
        refuse_below(self, top_k=1, soft_weight=0, temperature=0.01, teacher_length=16)
        if self.soft_weight > 1:
            raise InputError(f"soft_weight {self.soft_weight}: a share of the loss, 1 at most")
        if self.z_loss:
            raise InputError("z_loss: goes without a teacher; leave it out")
        if self.streaming and self.task == "causal_lm":
            raise InputError(
                "--streaming: a teacher's probabilities are kept beside tokens on disk; leave it out, or give "
                "--task masked_lm, for which they are computed in each step"
            )
        if self.length_schedule and self.task == "masked_lm":
            raise InputError("length_schedule is for decoders: an encoder's rows would not begin with [CLS]")

    def describe(self) -> dict[str, Any]:
        """Return the teacher and the loss for the run record."""
        names = ("top_k", "temperature", "soft_weight", *(["teacher_length"] if self.task == "causal_lm" else []))
        settings = {name: getattr(self, name) for name in names}
        return {"name": base_model_name(self.teacher), **settings}


class DistillingTrainer(PretrainingTrainer):
    """
    [`PretrainingTrainer`] whose loss is in part the divergence from a teacher; evaluation has the plain loss.

    Soft labels are in the batches (see `soft_batches`), or, for masked models, the teacher's of the same masked batch.
    They depend on the mask, and a mask that is drawn anew in each pass teaches more than a few masks kept on disk,
    whose computation would cost as much for each use.

    Args:
        teacher: a masked LM that reads each batch; None if the batches have soft labels.
    """

    recipe: LanguageModelDistillation

    def __init__(self, *args: Any, teacher: PreTrainedModel | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loss = SoftLoss(self.recipe.soft_weight, self.recipe.temperature)
        self.linear_loss = LinearSoftLoss(self.loss)
        if self.skips_logits:
            self.model.linear_loss_function = self.linear_loss
        self.vocabulary_size = count_ids(self.processing_class)
        self.own_loss_counts = self.model_accepts_loss_kwargs
        self._distil(True)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        if teacher is not None:
            self.teacher_rows = PackedRows.of(teacher)
            check_fit(teacher, self.processing_class, self.recipe.block_length + self.teacher_rows.first_position)
            if not self.teacher_rows.supports_packing:
                raise InputError(
                    f"--teacher {self.recipe.teacher}: this architecture cannot keep apart the texts of a packed row"
                )
        if self.record is not None:
            self.record["teacher"] = self.recipe.describe()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        ids, log_probs = (inputs.pop(name, None) for name in ("teacher_ids", "teacher_log_probs"))
        if not self.is_distilling:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        soft = self.ask_teacher(inputs) if ids is None else SoftLabels(ids, log_probs)
        if self.skips_logits:
            with self.linear_loss.using(soft):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = self._fit_inputs(inputs)
        labels = self._predicted_labels(inputs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"][..., :-1, :] if self._loss_shifts_labels else outputs["logits"]
        is_predicted = labels != -100
        divisor, processes = is_predicted.sum(), 1
        if num_items_in_batch is not None:
            divisor = num_items_in_batch
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = processes * self.loss.of_logits(logits[is_predicted], labels[is_predicted], soft, divisor)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def ask_teacher(self, inputs: dict[str, Any]) -> SoftLabels:
        """Return the teacher's soft labels of the masked tokens of a batch, in their order."""
        assert self.teacher is not None
        is_predicted = inputs["labels"] != -100
        positions = inputs.get("masked_positions")
        positions = is_predicted.flatten().nonzero().flatten() if positions is None else positions[is_predicted]
        texts = {name: value for name, value in inputs.items() if name not in ("labels", "masked_positions")}
        texts = self.teacher_rows.fit(texts)
        with self.accelerator.autocast():
            if "masked_positions" in inspect.signature(self.teacher.forward).parameters:
                logits = self.teacher(**texts, masked_positions=positions).logits
            else:
                logits = self.teacher(**texts).logits.flatten(0, 1)[positions]
        logits = logits[:, : self.vocabulary_size]
        return SoftLabels.of_logits(logits, self.recipe.top_k, self.recipe.temperature)

    def find_silent_faults(self) -> None:
        """Run the preflight on the same batches without their soft labels, which it does not know."""
        with self.plain_batches():
            super().find_silent_faults()

    def _distil(self, is_distilling: bool) -> None:
        self.is_distilling = is_distilling
        if not self.skips_logits:
            # Trainer then counts the predicted tokens of the whole step, by which the loss above is divided.
            self.model_accepts_loss_kwargs = is_distilling or self.own_loss_counts

    @contextlib.contextmanager
    def plain_batches(self) -> Iterator[None]:
        """Train by the text alone inside the block."""
        batches = self.data.train
        plain = copy.copy(batches)
        if isinstance(batches.transform, SoftCausal):
            plain.transform = causal
        self.data.train = self.train_dataset = plain
        self._distil(False)
        try:
            yield
        finally:
            self.data.train = self.train_dataset = batches
            self._distil(True)


def soft_batches(
    batches: StepBatches,
    stores: Sequence[TokenStore | TokenStream],
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: LanguageModelDistillation,
    bf16: bool,
) -> StepBatches:
    """
    Return the batches of a causal LM with a teacher's soft labels; set the recipe's `teacher_length`.

    Args:
        stores: the token stores of the batches, none of them a stream; the targets are kept beside them.
        bf16: whether the teacher computes under autocast.
    """
    limit = longest_input(teacher.config)
    length = recipe.teacher_length = recipe.teacher_length or min(limit, _WINDOW)
    if length > limit:
        raise InputError(f"--teacher_length {length}: the teacher reads {limit} tokens at most")
    begin_ids = [] if tokenizer.cls_token_id is None else [piece_ends(tokenizer)[0]]
    targets = [
        teacher_targets(
            teacher,
            {"teacher": fingerprint(teacher, tokenizer)},
            store,
            k=recipe.top_k,
            temperature=recipe.temperature,
            length=length,
            vocab_size=count_ids(tokenizer),
            begin_ids=begin_ids,
            bf16=bf16,
        )
        for store in stores
        if isinstance(store, TokenStore)
    ]
    with_labels = copy.copy(batches)
    with_labels.transform = SoftCausal(targets)
    return with_labels


def count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids of a tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1

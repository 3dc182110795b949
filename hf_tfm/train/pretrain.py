"""The Trainer of both pretraining scripts, and what it reports before and after the training."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..artifacts.card_values import number_text
from ..artifacts.packing_support import PackedRows, sentence_loss
from ..artifacts.record import base_model_name
from ..core.checkpoints import last_checkpoint
from ..core.statistics import to_bits_per_byte
from ..cpu.attention import supports_unpadded_training
from ..cpu.compile import compile_blocks, has_compiler, is_worth_compiling
from ..data.batches import IGNORED
from ..data.tokens import boundary_ids
from .adaptive_masking import AdaptiveMaskingMixin
from .averaging import AveragingMixin
from .custom_evaluation import MeasuredEvaluation
from .early_decay import EarlyDecay, SaveBest
from .optim import build_optimizer, describe_optimizer
from .pretrain_choice import RecipeChoice
from .pretrain_data import PretrainingData, notes_on_text
from .pretrain_model import check_fit
from .pretrain_recipe import PretrainingRecipe
from .report import measure_step, print_line, write_finished_model
from .run_identity import read_identity
from .schedule import build_scheduler
from .trainer import RunTrainer


class PretrainingTrainer(AveragingMixin, AdaptiveMaskingMixin, MeasuredEvaluation, RunTrainer):
    """
    Trainer over batches that are a pure function of their number.

    Args:
        data: training batches by number, and evaluation batches that are the same at every evaluation.
        recipe: optimizer, rates and schedule, among others.
        choice: where these come from, and the steps of the run.
    """

    def __init__(
        self, *args: Any, data: PretrainingData, recipe: PretrainingRecipe, choice: RecipeChoice, **kwargs: Any
    ):
        datasets: dict[str, Any] = {"train_dataset": data.train, "eval_dataset": data.evaluation}
        super().__init__(*args, **datasets, ema_decay=recipe.ema_decay or 0.0, **kwargs)
        self.data, self.recipe, self.choice, self.plan = data, recipe, choice, choice.plan
        # While an encoder learns next tokens, the loss of masked ones says nothing about its progress.
        first_step = round(getattr(recipe, "causal_first", 0) * self.plan.max_steps)
        self.early_decay = EarlyDecay(self.plan, recipe.early_decay_patience or 0, first_step)
        self.add_callback(self.early_decay)
        self.add_callback(SaveBest())
        self.rows = PackedRows.of(self.model)
        check_fit(self.model, self.processing_class, recipe.block_length + self.rows.first_position)
        # Trainer does not recognise all causal LMs: not GPT-2's kind, with class names in …LMHeadModel.
        self._loss_shifts_labels |= type(self.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.skips_logits = "skip_logits" in inspect.signature(self.model.forward).parameters and not recipe.z_loss
        if self.record is not None:
            self.record["license"] = recipe.license
            self.record["block_length"] = max(recipe.row_lengths())
            self.record["data"] = data.facts
            self.record["tokens_per_step"] = data.tokens_per_step
            self.record["regime"] = dataclasses.asdict(choice.regime)
            self.record["recipe"] = {"name": choice.name, **choice.settings}

    def get_train_dataloader(self) -> DataLoader:
        return self.data.train.loader()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        # A run that was killed after its early end has more batches, but nothing left to train.
        has_ended = 0 < self.state.max_steps <= self.state.global_step
        return ([], None) if has_ended else super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = self._fit_inputs(inputs)
        if not self.recipe.z_loss and self.rows.loss_is_token_sum:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = self._predicted_labels(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        is_scaled = self.args.average_tokens_across_devices and num_items_in_batch is not None
        # As Trainer scales the loss: gradients are averaged over processes, and the token count is of all processes.
        processes = self.accelerator.num_processes if is_scaled else 1
        if not self.rows.loss_is_token_sum and num_items_in_batch is not None:
            # Turn means over this batch into its share of the means over the step, whose parts have equally many rows.
            pair_loss = sentence_loss(inputs, outputs)
            loss = (loss - processes * pair_loss) * (labels != -100).sum() / num_items_in_batch
            loss = loss + pair_loss / self.current_gradient_accumulation_steps
        if self.recipe.z_loss:
            logits = outputs["logits" if "logits" in outputs else "prediction_logits"]
            logits = logits[..., :-1, :] if self._loss_shifts_labels else logits
            loss = loss + self.recipe.z_loss * processes * z_loss(logits, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _fit_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add the masks and positions that keep packed texts apart in this architecture."""
        inputs = self.rows.fit(inputs)
        return {**inputs, "skip_logits": True} if self.skips_logits else inputs

    def _predicted_labels(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        return inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(
                model or self.model,
                self.choice.settings["optimizer"],
                lr=self.args.learning_rate,
                embedding_lr=self.recipe.embedding_learning_rate,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(
                optimizer or self.optimizer,
                self.choice.settings["schedule"],
                num_training_steps,
                self.plan,
                warmup=self.choice.settings["warmup"],
                decay=self.plan.decay_steps,
            )
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        training_fields = {name: getattr(config, name) for name in self.choice.saved_config}
        set_fields(config, self.choice.saved_config)
        try:
            super()._save(output_dir, state_dict)
        finally:
            set_fields(config, training_fields)

    def finished_model(self) -> PreTrainedModel:
        set_fields(self.accelerator.unwrap_model(self.model).config, self.choice.saved_config)
        return super().finished_model()

    @torch.no_grad()
    def measure(self, eval_dataset: list[dict[str, Any]]) -> dict[str, float]:
        """
        Return the mean loss over the predicted tokens of text, and [`to_bits_per_byte`] if every token is predicted.

        The first token of a row that continues a text is not predicted: its bytes count with the mean of the others.
        The loss of pairs is added as the mean over them, or as the model weights them where its losses add up.
        """
        self.model.eval()
        boundaries = torch.tensor(boundary_ids(self.processing_class), device=self.args.device)
        nats, predicted, text_bytes, text_tokens = 0.0, 0, 0, 0
        pair_nats, pairs = 0.0, 0
        with torch.compiler.set_stance("force_eager"):  # evaluation is too short to repay compiling
            for batch in eval_dataset:
                inputs = {name: value for name, value in batch.items() if not name.startswith("num_")}
                inputs = self._fit_inputs(send_to_device(inputs, self.args.device))
                inputs["labels"] = inputs["labels"].masked_fill(torch.isin(inputs["labels"], boundaries), IGNORED)
                count = int((self._predicted_labels(inputs) != -100).sum())
                if not count:  # the mean loss would not be a number
                    continue
                with self.compute_loss_context_manager(), self.accelerator.autocast():
                    outputs = self.model(**inputs)
                pair_loss = 0.0 if self.rows.loss_is_token_sum else float(sentence_loss(inputs, outputs))
                nats += (float(outputs.loss) - pair_loss) * count
                pair_nats += pair_loss * len(inputs["input_ids"])
                pairs += len(inputs["input_ids"])
                predicted += count
                text_bytes += batch["num_bytes"]
                text_tokens += batch.get("num_text_tokens", 0)
        self.model.train()
        metrics = {"loss": nats / predicted + pair_nats / pairs}
        if self._loss_shifts_labels and text_bytes:
            metrics["bits_per_byte"] = to_bits_per_byte(nats / predicted, text_bytes / text_tokens)
        # Processes that round differently must take the same decisions.
        return broadcast_object_list([{**metrics, "predicted_tokens": predicted}])[0]

    def final_evaluation(self) -> dict[str, float]:
        """Return the evaluation of the finished model; evaluate now if there is none."""
        step = self.state.global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            step = self.state.best_global_step
        log = (entry for entry in self.state.log_history if "eval_loss" in entry and entry["step"] == step)
        return dict(next(log, None) or self.evaluate())

    def resolve_compile(self, run_seconds: float | None) -> str:
        """
        Compile the model if the recipe says so, or if a run of `run_seconds` repays it; return the decision in words.

        A resumed run does what it did before: compiled kernels round differently.

        Args:
            run_seconds: length of the run without compiling, None if unknown.
        """
        recipe = self.recipe
        # Rows of any length make one long row.
        shapes = 1 if supports_unpadded_training(self.model) else len(recipe.row_lengths())
        previous = (read_identity(self.args.output_dir) or {}).get("compile")
        reason = "asked for"
        if recipe.compile == "auto" and previous is not None:
            recipe.compile, reason = previous, "as the run began"
        elif recipe.compile == "auto":
            is_repaid, is_possible = run_seconds is not None and is_worth_compiling(run_seconds, shapes), has_compiler()
            recipe.compile = "on" if is_repaid and is_possible else "off"
            reason = f"the run is {'long enough' if is_repaid else 'too short'} to repay it"
            if run_seconds is None:
                reason = "the time of a step of a sharded model is unknown before the training"
            elif is_repaid and not is_possible:
                reason = "there is no C++ compiler"
        return f"{compile_blocks(self.model)} layers ({reason})" if recipe.compile == "on" else f"no ({reason})"


def set_fields(config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Set fields of a configuration."""
    for name, value in fields.items():
        setattr(config, name, value)


def z_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Return the mean squared log of the softmax's normalizer over predicted positions (https://arxiv.org/abs/2204.02311).

    Added to the loss with a small weight (1e-4) it keeps logits from drifting. It does not shift labels: for a causal
    model pass `logits[:, :-1]` and `labels[:, 1:]`.

    Args:
        logits: (..., vocabulary).
        labels: (...).
        num_items_in_batch: divisor of the sum; the number of predicted positions by default.
    """
    normalizers = torch.logsumexp(logits[labels != -100].float(), dim=-1)
    return normalizers.square().sum() / (len(normalizers) if num_items_in_batch is None else num_items_in_batch)


def report_start(trainer: PretrainingTrainer, is_new: bool) -> None:
    """Report model, text, steps, optimizer and time, and show the first row with its predicted tokens."""
    model, data, args, recipe = trainer.model, trainer.data, trainer.args, trainer.recipe
    embedding = model.get_input_embeddings().weight.numel()
    steps, tokens = args.max_steps, data.tokens_per_step * args.max_steps
    print_line(
        "model", f"{type(model).__name__}, {model.num_parameters():,} parameters, {embedding:,} of them embeddings"
    )
    print_line("weights", "new" if is_new else f"from {recipe.model}")
    if not is_new and trainer.record is not None:
        trainer.record["base_model"] = base_model_name(recipe.model)
    if not trainer.rows.supports_packing:
        print_line("rows", "texts packed into one row are read as one: this architecture cannot keep them apart")
    for line in data.reading:
        print_line("read", line)
    for fact in data.facts:
        counts = [f"{fact[unit]:,} {unit}" for unit in ("documents", "tokens", "bytes") if unit in fact]
        if fact.get("measured_tokens", math.inf) < 0.99 * fact.get("tokens", 0):
            counts.append(f"{fact['measured_tokens']:,} tokens of it measured")
        print_line(fact["split"], ", ".join(counts or [fact["name"]]))
    for note in notes_on_text(recipe, data.facts):
        print_line("", note)
    text_tokens = data.count_tokens(steps)
    padding = "" if text_tokens is None else f", {1 - text_tokens / tokens:.1%} of it padding"
    print_line("steps", f"{steps:,} of {data.tokens_per_step:,} tokens: {tokens:,}{padding}")
    print_line("regime", trainer.choice.regime.describe())
    if len(data.passes) > 1:
        texts = ("a stream" if times is None else f"{times:.2g}" for times in data.passes)
        print_line("", f"passes over each text of the mixture: {', '.join(texts)}")
    print_line("recipe", "\n           ".join(trainer.choice.describe()))
    checkpoint = args.resume_from_checkpoint or last_checkpoint(Path(args.output_dir))
    steps_done = int(str(checkpoint).rpartition("-")[2]) if checkpoint else 0
    if steps_done:
        print_line("resumes", f"after step {steps_done:,}")
    if not trainer.skips_logits and trainer._loss_shifts_labels:
        print_line("logits", "of all tokens at once: this architecture, or z_loss, needs them")
    print_line("optimizer", describe_optimizer(trainer.create_optimizer()).replace("\n", "\n           "))
    seconds = None
    if not trainer.is_fsdp_enabled:  # before it is sharded, the model may fit on no device
        # All processes must take the same decision: the slowest one counts.
        own_seconds = torch.tensor([measure_step(trainer, data.train[0])], device=args.device)
        seconds = trainer.accelerator.gather(own_seconds).max().item()
    print_line("compiled", trainer.resolve_compile(None if seconds is None else steps * seconds))
    if seconds is not None:
        minutes = (steps - steps_done) * seconds / 60
        precision = "bf16" if args.bf16 else "fp32"
        print_line("time", f"about {minutes:.1f} minutes at {seconds:.2f} s a step in {precision}, and evaluations")
    print_line("example", mark_predictions(data.train[0], trainer.processing_class))


def mark_predictions(inputs: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, limit: int = 48) -> str:
    """Return the first `limit` tokens of a batch's first row, with ⟦predicted⟧ or ⟦input → predicted⟧ spans."""
    labels = inputs["labels"]
    if (positions := inputs.get("masked_positions")) is not None:
        is_predicted = labels != -100
        dense = torch.full((inputs["input_ids"].numel(),), -100)
        labels = dense.index_copy(0, positions[is_predicted], labels[is_predicted]).view_as(inputs["input_ids"])
    length = int((inputs["input_ids"][0] != (tokenizer.pad_token_id or 0)).nonzero().max()) + 1
    ids, labels = inputs["input_ids"][0, : min(limit, length)].tolist(), labels[0, : min(limit, length)].tolist()
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == -100) != (labels[start] == -100):
            text, targets = tokenizer.decode(ids[start:end]), [label for label in labels[start:end] if label != -100]
            if not targets:
                parts.append(text)
            else:
                predicted = tokenizer.decode(targets)
                parts.append(f"⟦{predicted}⟧" if predicted == text else f"⟦{text} → {predicted}⟧")
            start = end
    return "".join(parts).replace("\n", "⏎")


def report_end(trainer: PretrainingTrainer, model: PreTrainedModel, results: dict[str, float]) -> None:
    """Write the folder of the finished model with the trainer's record; report results and how to load the model."""
    args, data, record = trainer.args, trainer.data, trainer.record
    assert record is not None
    steps = trainer.state.global_step
    record["tokens"] = data.count_tokens(steps) or data.tokens_per_step * steps
    if trainer.plan.decay_start is not None:
        print_line("decay", trainer.early_decay.describe())
    if args.load_best_model_at_end and trainer.state.best_global_step is not None:
        print_line(
            "best",
            f"the model is of step {trainer.state.best_global_step:,} of {steps:,}, by {args.metric_for_best_model}",
        )
    metrics = ("loss", "bits_per_byte", "predicted_tokens", "masked_loss")
    record["results"] = {name: results[f"eval_{name}"] for name in metrics if f"eval_{name}" in results}
    print_line("result", ", ".join(f"{name} {number_text(value)}" for name, value in record["results"].items()))
    write_finished_model(trainer, model)

"""What all fine-tuning scripts share: fields of a recipe, loading model and tokenizer with checks, and the Trainer."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..core.errors import UNREADABLE, InputError, explain, reason_of
from ..core.limits import UNLIMITED, has_fast_bf16, longest_input
from ..core.quiet import quiet
from ..cpu.attention import use_blockwise_attention
from ..data.batches import SeededLengthGroups, in_order, length_of, longest_first
from ..data.records import Records, carve, read_records
from .recipe import FinetuningRecipe, read_mapping
from .trainer import RunMixin, check_arguments, data_seed


# Dropout on attention weights by the names it has in configurations; with it, attention leaves its fast kernels.
_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")
# Up to this many tokens attention written out trains faster on a CPU than torch's kernel, whose backward pass is slow.
_SHORT = 128
# Tokens that are made for padding, or at least stand in no text; one with "pad" in its name is preferred.
_PAD_TOKENS = re.compile(
    r"<\|?pad(ding)?\|?>|\[PAD\]|<\|finetune_right_pad_id\|>|<\|endoftext\|>|"
    r"<\|?(reserved|spare|unused)[^>]*>|\[unused\d+\]"
)
# Settings that decide what is learned; the others may change between the parts of one run.
_DECISIVE = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16",
    "train_sampling_strategy", "neftune_noise_alpha", "world_size", "metric_for_best_model",
)  # fmt: skip
_INDIFFERENT = {"license", "base_model", "trust_remote_code", "baselines", "beams"}


@dataclass
class FinetuningArguments(TrainingArguments):
    """transformers' TrainingArguments with defaults for fine-tuning."""

    output_dir: str | None = field(default="runs/finetuned", metadata={"help": "Folder to write."})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Highest learning rate; by default 2e-4 · (384 / width)^1.5, ten times that with --lora."},
    )
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps, or a share of all steps if below 1."})
    weight_decay: float = 0.01
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "How batches are drawn: group_by_length, random or sequential."}
    )
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = field(
        default="auto", metadata={"help": "What the best checkpoint is chosen by, on the validation records."}
    )
    logging_steps: float = field(default=0.02, metadata={"help": "Steps, or a share of all steps if below 1."})
    include_num_input_tokens_seen: str | bool = True
    bf16: bool = field(default=has_fast_bf16(), metadata={"help": "bf16 autocast; on where the hardware has it."})
    use_cpu: bool = not torch.accelerator.is_available()
    report_to: None | str | list[str] = "none"


def check_finetuning(
    args: TrainingArguments, recipe: FinetuningRecipe, ignored: Mapping[str, str] | None = None
) -> None:
    """
    Raise `InputError` for arguments that would end in an error later, or do nothing.

    Args:
        ignored: stock fields that the script does not look at, and what to do instead.
    """
    ignored = {"prediction_loss_only": "checkpoints are compared by figures", **(ignored or {})}
    check_arguments(args, recipe.model, ignored)
    if args.max_steps < 1 and not args.num_train_epochs > 0:
        raise InputError(f"num_train_epochs {args.num_train_epochs:g} must be above 0")
    if not 0 <= args.label_smoothing_factor < 1:
        raise InputError(f"label_smoothing_factor {args.label_smoothing_factor} must be 0 or more and below 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        raise InputError(f"learning_rate {args.learning_rate} must be above 0")


def load_tokenizer(recipe: FinetuningRecipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `InputError` if there is none."""
    where = recipe.tokenizer or recipe.model
    with quiet(), _readable_model(where, "tokenizer"):
        return AutoTokenizer.from_pretrained(where, trust_remote_code=recipe.trust_remote_code)


def load_model(
    auto_class: Any, recipe: FinetuningRecipe, tokenizer: PreTrainedTokenizerBase, **config_fields: Any
) -> tuple[PreTrainedModel, list[str]]:
    """
    A model with the head of `auto_class`, in fp32, padding as its tokenizer does.

    Args:
        config_fields: of the configuration, such as `num_labels`.

    Returns: the model, and the names of the weights that are new because the folder has none for them.

    Raises:
        InputError: there is no such model, it lacks weights beside the head's, or the tokenizer is another model's.
    """
    options = {"trust_remote_code": recipe.trust_remote_code}
    if recipe.lora_int8:
        options["quantization_config"] = int8_weights()
    with quiet(), _readable_model(recipe.model, "model"):
        config = AutoConfig.from_pretrained(recipe.model, trust_remote_code=recipe.trust_remote_code, **config_fields)
        for name in config_fields:
            if not hasattr(config, name):
                raise InputError(f"{recipe.model}: its {type(config).__name__} has no switch {name}; leave that out")
        if recipe.keep_layers is not None:
            keep_first_layers(config, recipe.keep_layers)
        if "classifier_pooling" in config_fields and getattr(config, "use_pooler", False):
            config.use_pooler = False  # it reads the first token, whatever was asked for
        for name in _ATTENTION_DROPOUT:
            if hasattr(config, name):
                setattr(config, name, recipe.attention_dropout)
        renamed = _key_mapping(auto_class, config)
        if renamed and recipe.lora:
            raise InputError(
                f"{recipe.model}: transformers does not find its weights under this head, so nobody could load an "
                "adapter on it: train without --lora, or bring the model into this package with `hf-tfm convert`"
            )
        try:
            model, info = auto_class.from_pretrained(
                recipe.model,
                config=config,
                key_mapping=renamed,
                # A checkpoint in bf16 would be trained in bf16, in which small steps are lost.
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise InputError(
                f"{recipe.model}: is a {config.model_type}, and {auto_class.__name__} has no class for that: take a "
                "model of a kind that it knows, such as an encoder"
            ) from error
    if renamed:
        model._weight_conversions = []  # or saving would give the weights their old names, which are not found again
    new = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    lost = [name for name in new if name.startswith(body) and "pooler" not in name]
    if lost:
        raise InputError(
            f"{recipe.model}: lacks {len(lost)} weights of {type(model).__name__} or has them in another shape, first "
            f"{lost[0]}: they would be random; is config.json of this model?"
        )
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise InputError(
            f"{recipe.tokenizer or recipe.model}: the tokenizer has ids up to {highest}, the model {rows} embeddings: "
            "they do not belong together"
        )
    ensure_pad_token(tokenizer, model)
    return model, new


def keep_first_layers(config: PreTrainedConfig, layers: int) -> None:
    """
    Make a configuration that of the model's first blocks, whose weights are then the only ones to be loaded: for easy
    tasks the upper ones add little (Sajjad et al. 2020, "On the effect of dropping layers", arXiv:2004.03844).

    Raises:
        InputError: the model does not have so many, or its configuration does not count them.
    """
    before = getattr(config, "num_hidden_layers", None)
    if before is None or not 1 <= layers <= before:
        raise InputError(f"keep_layers {layers}: this {config.model_type} has {before or 'no count of its'} blocks")
    config.num_hidden_layers = layers
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == before:  # one for each block: layer_types
            setattr(config, name, value[:layers])


def int8_weights() -> Any:
    """How transformers loads linear layers with weights of 8 bits, to be computed with in their full range."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig
    except ImportError as error:
        raise InputError(f"lora_int8 needs torchao ({error}): pip install torchao") from error
    return TorchAoConfig(quant_type=Int8WeightOnlyConfig(version=2))


def _key_mapping(auto_class: type, config: PreTrainedConfig) -> dict[str, str] | None:
    """
    What `from_pretrained` must be told where a head's class has another name for the model inside than the saved class,
    or all weights would be random: transformers' `LlamaForQuestionAnswering` says `transformer` for `model`.
    """
    target = getattr(auto_class, "_model_mapping", {}).get(type(config), None)
    source = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if None in (target, source) or isinstance(target, tuple) or target.base_model_prefix == source.base_model_prefix:
        return None
    return {rf"^{re.escape(source.base_model_prefix)}\.": f"{target.base_model_prefix}."}


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """
    Give the tokenizer a pad token that is not its end-of-text token, and the model the same one.

    Where the vocabulary has no token for it, an embedding that no token uses is taken, and the end-of-text token only
    as the last resort: the weights keep their shapes, so that adapters fit.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        free = [token for token, number in vocabulary if number not in taken and _PAD_TOKENS.fullmatch(token)]
        if free:
            tokenizer.pad_token = min(free, key=lambda token: "pad" not in token.lower())
        elif tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in taken:
            tokenizer.pad_token = tokenizer.unk_token
        elif vocabulary[-1][1] + 1 < model.get_input_embeddings().num_embeddings:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        elif tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or vocabulary[0][0]
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def separate_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Put the end-of-text token between the two texts of a pair where a tokenizer puts nothing, as many decoders' do.

    It becomes part of the tokenizer, so that pipelines and servers separate pairs as the training did.
    """
    mark = tokenizer.sep_token or tokenizer.eos_token
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add() or not mark:
        return
    backend = tokenizer.backend_tokenizer
    between = processors.TemplateProcessing(
        single="$A", pair=f"$A {mark} $B", special_tokens=[(mark, tokenizer.convert_tokens_to_ids(mark))]
    )
    before = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*before, between])


def resolve_max_length(recipe: FinetuningRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The length that texts are cut to, in tokens. Raises `InputError` if the model cannot take the one asked for."""
    positions = longest_input(model.config)
    if positions != UNLIMITED:
        # So that whoever loads the folder and asks for truncation gets what the model can take.
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if recipe.max_length is None:
        return min(tokenizer.model_max_length, 512)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if recipe.max_length < least or recipe.max_length > positions:
        most = "any number of" if positions == UNLIMITED else f"at most {positions}"
        raise InputError(f"max_length {recipe.max_length}: {recipe.model} takes {most} tokens, and {least} at least")
    return recipe.max_length


def choose_attention(args: TrainingArguments, model: PreTrainedModel, max_length: int) -> None:
    """Choose how attention is computed while training on a CPU; what is saved does not tell."""
    if args.device.type == "cpu" and not use_blockwise_attention(model) and max_length <= _SHORT:
        model.set_attn_implementation("eager")


def carve_validation(
    recipe: FinetuningRecipe, train: Records, seed: int, keys: Sequence[Any], strata: Sequence[Any] | None = None
) -> tuple[Records, Records]:
    """The training and the validation records: of their own file, or carved out of train as [`carve`] does."""
    if recipe.validation_file:
        return train, read_records(recipe.validation_file, "validation")
    return carve(train, recipe.validation_fraction, seed, keys, strata)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *columns: list[str], **more: list[Any]
) -> list[dict[str, Any]]:
    """
    Inputs of a model from one or two columns of texts, cut to `max_length`, with `more` columns (labels) beside them.
    """
    inputs = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    data = {**inputs, **more}
    return [dict(zip(data, row)) for row in zip(*data.values())]


class _TellEpoch(TrainerCallback):
    def __init__(self, trainer: "FinetuningMixin"):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.sampler is not None:
            self.trainer.sampler.epoch = int(state.epoch or 0)


class FinetuningMixin(RunMixin):
    """
    For any Trainer over lists of records of different lengths (`input_ids` lists): batches of similar length that a
    resumed run draws again as they were (the stock sampler draws from the global generator, whose state at the epoch's
    start is gone), and evaluation sorted by length.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sampler: SeededLengthGroups | None = None
        self.add_callback(_TellEpoch(self))

    def median_batch(self) -> dict[str, Any]:
        """A batch of records of middling length, to measure the time of a step on."""
        records = sorted(self.train_dataset, key=length_of)
        start = max(0, (len(records) - self.args.train_batch_size) // 2)
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return collate(records[start : start + self.args.train_batch_size])

    def predict_in_order(self, records: list[dict[str, Any]]) -> np.ndarray:
        """
        Outputs for the records, in the records' order. Computed without autocast, which the trained model is wrapped
        in: what is measured is what the folder gives when it is loaded.
        """
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # What these are measured by is the validation records' affair.
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            return in_order(self.predict(records).predictions, records)
        finally:
            self.compute_metrics = compute_metrics

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # The stock count takes -100 for a label to leave out, which among numbers to learn is one like any other.
        counted = [
            {**batch, "labels": torch.zeros_like(labels)}
            if (labels := batch.get("labels")) is not None and labels.is_floating_point()
            else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(counted, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [length_of(record) for record in train_dataset or self.train_dataset]
        together = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.sampler = SeededLengthGroups(together, lengths, data_seed(self.args))
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return longest_first(eval_dataset)


class FinetuningTrainer(FinetuningMixin, Trainer):
    """The stock Trainer with what [`FinetuningMixin`] adds."""


def resolve_arguments(
    args: TrainingArguments,
    recipe: FinetuningRecipe,
    model: PreTrainedModel,
    metrics: Sequence[str],
    pace: float = 1.0,
    loss: bool = True,
) -> None:
    """
    Fill in what depends on model and task: the learning rate, and the metric that the best checkpoint is chosen by.

    Args:
        metrics: names of the task's metrics; the first is taken if none was asked for.
        pace: of this kind of training: what the learning rate that suits labels is multiplied by.
        loss: whether evaluations give the loss too.

    Raises:
        InputError: the metric asked for is none of these.
    """
    if args.learning_rate is None:
        width = getattr(model.config.get_text_config(), "hidden_size", 768)
        args.learning_rate = pace * 2e-4 * (384 / width) ** 1.5 * (10 if recipe.lora else 1)
    asked = (args.metric_for_best_model or "auto").removeprefix("eval_")
    asked = metrics[0] if asked == "auto" else asked
    known = dict.fromkeys([*metrics, *(["loss"] if loss else [])])
    if asked not in known:
        raise InputError(f"metric_for_best_model {asked!r} must be one of {', '.join(known)}")
    args.metric_for_best_model, args.greater_is_better = asked, asked not in ("loss", "rmse")


def trl_arguments(config_class: type, args: TrainingArguments, given: str, **fields: Any) -> Any:
    """
    A configuration of TRL's with what these arguments say, and what TRL alone knows.

    Args:
        given: TRL's own fields as a person gave them, a JSON object; they win over `fields`.

    Raises:
        InputError: TRL has no such field, or not such a value.
    """
    shared = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    # TRL's own default under the old name would switch checkpointing of activations on.
    # transformers before 5.23 has no other.
    shared["gradient_checkpointing"] = getattr(args, "activation_checkpointing", args.gradient_checkpointing)
    own = read_mapping(given, "trl")
    place = f"--trl {given}" if own else config_class.__name__
    with explain(place, "{reason}", TypeError, ValueError, NotImplementedError):
        return config_class(**{**shared, **fields, **own})


def run_identity(recipe: FinetuningRecipe, args: TrainingArguments, data: list[dict[str, Any]]) -> dict[str, Any]:
    """What must stay the same while a run is stopped and resumed; files count by their content."""
    fields = {
        name: Path(value).name if name in ("model", "tokenizer") and value else value
        for name, value in dataclasses.asdict(recipe).items()
        if not name.endswith("_file") and name not in _INDIFFERENT
    }
    fields.update((name, getattr(args, name)) for name in _DECISIVE)
    fields.update((f"{facts['split']} data", facts.get("sha256")) for facts in data)
    return fields


def _readable_model(folder: str, part: str) -> contextlib.AbstractContextManager[None]:
    """Turns the errors of a damaged or missing `part` of a model's folder into an `InputError`."""

    def hint(error: Exception) -> str:
        if "contains custom code" in str(error):
            return "carries code of its own: look at it and add --trust_remote_code"
        missing = "" if Path(folder).exists() else "there is no such folder, and "
        return f"{missing}no {part} can be loaded from it ({reason_of(error)})"

    return explain(folder, hint, *UNREADABLE, TypeError, AttributeError)

"""What all fine-tuning scripts share: arguments, loading a model and its tokenizer with checks, reading splits."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ..core.errors import UNREADABLE, InputError, explain, reason_of
from ..core.limits import UNLIMITED, has_fast_bf16, longest_input
from ..core.quiet import quiet
from ..cpu.attention import use_blockwise_attention
from ..data.records import Records, carve, read_records
from .recipe import FinetuningRecipe, read_mapping
from .trainer import check_arguments


# Names that configurations have for dropout on attention weights, with which attention leaves its fast kernels.
_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")
# Up to this length in tokens, eager attention trains faster on a CPU than torch's kernel, whose backward pass is slow.
_MAX_EAGER_LENGTH = 128
# Tokens made for padding, or at least never in a text; one with "pad" in its name is preferred.
_PAD_TOKENS = re.compile(
    r"<\|?pad(ding)?\|?>|\[PAD\]|<\|finetune_right_pad_id\|>|<\|endoftext\|>|"
    r"<\|?(reserved|spare|unused)[^>]*>|\[unused\d+\]"
)
# Arguments that decide what is learned; others may change when a run is resumed.
_IDENTITY_ARGUMENTS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16",
    "train_sampling_strategy", "neftune_noise_alpha", "world_size", "metric_for_best_model",
)  # fmt: skip
# Fields of a recipe that do not decide what is learned.
_OTHER_FIELDS = {"license", "base_model", "trust_remote_code", "baselines", "beams"}


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
        default="auto", metadata={"help": "Metric on the validation set that chooses the best checkpoint."}
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
    Refuse arguments that would fail later, or have no effect.

    Args:
        ignored: arguments that the script does not read, and what to do instead.

    Raises:
        InputError: the arguments cannot be used.
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
    """Return the model's tokenizer. Raises `InputError` if there is none."""
    path = recipe.tokenizer or recipe.model
    with quiet(), _explain_load_errors(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=recipe.trust_remote_code)


def load_model(
    auto_class: Any, recipe: FinetuningRecipe, tokenizer: PreTrainedTokenizerBase, **config_fields: Any
) -> tuple[PreTrainedModel, list[str]]:
    """
    Load a model with the head of `auto_class`, in fp32, with its tokenizer's pad token.

    Args:
        config_fields: fields of the configuration, such as `num_labels`.

    Returns: the model, and the names of new weights, which the folder does not have.

    Raises:
        InputError: there is no such model, it lacks weights other than the head's, or the tokenizer is another model's.
    """
    options = {"trust_remote_code": recipe.trust_remote_code}
    if recipe.lora_int8:
        options["quantization_config"] = int8_weights()
    with quiet(), _explain_load_errors(recipe.model, "model"):
        config = AutoConfig.from_pretrained(recipe.model, trust_remote_code=recipe.trust_remote_code, **config_fields)
        for name in config_fields:
            if not hasattr(config, name):
                raise InputError(f"{recipe.model}: its {type(config).__name__} has no switch {name}; leave that out")
        if recipe.keep_layers is not None:
            keep_first_layers(config, recipe.keep_layers)
        if "classifier_pooling" in config_fields and getattr(config, "use_pooler", False):
            config.use_pooler = False  # a pooler always reads the first token
        for name in _ATTENTION_DROPOUT:
            if hasattr(config, name):
                setattr(config, name, recipe.attention_dropout)
        key_mapping = _key_mapping(auto_class, config)
        if key_mapping and recipe.lora:
            raise InputError(
                f"{recipe.model}: transformers does not find its weights under this head, so nobody could load an "
                "adapter on it: train without --lora, or bring the model into this package with `hf-tfm convert`"
            )
        try:
            model, info = auto_class.from_pretrained(
                recipe.model,
                config=config,
                key_mapping=key_mapping,
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
    if key_mapping:
        model._weight_conversions = []  # else saving would restore the old names, which are not found again
    new = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    missing = [name for name in new if name.startswith(body) and "pooler" not in name]
    if missing:
        raise InputError(
            f"{recipe.model}: lacks {len(missing)} weights of {type(model).__name__} or has them in another shape, "
            f"first {missing[0]}: they would be random; is config.json of this model?"
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
    Change a configuration so that only the model's first blocks are loaded.

    For easy tasks the upper blocks add little (Sajjad et al. 2020, "On the effect of dropping layers",
    arXiv:2004.03844).

    Raises:
        InputError: the model has fewer blocks, or its configuration does not count them.
    """
    total = getattr(config, "num_hidden_layers", None)
    if total is None or not 1 <= layers <= total:
        raise InputError(f"keep_layers {layers}: this {config.model_type} has {total or 'no count of its'} blocks")
    config.num_hidden_layers = layers
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == total:  # such as layer_types
            setattr(config, name, value[:layers])


def int8_weights() -> Any:
    """Return the setting with which transformers loads linear layers with weights of 8 bits, and computes in fp32."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig
    except ImportError as error:
        raise InputError(f"lora_int8 needs torchao ({error}): pip install torchao") from error
    return TorchAoConfig(quant_type=Int8WeightOnlyConfig(version=2))


def _key_mapping(auto_class: type, config: PreTrainedConfig) -> dict[str, str] | None:
    """
    Return the `key_mapping` of `from_pretrained` where a head's class has another name for its backbone than the saved
    class, as transformers' `LlamaForQuestionAnswering` has `transformer` for `model`: else all weights would be random.
    """
    target = getattr(auto_class, "_model_mapping", {}).get(type(config), None)
    source = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    if None in (target, source) or isinstance(target, tuple) or target.base_model_prefix == source.base_model_prefix:
        return None
    return {rf"^{re.escape(source.base_model_prefix)}\.": f"{target.base_model_prefix}."}


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """
    Give tokenizer and model the same pad token, other than the end-of-text token.

    A vocabulary without such a token gets one for an unused embedding; the end-of-text token is the last resort. The
    weights keep their shapes, so that adapters fit.
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
    Make the tokenizer put the end-of-text token between the two texts of a pair if it puts nothing there.

    Many decoders' tokenizers do not. The saved tokenizer has the token too, so that pipelines and servers separate
    pairs as in training.
    """
    separator = tokenizer.sep_token or tokenizer.eos_token
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add() or not separator:
        return
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single="$A", pair=f"$A {separator} $B", special_tokens=[(separator, tokenizer.convert_tokens_to_ids(separator))]
    )
    steps = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*steps, template])


def resolve_max_length(recipe: FinetuningRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length in tokens that texts are cut to. Raises `InputError` if the model cannot take the recipe's."""
    positions = longest_input(model.config)
    if positions != UNLIMITED:
        # Users of the saved folder who ask for truncation get a length that the model can take.
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if recipe.max_length is None:
        return min(tokenizer.model_max_length, 512)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if recipe.max_length < least or recipe.max_length > positions:
        limit = "any number of" if positions == UNLIMITED else f"at most {positions}"
        raise InputError(f"max_length {recipe.max_length}: {recipe.model} takes {limit} tokens, and {least} at least")
    return recipe.max_length


def choose_attention(args: TrainingArguments, model: PreTrainedModel, max_length: int) -> None:
    """Choose the attention implementation for training on a CPU; the saved model does not have it."""
    if args.device.type == "cpu" and not use_blockwise_attention(model) and max_length <= _MAX_EAGER_LENGTH:
        model.set_attn_implementation("eager")


def carve_validation(
    recipe: FinetuningRecipe, train: Records, seed: int, keys: Sequence[Any], strata: Sequence[Any] | None = None
) -> tuple[Records, Records]:
    """Return training and validation records; [`carve`] separates them if the validation set has no file."""
    if recipe.validation_file:
        return train, read_records(recipe.validation_file, "validation")
    return carve(train, recipe.validation_fraction, seed, keys, strata)


def read_splits(recipe: FinetuningRecipe, seed: int, keys: Callable[[Records], Sequence[Any]]) -> dict[str, Records]:
    """
    Read the records of the splits that there are; the validation set is carved out of the training records if it has no
    file.

    Args:
        keys: returns a key for each record; records with equal keys stay together.

    Raises:
        InputError: a file cannot be read, or its records do not fit.
    """
    train = read_records(recipe.train_file)
    train, validation = carve_validation(recipe, train, seed, keys(train))
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    return splits


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *columns: list[str], **more: list[Any]
) -> list[dict[str, Any]]:
    """
    Encode one or two columns of texts as rows of a model's inputs, cut to `max_length` tokens.

    Args:
        more: other columns for the rows, such as labels.
    """
    inputs = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    data = {**inputs, **more}
    return [dict(zip(data, row)) for row in zip(*data.values())]


def resolve_arguments(
    args: TrainingArguments,
    recipe: FinetuningRecipe,
    model: PreTrainedModel,
    metrics: Sequence[str],
    pace: float = 1.0,
    loss: bool = True,
) -> None:
    """
    Set the arguments that depend on model and task: the learning rate, and the metric that chooses the best checkpoint.

    Args:
        metrics: names of the task's metrics; the first one is the default.
        pace: factor on the learning rate that suits labels.
        loss: whether evaluations compute the loss, too.

    Raises:
        InputError: the chosen metric is none of these.
    """
    if args.learning_rate is None:
        width = getattr(model.config.get_text_config(), "hidden_size", 768)
        args.learning_rate = pace * 2e-4 * (384 / width) ** 1.5 * (10 if recipe.lora else 1)
    metric = (args.metric_for_best_model or "auto").removeprefix("eval_")
    metric = metrics[0] if metric == "auto" else metric
    known = dict.fromkeys([*metrics, *(["loss"] if loss else [])])
    if metric not in known:
        raise InputError(f"metric_for_best_model {metric!r} must be one of {', '.join(known)}")
    args.metric_for_best_model, args.greater_is_better = metric, metric not in ("loss", "rmse")


def trl_arguments(config_class: type, args: TrainingArguments, given: str, **fields: Any) -> Any:
    """
    Return a configuration of TRL with the values of these arguments.

    Args:
        given: fields of TRL alone as a JSON object; they win over `fields`.

    Raises:
        InputError: TRL has no such field or value.
    """
    shared = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    # TRL's own default under the old name would switch checkpointing of activations on.
    # transformers before 5.23 has no other.
    shared["gradient_checkpointing"] = getattr(args, "activation_checkpointing", args.gradient_checkpointing)
    trl_fields = read_mapping(given, "trl")
    place = f"--trl {given}" if trl_fields else config_class.__name__
    with explain(place, "{reason}", TypeError, ValueError, NotImplementedError):
        return config_class(**{**shared, **fields, **trl_fields})


def run_identity(recipe: FinetuningRecipe, args: TrainingArguments, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all that a resumed run must have in common with the stopped one; files count by their content."""
    fields = {
        name: Path(value).name if name in ("model", "tokenizer") and value else value
        for name, value in dataclasses.asdict(recipe).items()
        if not name.endswith("_file") and name not in _OTHER_FIELDS
    }
    fields.update((name, getattr(args, name)) for name in _IDENTITY_ARGUMENTS)
    fields.update((f"{facts['split']} data", facts.get("sha256")) for facts in data)
    return fields


def _explain_load_errors(folder: str, part: str) -> contextlib.AbstractContextManager[None]:
    """Turn the errors of a damaged or missing part of a model's folder into an `InputError`."""

    def hint(error: Exception) -> str:
        if "contains custom code" in str(error):
            return "carries code of its own: look at it and add --trust_remote_code"
        missing = "" if Path(folder).exists() else "there is no such folder, and "
        return f"{missing}no {part} can be loaded from it ({reason_of(error)})"

    return explain(folder, hint, *UNREADABLE, TypeError, AttributeError)

"""What the pretraining scripts share: the model to train, the Trainer with its data and optimizer, what is shown."""

import hashlib
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..artifacts.card import task_of
from ..artifacts.card_text import as_text
from ..artifacts.foreign import PackedRows, sentence_label, sentence_loss
from ..artifacts.record import base_model_name
from ..artifacts.tokenizer_files import tokenizer_fingerprint
from ..artifacts.write import write_model_folder
from ..core.checkpoints import last_checkpoint
from ..core.errors import InputError, explain, reason_of
from ..core.inference import is_bidirectional
from ..core.limits import has_fast_bf16
from ..core.statistics import to_bits_per_byte
from ..cpu.attention import supports_unpadded_training
from ..cpu.compile import compile_blocks, has_compiler, is_worth_compiling
from ..data.cache import default_cache_dir, file_hash
from ..data.objectives import Masked, causal, masked_next_token
from ..data.packing import PackedBlocks, iter_eval_blocks
from ..data.sentence_pairs import SentencePairs
from ..data.sources import Source, parse_sources
from ..data.step_batches import LengthSchedule, StepBatches
from ..data.tokens import TokenStore, TokenStream, contents_digest, piece_ends
from ..models.configuration_tfm import SIZES, TfmConfig
from .averaging import AveragingMixin
from .initialization import zero_init_output_projections
from .optim import build_optimizer, describe_optimizer
from .recipe import read_mapping, refuse_below
from .schedule import build_scheduler
from .trainer import RunTrainer, check_arguments, data_seed, recipe_before


# So many files are named, and each hashed, in a record; of more their number.
_MANY_FILES = 10

# Settings of transformers' that decide what is learned.
_DECISIVE = (
    "max_steps", "seed", "data_seed", "learning_rate", "weight_decay", "max_grad_norm", "bf16", "fp16",
    "neftune_noise_alpha",
)  # fmt: skip
# Of this package's optimizers and schedules transformers' fields know nothing.
OWN_OPTIMIZER = dict.fromkeys(
    ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"), "choose --optimizer muon, normuon or adamw"
)
_IGNORED = {
    **OWN_OPTIMIZER,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "give --schedule and --decay"),
    "warmup_steps": "give --warmup",
    "num_train_epochs": "a run is counted in steps, give --max_steps",
    "train_sampling_strategy": "batches follow from the seed and the number of the step",
    "ignore_data_skip": "a run goes on at its very batch without reading the ones before",
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
        "a batch is made in less than a millisecond",
    ),
    "label_smoothing_factor": "bits per byte want the plain loss",
}


@dataclass
class PretrainArguments:
    """Fields of both pretraining scripts."""

    data: list[str] = field(metadata={"help": "text to train on: files, folders, globs, hub:NAME; @WEIGHT mixes them"})
    validation_data: list[str] = field(
        default_factory=list,
        metadata={"help": "text to measure bits per byte or masked loss on; held out of --data by default"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "folder of the tokenizer (training/train_tokenizer.py makes one); by default that of a model "
            "folder to go on from"
        },
    )
    model: str = field(
        default="tiny",
        metadata={
            "help": "what to train: a preset (tiny, small, …), a look-alike at a size (gpt2/tiny), a config.json of "
            "any architecture, or a model folder to go on from"
        },
    )
    model_overrides: str = field(
        default="{}", metadata={"help": 'fields of the configuration as JSON: {"qk_norm": false}'}
    )
    window: int = field(
        default=0,
        metadata={
            "help": "how many tokens all layers but the last look back, and an encoder's ahead too, in a new model of "
            "this package; 0: as far as there is text"
        },
    )
    text_field: str = field(default="text", metadata={"help": "the field or column that holds the text"})
    streaming: bool = field(default=False, metadata={"help": "tokenise while training, for text that fits on no disk"})
    block_length: int = field(default=256, metadata={"help": "tokens in a row"})
    length_schedule: str = field(
        default="",
        metadata={"help": "short rows first: 0:64,0.3:128,0.6:256 as share of the run and length; decoders only"},
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "the share of the documents held out where no --validation_data is given"}
    )
    validation_tokens: int = field(default=200_000, metadata={"help": "at most this many tokens are measured"})
    optimizer: str = field(
        default="muon", metadata={"help": "muon (AdamW for embeddings and norms), normuon (for longer runs) or adamw"}
    )
    embedding_learning_rate: float | None = field(default=None, metadata={"help": "of the embeddings; by optimizer"})
    schedule: str = field(default="wsd", metadata={"help": "wsd (warm-up, stable, decay), cosine or constant"})
    warmup: float = field(default=0.05, metadata={"help": "share of the run (below 1) or steps"})
    decay: float = field(default=0.5, metadata={"help": "share of the run at its end over which wsd decays"})
    compile: str = field(
        default="auto", metadata={"help": "torch.compile: on, off, or auto: where the run is long enough to repay it"}
    )
    z_loss: float = field(
        default=0.0,
        metadata={"help": "weight of the squared log-normaliser, 1e-4 keeps logits small; costs the logits"},
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "end with a moving average of the weights, 0.98 or so; 0 for none"}
    )
    zero_init: bool = field(default=True, metadata={"help": "start with zero output projections (new models only)"})
    cache_dir: str | None = field(default=None, metadata={"help": "where tokenised text is kept"})
    license: str | None = field(default=None, metadata={"help": "licence of the model, for its card"})

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            if not Path(self.model).is_dir():
                raise InputError("--tokenizer: where is it? Only a model folder to go on from has one of its own")
            self.tokenizer = self.model
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction {self.validation_fraction} must lie between 0 and 1")
        if self.streaming and not self.validation_data:
            raise InputError(
                "--streaming: give --validation_data; what to hold out is found by reading all of the text"
            )

    def training_sources(self) -> list[Source]:
        """What is trained on: all but what is held out."""
        sources = parse_sources(self.data, self.text_field)
        return sources if self.validation_data else [replace(s, part=(self.validation_fraction, 1.0)) for s in sources]

    def validation_sources(self) -> list[Source]:
        """What is measured."""
        if self.validation_data:
            return parse_sources(self.validation_data, self.text_field)
        return [replace(s, part=(0.0, self.validation_fraction)) for s in parse_sources(self.data, self.text_field)]


@dataclass
class PretrainTrainingArguments(TrainingArguments):
    """transformers' arguments with the defaults of a pretraining run."""

    output_dir: str = "runs/pretrained"
    learning_rate: float | None = None
    max_steps: int = 1000
    num_train_epochs: float = 0.0
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16
    weight_decay: float | None = None
    max_grad_norm: float = 1.0
    logging_steps: float = 20
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.1
    save_total_limit: int | None = 2
    include_num_input_tokens_seen: str | bool = True
    bf16: bool = has_fast_bf16()
    ddp_find_unused_parameters: bool | None = False
    use_cpu: bool = not torch.cuda.is_available()
    disable_tqdm: bool | None = True
    report_to: None | str | list[str] = "none"


def check_pretraining(script: PretrainArguments, args: TrainingArguments) -> None:
    """Raise `InputError` for arguments that would end in an error later, or do nothing."""
    check_arguments(args, script.model, _IGNORED)
    refuse_below(args, max_steps=1)
    refuse_below(script, block_length=2, validation_tokens=1, window=0, warmup=0, decay=0, z_loss=0)
    if script.decay > 1:
        raise InputError(f"decay {script.decay:g}: a share of the run, 1 at most")
    if script.ema_decay and args.load_best_model_at_end:
        raise InputError("ema_decay ends with the average of the last weights: leave out load_best_model_at_end")


def run_identity(script: PretrainArguments, args: TrainingArguments) -> dict[str, Any]:
    """What must stay the same while a run is stopped and resumed; more processes may share the rows of a step."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    cache_dir = Path(script.cache_dir or default_cache_dir())
    contents = {
        "contents of data": contents_digest(
            script.training_sources(), script.text_field, cache_dir, streaming=script.streaming
        ),
        "contents of validation_data": contents_digest(script.validation_sources(), script.text_field, cache_dir),
    }
    contents["contents of tokenizer"] = tokenizer_fingerprint(load_tokenizer(script.tokenizer))
    config = Path(script.model) / "config.json" if Path(script.model).is_dir() else Path(script.model)
    if config.is_file():
        contents["contents of model"] = file_hash(config, cache_dir)
    decisive = {name: getattr(args, name) for name in _DECISIVE}
    return {"script": vars(script), "rows_per_step": rows, **decisive, **contents}


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises `InputError` if there is none."""
    hint = "no tokenizer there ({reason}); training/train_tokenizer.py makes one"
    with explain(path, hint, OSError, ValueError, KeyError):
        return AutoTokenizer.from_pretrained(path)


def build_model(
    auto_class: Any,
    config_class: type[TfmConfig],
    tokenizer: PreTrainedTokenizerBase,
    script: PretrainArguments,
) -> tuple[PreTrainedModel, bool]:
    """
    The model to train, and whether it is new (its weights are random).

    Args:
        auto_class: the Auto class of the head, as `AutoModelForCausalLM`.
        config_class: family of the presets.
        tokenizer: decides vocabulary size and special tokens of a new model.
        script: `model` (a preset, `lookalike/size`, a `config.json` of any architecture, or a model folder),
            `model_overrides` (fields of the configuration as JSON), `window` and `block_length`, the longest row.

    Raises:
        InputError: the specification is unknown, the tokenizer has more tokens than the model, or rows are longer than
            the model's positions.
    """
    spec, path = script.model, Path(script.model)
    overrides = read_mapping(script.model_overrides, "model_overrides")
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None)
        for name in ("pad", "bos", "eos", "cls", "sep", "mask")
    }
    fields = {"vocab_size": len(tokenizer), **{name: value for name, value in ids.items() if value is not None}}

    if script.window and path.exists():
        raise InputError(f"--window shapes new models of this package; {spec} is none: give --window 0")
    if script.window and (twice := overrides.keys() & {"sliding_window", "layer_types"}):
        raise InputError(f"--window and {min(twice)} of --model_overrides say the same: leave one out")

    def is_not_causal(model: PreTrainedModel) -> bool:
        # New models of this package are causal, but may have layers that do nothing yet.
        may_be_bidirectional = auto_class is AutoModelForCausalLM and not isinstance(model.config, TfmConfig)
        return may_be_bidirectional and is_bidirectional(model)

    def needs_decoder_switch(model: PreTrainedModel) -> bool:  # BERT and its kind
        return hasattr(model.config, "is_decoder") and is_not_causal(model)

    # transformers appends some hundred names of model types.
    def hint(error: Exception) -> str:
        return reason_of(error).split(" Model type should be one of")[0]

    with explain(f"model {spec}", hint, ValueError, OSError, KeyError, TypeError):
        if path.is_dir() and (any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*.bin*"))):
            model, is_new = auto_class.from_pretrained(spec, dtype=torch.float32, **overrides), False
            if needs_decoder_switch(model):
                overrides |= {"is_decoder": True}
                model = auto_class.from_pretrained(spec, dtype=torch.float32, **overrides)
        elif path.exists():
            config, unused = AutoConfig.from_pretrained(spec, return_unused_kwargs=True, **{**fields, **overrides})
            if unknown := [name for name in overrides if name in unused]:
                raise ValueError(f"{type(config).__name__} has no field {unknown[0]!r} to override")
            model, is_new = auto_class.from_config(config, dtype=torch.float32), True
            if needs_decoder_switch(model):
                config.is_decoder = True
                model = auto_class.from_config(config, dtype=torch.float32)
        else:
            lookalike, _, size = spec.partition("/")
            known = {name: value for name, value in fields.items() if hasattr(config_class, name)}
            defaults = {"max_position_embeddings": max(script.block_length, 1024)} if lookalike in SIZES else {}
            shape = {**defaults, **known, **overrides}
            config = config_class.preset(lookalike, size or None, **shape)
            if script.window:
                kinds = ["sliding_attention"] * (config.num_hidden_layers - 1) + ["full_attention"]
                shape |= {"sliding_window": script.window, "layer_types": kinds}
                config = config_class.preset(lookalike, size or None, **shape)
            model, is_new = auto_class.from_config(config, dtype=torch.float32), True
    check_fit(model, tokenizer, script.block_length)
    if is_not_causal(model):
        raise InputError(f"model {spec}: {type(model).__name__} is not causal: its output depends on later tokens")
    if is_new and script.zero_init:
        zero_init_output_projections(model)
    return model, is_new


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Raises `InputError` if the tokenizer or the length of a row do not go with the model."""
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings: it is another model's; use "
            "the tokenizer from the model's own folder"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise InputError(
            f"rows of {length} tokens are longer than the model's {positions} positions: lower the length or raise "
            "max_position_embeddings"
        )


@dataclass
class PretrainData:
    """
    What a run reads: training batches by number, evaluation batches, and the facts about both for the record. Bytes of
    training text per token only where all tokens are predicted, so that a loss has bits per byte.

    Args:
        tokens: of the whole run without padding, if that is known.
        passes: how often the run reads each of its texts, if that is known.
    """

    train: Dataset
    evaluation: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    tokens_per_step: int
    bytes_per_token: float | None
    tokens: int | None = None
    passes: Sequence[float | None] = ()


def prepare_data(
    script: PretrainArguments,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    objective: Callable[[dict[str, np.ndarray]], dict[str, torch.Tensor]],
    evaluation_objective: Callable[[dict[str, np.ndarray]], dict[str, torch.Tensor]] | None = None,
) -> PretrainData:
    """
    Tokenise (or find tokenised) both texts, pack the training text, and make the batches to measure.

    Args:
        objective: batch to inputs and labels; `evaluation_objective` where it differs. A tokenizer with a cls token
            has it, and sep, around each piece of text; one without has bos and eos around each document.

    Raises:
        InputError: what `TokenStore.build` raises, or ids that the model has no embedding for.
    """
    piece_ids = None if tokenizer.cls_token_id is None else piece_ends(tokenizer)
    wrap: Literal["document", "piece"] = "document" if piece_ids is None else "piece"
    reading: dict[str, Any] = dict(text_field=script.text_field, cache_dir=script.cache_dir)
    rows = args.per_device_train_batch_size * args.world_size
    micro_steps = args.max_steps * args.gradient_accumulation_steps
    blocks = PackedBlocks.from_sources(
        script.training_sources(),
        tokenizer,
        script.block_length,
        wrap=wrap,
        streaming=script.streaming,
        seed=data_seed(args),
        blocks_read=rows * micro_steps,
        **reading,
        **({} if script.streaming else {"progress": args.process_index == 0}),
    )
    validation = TokenStore.build(script.validation_sources(), tokenizer, wrap=wrap == "document", **reading)
    for store in (blocks, validation):
        store.check_vocab(model.get_input_embeddings().weight.shape[0])

    accumulation = args.gradient_accumulation_steps
    shares = {"rank": args.process_index, "world_size": args.world_size, "accumulation": accumulation}
    schedule = parse_length_schedule(script.length_schedule, script.block_length) if script.length_schedule else None
    batches = StepBatches(blocks.rows, rows, micro_steps, schedule=schedule, transform=objective, **shares)

    evaluation: list[dict[str, Any]] = []
    measured = 0
    packing: dict[str, Any] = dict(pad_token_id=tokenizer.pad_token_id or 0, piece_ids=piece_ids)
    begin = piece_ids[0] if piece_ids else tokenizer.bos_token_id
    evaluated, most = args.per_device_eval_batch_size, script.validation_tokens
    for batch in iter_eval_blocks(validation, script.block_length, evaluated, max_tokens=most, **packing):
        batch["rows"] = len(evaluation) * args.per_device_eval_batch_size + np.arange(len(batch["input_ids"]))
        inputs = (evaluation_objective or objective)(batch)
        tokens = int(batch["num_tokens"].sum())
        firsts = batch["input_ids"][(batch["position_ids"] == 0) & (batch["sequence_ids"] > 0)]
        # The first token of a piece is not predicted. Where it is text, its bytes count with the mean of the others.
        sizes = {"num_bytes": int(batch["num_bytes"].sum()), "num_text_tokens": tokens - int((firsts == begin).sum())}
        evaluation.append({**inputs, **sizes})
        measured += tokens
    if all(bool((torch.as_tensor(batch["labels"]) == -100).all()) for batch in evaluation):
        text = ", ".join(map(describe_source, script.validation_sources()))
        raise InputError(f"validation_data {text}: too little text, nothing is predicted")
    facts = [
        *describe_text("train", script.training_sources(), blocks.stores, script),
        *describe_text("validation", script.validation_sources(), [validation], script),
    ]
    facts[-1]["measured_tokens"] = measured
    return PretrainData(
        train=batches,
        evaluation=evaluation,
        facts=facts,
        tokens_per_step=rows * args.gradient_accumulation_steps * script.block_length,
        bytes_per_token=blocks.bytes_per_token(begins=piece_ids is None and begin is not None)
        if objective is causal and not script.z_loss
        else None,
        tokens=blocks.count_tokens(rows * micro_steps),
        passes=blocks.epochs(rows * micro_steps),
    )


def masked_evaluation(data: PretrainData, masked: Masked) -> list[dict[str, Any]]:
    """The evaluation batches of a causal LM as masked ones, for a model trained on both."""
    batches, rows = [], 0
    for batch in data.evaluation:
        arrays = {name: batch[name].numpy() for name in ("input_ids", "position_ids")}
        arrays["sequence_ids"] = ((batch["labels"].numpy() != -100) | (arrays["position_ids"] == 0)).astype(int)
        arrays["rows"] = rows + np.arange(len(arrays["input_ids"]))
        rows += len(arrays["rows"])
        batches.append({**masked_next_token(masked, arrays), "num_bytes": 0})
    return batches


def script_lengths(script: PretrainArguments) -> set[int]:
    """The lengths of rows that a run will have."""
    if not script.length_schedule:
        return {script.block_length}
    return {length for _, length in parse_length_schedule(script.length_schedule, script.block_length).phases}


def parse_length_schedule(text: str, block_length: int) -> LengthSchedule:
    """`0:64,0.5:128` as a schedule. Raises `InputError` if it is not one."""
    try:
        phases = [(float(start), int(length)) for start, length in (phase.split(":") for phase in text.split(","))]
    except ValueError as error:
        raise InputError(
            f"length_schedule {text!r}: write it as SHARE:LENGTH,SHARE:LENGTH, as in 0:64,0.5:128"
        ) from error
    return LengthSchedule(phases, block_length)


def prepare_pairs(
    script: Any,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    objective: Callable[[dict[str, np.ndarray]], dict[str, torch.Tensor]],
    evaluation_objective: Callable[[dict[str, np.ndarray]], dict[str, torch.Tensor]],
) -> PretrainData:
    """
    As `prepare_data`, with rows that are pairs of segments for the `sentence_task` that `script` has beside.

    Raises:
        InputError: the model has no head for the task, or what `SentencePairs` and `TokenStore.build` raise.
    """
    label = sentence_label(model)
    if label is None:
        raise InputError(f"sentence_task {script.sentence_task}: {type(model).__name__} has no head for it")

    def named(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {label if name == "next_sentence_label" else name: value for name, value in inputs.items()}

    reading: dict[str, Any] = dict(text_field=script.text_field, cache_dir=script.cache_dir, wrap=False)
    texts = (script.training_sources(), script.validation_sources())
    stores = [TokenStore.build(text, tokenizer, **reading) for text in texts]
    for store in stores:
        store.check_vocab(model.get_input_embeddings().weight.shape[0])
    pairs = [
        SentencePairs(store, tokenizer, script.block_length, task=script.sentence_task, seed=seed)
        for store, seed in zip(stores, (data_seed(args), 0))  # what is measured is the same for every seed
    ]
    rows = args.per_device_train_batch_size * args.world_size
    evaluated = args.per_device_eval_batch_size
    numbers = np.arange(-(-script.validation_tokens // script.block_length))
    batches = [pairs[1].batch(numbers[i : i + evaluated]) for i in range(0, len(numbers), evaluated)]
    shares = {"rank": args.process_index, "world_size": args.world_size}
    micro_steps = args.max_steps * args.gradient_accumulation_steps
    return PretrainData(
        train=StepBatches(pairs[0].batch, rows, micro_steps, transform=lambda batch: named(objective(batch)), **shares),
        evaluation=[{**named(evaluation_objective(batch)), "num_bytes": 0} for batch in batches],
        facts=[
            *describe_text("train", script.training_sources(), stores[:1], script),
            *describe_text("validation", script.validation_sources(), stores[1:], script),
        ],
        tokens_per_step=rows * args.gradient_accumulation_steps * script.block_length,
        bytes_per_token=None,
    )


def describe_text(
    split: str, sources: list[Source], stores: Sequence[TokenStore | TokenStream], script: PretrainArguments
) -> list[dict[str, Any]]:
    """The facts about a text for the run record: names without folders, hashes, counts where it was read whole."""
    files = [path for source in sources if not source.hub for path in _paths(source)]
    facts: dict[str, Any] = {"name": ", ".join(map(describe_source, sources)), "split": split}
    if not (script.streaming and split == "train"):  # a stream is there not to be read as a whole
        hashes = [file_hash(path, Path(script.cache_dir or default_cache_dir())) for path in files]
        if len(hashes) > _MANY_FILES:
            hashes = [f"{hashlib.sha256(' '.join(sorted(hashes)).encode()).hexdigest()} (of the sorted hashes)"]
        facts["sha256"] = ", ".join(hashes)
    whole = [store for store in stores if isinstance(store, TokenStore)]
    if len(whole) == len(stores):
        facts |= {
            "documents": sum(map(len, whole)),
            "bytes": sum(store.num_bytes for store in whole),
            "tokens": sum(store.num_tokens for store in whole),
        }
    return [facts]


def _paths(source: Source) -> list[Path]:
    """The files of a source, an archive once, which is listed for each file in it."""
    return list(dict.fromkeys(file.path for file in source.list_files()))


def describe_source(source: Source) -> str:
    """What was read, without folders, and which of its records or which share of its documents."""
    names = [source.location] if source.hub else [path.name for path in _paths(source)]
    if len(names) > _MANY_FILES:
        names = [f"{Path(source.location).name} ({len(names):,} files)"]
    chosen = [f"{field}: {', '.join(values)}" for field, values in (source.where or {}).items()]
    if not source.is_whole:
        chosen.append(f"{source.part[1] - source.part[0]:.3g} of the documents")
    return ", ".join(names) + (f" ({'; '.join(chosen)})" if chosen else "")


class PretrainTrainer(AveragingMixin, RunTrainer):
    """
    Trainer over batches that are a pure function of their number.

    Args:
        data: training batches by number, and the batches to measure, the same at every evaluation.
        script: the script's arguments: optimizer, rates and schedule.
    """

    def __init__(self, *args: Any, data: PretrainData, script: PretrainArguments, **kwargs: Any):
        datasets: dict[str, Any] = {"train_dataset": data.train, "eval_dataset": data.evaluation}
        run: dict[str, Any] = {"bytes_per_token": data.bytes_per_token, "ema_decay": script.ema_decay}
        super().__init__(*args, **datasets, **run, **kwargs)
        self.data = data
        self.script = script
        self.rows = PackedRows.of(self.model)
        check_fit(self.model, self.processing_class, script.block_length + self.rows.first_position)
        # Not all causal LMs tell Trainer that they are: GPT-2's kind, with names in …LMHeadModel.
        self._loss_shifts_labels |= type(self.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self._skips_logits = "skip_logits" in inspect.signature(self.model.forward).parameters and not script.z_loss
        if self.record is not None:
            self.record["license"] = script.license
            self.record["block_length"] = max(script_lengths(script))
            self.record["data"] = data.facts
            self.record["tokens_per_step"] = data.tokens_per_step

    def get_train_dataloader(self) -> DataLoader:
        return self.train_dataset.loader()

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = self.rows.fit(super()._prepare_inputs(inputs))
        return {**inputs, "skip_logits": True} if self._skips_logits else inputs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not self.script.z_loss and self.rows.adds_up:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
        scaled = self.args.average_tokens_across_devices and num_items_in_batch is not None
        # As Trainer does with the loss: gradients are averaged over processes, the tokens are those of all.
        processes = self.accelerator.num_processes if scaled else 1
        if not self.rows.adds_up and num_items_in_batch is not None:
            # Their shares of the means over the whole step, which has as many rows in each of its parts.
            sentences = sentence_loss(inputs, outputs)
            loss = (loss - processes * sentences) * (labels != -100).sum() / num_items_in_batch
            loss = loss + sentences / self.current_gradient_accumulation_steps
        if self.script.z_loss:
            logits = outputs["logits" if "logits" in outputs else "prediction_logits"]
            logits = logits[..., :-1, :] if self._loss_shifts_labels else logits
            loss = loss + self.script.z_loss * processes * z_loss(logits, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def settle_compile(self, seconds: float | None) -> str:
        """
        Compile the model if that was asked for, or if it is repaid by a run of `seconds` (None: not known); which of
        them, in words. A run that goes on does as it began: compiled kernels round differently.
        """
        script = self.script
        # Rows of all lengths make up as many tokens.
        shapes = 1 if supports_unpadded_training(self.model) else len(script_lengths(script))
        if script.compile not in ("auto", "on", "off"):
            raise InputError(f"compile {script.compile!r}: choose auto, on or off")
        before = (recipe_before(self.args.output_dir) or {}).get("script", {}).get("compile")
        reason = "asked for"
        if script.compile == "auto" and before is not None:
            script.compile, reason = before, "as the run began"
        elif script.compile == "auto":
            repaid, possible = seconds is not None and is_worth_compiling(seconds, shapes), has_compiler()
            script.compile = "on" if repaid and possible else "off"
            reason = f"the run is {'long enough' if repaid else 'too short'} to repay it"
            if seconds is None:
                reason = "what a step of a sharded model takes is not known beforehand"
            elif repaid and not possible:
                reason = "there is no C++ compiler"
        if script.compile == "on":
            return f"{compile_blocks(self.model)} layers ({reason})"
        return f"no ({reason})"

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = build_optimizer(
                model or self.model, self.script.optimizer, embedding_lr=self.script.embedding_learning_rate, **rates
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            s = self.script
            warmup_steps = round(s.warmup * num_training_steps) if s.warmup < 1 else round(s.warmup)
            decay = num_training_steps - warmup_steps if s.decay == 1 else s.decay  # of the whole run, not one step
            self.lr_scheduler = build_scheduler(
                optimizer or self.optimizer, s.schedule, num_training_steps, warmup=s.warmup, decay=decay
            )
        return self.lr_scheduler

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over the predicted tokens of all batches, and bits per byte where every token is predicted."""
        self.model.eval()
        started, nats, predicted, text_bytes, text_tokens = time.time(), 0.0, 0, 0, 0
        # Evaluation is too short to repay compiling for it.
        with self.averaged(), torch.compiler.set_stance("force_eager"):
            for batch in eval_dataset or self.data.evaluation:
                inputs = {name: value for name, value in batch.items() if not name.startswith("num_")}
                inputs = self._prepare_inputs(inputs)
                labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]
                count = int((labels != -100).sum())
                if not count:  # of which the mean loss is no number
                    continue
                with self.compute_loss_context_manager(), self.accelerator.autocast():
                    nats += float(self.model(**inputs).loss) * count
                predicted += count
                text_bytes += batch["num_bytes"]
                text_tokens += batch.get("num_text_tokens", 0)
        metrics = {f"{metric_key_prefix}_loss": nats / predicted}
        if self._loss_shifts_labels and text_bytes:
            metrics[f"{metric_key_prefix}_bits_per_byte"] = to_bits_per_byte(nats / predicted, text_bytes / text_tokens)
        metrics[f"{metric_key_prefix}_predicted_tokens"] = predicted
        metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics

    def final_evaluation(self) -> dict[str, float]:
        """What was measured behind the last step; measured now if nothing was, or if another checkpoint is kept."""
        last = next((entry for entry in reversed(self.state.log_history) if "eval_loss" in entry), {})
        known = last.get("step") == self.args.max_steps and not self.args.load_best_model_at_end
        return last if known else self.evaluate()


def z_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
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
    normalizers = torch.logsumexp(logits[labels != ignore_index].float(), dim=-1)
    return normalizers.square().sum() / (len(normalizers) if num_items_in_batch is None else num_items_in_batch)


def report_start(trainer: PretrainTrainer, is_new: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say what will be trained, and show the first row with what is predicted in it."""
    model, data, args, say = trainer.model, trainer.data, trainer.args, trainer.accelerator.print
    embedding = model.get_input_embeddings().weight.numel()
    steps, tokens = args.max_steps, data.tokens_per_step * args.max_steps
    checkpoint = args.resume_from_checkpoint or last_checkpoint(Path(args.output_dir))
    done = int(str(checkpoint).rpartition("-")[2]) if checkpoint else 0
    say(f"model      {type(model).__name__}, {model.num_parameters():,} parameters, {embedding:,} of them embeddings")
    say(f"weights    {'new' if is_new else f'from {trainer.script.model}'}")
    if not is_new and trainer.record is not None:
        trainer.record["base_model"] = base_model_name(trainer.script.model)
    if not trainer.rows.apart:
        say("rows       texts packed into one row are read as one: this architecture cannot keep them apart")
    for fact in data.facts:
        counts = [f"{fact[unit]:,} {unit}" for unit in ("documents", "tokens", "bytes") if unit in fact]
        if fact.get("measured_tokens", math.inf) < 0.99 * fact.get("tokens", 0):
            counts.append(f"{fact['measured_tokens']:,} tokens of it measured")
        say(f"{fact['split']:10} {', '.join(counts or [fact['name']])}")
    for note in notes_on_text(trainer.script, data.facts):
        say(f"           {note}")
    padding = "" if data.tokens is None else f", {1 - data.tokens / tokens:.1%} of it padding"
    say(f"steps      {steps:,} of {data.tokens_per_step:,} tokens: {tokens:,}{padding}")
    if passes := [f"{times:.2g}" for times in data.passes if times is not None]:
        say(f"passes     {', '.join(passes)} over the text")
    if done:
        say(f"goes on    behind step {done:,}")
    if not trainer._skips_logits and trainer._loss_shifts_labels:
        say("logits     of all tokens at once: this architecture, or z_loss, needs them")
    say("optimizer  " + describe_optimizer(trainer.create_optimizer()).replace("\n", "\n           "))
    seconds = None
    if not trainer.is_fsdp_enabled:  # a model that is not sharded yet may fit on no device
        # One figure for all processes, which must decide the same by it.
        seconds = trainer.accelerator.gather(torch.tensor([time_step(trainer)], device=args.device)).max().item()
    say(f"compiled   {trainer.settle_compile(None if seconds is None else steps * seconds)}")
    if seconds is not None:
        precision = "bf16" if args.bf16 else "fp32"
        minutes = (steps - done) * seconds / 60
        say(f"time       about {minutes:.1f} minutes at {seconds:.2f} s a step in {precision}, and evaluations")
    say("example    " + marked_example(data.train[0], tokenizer), flush=True)


def time_step(trainer: PretrainTrainer) -> float:
    """Seconds that forward and backward of a step take, measured on the first batch; nothing is changed by it."""
    random_state = torch.get_rng_state()
    inputs = trainer._prepare_inputs(trainer.data.train[0])
    trainer.model.train()
    for _ in range(2):  # the first pays for allocations
        started = time.time()
        with trainer.accelerator.autocast():
            loss = trainer.model(**inputs).loss
        loss.backward()
        trainer.model.zero_grad()
    torch.set_rng_state(random_state)
    return (time.time() - started) * trainer.args.gradient_accumulation_steps


def marked_example(inputs: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, tokens: int = 48) -> str:
    """The start of a batch's first row; ⟦what is predicted⟧, or ⟦what stands there → what is predicted⟧."""
    labels = inputs["labels"]
    if (positions := inputs.get("masked_positions")) is not None:
        where, labels = positions[labels != -100], labels[labels != -100]
        labels = torch.full((inputs["input_ids"].numel(),), -100).index_copy(0, where, labels)
        labels = labels.view_as(inputs["input_ids"])
    end = int((inputs["input_ids"][0] != (tokenizer.pad_token_id or 0)).nonzero().max()) + 1
    ids, labels = inputs["input_ids"][0, : min(tokens, end)].tolist(), labels[0, : min(tokens, end)].tolist()
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == -100) != (labels[start] == -100):
            shown, hidden = tokenizer.decode(ids[start:end]), [label for label in labels[start:end] if label != -100]
            if not hidden:
                parts.append(shown)
            else:
                predicted = tokenizer.decode(hidden)
                parts.append(f"⟦{predicted}⟧" if predicted == shown else f"⟦{shown} → {predicted}⟧")
            start = end
    return "".join(parts).replace("\n", "⏎")


def report_end(
    trainer: PretrainTrainer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, results: dict[str, float]
) -> None:
    """Write the folder of the finished model with its record, and say where it is and how to load it."""
    args, record = trainer.args, trainer.record
    data = trainer.data
    record["tokens"] = data.tokens_per_step * args.max_steps if data.tokens is None else data.tokens
    measured = ("loss", "bits_per_byte", "predicted_tokens", "masked_loss")
    record["results"] = {name: results[f"eval_{name}"] for name in measured if f"eval_{name}" in results}
    record.add_model(model)
    record.add_training(trainer.state)
    write_model_folder(Path(args.output_dir), model, tokenizer, record)
    print("\nresult     " + ", ".join(f"{name} {as_text(value)}" for name, value in record["results"].items()))
    print(f"model      {args.output_dir}")
    trust = ", trust_remote_code=True" if getattr(model.config, "auto_map", None) else ""
    print(f'load it    {task_of(type(model).__name__)[0]}.from_pretrained("{args.output_dir}"{trust})')
    if args.push_to_hub and (commit := trainer.push_to_hub()):
        print(f"pushed     {commit.commit_url}")


def notes_on_text(script: PretrainArguments, facts: list[dict[str, Any]]) -> list[str]:
    """What a person may not have meant about the text: files left out, read twice, or trained on and measured."""
    notes = []
    for source in [*script.training_sources(), *(script.validation_sources() if script.validation_data else [])]:
        for why, files in source.list_skipped_files().items():
            names = ", ".join(path.name for path in files[:3]) + (", …" if len(files) > 3 else "")
            notes.append(f"{len(files):,} left out of {source.location}, {why}: {names}")
    if any(source.where for source in script.training_sources() + script.validation_sources()):
        return notes  # different records of one file
    train, validation = (fact.get("sha256", "").split(", ") for fact in (facts[0], facts[-1]))
    if len(set(train)) < len(train):
        notes.append("a file of the training text is in it twice")
    if script.validation_data and set(train) & set(validation) - {""}:
        notes.append("a file of the validation text is trained on: its figures say little about other text")
    return notes

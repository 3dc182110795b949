"""Translation: a new model and its tokenizer for both languages, its Trainer, and what its output is worth."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer

from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap
from ..data.records import Records
from ..data.tokenizer import train_tokenizer
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from ..models.modeling_tfm_encoder_decoder import TfmEncoderDecoderConfig, TfmEncoderDecoderModel
from ..train.finetune import FinetuningMixin
from ..train.initialization import zero_init_output_projections
from ..train.optim import build_optimizer
from ..train.schedule import build_scheduler


def is_preset(name: str) -> bool:
    """Whether this names a new model, `tiny` or `vaswani2017/tiny`, rather than a folder or a model on the Hub."""
    return not Path(name).exists() and ("/" not in name or name.partition("/")[0] in TfmEncoderConfig.lookalikes)


def read_texts(records: Records, field: str, option: str) -> list[str]:
    """A text field of all records, also inside another one: `translation.en`. Raises `InputError` as `Records` does."""
    outer, dot, inner = field.partition(".")
    if not dot:
        return records.texts(field, option)
    parts = records.values(outer, option)
    for part, place in zip(parts, records.places):
        if not isinstance(part, dict):
            raise InputError(f"{place}: field {outer!r} is a {type(part).__name__}, not texts by language")
    return Records(parts, records.places, records.path).texts(inner, option)


def train_shared_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """
    One byte-level BPE for both languages, which puts a text between [CLS] and [SEP]; those start and end a translation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small text gives fewer tokens: `report_model` tells how many
        tokenizer = train_tokenizer(texts, vocab_size=vocab_size, style="encoder", model_max_length=max_length)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the encoder knows one kind of segment
    return tokenizer


def build_translator(
    preset: str, tokenizer: PreTrainedTokenizerBase, max_length: int, overrides: dict[str, Any] | None = None
) -> TfmEncoderDecoderModel:
    """
    A new model: encoder and decoder of one size.

    Args:
        preset: a size (`tiny`), or the look-alike of both halves and a size (`vaswani2017/tiny`).
        tokenizer: decides vocabulary and special tokens.
        overrides: fields of both configurations.

    Raises:
        InputError: there is no such preset or field.
    """
    lookalike, _, size = preset.partition("/")
    fields = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        **(overrides or {}),
    }
    try:
        encoder = TfmEncoderConfig.preset(lookalike, size or None, **fields)
        cross = dict(is_decoder=True, add_cross_attention=True)
        decoder = TfmDecoderConfig.preset(lookalike, size or None, **fields, **cross)
    except (ValueError, TypeError) as error:
        raise InputError(f"model {preset}: {' '.join(str(error).split())}") from error
    model = TfmEncoderDecoderModel(TfmEncoderDecoderConfig(encoder=encoder, decoder=decoder))
    for half in (model.encoder, model.decoder):
        zero_init_output_projections(half)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.decoder_start_token_id = tokenizer.bos_token_id
    model.generation_config.update(
        decoder_start_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, max_length: int, start: int, sources: list[str], targets: list[str]
) -> list[dict[str, list[int]]]:
    """Sources as inputs and targets as labels; the decoder's start token is fed to it and not predicted."""
    options = dict(truncation=True, max_length=max_length, verbose=False)
    inputs = tokenizer(sources, **options)
    labels = tokenizer(text_target=targets, **options)["input_ids"]
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    columns = {**inputs, "labels": [ids[1:] if ids[:1] == [start] else ids for ids in labels]}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def token_loss(smoothing: float) -> Callable[..., torch.Tensor]:
    """A `compute_loss_func` for Trainer: nats per target token over all accumulated batches, labels smoothed."""

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].flatten(0, 1).float()
        loss = F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing)
        return loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    return compute


class TranslationTrainer(FinetuningMixin, Seq2SeqTrainer):
    """
    The stock Seq2SeqTrainer with what [`FinetuningMixin`] adds, and this package's optimizers.

    Args:
        optimizer_name: as of [`build_optimizer`]; rate and weight decay are those of the arguments.
        decay: share of the run at its end over which the rate decays.
    """

    shards = False  # encoder and decoder have embeddings of their own, one of them tied to the head

    def __init__(self, *args: Any, optimizer_name: str, decay: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.optimizer_name, self.decay = optimizer_name, decay

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = build_optimizer(self.model, self.optimizer_name, **rates)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        if self.lr_scheduler is None:
            phases = {"warmup": self.args.warmup_steps, "decay": self.decay}
            self.lr_scheduler = build_scheduler(optimizer or self.optimizer, "wsd", num_training_steps, **phases)
        return self.lr_scheduler

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        # The stock class leaves in what processes repeat so that their batches are of one size.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


def decode(tokenizer: PreTrainedTokenizerBase, generated: np.ndarray) -> list[str]:
    """Generated ids as text; -100 is padding that Trainer has put between batches."""
    ids = np.where(generated == -100, tokenizer.pad_token_id, generated)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def scores(translations: list[str], references: list[str]) -> dict[str, float]:
    """BLEU (Post 2018) and chrF (Popović 2015), from 0 to 100, one reference each."""
    import sacrebleu

    return {
        "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        "chrf": sacrebleu.corpus_chrf(translations, [references]).score,
    }


def estimates(translations: list[str], references: list[str], resamples: int = 1000) -> dict[str, Estimate]:
    """BLEU and chrF with bootstrapped 95 % intervals (Koehn 2004), from sacrebleu's counts for each translation."""
    import sacrebleu

    found = {}
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        # Both sum counts over the texts. sacrebleu's own bootstrap fails where a sample of the texts has a score of 0.
        counts = np.array(metric._extract_corpus_statistics(translations, [references]))

        def figure(rows: np.ndarray, name: str = name, metric: Any = metric) -> dict[str, float]:
            return {name: metric._compute_score_from_stats(rows.sum(0).tolist()).score}

        found |= bootstrap(figure, counts, resamples=resamples)
    return found

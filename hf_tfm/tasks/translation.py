"""Translation: a new model and its tokenizer for both languages, its Trainer, and scores of translations."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from ..artifacts.record import RunRecord
from ..core.errors import InputError, needs_extra
from ..core.statistics import Estimate, bootstrap
from ..data.batches import PAD_TO_MULTIPLE_OF, in_order
from ..data.records import Records
from ..data.tokenizer import train_tokenizer
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from ..models.modeling_tfm_encoder_decoder import TfmEncoderDecoderConfig, TfmEncoderDecoderModel
from ..train import finetune
from ..train.base_model import load_base_model, load_base_tokenizer
from ..train.finetuning_trainer import FinetuningMixin
from ..train.initialization import zero_init_output_projections
from ..train.optim import build_optimizer
from ..train.recipe import read_mapping
from ..train.report import print_line, report_results
from ..train.schedule import build_scheduler
from .losses import token_loss


with needs_extra("metrics"):
    import sacrebleu

_VALIDATION_PAIRS = 400  # each evaluation translates this many
_PRINTED_SAMPLES, _RECORDED_SAMPLES = 3, 8  # translations at each evaluation, and at the end


def is_preset(name: str) -> bool:
    """Return whether a name is that of a new model, `tiny` or `vaswani2017/tiny`, and not a folder or a Hub name."""
    return not Path(name).exists() and ("/" not in name or name.partition("/")[0] in TfmEncoderConfig.lookalikes)


def read_pairs(records: Records) -> tuple[list[str], list[str]]:
    """Return sources and targets of records that were read for the job `translation`."""
    return [record["source"] for record in records], [record["target"] for record in records]


def load_translator(recipe: Any, texts: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """
    Return model and tokenizer, those of the recipe's folder or new ones, and the length that texts are cut to.

    Args:
        texts: both languages, to train a tokenizer on.

    Raises:
        InputError: there is no such model or tokenizer, or a new one cannot have the recipe's fields.
    """
    if not is_preset(recipe.model):
        tokenizer = load_base_tokenizer(recipe)
        model, _ = load_base_model(AutoModelForSeq2SeqLM, recipe, tokenizer)
        return model, tokenizer, finetune.resolve_max_length(recipe, model, tokenizer)
    max_length = recipe.max_length or 128
    if recipe.tokenizer:
        tokenizer = load_base_tokenizer(recipe)
    else:
        tokenizer = train_shared_tokenizer(texts, recipe.vocab_size, max_length)
    overrides = read_mapping(recipe.model_overrides, "model_overrides")
    return build_translator(recipe.model, tokenizer, max_length, overrides), tokenizer, max_length


def train_shared_tokenizer(texts: Sequence[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """
    Train one byte-level BPE for both languages. [CLS] and [SEP] stand around a text, and start and end a translation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small text gives fewer tokens, and the script prints how many
        tokenizer = train_tokenizer(texts, vocab_size=vocab_size, style="encoder", model_max_length=max_length)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the encoder has one segment type
    return tokenizer


def build_translator(
    preset: str, tokenizer: PreTrainedTokenizerBase, max_length: int, overrides: dict[str, Any] | None = None
) -> TfmEncoderDecoderModel:
    """
    Build a new model, an encoder and a decoder of the same size.

    Args:
        preset: a size (`tiny`), or a paper's architecture and a size (`vaswani2017/tiny`).
        tokenizer: gives the vocabulary and the special tokens.
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


def encode_translations(
    tokenizer: PreTrainedTokenizerBase, max_length: int, model: PreTrainedModel, sources: list[str], targets: list[str]
) -> list[dict[str, list[int]]]:
    """Return rows with sources as inputs and targets as labels, without the decoder's start token, its first input."""
    start = model.config.decoder_start_token_id
    labels = tokenizer(text_target=targets, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    labels = [ids[1:] if ids[:1] == [start] else ids for ids in labels]
    return finetune.encode_texts(tokenizer, max_length, sources, labels=labels)


class TranslationTrainer(FinetuningMixin, Seq2SeqTrainer):
    """
    Seq2SeqTrainer with [`FinetuningMixin`], BLEU and chrF, and the optimizers of this package.

    Args:
        data: encoded training and validation set; evaluations translate the first 400 pairs of it.
        validation: sources and targets of the validation set.
        optimizer_name: name for [`build_optimizer`]; the arguments give learning rate and weight decay.
        decay: share of the steps, at the end, over which the learning rate decays.
    """

    supports_sharding = False  # encoder and decoder have their own embeddings, one of them tied to the head

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: Seq2SeqTrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        data: dict[str, list[dict[str, Any]]],
        validation: tuple[list[str], list[str]],
        optimizer_name: str,
        decay: float,
        **kwargs: Any,
    ):
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=data["train"],
            eval_dataset=data["validation"][:_VALIDATION_PAIRS],
            data_collator=DataCollatorForSeq2Seq(processing_class, model, pad_to_multiple_of=PAD_TO_MULTIPLE_OF),
            compute_loss_func=token_loss(args.label_smoothing_factor),
            compute_metrics=self.measure,
            **kwargs,
        )
        self.validation, self.optimizer_name, self.decay = validation, optimizer_name, decay

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return BLEU and chrF of the translations of the validation set, and print the first ones."""
        sources, references = self.validation
        translations = decode(self.processing_class, in_order(prediction.predictions, self.eval_dataset))
        for source, translated in list(zip(sources, translations))[:_PRINTED_SAMPLES]:
            print_line("sample", f"{source} → {translated}")
        return scores(translations, references[: len(translations)])

    def translate(self, rows: list[dict[str, Any]], beams: int) -> list[str]:
        """Return translations of encoded rows; the saved folder generates with the settings that are used here."""
        settings = self.accelerator.unwrap_model(self.model).generation_config
        settings.num_beams = self.args.generation_num_beams = beams
        settings.max_length = self.args.generation_max_length
        return decode(self.processing_class, self.predict_in_order(rows))

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
        # Seq2SeqTrainer keeps the examples that processes repeat to fill their last batches.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


def decode(tokenizer: PreTrainedTokenizerBase, generated: np.ndarray) -> list[str]:
    """Return generated ids as texts; Trainer pads batches with -100."""
    ids = np.where(generated == -100, tokenizer.pad_token_id, generated)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def scores(translations: list[str], references: list[str]) -> dict[str, float]:
    """Return BLEU (Post 2018) and chrF (Popović 2015), from 0 to 100, against one reference each."""
    return {
        "bleu": sacrebleu.corpus_bleu(translations, [references]).score,
        "chrf": sacrebleu.corpus_chrf(translations, [references]).score,
    }


def estimate_scores(
    translations: list[str], references: list[str], resamples: int | None = None
) -> dict[str, Estimate]:
    """
    Return BLEU and chrF with bootstrapped 95 % intervals (Koehn 2004), from sacrebleu's counts for each translation.

    The two private methods are those of sacrebleu's own bootstrap, which fails where a resample has a score of 0;
    `test_figures_are_sacrebleus` fails when they change.
    """
    estimates: dict[str, Estimate] = {}
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        # Both metrics are functions of counts that are summed over the texts.
        counts = np.array(metric._extract_corpus_statistics(translations, [references]))

        def figure(rows: np.ndarray, name: str = name, metric: Any = metric) -> dict[str, float]:
            return {name: metric._compute_score_from_stats(rows.sum(0).tolist()).score}

        estimates |= bootstrap(figure, counts, resamples=resamples)
    return estimates


def report_translations(
    record: RunRecord, split: str, sources: list[str], references: list[str], translations: list[str]
) -> None:
    """Print and record some translations, and their figures beside those of the sources in their place."""
    results = estimate_scores(translations, references)
    report_results(record, split, results, {"source copied": estimate_scores(sources, references)})
    samples = list(zip(sources, translations, references))[:_RECORDED_SAMPLES]
    record["samples"] = [f"{s} → {t} (reference: {r})" for s, t, r in samples]
    print("\n".join(record["samples"]))

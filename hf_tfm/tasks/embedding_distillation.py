"""
Distillation of a model for sentence embeddings into a smaller one.

The student's embeddings are to have the direction of the teacher's (Reimers & Gurevych 2020, arXiv:2004.09813), and the
texts of a batch the teacher's order of similarity (Park et al. 2019, "Relational knowledge distillation",
arXiv:1904.05068). Only the texts of the training files count: neither scores nor which text belongs to which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch.nn import functional as F
from transformers import set_seed

from ..artifacts.open import fingerprint
from ..core.errors import InputError
from ..core.limits import refuse_diverged
from ..data.cache import digest, open_arrays, write_arrays
from ..data.records import Records
from ..data.sources import DocumentStream, parse_sources
from ..train import finetune, report
from ..train.recipe import refuse_below
from ..train.report import print_line
from .distillation import DistillationRecipe, compare_speed, forward_pass, report_comparison
from .embeddings import (
    EmbeddingArguments,
    EmbeddingTrainer,
    PairRecipe,
    Pairs,
    find_score_range,
    load_embedder,
    open_embedder,
    read_pairs,
    reset_lengths,
)
from .fine_tune import Measurement, train_and_report
from .task import text_key


_SCALE = 20.0  # of cosines before the softmax, as in sentence-transformers' losses
_CHUNK = 8192  # texts whose vectors are in memory while they are computed
_SPEED_TEXTS = 32

IGNORED_ARGUMENTS = {
    "label_smoothing_factor": "nothing here has labels to smooth",
    "train_sampling_strategy": "batches are of texts of similar length",
}


@dataclass(kw_only=True)
class EmbeddingDistillationRecipe(DistillationRecipe, PairRecipe):
    """Fields of the distillation of a model for sentence embeddings."""

    train_file: list[str] | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Pairs of texts, in any form; their texts are learned, not their scores."}
    )
    unlabelled: list[str] | None = field(
        default=None, metadata={"help": "More texts: files, folders, globs, or a dataset of the Hub as hub:NAME."}
    )
    text_unit: str = field(
        default="line",
        metadata={"help": "Text of a text file: line, paragraph (between blank lines) or document (the file)."},
    )
    ranking_weight: float = field(
        default=1.0, metadata={"help": "Weight of the order of similarity of a batch's texts, beside their directions."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train_file = [name for name in self.train_file or () if name] or None
        refuse_below(self, ranking_weight=0)
        if not self.train_file and not self.unlabelled:
            raise InputError("there is nothing to learn from: give --train_file, --unlabelled or both")


class TeacherLoss(EmbedDistillLoss):
    """
    The cosine distance from the teacher's vectors, and the divergence from its similarities within the batch.

    Args:
        ranking_weight: weight of the latter.
    """

    def __init__(self, model: SentenceTransformer, ranking_weight: float):
        super().__init__(model, distance_metric="cosine")
        self.ranking_weight = ranking_weight

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], teacher_embeddings: list[torch.Tensor]
    ) -> torch.Tensor:
        loss = super().compute_loss_from_embeddings(embeddings, teacher_embeddings)
        [student], [teacher] = embeddings, teacher_embeddings
        if self.ranking_weight and len(student) > 2:
            log_shares, target = (_similarities(vectors.float()).log_softmax(-1) for vectors in (student, teacher))
            ranking = F.kl_div(log_shares, target, log_target=True, reduction="batchmean")
            loss = loss + self.ranking_weight * ranking
        return loss


def _similarities(vectors: torch.Tensor) -> torch.Tensor:
    """Return the scaled cosines of each vector `(texts, width)` with all others, `(texts, texts - 1)`."""
    vectors = F.normalize(vectors, dim=-1)
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return _SCALE * (vectors @ vectors.T)[others].view(len(vectors), -1)


def distill_embeddings(recipe: EmbeddingDistillationRecipe, args: EmbeddingArguments) -> int:
    """
    Distil a model for sentence embeddings: read, embed by the teacher, train, measure, write the student's folder.

    Returns: the exit code of the script.

    Raises:
        InputError: the arguments, the models or the records cannot be used.
    """
    finetune.check_finetuning(args, recipe, IGNORED_ARGUMENTS)
    set_seed(args.seed)
    splits, more = read_splits(recipe, args.seed)
    pair_splits = {name: records for name, records in splits.items() if "text_pair" in records[0]}
    score_range = find_score_range(pair_splits, recipe.score_range) if pair_splits else None
    pairs = {name: read_pairs(records, score_range, name == "train") for name, records in pair_splits.items()}
    columns = pairs["train"].columns if "train" in pairs else [splits["train"].texts("text")]
    columns = [*columns, *(records.texts("text") for records in more.values())]
    texts = list(dict.fromkeys(text for column in columns for text in column))

    teacher = open_embedder(recipe.teacher, trust_remote_code=recipe.trust_remote_code, device=str(args.device))
    embedder, new_weights = load_embedder(recipe, recipe.pooling)
    model, tokenizer, max_length = embedder.transformers_model, embedder.tokenizer, embedder.max_seq_length
    for each in (model, teacher.transformers_model):
        finetune.choose_attention(args, each, max_length)
    batch_size = args.per_device_eval_batch_size
    vectors = fit_width(cached_vectors(teacher, texts, recipe, batch_size), embedder, recipe)
    if "validation" not in pairs:
        pairs["validation"] = pair_by_teacher(teacher, splits["validation"].texts("text"), batch_size)
    pairs["train"] = Pairs([texts], None)
    split = finetune.measured_split(splits)
    figures = pairs[split].estimates(teacher, batch_size)

    record = report.begin_record("distill", recipe, args, embedder, {**splits, **more})
    record["library"] = "sentence-transformers"
    finetune.resolve_arguments(args, recipe, model, pairs["validation"].metrics, loss=False)
    trainer = EmbeddingTrainer(
        model=embedder,
        args=args,
        processing_class=tokenizer,
        loss=TeacherLoss(embedder, recipe.ranking_weight),
        pairs=pairs,
        vectors=vectors,
        record=record,
    )

    report.report_model(model, recipe, new_weights)
    width = teacher.get_embedding_dimension()
    print_line("teacher", f"vectors of {width}, in {recipe.cache}; the student's have {vectors.shape[1]}")
    print_line("train", f"{len(texts):,} distinct texts")
    for name in sorted(pairs.keys() - {"train"}, reverse=True):
        print_line(name, f"{len(pairs[name].columns[0]):,} pairs")
    report.report_steps(args, trainer.longest_texts, max_length)
    keys = {name: [text_key(text) for text in pairs[name].columns[0]] for name in pairs}
    record["overlap_with_train"] = report.report_overlap(keys)
    report.report_time_estimate(trainer)

    def measure(student: SentenceTransformer, before: Measurement | None) -> Measurement:
        measured = pairs[split].estimates(student, batch_size)
        if before is not None:
            some_texts = sorted(texts, key=len)[len(texts) // 2 :][:_SPEED_TEXTS]
            speed = compare_speed(_pass(student, some_texts), _pass(teacher, some_texts))
            report_comparison(record, recipe, pairs[split].metrics[0], measured, figures, speed)
        return Measurement(measured)

    return train_and_report(trainer, recipe, split, measure, baselines={"teacher": figures})


def read_splits(recipe: EmbeddingDistillationRecipe, seed: int) -> tuple[dict[str, Records], dict[str, Records]]:
    """
    Return the records of the splits, of pairs or of single texts, and those of more texts to learn.

    Raises:
        InputError: a file cannot be read, or its records do not fit.
    """
    unlabelled = read_texts(recipe) if recipe.unlabelled else None
    if recipe.train_file:
        splits = finetune.read_splits(recipe, seed, lambda records: read_pairs(records).keys(), recipe.reading())
        return splits, {"unlabelled": unlabelled} if unlabelled else {}
    assert unlabelled is not None  # the recipe has refused to do without both
    keys = [text_key(text) for text in unlabelled.texts("text")]
    train, validation = finetune.carve_validation(recipe, recipe.reading(), unlabelled, seed, keys)
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = finetune.read_split(recipe.test_file, recipe.reading(), "test")
    return splits, {}


def read_texts(recipe: EmbeddingDistillationRecipe) -> Records:
    """Return the texts without pairs, and print what was read. Raises `InputError` if there are none."""
    paths = recipe.unlabelled or []
    stream = DocumentStream(parse_sources(paths, text_unit=recipe.text_unit, options=recipe.reading_options()))
    texts = list(stream)
    report.report_reading(stream)
    places = [f"{paths[0]}, text {number}" for number in range(1, len(texts) + 1)]
    return Records([{"text": text} for text in texts], places, paths[0], paths[1:], stream.reports)


def cached_vectors(
    teacher: SentenceTransformer, texts: Sequence[str], recipe: EmbeddingDistillationRecipe, batch_size: int
) -> np.ndarray:
    """Return the teacher's vectors `(texts, width)` of length 1, from the cache if they are there."""
    content = digest([fingerprint(teacher.transformers_model, teacher.tokenizer), str(teacher), list(texts)])
    folder = recipe.cache / "teachers" / content

    def compute() -> Any:
        for start in range(0, len(texts), _CHUNK):
            part = list(texts[start : start + _CHUNK])
            vectors = teacher.encode(part, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
            refuse_diverged(vectors)
            yield {"vectors": vectors.astype(np.float32).ravel()}

    write_arrays(folder, compute(), {})
    return open_arrays(folder)[0]["vectors"].reshape(len(texts), -1)


def fit_width(vectors: np.ndarray, student: SentenceTransformer, recipe: EmbeddingDistillationRecipe) -> np.ndarray:
    """
    Return the vectors in the student's width: those projections of them that keep most of their similarities.

    Raises:
        InputError: the student's embeddings are wider than the vectors.
    """
    width = student.get_embedding_dimension()
    if width > vectors.shape[1]:
        raise InputError(
            f"{recipe.model}: its embeddings have {width} numbers, the teacher's {vectors.shape[1]}: take a student "
            "that is not wider than its teacher"
        )
    if width == vectors.shape[1]:
        return vectors
    # Not centred: cosines are those of the vectors themselves.
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    return (vectors @ axes[:, -width:]).astype(np.float32)


def pair_by_teacher(teacher: SentenceTransformer, texts: Sequence[str], batch_size: int) -> Pairs:
    """Return pairs of neighbouring texts with the teacher's cosine as their score."""
    first, second = list(texts[:-1]), list(texts[1:])
    cosines, _ = Pairs([first, second], [0.0] * len(first)).outcomes(teacher, batch_size)
    return Pairs([first, second], cosines.tolist())


def _pass(embedder: SentenceTransformer, texts: Sequence[str]) -> Callable[[], Any]:
    """Return a forward pass over texts, without their tokenization."""
    inputs = embedder.tokenizer(
        list(texts), padding=True, truncation=True, max_length=embedder.max_seq_length, return_tensors="pt"
    )
    reset_lengths(embedder.tokenizer)
    return forward_pass(embedder.transformers_model, inputs)

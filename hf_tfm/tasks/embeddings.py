"""
Sentence embeddings: pairs of texts and their figures, a model as a SentenceTransformer, and its Trainer.

sentence-transformers has its own losses, batches and evaluations, so this is not a [`Task`]. Only this module needs
sentence-transformers (`pip install hf-tfm[embed]`).
"""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..core.errors import InputError
from ..core.limits import refuse_diverged
from ..core.quiet import quiet
from ..core.statistics import Estimate, bootstrap, correlations
from ..data.batches import SeededLengthGroups, length_of
from ..data.forms.form import Reading
from ..data.records import Records
from ..train import finetune
from ..train.adapters import load_inside, merge_inside, save_inside
from ..train.base_model import load_base_model, load_base_tokenizer
from ..train.finetune import FinetuningArguments
from ..train.recipe import FinetuningRecipe
from ..train.trainer import RunMixin
from .task import text_key


LOSSES = {
    "contrastive": losses.MultipleNegativesRankingLoss,  # Henderson et al. 2017; van den Oord et al. 2018 (InfoNCE)
    "cosine": losses.CosineSimilarityLoss,  # Reimers & Gurevych 2019
    "cosent": losses.CoSENTLoss,  # Su 2022: depends only on the order of the scores
}
_SCORE_RANGES = ((0.0, 1.0), (0.0, 5.0), (-1.0, 1.0))
METRICS = {True: ("spearman", "pearson"), False: ("mrr", "accuracy_at_1", "recall_at_10")}


@dataclass
class EmbeddingArguments(FinetuningArguments, SentenceTransformerTrainingArguments):
    """Arguments of transformers and sentence-transformers with defaults for fine-tuning."""

    include_num_input_tokens_seen: str | bool = False  # sentence-transformers' batches do not show them
    prediction_loss_only: bool = True  # sentence-transformers has its own evaluations


@dataclass
class PairRecipe(FinetuningRecipe):
    """Fields of files of pairs, and of the pooling."""

    text_field: str | None = field(default=None, metadata={"help": "Field of the first text."})
    text_pair_field: str | None = field(default=None, metadata={"help": "Field of the second text, or of several."})
    negative_field: str | None = field(default=None, metadata={"help": "Field of a negative, or of several."})
    score_field: str | None = field(default=None, metadata={"help": "Field of the similarity of the two texts."})
    score_range: list[float] | None = field(
        default=None,
        metadata={"help": "Lowest and highest score; by default 0 to 1, 0 to 5 or -1 to 1, as scores lie."},
    )
    pooling: str | None = field(default=None, metadata={"help": "mean, cls, max, lasttoken …; by default the model's."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_range and (len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]):
            raise InputError(f"score_range {self.score_range} must be two numbers, the lower one first")

    def reading(self) -> Reading:
        """Return how files are read."""
        names = {name: getattr(self, f"{name}_field") for name in ("text", "text_pair", "negative", "score")}
        return Reading("pairs", {name: value for name, value in names.items() if value}, self.reading_options())


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of texts that are positives, or have a score each.

    Attributes:
        columns: first texts, second texts, and for the contrastive loss perhaps negatives.
        scores: numbers between 0 and 1; None if all pairs are positives.
    """

    columns: list[list[str]]
    scores: list[float] | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures; the first one chooses the best checkpoint."""
        return METRICS[self.scores is not None]

    def keys(self) -> list[tuple[str, ...]]:
        """Return a key for each pair; pairs of the same texts have equal keys."""
        return [text_key(*texts) for texts in zip(*self.columns)]

    def outcomes(self, embedder: SentenceTransformer, batch_size: int) -> tuple[np.ndarray, ...]:
        """
        Return the inputs of [`figures`], an entry for each pair: cosines and scores, or the rank (from 1) of each first
        text's own second text among all second texts.
        """
        first, second = (
            embedder.encode(texts, batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True)
            for texts in self.columns[:2]
        )
        refuse_diverged(np.concatenate([first, second]))
        cosines = (first * second).sum(1)
        if self.scores is not None:
            return cosines, np.asarray(self.scores)
        # A text that is nearer by no more than rounding is the same text again.
        chunks = range(0, len(first), 1024)
        ranks = [((first[i : i + 1024] @ second.T) > cosines[i : i + 1024, None] + 1e-5).sum(1) + 1 for i in chunks]
        return (np.concatenate(ranks),)

    def figures(self, *outcomes: np.ndarray) -> dict[str, float]:
        """Return the metrics of [`outcomes`]."""
        if self.scores is None:
            (ranks,) = outcomes
            return dict(zip(self.metrics, map(float, ((1 / ranks).mean(), (ranks == 1).mean(), (ranks <= 10).mean()))))
        return correlations(*outcomes)

    def estimates(self, embedder: SentenceTransformer, batch_size: int) -> dict[str, Estimate]:
        """Return the metrics with bootstrapped 95 % intervals."""
        estimates = bootstrap(self.figures, *self.outcomes(embedder, batch_size))
        reset_lengths(embedder.tokenizer)
        return estimates


def read_pairs(records: Records, score_range: Sequence[float] | None = None, train: bool = False) -> Pairs:
    """
    Return the pairs of records that were read for the job `pairs`.

    Args:
        score_range: the lowest and the highest score.
        train: return the negatives too: as many for each pair as the one with the fewest has.
    """
    columns = [[record[name] for record in records] for name in ("text", "text_pair")]
    if train:
        negatives = [record.get("negative", []) for record in records]
        columns += [list(texts) for texts in zip(*(texts[: min(map(len, negatives))] for texts in negatives))]
    return Pairs(columns, read_scores(records, *score_range) if score_range else None)


def unused_negatives(records: Records, pairs: Pairs) -> int:
    """Return how many negatives are left out, because other pairs have fewer."""
    return sum(len(record.get("negative", [])) for record in records) - len(records) * (len(pairs.columns) - 2)


def find_score_range(splits: Mapping[str, Records], given: Sequence[float] | None) -> list[float] | None:
    """
    Return the lowest and the highest score: those given, else the usual range that all scores lie in; None if there are
    no scores.

    Raises:
        InputError: some records have a score and others have none, or the scores lie in no usual range.
    """
    values = [record.get("score") for records in splits.values() for record in records]
    scores = [score for score in values if score is not None]
    if len(scores) < len(values):
        if scores:
            raise InputError(
                f"{splits['train'].path}: some records have a score and others have none; --score_field names it"
            )
        return None
    if given:
        return list(given)
    lowest, highest = min(scores), max(scores)
    found = next((bounds for bounds in _SCORE_RANGES if bounds[0] <= lowest and highest <= bounds[1]), None)
    if found is None:
        far = max(scores, key=abs)
        place = next(
            place
            for records in splits.values()
            for record, place in zip(records, records.places)
            if record["score"] == far
        )
        raise InputError(
            f"{place}: score {far:g}; scores from {lowest:g} to {highest:g} have no usual range: mend them, or say the "
            "lowest and the highest with --score_range"
        )
    return list(found)


def read_scores(records: Records, lowest: float, highest: float) -> list[float]:
    """Return the scores, scaled from `lowest` … `highest` to 0 … 1. Raises `InputError` for others."""
    scores, field = [], records.name_of("score")
    for record, place in zip(records, records.places):
        if not lowest <= record["score"] <= highest:
            raise InputError(
                f"{place}: field {field!r} is {record['score']:g}, outside {lowest:g} to {highest:g}: mend it or "
                "--score_range"
            )
        scores.append((record["score"] - lowest) / (highest - lowest))
    return scores


def load_embedder(recipe: FinetuningRecipe, pooling: str | None) -> tuple[SentenceTransformer, list[str]]:
    """
    Load the recipe's model as a SentenceTransformer; see [`build_embedder`].

    Returns: the embedder, and the names of new weights, which the folder does not have.
    """
    tokenizer = load_base_tokenizer(recipe)
    model, new_weights = load_base_model(AutoModel, recipe, tokenizer)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    embedder = build_embedder(model, tokenizer, recipe.model, max_length, pooling, recipe.trust_remote_code)
    return embedder, new_weights


def open_embedder(
    folder: str, pooling: str | None = None, trust_remote_code: bool = False, device: str | None = None
) -> SentenceTransformer:
    """
    Open a folder as sentence-transformers does.

    Args:
        pooling: `mean`, `cls`, `max` or `lasttoken`, instead of the folder's.

    Raises:
        InputError: the pooling is none of these, or the folder does not begin with a transformer.
    """
    with quiet():
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "device": device}
        embedder = SentenceTransformer(folder, **options)
        if not isinstance(embedder[0], Transformer):
            raise InputError(f"{folder}: its first module is a {type(embedder[0]).__name__}, not a Transformer")
        if pooling is not None:
            if pooling not in Pooling.POOLING_MODES:
                raise InputError(f"pooling {pooling!r} must be one of {', '.join(Pooling.POOLING_MODES)}")
            after = [module for module in list(embedder)[1:] if not isinstance(module, Pooling)]
            pooler = Pooling(embedder[0].get_embedding_dimension(), pooling)
            for name in ("prompts", "default_prompt_name", "truncate_dim"):
                options[name] = getattr(embedder, name)
            embedder = SentenceTransformer(modules=[embedder[0], pooler, *after], **options)
    return embedder


def build_embedder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    max_length: int,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """
    Build a SentenceTransformer around a loaded model.

    Args:
        folder: the model's folder; a SentenceTransformer's folder gives its modules, another one mean pooling (for a
            causal model, of the last token).
        max_length: of a text, in tokens.
        pooling: instead of the folder's, as in [`open_embedder`].
    """
    embedder = open_embedder(folder, pooling, trust_remote_code, str(model.device))
    if not is_sentence_transformer_model(folder):
        # With a chat template, sentence-transformers would take every text for a user's message.
        embedder[0].modality_config.pop("message", None)
    embedder[0].model = model
    embedder[0].processor = tokenizer
    embedder.max_seq_length = max_length
    # The card comes from the run record; sentence-transformers' card embeds sentences at every save.
    embedder._create_model_card = lambda *args, **kwargs: None
    return embedder


def reset_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove truncation and padding of the last batch from the tokenizer, so that they are not saved."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


class PairBatches(DefaultBatchSampler):
    """
    Batches of similar length, a function of seed and epoch alone, so that a resumed run draws them again.

    With `keys` no batch has a text twice, which the contrastive loss would take for its own negative. Records that fit
    into no batch of an epoch wait for the next one.
    """

    def __init__(self, dataset: Any, lengths: list[int], keys: list[tuple[str, ...]] | None = None, **options: Any):
        super().__init__(dataset, **options)
        self.lengths = lengths
        self.keys = keys

    def __iter__(self) -> Iterator[list[int]]:
        order = SeededLengthGroups(self.batch_size, self.lengths, self.seed)
        order.epoch = self.epoch
        waiting = deque(order)
        for _ in range(len(self)):
            batch: list[int] = []
            batch_texts: set[str] = set()
            passed_over = []
            while waiting and len(batch) < self.batch_size:
                number = waiting.popleft()
                texts = () if self.keys is None else self.keys[number]
                if batch_texts.isdisjoint(texts):
                    batch.append(number)
                    batch_texts.update(texts)
                else:
                    passed_over.append(number)
            waiting.extendleft(reversed(passed_over))
            if batch:
                yield batch


class _Validation(BaseEvaluator):
    """The figures of the validation set, for sentence-transformers' Trainer."""

    def __init__(self, pairs: Pairs, batch_size: int):
        super().__init__()
        self.pairs = pairs
        self.batch_size = batch_size

    def __call__(self, model: SentenceTransformer, output_path: str | None = None, **_: Any) -> dict[str, float]:
        if output_path is not None:
            Path(output_path).rmdir()  # for files of figures, which the run record has
        return self.pairs.figures(*self.pairs.outcomes(model, self.batch_size))


class EmbeddingTrainer(RunMixin, SentenceTransformerTrainer):
    """
    sentence-transformers' Trainer with [`RunMixin`], batches of similar length, and the figures of [`Pairs`].

    Args:
        pairs: training and validation set.
        vectors: of a teacher, `(pairs, width)`, for a loss that compares the embeddings of single texts with them.

    Attributes:
        first_texts: the encoded first text of each training record.
        longest_texts: the longest encoded text of each training record.
    """

    supports_sharding = False  # a SentenceTransformer is saved module by module

    def __init__(
        self,
        *,
        model: SentenceTransformer,
        args: TrainingArguments,
        pairs: Mapping[str, Pairs],
        vectors: np.ndarray | None = None,
        **kwargs: Any,
    ):
        from datasets import Dataset

        train = pairs["train"]
        encoded = [finetune.encode_texts(model.tokenizer, model.max_seq_length, texts) for texts in train.columns]
        self.first_texts = encoded[0]
        self.longest_texts = [max(texts, key=length_of) for texts in zip(*encoded)]
        self.lengths = list(map(length_of, self.longest_texts))
        columns: dict[str, list[Any]] = {f"text{number}": texts for number, texts in enumerate(train.columns)}
        if train.scores is not None:
            columns["score"] = train.scores
        if vectors is not None:
            columns["label"] = list(vectors)
        self.keys = train.keys() if train.scores is None else None
        evaluator = _Validation(pairs["validation"], args.per_device_eval_batch_size)
        super().__init__(
            model=model, args=args, train_dataset=Dataset.from_dict(columns), evaluator=evaluator, **kwargs
        )

    def get_batch_sampler(self, dataset: Any, **options: Any) -> PairBatches:
        return PairBatches(dataset, self.lengths, self.keys, **options)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Do nothing: the card comes from the run record."""

    def finished_model(self) -> SentenceTransformer:
        """Return the trained model (see [`RunMixin`]) with its adapter merged."""
        embedder = super().finished_model()
        if hasattr(embedder.transformers_model, "peft_config"):
            merge_inside(embedder.transformers_model)
            if self.record is not None:
                self.record["adapter"]["merged"] = True
        return embedder

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model with its adapter merged, and the adapter beside it, to resume from."""
        reset_lengths(self.processing_class)
        if not hasattr(self.model.transformers_model, "peft_config"):
            return super()._save(output_dir, state_dict)
        adapted, self.model = self.model, copy.deepcopy(self.model)
        try:
            merge_inside(self.model.transformers_model)
            super()._save(output_dir)
        finally:
            self.model = adapted
        save_inside(self.model.transformers_model, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not hasattr(self.model.transformers_model, "peft_config"):
            return super()._load_from_checkpoint(checkpoint_path)
        load_inside(self.model.transformers_model, checkpoint_path)

    def median_batch(self) -> dict[str, torch.Tensor]:
        """Return a batch of records of about the median length, to measure the time of a step."""
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        start = max(0, (len(order) - self.args.train_batch_size) // 2)
        return self.data_collator([self.train_dataset[i] for i in order[start : start + self.args.train_batch_size]])

"""
Fine-tunes a model to embed texts, so that texts of similar meaning have similar embeddings.

    python training/finetune_embeddings.py training/recipes/finetune_embeddings.yaml

    python training/finetune_embeddings.py --model my-encoder --train_file pairs.jsonl --text_field question \\
        --text_pair_field answer --output_dir runs/search

Takes any encoder or decoder of the Auto classes, or a SentenceTransformer. With scores (--score_field), the cosine of a
pair is trained to be its score. Without scores, pairs are positives and the other texts of a batch are negatives. The
best checkpoint is chosen on the validation set; the test set is measured before and after the training. The folder
opens as a SentenceTransformer and with AutoModel. The same command resumes a stopped run.

Needs sentence-transformers: pip install hf-tfm[embed]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data.batches import length_of
from hf_tfm.data.records import Records
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter, merge_inside
from hf_tfm.train.base_model import load_base_model, load_base_tokenizer
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

from transformers import AutoModel, set_seed


with needs_extra("embed"):
    from hf_tfm.tasks.embeddings import LOSSES, EmbeddingTrainer, Pairs, build_embedder, read_scores, reset_lengths

    from sentence_transformers import SentenceTransformerTrainingArguments


@dataclass
class EmbeddingArguments(FinetuningArguments, SentenceTransformerTrainingArguments):
    """Arguments of transformers and sentence-transformers with defaults for fine-tuning."""

    include_num_input_tokens_seen: str | bool = False  # sentence-transformers' batches do not show them
    prediction_loss_only: bool = True  # sentence-transformers has its own evaluations


@dataclass
class EmbeddingRecipe(FinetuningRecipe):
    text_field: str = field(default="sentence1", metadata={"help": "Field of a record that has the first text."})
    text_pair_field: str = field(default="sentence2", metadata={"help": "Field of the second text."})
    negative_field: str | None = field(
        default=None, metadata={"help": "Field of a negative for the first text (contrastive loss)."}
    )
    score_field: str | None = field(default=None, metadata={"help": "Field of the similarity of the two texts."})
    score_range: list[float] = field(default_factory=lambda: [0.0, 5.0], metadata={"help": "Lowest and highest score."})
    positive_score: float | None = field(
        default=None,
        metadata={"help": "Contrastive loss on scored records: pairs of at least this score are positives."},
    )
    loss: str | None = field(
        default=None,
        metadata={"help": "contrastive, cosine or cosent; by default cosine with scores, else contrastive."},
    )
    pooling: str | None = field(default=None, metadata={"help": "mean, cls, max, lasttoken …; by default the model's."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss = self.loss or ("cosine" if self.score_field and self.positive_score is None else "contrastive")
        if self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} must be one of {', '.join(LOSSES)}")
        if self.loss != "contrastive" and not self.score_field:
            raise InputError(f"loss {self.loss} needs scores: name their field with --score_field")
        if self.loss != "contrastive" and (self.negative_field or self.positive_score is not None):
            raise InputError(f"--negative_field and --positive_score go with --loss contrastive, not {self.loss}")
        if self.loss == "contrastive" and self.score_field and self.positive_score is None:
            raise InputError("which scored pairs belong together? Give their lowest score as --positive_score")
        if len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]:
            raise InputError(f"score_range {self.score_range} must be two numbers, the lower one first")


def read_pairs(records: Records, recipe: EmbeddingRecipe, train: bool = False) -> Pairs:
    """Return the records as pairs, without scores for the contrastive loss."""
    columns = [records.texts(recipe.text_field, "text_field"), records.texts(recipe.text_pair_field, "text_pair_field")]
    if recipe.negative_field and train:
        columns.append(records.texts(recipe.negative_field, "negative_field"))
    scores = read_scores(records, recipe.score_field, *recipe.score_range) if recipe.score_field else None
    return Pairs(columns, None if train and recipe.loss == "contrastive" else scores)


def read_splits(recipe: EmbeddingRecipe, seed: int) -> dict[str, Records]:
    """Return the splits that there are; for the contrastive loss, train has the positive pairs only."""
    splits = finetune.read_splits(recipe, seed, lambda records: read_pairs(records, recipe).keys())
    train = splits["train"]
    if recipe.loss == "contrastive" and recipe.score_field:
        scores = train.values(recipe.score_field, "score_field")
        splits["train"] = train.subset(n for n, score in enumerate(scores) if float(score) >= recipe.positive_score)
        if not len(splits["train"]):
            raise InputError(f"{train.path}: no pair has a score of {recipe.positive_score:g} or more")
    return splits


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, EmbeddingRecipe, EmbeddingArguments, __doc__)
    ignored = {
        "label_smoothing_factor": "nothing here has labels to smooth",
        "train_sampling_strategy": "batches are of texts of similar length",
    }
    finetune.check_finetuning(args, recipe, ignored)
    set_seed(args.seed)

    splits = read_splits(recipe, args.seed)
    pairs = {name: read_pairs(records, recipe, name == "train") for name, records in splits.items()}

    tokenizer = load_base_tokenizer(recipe)
    model, new = load_base_model(AutoModel, recipe, tokenizer)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    finetune.choose_attention(args, model, max_length)
    embedder = build_embedder(model, tokenizer, recipe.model, max_length, recipe.pooling, recipe.trust_remote_code)
    if recipe.lora:
        add_adapter(model, recipe, "FEATURE_EXTRACTION", inside=True)
    record = report.begin_record("finetune_embeddings", recipe, args, embedder, splits)
    record["library"] = "sentence-transformers"
    finetune.resolve_arguments(args, recipe, model, pairs["validation"].metrics, loss=False)

    report.report_model(model, recipe, new)
    print_line("task", f"{recipe.loss} loss, {getattr(embedder[1], 'pooling_mode', 'no')} pooling")
    for name, split in pairs.items():
        print_line(name, f"{len(splits[name]):,} pairs{'' if split.scores is None else ' with scores'}")
    columns = [finetune.encode_texts(tokenizer, max_length, texts) for texts in pairs["train"].columns]
    longest = [max(texts, key=length_of) for texts in zip(*columns)]
    report.report_steps(args, longest, max_length)
    report.report_example(tokenizer, columns[0][0], pairs["train"].columns[1][0])
    keys = {name: [key[:2] for key in split.keys()] for name, split in pairs.items()}
    record["overlap_with_train"] = report.report_overlap(keys)

    split = finetune.measured_split(splits)
    untrained = pairs[split].estimates(embedder, args.per_device_eval_batch_size)
    trainer = EmbeddingTrainer(
        model=embedder,
        args=args,
        processing_class=tokenizer,
        loss=LOSSES[recipe.loss](embedder),
        pairs=pairs,
        lengths=[length_of(texts) for texts in longest],
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.finetuning_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)
    embedder = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    if recipe.lora:
        merge_inside(model)
        record["adapter"]["merged"] = True
    results = pairs[split].estimates(embedder, args.per_device_eval_batch_size)
    report.report_results(record, split, results, {"before training": untrained})
    reset_lengths(tokenizer)
    report.write_finished_model(trainer, embedder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

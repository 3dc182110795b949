"""
Fine-tunes a model to embed texts: what means the same lies close together.

    python training/finetune_embeddings.py training/recipes/finetune_embeddings.yaml

    python training/finetune_embeddings.py --model my-encoder --train_file pairs.jsonl --text_field question \\
        --text_pair_field answer --output_dir runs/search

Takes any encoder or decoder of the Auto classes, or a SentenceTransformer. With scores (--score_field) the cosine of a
pair is trained to be its score; without, pairs belong together and all other texts of a batch are strangers. The best
checkpoint is chosen on the validation records, the test records are measured once, before and after. The folder opens
as a SentenceTransformer and with AutoModel. The same command goes on where a run was stopped.

Needs sentence-transformers: pip install hf-tfm[embed]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data.records import Records, read_records
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter, merge_inside
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

from transformers import AutoModel, set_seed


with needs_extra("embed"):
    from hf_tfm.tasks.embeddings import LOSSES, EmbeddingTrainer, Pairs, build_embedder, forget_lengths, read_scores

    from sentence_transformers import SentenceTransformerTrainingArguments


@dataclass
class EmbeddingArguments(FinetuningArguments, SentenceTransformerTrainingArguments):
    """Both libraries' arguments, with defaults for fine-tuning."""

    include_num_input_tokens_seen: str | bool = False  # sentence-transformers' batches hide them
    prediction_loss_only: bool = True  # and its evaluations are their own


@dataclass
class EmbeddingRecipe(FinetuningRecipe):
    text_field: str = field(default="sentence1", metadata={"help": "Where a record has its first text."})
    text_pair_field: str = field(default="sentence2", metadata={"help": "Where it has its second text."})
    negative_field: str | None = field(
        default=None, metadata={"help": "Where it has a text that does not belong to the first (contrastive loss)."}
    )
    score_field: str | None = field(default=None, metadata={"help": "Where it has the similarity of the two."})
    score_range: list[float] = field(default_factory=lambda: [0.0, 5.0], metadata={"help": "Lowest and highest score."})
    positive_score: float | None = field(
        default=None, metadata={"help": "Contrastive loss on scored records: pairs from this score on belong together."}
    )
    loss: str | None = field(
        default=None, metadata={"help": "contrastive, cosine or cosent; by default cosine with scores, else the first."}
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
    """The records as pairs; what the contrastive loss is trained on has no scores."""
    columns = [records.texts(recipe.text_field, "text_field"), records.texts(recipe.text_pair_field, "text_pair_field")]
    if recipe.negative_field and train:
        columns.append(records.texts(recipe.negative_field, "negative_field"))
    scores = read_scores(records, recipe.score_field, *recipe.score_range) if recipe.score_field else None
    return Pairs(columns, None if train and recipe.loss == "contrastive" else scores)


def read_splits(recipe: EmbeddingRecipe, seed: int) -> dict[str, Records]:
    """The splits that there are, validation always among them."""
    train = read_records(recipe.train_file)
    train, validation = finetune.carve_validation(recipe, train, seed, read_pairs(train, recipe).keys())
    if recipe.loss == "contrastive" and recipe.score_field:
        scores = train.values(recipe.score_field, "score_field")
        train = train.subset(number for number, score in enumerate(scores) if float(score) >= recipe.positive_score)
        if not len(train):
            raise InputError(f"{train.path}: no pair has a score of {recipe.positive_score:g} or more")
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
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

    tokenizer = finetune.load_tokenizer(recipe)
    model, new = finetune.load_model(AutoModel, recipe, tokenizer)
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
    for name, several in pairs.items():
        print_line(name, f"{len(splits[name]):,} pairs{'' if several.scores is None else ' with scores'}")
    encoded = [finetune.encode_texts(tokenizer, max_length, texts) for texts in pairs["train"].columns]
    longest = [max(texts, key=finetune.length_of) for texts in zip(*encoded)]
    report.report_steps(args, longest, max_length)
    report.report_example(tokenizer, encoded[0][0], pairs["train"].columns[1][0])
    keys = {name: [key[:2] for key in several.keys()] for name, several in pairs.items()}
    record["overlap_with_train"] = report.report_overlap(keys)

    split = "test" if "test" in pairs else "validation"
    before = pairs[split].estimates(embedder, args.per_device_eval_batch_size)
    trainer = EmbeddingTrainer(
        model=embedder,
        args=args,
        processing_class=tokenizer,
        loss=LOSSES[recipe.loss](embedder),
        pairs=pairs,
        lengths=[finetune.length_of(texts) for texts in longest],
        record=record,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)
    embedder = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    if recipe.lora:
        merge_inside(model)
        record["adapter"]["merged"] = True
    results = pairs[split].estimates(embedder, args.per_device_eval_batch_size)
    report.report_results(record, split, results, {"before training": before})
    forget_lengths(tokenizer)
    report.write_finished_model(trainer, embedder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

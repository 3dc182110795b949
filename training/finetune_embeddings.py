"""
Fine-tunes a model to embed texts, so that texts of similar meaning have similar embeddings.

    python training/finetune_embeddings.py training/recipes/finetune_embeddings.yaml

    python training/finetune_embeddings.py --model my-encoder --train_file pairs.jsonl --text_field question \\
        --text_pair_field answer --output_dir runs/search

Takes any encoder or decoder of the Auto classes, or a SentenceTransformer. Files are tables of
pairs (STS, question and answer, query with positive and negatives), or a BEIR folder. With scores, the cosine of a pair
is trained to be its score. Without scores, pairs are positives and the other texts of a batch are negatives. The best
checkpoint is chosen on the validation set; the test set is measured before and after the training. The folder
opens as a SentenceTransformer and with AutoModel. The same command resumes a stopped run.

Needs sentence-transformers: pip install hf-tfm[embed]
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data.records import Records
from hf_tfm.tasks.fine_tune import Measurement, train_and_report
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.recipe import one_line_errors, parse_recipe
from hf_tfm.train.report import print_line

from transformers import set_seed


with needs_extra("embed"):
    from hf_tfm.tasks.embeddings import (
        LOSSES,
        EmbeddingArguments,
        EmbeddingTrainer,
        PairRecipe,
        find_score_range,
        load_embedder,
        read_pairs,
        unused_negatives,
    )


@dataclass
class EmbeddingRecipe(PairRecipe):
    loss: str | None = field(default=None, metadata={"help": "contrastive; with scores cosine (default) or cosent."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None and self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r} must be one of {', '.join(LOSSES)}")

    def choose_loss(self, train: Records) -> None:
        """Choose the loss that suits the training records. Raises `InputError` if the one that is given does not."""
        has_scores, has_negatives = ("score" in train[0], "negative" in train[0])
        self.loss = self.loss or ("cosine" if has_scores else "contrastive")
        if self.loss != "contrastive" and has_negatives:
            raise InputError(f"negatives go with --loss contrastive, not {self.loss}; --ignore_fields leaves them out")
        if self.loss == "contrastive" and has_scores:
            raise InputError(f"loss contrastive goes without scores: --ignore_fields {train.name_of('score')}")
        if self.loss != "contrastive" and not has_scores:
            raise InputError(f"loss {self.loss}: needs scores; --score_field names their field")


IGNORED_ARGUMENTS = {
    "label_smoothing_factor": "nothing here has labels to smooth",
    "train_sampling_strategy": "batches are of texts of similar length",
}


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, EmbeddingRecipe, EmbeddingArguments, __doc__)
    finetune.check_finetuning(args, recipe, IGNORED_ARGUMENTS)
    set_seed(args.seed)

    splits = finetune.read_splits(recipe, args.seed, lambda records: read_pairs(records).keys(), recipe.reading())
    recipe.choose_loss(splits["train"])
    score_range = find_score_range(splits, recipe.score_range)
    pairs = {name: read_pairs(records, score_range, name == "train") for name, records in splits.items()}

    embedder, new_weights = load_embedder(recipe, recipe.pooling)
    model, tokenizer, max_length = embedder.transformers_model, embedder.tokenizer, embedder.max_seq_length
    finetune.choose_attention(args, model, max_length)
    if recipe.lora:
        add_adapter(model, recipe, "FEATURE_EXTRACTION", inside=True)
    record = report.begin_record("finetune_embeddings", recipe, args, embedder, splits)
    record["library"] = "sentence-transformers"
    finetune.resolve_arguments(args, recipe, model, pairs["validation"].metrics, loss=False)

    trainer = EmbeddingTrainer(
        model=embedder,
        args=args,
        processing_class=tokenizer,
        loss=LOSSES[recipe.loss](embedder),
        pairs=pairs,
        record=record,
    )

    report.report_model(model, recipe, new_weights)
    print_line("task", f"{recipe.loss} loss, {getattr(embedder[1], 'pooling_mode', 'no')} pooling")
    bounds = " with scores from {:g} to {:g}".format(*score_range) if score_range else ""
    for name in pairs:
        print_line(name, f"{len(splits[name]):,} pairs{bounds}")
    if num_negatives := len(pairs["train"].columns) - 2:
        unused = unused_negatives(splits["train"], pairs["train"])
        print_line(
            "negatives", f"{num_negatives} for each pair; {unused:,} more are not used, as other pairs have fewer"
        )
    report.report_steps(args, trainer.longest_texts, max_length)
    report.report_example(tokenizer, trainer.first_texts[0], pairs["train"].columns[1][0])
    keys = {name: [key[:2] for key in split.keys()] for name, split in pairs.items()}
    record["overlap_with_train"] = report.report_overlap(keys)
    report.report_time_estimate(trainer)
    split = finetune.measured_split(splits)

    def measure(model, before):
        return Measurement(pairs[split].estimates(model, args.per_device_eval_batch_size))

    return train_and_report(trainer, recipe, split, measure)


if __name__ == "__main__":
    sys.exit(main())

"""
Trains a model to translate: a new one with an encoder, a decoder and a tokenizer of its own, or one that there is.

    python training/finetune_translation.py training/recipes/finetune_translation.yaml

    python training/finetune_translation.py --model tiny --train_file pairs.jsonl --source_field en --target_field de \\
        --output_dir runs/translator

--model is a size of a new model (nano, tiny, small …), a look-alike at a size (vaswani2017/tiny), or a folder to go on
from, of any kind that AutoModelForSeq2SeqLM opens. The best checkpoint is the one with the highest BLEU on validation
records, whose translations are shown as they get better; the test records are translated once, with beam search. The
same command goes on where a run was stopped.

Needs sacrebleu: pip install hf-tfm[metrics]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data.batches import PAD_TO_MULTIPLE_OF, in_order
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks import translation
from hf_tfm.tasks.losses import token_loss
from hf_tfm.train import finetune, report
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.optim import DEFAULTS
from hf_tfm.train.pretrain import OWN_OPTIMIZER
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, read_mapping, refuse_below
from hf_tfm.train.report import print_line

from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainingArguments,
    set_seed,
)


with needs_extra("metrics"):
    import sacrebleu  # noqa: F401, which measures the validation records in the middle of the run


SHOWN = 3  # translations at each evaluation
_IGNORED = {
    **OWN_OPTIMIZER,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "give --warmup_steps and --decay"),
}


@dataclass
class TranslationArguments(FinetuningArguments, Seq2SeqTrainingArguments):
    """transformers' arguments for sequence to sequence, with defaults for a new model."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Highest learning rate; by default optimizer's."}
    )
    num_train_epochs: float = 5.0
    per_device_train_batch_size: int = 64
    label_smoothing_factor: float = 0.1
    weight_decay: float | None = field(default=None, metadata={"help": "By default optimizer's."})
    max_grad_norm: float = 1.0
    predict_with_generate: bool = True


@dataclass
class TranslationRecipe(FinetuningRecipe):
    source_field: str = field(default="translation.en", metadata={"help": "Where a record has the text to translate."})
    target_field: str = field(default="translation.fr", metadata={"help": "Where it has the translation."})
    vocab_size: int = field(default=6144, metadata={"help": "Tokens for both languages, of a new model."})
    model_overrides: str = field(default="{}", metadata={"help": "Fields of a new model's two configurations as JSON."})
    optimizer: str = field(
        default="muon", metadata={"help": "muon (AdamW for embeddings and norms), normuon (for longer runs) or adamw."}
    )
    decay: float = field(default=0.5, metadata={"help": "Share of the run at its end over which the rate decays."})
    beams: int = field(default=4, metadata={"help": "Beams of the search for the final translations."})
    watched: int = field(default=400, metadata={"help": "Validation records that are translated at each evaluation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, watched=1, beams=1, decay=0)
        if self.decay > 1:
            raise InputError(f"decay {self.decay:g}: a share of the run, 1 at most")
        if self.lora:
            raise InputError("--lora is for models that were trained before; this script trains all weights")
        if self.optimizer not in DEFAULTS:
            raise InputError(f"optimizer {self.optimizer!r} must be one of {', '.join(DEFAULTS)}")


def read_pairs(records: Records, recipe: TranslationRecipe) -> tuple[list[str], list[str]]:
    """Sources and targets."""
    return (
        translation.read_texts(records, recipe.source_field, "source_field"),
        translation.read_texts(records, recipe.target_field, "target_field"),
    )


def prepare_model(recipe: TranslationRecipe, texts: list[str]):
    """Model and tokenizer, new ones or those of a folder; and the length that texts are cut to."""
    if not translation.is_preset(recipe.model):
        tokenizer = finetune.load_tokenizer(recipe)
        model, _ = finetune.load_model(AutoModelForSeq2SeqLM, recipe, tokenizer)
        return model, tokenizer, finetune.resolve_max_length(recipe, model, tokenizer)
    max_length = recipe.max_length or 128
    if recipe.tokenizer:
        tokenizer = finetune.load_tokenizer(recipe)
    else:
        tokenizer = translation.train_shared_tokenizer(texts, recipe.vocab_size, max_length)
    overrides = read_mapping(recipe.model_overrides, "model_overrides")
    return translation.build_translator(recipe.model, tokenizer, max_length, overrides), tokenizer, max_length


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TranslationRecipe, TranslationArguments, __doc__)
    finetune.check_finetuning(args, recipe, _IGNORED)
    set_seed(args.seed)

    train = read_records(recipe.train_file)
    train, validation = finetune.carve_validation(recipe, train, args.seed, read_pairs(train, recipe)[0])
    splits = {"train": train, "validation": validation.subset(range(min(recipe.watched, len(validation))))}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    pairs = {name: read_pairs(records, recipe) for name, records in splits.items()}

    model, tokenizer, max_length = prepare_model(recipe, [*pairs["train"][0], *pairs["train"][1]])
    finetune.choose_attention(args, model, max_length)
    start = model.config.decoder_start_token_id
    data = {name: translation.encode_pairs(tokenizer, max_length, start, *both) for name, both in pairs.items()}
    record = report.begin_record("finetune_translation", recipe, args, model, splits)
    if translation.is_preset(recipe.model):
        record["base_model"] = None
    args.learning_rate = args.learning_rate or DEFAULTS[recipe.optimizer]["lr"]
    args.generation_max_length = max_length
    finetune.resolve_arguments(args, recipe, model, ("bleu", "chrf"))

    report.report_model(model, recipe, [])
    print_line("tokenizer", f"{len(tokenizer):,} tokens for {recipe.source_field} and {recipe.target_field}")
    for name, records in splits.items():
        print_line(name, f"{len(records):,} pairs")
    report.report_steps(args, data["train"], max_length)
    report.report_example(tokenizer, data["train"][0], tokenizer.decode(data["train"][0]["labels"]))
    sources = {name: [text.casefold() for text in both[0]] for name, both in pairs.items()}
    record["overlap_with_train"] = report.report_overlap(sources)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        translations = translation.decode(tokenizer, in_order(prediction.predictions, data["validation"]))
        for source, found in list(zip(pairs["validation"][0], translations))[:SHOWN]:
            print_line("sample", f"{source} → {found}")
        return translation.scores(translations, pairs["validation"][1])

    trainer = translation.TranslationTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model, pad_to_multiple_of=PAD_TO_MULTIPLE_OF),
        compute_loss_func=token_loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics,
        record=record,
        optimizer_name=recipe.optimizer,
        decay=recipe.decay,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    split = "test" if "test" in splits else "validation"
    # Whoever opens the folder and calls generate gets what is measured here.
    model.generation_config.num_beams = args.generation_num_beams = recipe.beams
    model.generation_config.max_length = max_length
    translations = translation.decode(tokenizer, trainer.predict_in_order(data[split]))
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    sources, references = pairs[split]
    results = translation.estimate_scores(translations, references)
    copied = {"source copied": translation.estimate_scores(sources, references)}
    report.report_results(record, split, results, copied)
    record["samples"] = [f"{s} → {t} (reference: {r})" for s, t, r in list(zip(sources, translations, references))[:8]]
    print("\n".join(record["samples"]))
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

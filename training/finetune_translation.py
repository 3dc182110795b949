"""
Trains a model to translate: a new encoder-decoder with its own tokenizer, or an existing model.

    python training/finetune_translation.py training/recipes/finetune_translation.yaml

    python training/finetune_translation.py --model tiny --train_file pairs.jsonl --source_field en --target_field de \\
        --output_dir runs/translator

Takes two files of texts line by line (--train_file corpus.en corpus.de), tables, TMX, and records with the field
`translation: {"en": …, "de": …}`. --model is the size of a new model (nano, tiny, small …), a paper's architecture and
a size (vaswani2017/tiny), or the folder of any model that AutoModelForSeq2SeqLM opens. The best checkpoint has the
highest BLEU on the first 400 pairs of the validation set; the test set is translated once, with beam search. The same
command resumes a stopped run.

Needs sacrebleu: pip install hf-tfm[metrics]
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError
from hf_tfm.data.forms.form import Reading
from hf_tfm.tasks import translation
from hf_tfm.train import finetune, report
from hf_tfm.train.optim import DEFAULTS
from hf_tfm.train.pretrain_recipe import OWN_OPTIMIZER
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below

from transformers import Seq2SeqTrainingArguments, set_seed


OWN_SCHEDULE = dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "give --warmup_steps and --decay")


@dataclass
class TranslationArguments(finetune.FinetuningArguments, Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments with defaults for a new model."""

    learning_rate: float | None = field(default=None, metadata={"help": "Highest rate; by default the optimizer's."})
    num_train_epochs: float = 5.0
    per_device_train_batch_size: int = 64
    label_smoothing_factor: float = 0.1
    weight_decay: float | None = field(default=None, metadata={"help": "By default the optimizer's."})
    max_grad_norm: float = 1.0
    predict_with_generate: bool = True


@dataclass
class TranslationRecipe(FinetuningRecipe):
    source_field: str | None = field(
        default=None, metadata={"help": "Field of the text to translate, or its language: en, translation.en."}
    )
    target_field: str | None = field(default=None, metadata={"help": "Field of the translation, or its language."})
    vocab_size: int = field(default=6144, metadata={"help": "Vocabulary of a new model, for both languages."})
    model_overrides: str = field(default="{}", metadata={"help": "Fields of a new model's configurations, as JSON."})
    optimizer: str = field(default="muon", metadata={"help": "muon, normuon (for longer runs) or adamw."})
    decay: float = field(default=0.5, metadata={"help": "Share of the run, at its end, with a falling learning rate."})
    beams: int = field(default=4, metadata={"help": "Beams of the search for the final translations."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, beams=1, decay=0)
        if self.decay > 1:
            raise InputError(f"decay {self.decay:g}: a share of the run, 1 at most")
        if self.lora:
            raise InputError("--lora is for models that were trained before; this script trains all weights")
        if self.optimizer not in DEFAULTS:
            raise InputError(f"optimizer {self.optimizer!r} must be one of {', '.join(DEFAULTS)}")

    def reading(self) -> Reading:
        """Return how files are read."""
        names = {name: getattr(self, f"{name}_field") for name in ("source", "target")}
        return Reading("translation", {name: value for name, value in names.items() if value}, self.reading_options())


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TranslationRecipe, TranslationArguments, __doc__)
    finetune.check_finetuning(args, recipe, OWN_OPTIMIZER | OWN_SCHEDULE)
    set_seed(args.seed)

    splits = finetune.read_splits(
        recipe, args.seed, lambda records: translation.read_pairs(records)[0], recipe.reading()
    )
    pairs = {name: translation.read_pairs(records) for name, records in splits.items()}

    model, tokenizer, max_length = translation.load_translator(recipe, [*pairs["train"][0], *pairs["train"][1]])
    finetune.choose_attention(args, model, max_length)
    data = {name: translation.encode_translations(tokenizer, max_length, model, *both) for name, both in pairs.items()}
    record = report.begin_record("finetune_translation", recipe, args, model, splits)
    if translation.is_preset(recipe.model):
        record["base_model"] = None
    args.learning_rate = args.learning_rate or DEFAULTS[recipe.optimizer]["lr"]
    args.generation_max_length = max_length
    finetune.resolve_arguments(args, recipe, model, ("bleu", "chrf"))

    report.report_model(model, recipe, [])
    report.print_line("tokenizer", f"{len(tokenizer):,} tokens for source and target")
    for name, records in splits.items():
        report.print_line(name, f"{len(records):,} pairs")
    report.report_steps(args, data["train"], max_length)
    report.report_example(tokenizer, data["train"][0], tokenizer.decode(data["train"][0]["labels"]))
    sources = {name: [text.casefold() for text in both[0]] for name, both in pairs.items()}
    record["overlap_with_train"] = report.report_overlap(sources)

    trainer = translation.TranslationTrainer(
        model=model,
        args=args,
        data=data,
        validation=pairs["validation"],
        processing_class=tokenizer,
        record=record,
        optimizer_name=recipe.optimizer,
        decay=recipe.decay,
    )
    report.report_time_estimate(trainer)
    trainer.train_or_resume(finetune.finetuning_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    split = finetune.measured_split(splits)
    translations = trainer.translate(data[split], recipe.beams)
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    translation.report_translations(record, split, *pairs[split], translations)
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Trains a model to translate: a new encoder-decoder with its own tokenizer, or an existing model.

    python training/finetune_translation.py training/recipes/finetune_translation.yaml

    python training/finetune_translation.py --model tiny --train_file pairs.jsonl --source_field en --target_field de \\
        --output_dir runs/translator

--model is the size of a new model (nano, tiny, small …), a paper's architecture and a size (vaswani2017/tiny), or the
folder of any model that AutoModelForSeq2SeqLM opens. The best checkpoint has the highest BLEU on the validation set,
some translations of which are printed at each evaluation; the test set is translated once, with beam search. The same
command resumes a stopped run.

Needs sacrebleu: pip install hf-tfm[metrics]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data.batches import PAD_TO_MULTIPLE_OF, in_order
from hf_tfm.data.records import Records
from hf_tfm.tasks import translation
from hf_tfm.tasks.losses import token_loss
from hf_tfm.train import finetune, report
from hf_tfm.train.base_model import load_base_model, load_base_tokenizer
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.optim import DEFAULTS
from hf_tfm.train.pretrain_recipe import OWN_OPTIMIZER
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
    import sacrebleu  # noqa: F401, needed only at the first evaluation


PRINTED_SAMPLES = 3  # translations at each evaluation
_IGNORED = {
    **OWN_OPTIMIZER,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "give --warmup_steps and --decay"),
}


@dataclass
class TranslationArguments(FinetuningArguments, Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments with defaults for a new model."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Highest learning rate; by default the optimizer's."}
    )
    num_train_epochs: float = 5.0
    per_device_train_batch_size: int = 64
    label_smoothing_factor: float = 0.1
    weight_decay: float | None = field(default=None, metadata={"help": "By default the optimizer's."})
    max_grad_norm: float = 1.0
    predict_with_generate: bool = True


@dataclass
class TranslationRecipe(FinetuningRecipe):
    source_field: str = field(
        default="translation.en", metadata={"help": "Field of a record that has the text to translate."}
    )
    target_field: str = field(default="translation.fr", metadata={"help": "Field of the translation."})
    vocab_size: int = field(default=6144, metadata={"help": "Vocabulary of a new model, for both languages."})
    model_overrides: str = field(
        default="{}", metadata={"help": "Fields of both configurations of a new model, as JSON."}
    )
    optimizer: str = field(
        default="muon", metadata={"help": "muon (AdamW for embeddings and norms), normuon (for longer runs) or adamw."}
    )
    decay: float = field(
        default=0.5, metadata={"help": "Share of the steps, at the end, over which the learning rate decays."}
    )
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
    """Return sources and targets."""
    return (
        translation.read_texts(records, recipe.source_field, "source_field"),
        translation.read_texts(records, recipe.target_field, "target_field"),
    )


def prepare_model(recipe: TranslationRecipe, texts: list[str]):
    """Return a model and its tokenizer, new ones or those of a folder, and the length that texts are cut to."""
    if not translation.is_preset(recipe.model):
        tokenizer = load_base_tokenizer(recipe)
        model, _ = load_base_model(AutoModelForSeq2SeqLM, recipe, tokenizer)
        return model, tokenizer, finetune.resolve_max_length(recipe, model, tokenizer)
    max_length = recipe.max_length or 128
    if recipe.tokenizer:
        tokenizer = load_base_tokenizer(recipe)
    else:
        tokenizer = translation.train_shared_tokenizer(texts, recipe.vocab_size, max_length)
    overrides = read_mapping(recipe.model_overrides, "model_overrides")
    return translation.build_translator(recipe.model, tokenizer, max_length, overrides), tokenizer, max_length


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, TranslationRecipe, TranslationArguments, __doc__)
    finetune.check_finetuning(args, recipe, _IGNORED)
    set_seed(args.seed)

    splits = finetune.read_splits(recipe, args.seed, lambda records: read_pairs(records, recipe)[0])
    splits["validation"] = splits["validation"].subset(range(min(recipe.watched, len(splits["validation"]))))
    pairs = {name: read_pairs(records, recipe) for name, records in splits.items()}

    model, tokenizer, max_length = prepare_model(recipe, [*pairs["train"][0], *pairs["train"][1]])
    finetune.choose_attention(args, model, max_length)
    start = model.config.decoder_start_token_id
    data = {name: translation.encode_translations(tokenizer, max_length, start, *both) for name, both in pairs.items()}
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
        for source, translated in list(zip(pairs["validation"][0], translations))[:PRINTED_SAMPLES]:
            print_line("sample", f"{source} → {translated}")
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
    trainer.train_or_resume(finetune.finetuning_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    split = finetune.measured_split(splits)
    # The saved folder generates with the settings that are measured here.
    model.generation_config.num_beams = args.generation_num_beams = recipe.beams
    model.generation_config.max_length = max_length
    translations = translation.decode(tokenizer, trainer.predict_in_order(data[split]))
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    sources, references = pairs[split]
    results = translation.estimate_scores(translations, references)
    baselines = {"source copied": translation.estimate_scores(sources, references)}
    report.report_results(record, split, results, baselines)
    record["samples"] = [f"{s} → {t} (reference: {r})" for s, t, r in list(zip(sources, translations, references))[:8]]
    print("\n".join(record["samples"]))
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

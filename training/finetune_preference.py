"""
Fine-tunes a causal LM on pairs of answers of which one is preferred: by DPO, or into a reward model.

    python training/finetune_preference.py training/recipes/finetune_preference.yaml

    python training/finetune_preference.py --mode reward --model my-decoder --train_file pairs.jsonl --output_dir runs/r

Records have `prompt` (a text, or messages), `chosen` and `rejected`. DPO (Rafailov et al. 2023) makes the chosen
answers likelier than the rejected ones, compared with the model as it was; a reward model gives a conversation a
number, higher for the better answer (Bradley & Terry 1952). TRL's trainers do both. The best checkpoint has the lowest
loss on the validation records; test records are measured once. The same command goes on where a run was stopped.

Needs TRL: pip install hf-tfm[align]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data import chat
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks.preferences import encode_pairs, estimate_preferences, read_pairs, score_pairs
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed


with needs_extra("align"):
    from trl import DPOConfig, RewardConfig
from hf_tfm.tasks.trl_trainers import PairDPOTrainer, PairRewardTrainer, pair_dataset
from hf_tfm.train.report import print_line


@dataclass
class PreferenceRecipe(FinetuningRecipe):
    mode: str = field(default="dpo", metadata={"help": "dpo, or reward for a reward model."})
    beta: float = field(default=0.1, metadata={"help": "dpo: the higher, the nearer the model stays to what it was."})
    trl: str = field(default="{}", metadata={"help": "Other fields of TRL's DPOConfig or RewardConfig, as JSON."})
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a chat template; by default the tokenizer's, or one that suits it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, beta=0)
        if self.mode not in ("dpo", "reward"):
            raise InputError(f"mode {self.mode!r} must be dpo or reward")


@dataclass
class PreferenceArguments(FinetuningArguments):
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    train_sampling_strategy: str = "random"
    metric_for_best_model: str | None = "loss"


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, PreferenceRecipe, PreferenceArguments, __doc__)
    ignored = {
        "label_smoothing_factor": "a DPO loss has a label_smoothing of its own, among the fields of --trl",
        "train_sampling_strategy": "pairs are drawn at random",
    }
    finetune.check_finetuning(args, recipe, ignored)
    set_seed(args.seed)

    train = read_records(recipe.train_file)
    keys = [str(pair.prompt).casefold() for pair in read_pairs(train)]
    train, validation = finetune.carve_validation(recipe, train, args.seed, keys)
    splits: dict[str, Records] = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    pairs = {name: read_pairs(records) for name, records in splits.items()}

    tokenizer = finetune.load_tokenizer(recipe)
    head = (
        (AutoModelForCausalLM, {}) if recipe.mode == "dpo" else (AutoModelForSequenceClassification, {"num_labels": 1})
    )
    model, new = finetune.load_model(head[0], recipe, tokenizer, **head[1])
    chat.ensure_chat_template(tokenizer, recipe.chat_template)
    length = finetune.resolve_max_length(recipe, model, tokenizer)
    encoder = chat.ChatEncoder(tokenizer)
    found = {name: encode_pairs(encoder, pairs[name], splits[name].places, length) for name in splits}
    if recipe.mode == "dpo":
        chat.stop_at(model, tokenizer, encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "CAUSAL_LM" if recipe.mode == "dpo" else "SEQ_CLS", new)
    record = report.begin_record("finetune_preference", recipe, args, model, splits)
    # Preferences are a small change to a model that can speak already.
    finetune.resolve_arguments(args, recipe, model, ["loss"], pace=0.1 if recipe.mode == "dpo" else 0.5)

    report.report_model(model, recipe, new)
    for name, encoded in found.items():
        print_line(name, f"{len(encoded.rows):,} pairs")
        dropped = ((encoded.num_identical, "have the same answer twice"), (encoded.num_too_long, "are too long"))
        for count, what in dropped:
            if count:
                print_line("note", f"{count:,} {name} pairs {what}, they are left out (max_length {length})")
    total, per_epoch = report.count_steps(args, len(found["train"].rows))
    print_line("steps", f"{total:,}, {per_epoch:,} an epoch, rate {args.learning_rate:.3g}")
    for which in ("chosen", "rejected"):
        print_line(which, chat.show(tokenizer, found["train"].labelled_rows(which)[0]))

    datasets = {name: pair_dataset(encoded, recipe.mode == "reward") for name, encoded in found.items()}
    fields = {"max_length": None, "disable_dropout": recipe.lora_dropout == 0}
    if recipe.mode == "dpo":
        # The model as it was is asked once, before the training, and need not be kept beside the one that is trained;
        # but the first process writes what it says to a file that TRL has the others look for in the wrong place.
        fields |= {"beta": recipe.beta, "precompute_ref_log_probs": args.world_size == 1}
    config_class, trainer_class = (
        (DPOConfig, PairDPOTrainer) if recipe.mode == "dpo" else (RewardConfig, PairRewardTrainer)
    )
    trainer = trainer_class(
        model=model,
        args=finetune.trl_arguments(config_class, args, recipe.trl, **fields),
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        processing_class=tokenizer,
        record=record,
    )
    split = "test" if "test" in splits else "validation"
    before = score_pairs(trainer.model, tokenizer, found[split], recipe.mode == "reward")
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    after = score_pairs(model, tokenizer, found[split], recipe.mode == "reward")
    results = estimate_preferences(after, before, recipe.mode == "reward")
    beside = {"before": estimate_preferences(before, None, recipe.mode == "reward")}
    report.report_results(record, split, results, beside)
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

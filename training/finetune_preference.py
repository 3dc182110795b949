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
from typing import Any

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.core.quiet import quiet
from hf_tfm.data import chat
from hf_tfm.data.records import Records, read_records
from hf_tfm.evaluate import answers
from hf_tfm.tasks.preferences import EncodedPairs, agreement, encode_pairs, read_pairs, rewards
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed


with needs_extra("align"):
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from hf_tfm.train.report import print_line
from hf_tfm.train.trainer import RunMixin


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


class _PairTrainer(RunMixin):
    """The pairs are tokens already, and the card is this package's."""

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def create_model_card(self, *_, **__):
        pass


class PairDPOTrainer(_PairTrainer, DPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            # TRL's copy of a new adapter; without it, the reference is the model with its adapter switched off.
            self.model.delete_adapter("ref")


class PairRewardTrainer(_PairTrainer, RewardTrainer):
    pass


def pair_dataset(found: EncodedPairs, mode: str) -> Dataset:
    """Columns as TRL's collator takes them; a reward model reads the prompt as a part of each answer."""
    if mode == "dpo":
        return Dataset.from_list(found.rows)
    return Dataset.from_list(
        [{f"{which}_ids": r["prompt_ids"] + r[f"{which}_ids"] for which in ("chosen", "rejected")} for r in found.rows]
    )


def scores(model: Any, tokenizer: Any, found: EncodedPairs, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the model gives chosen and rejected answers, and the tokens of the chosen: log-likelihoods, or rewards."""
    with quiet():
        if mode == "dpo":
            (chosen, tokens), (rejected, _) = (
                answers.nats_and_tokens(model, tokenizer, found.answered(which)) for which in ("chosen", "rejected")
            )
            return -chosen, -rejected, tokens
        rows = {which: found.answered(which) for which in ("chosen", "rejected")}
        chosen, rejected = (rewards(model, tokenizer, several) for several in rows.values())
        return chosen, rejected, np.array([len(row["chosen_ids"]) for row in found.rows])


def figures(now: tuple[np.ndarray, ...], before: tuple[np.ndarray, ...] | None, mode: str) -> dict[str, Any]:
    """How many pairs a model agrees with; of a language model also by its change, and its loss on chosen answers."""
    chosen, rejected, tokens = now
    if mode == "reward":
        return {"accuracy": agreement(chosen, rejected)}
    results = {"likelier": agreement(chosen, rejected), "chosen_loss": answers.loss_estimate(-chosen, tokens)}
    if before is not None:
        results = {"accuracy": agreement(chosen - before[0], rejected - before[1]), **results}
    return results


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
        for count, what in ((encoded.alike, "have the same answer twice"), (encoded.left_out, "are too long")):
            if count:
                print_line("note", f"{count:,} {name} pairs {what}, they are left out (max_length {length})")
    total, per_epoch = report.count_steps(args, len(found["train"].rows))
    print_line("steps", f"{total:,}, {per_epoch:,} an epoch, rate {args.learning_rate:.3g}")
    for which in ("chosen", "rejected"):
        print_line(which, chat.show(tokenizer, found["train"].answered(which)[0]))

    datasets = {name: pair_dataset(encoded, recipe.mode) for name, encoded in found.items()}
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
    before = scores(trainer.model, tokenizer, found[split], recipe.mode)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    results = figures(scores(model, tokenizer, found[split], recipe.mode), before, recipe.mode)
    beside = {"before": figures(before, None, recipe.mode)}
    report.report_results(record, split, results, beside)
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

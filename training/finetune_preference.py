"""
Fine-tune a causal LM on pairs of a better and a worse answer: by DPO, or into a reward model.

    python training/finetune_preference.py training/recipes/finetune_preference.yaml

    python training/finetune_preference.py --mode reward --model my-decoder --train_file pairs.jsonl --output_dir runs/r

Records have `prompt` (a text, or messages), `chosen` and `rejected`: answers, or conversations that differ in their
last answer, also as texts with `Human:` and `Assistant:`. `hf-tfm formats preferences` lists all forms. DPO (Rafailov
et al. 2023) makes the chosen answers likelier than the rejected ones, relative to the untrained model; a reward model
gives a conversation a number, higher for the better answer (Bradley & Terry 1952). TRL trains both. The checkpoint with
the lowest loss on the validation set is kept; the test set is measured once. The same command resumes a stopped run.

Needs TRL: pip install hf-tfm[align]
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError, needs_extra
from hf_tfm.data import chat, chat_rows
from hf_tfm.data.forms.preferences import SIDES
from hf_tfm.tasks import chat_run
from hf_tfm.tasks.fine_tune import train_and_report
from hf_tfm.tasks.preferences import encode_splits, measure_pairs, pair_keys
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed


with needs_extra("align"):
    from trl import DPOConfig, RewardConfig
from hf_tfm.tasks.trl_trainers import PairDPOTrainer, PairRewardTrainer, pair_dataset


@dataclass
class PreferenceRecipe(chat_run.ChatRecipe):
    chosen_field: str | None = field(default=None, metadata={"help": "Field of the better answer."})
    rejected_field: str | None = field(default=None, metadata={"help": "Field of the worse answer."})
    tools_field: str | None = field(default=None, metadata={"help": "Field of the tools that a model can call."})
    mode: str = field(default="dpo", metadata={"help": "dpo, or reward for a reward model."})
    beta: float = field(
        default=0.1, metadata={"help": "dpo: a higher value keeps the model nearer to the untrained one."}
    )
    trl: str = field(default="{}", metadata={"help": "More fields of TRL's DPOConfig or RewardConfig, as JSON."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, beta=0)
        if self.mode not in ("dpo", "reward"):
            raise InputError(f"mode {self.mode!r} must be dpo or reward")


@dataclass
class PreferenceArguments(finetune.FinetuningArguments):
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    train_sampling_strategy: str = "random"
    metric_for_best_model: str | None = "loss"


IGNORED_ARGUMENTS = {
    "label_smoothing_factor": "a DPO loss has a label_smoothing of its own, among the fields of --trl",
    "train_sampling_strategy": "pairs are drawn at random",
}


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, PreferenceRecipe, PreferenceArguments, __doc__)
    finetune.check_finetuning(args, recipe, IGNORED_ARGUMENTS)
    set_seed(args.seed)
    reward = recipe.mode == "reward"

    splits = finetune.read_splits(recipe, args.seed, pair_keys, recipe.reading("preferences"))
    if reward:
        loaded = chat_run.load_chat_model(recipe, AutoModelForSequenceClassification, num_labels=1)
    else:
        loaded = chat_run.load_chat_model(recipe, AutoModelForCausalLM)
    model, tokenizer = loaded.model, loaded.tokenizer
    encoded = encode_splits(loaded.encoder, splits, loaded.max_length, recipe.skip_bad)
    if not reward:
        chat.stop_at(model, tokenizer, loaded.encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "SEQ_CLS" if reward else "CAUSAL_LM", loaded.new_weights)
    record = report.begin_record("finetune_preference", recipe, args, model, splits)
    # Preferences are a small change to a model that can reply already.
    finetune.resolve_arguments(args, recipe, model, ["loss"], pace=0.5 if reward else 0.1)

    report.report_model(model, recipe, loaded.new_weights)
    total, per_epoch = report.count_steps(args, len(encoded["train"].rows))
    print_line("steps", f"{total:,}, {per_epoch:,} an epoch, rate {args.learning_rate:.3g}")
    for side in SIDES:
        print_line(side, chat_rows.show(tokenizer, encoded["train"].labelled_rows(side)[0]))

    fields = {"max_length": None, "disable_dropout": recipe.lora_dropout == 0}
    if not reward:
        # The reference log-probabilities are computed once before the training, so that no second model is in memory.
        # With several processes the first one writes them to a file that TRL has the others look for elsewhere.
        fields |= {"beta": recipe.beta, "precompute_ref_log_probs": args.world_size == 1}
    config_class, trainer_class = (RewardConfig, PairRewardTrainer) if reward else (DPOConfig, PairDPOTrainer)
    trainer = trainer_class(
        model=model,
        args=finetune.trl_arguments(config_class, args, recipe.trl, **fields),
        train_dataset=pair_dataset(encoded["train"], reward),
        eval_dataset=pair_dataset(encoded["validation"], reward),
        processing_class=tokenizer,
        record=record,
    )
    split = finetune.measured_split(splits)

    def measure(model, before):
        return measure_pairs(model, tokenizer, encoded[split], before, reward)

    return train_and_report(trainer, recipe, split, measure)


if __name__ == "__main__":
    sys.exit(main())

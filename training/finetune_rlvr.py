"""
Train a causal LM on answers that can be checked, by reinforcement learning (GRPO, Shao et al. 2024; TRL's trainer).

    python training/finetune_rlvr.py training/recipes/finetune_rlvr.yaml

    python training/finetune_rlvr.py --model my-chat-model --train_file questions.jsonl --reward my_rewards.py:score

Records have a `prompt` (or `question`, `problem`, `messages`) and an `answer` (or `ground_truth`, `solution`), a number
or a regular expression, that answers are checked against; or a Python function of yours does, `function(answer,
record)`, with the record as it is in the file. `hf-tfm formats prompts` lists all forms. The number of an answer is the
one marked by `####` or `\\boxed{}`, else its last one; 1,200, 1e-05, 3/4, $3.50 and 50% are read. Several answers are
sampled for each prompt; those with a higher reward than the others become likelier. Start from a model that is
sometimes right. The checkpoint with the highest reward on the validation set, by greedy answers, is kept; the test set
is measured once. The same command resumes a stopped run.

Needs TRL: pip install hf-tfm[align]
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import needs_extra
from hf_tfm.data import chat
from hf_tfm.tasks import chat_run
from hf_tfm.tasks.fine_tune import train_and_report
from hf_tfm.tasks.rewards import KINDS, prompt_keys, read_verifiable_splits
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from transformers import AutoModelForCausalLM, set_seed


with needs_extra("align"):
    from trl import GRPOConfig
from hf_tfm.tasks.trl_trainers import VerifiedGRPOTrainer


@dataclass
class RlvrRecipe(chat_run.ChatRecipe):
    reward: str = field(default="number", metadata={"help": "number, pattern, or file.py:function."})
    answer_field: str | None = field(default=None, metadata={"help": "Field of the number or the pattern."})
    tools_field: str | None = field(default=None, metadata={"help": "Field of the tools that a model can call."})
    answers_per_prompt: int = field(default=8, metadata={"help": "Answers that are sampled and compared per prompt."})
    max_new_tokens: int = field(default=64, metadata={"help": "Length at which an answer is cut."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    beta: float = field(default=0.0, metadata={"help": "A higher value keeps the model nearer to the untrained one."})
    trl: str = field(default="{}", metadata={"help": "More fields of TRL's GRPOConfig, as JSON."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, max_new_tokens=1, temperature=0.01, beta=0)


@dataclass
class RlvrArguments(finetune.FinetuningArguments):
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Answers per step, over all prompts."})
    train_sampling_strategy: str = "random"
    num_train_epochs: float = 1.0
    warmup_steps: float = 0.0
    weight_decay: float = 0.0
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.1
    save_strategy: str = "steps"
    save_steps: float = 0.1
    include_num_input_tokens_seen: str | bool = "no"  # GRPO counts the tokens that it samples


IGNORED_ARGUMENTS = {
    "label_smoothing_factor": "nothing here has labels",
    "train_sampling_strategy": "prompts are drawn at random",
}


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, RlvrRecipe, RlvrArguments, __doc__)
    finetune.check_finetuning(args, recipe, IGNORED_ARGUMENTS)
    set_seed(args.seed)

    reading = recipe.reading("prompts", labelled=recipe.reward in KINDS)
    splits = finetune.read_splits(recipe, args.seed, prompt_keys, reading)
    loaded = chat_run.load_chat_model(recipe, AutoModelForCausalLM)
    model, tokenizer, encoder = loaded.model, loaded.tokenizer, loaded.encoder
    room = loaded.max_length - recipe.max_new_tokens
    verifiable = read_verifiable_splits(splits, encoder, recipe.reward, room, recipe.skip_bad)
    first = verifiable["train"].rows[0]
    answer = {"role": "assistant", "content": "."}
    encoder(
        [*verifiable["train"].prompts[0], answer], splits["train"].places[first], splits["train"][first].get("tools")
    )
    chat.stop_at(model, tokenizer, encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "CAUSAL_LM", loaded.new_weights)
    record = report.begin_record("finetune_rlvr", recipe, args, model, splits)
    finetune.resolve_arguments(args, recipe, model, ["reward"], pace=0.1, loss=False)
    report.report_model(model, recipe, loaded.new_weights)
    print_line("example", tokenizer.decode(verifiable["train"].ids[0]).replace("\n", "⏎") + " ⟦what it says⟧")

    fields = {"num_generations": recipe.answers_per_prompt, "num_generations_eval": 1, "remove_unused_columns": False}
    fields |= {"max_completion_length": recipe.max_new_tokens, "temperature": recipe.temperature, "beta": recipe.beta}
    trainer = VerifiedGRPOTrainer(
        model=model,
        args=finetune.trl_arguments(GRPOConfig, args, recipe.trl, **fields),
        processing_class=tokenizer,
        record=record,
        train=verifiable["train"],
        validation=verifiable["validation"],
        encoder=encoder,
        max_new_tokens=recipe.max_new_tokens,
    )
    print_line("steps", f"{trainer.describe_steps()}, rate {args.learning_rate:.3g}")
    split = finetune.measured_split(splits)

    def measure(model, before):
        return verifiable[split].estimate(model, tokenizer, recipe.max_new_tokens)

    return train_and_report(trainer, recipe, split, measure, verifiable[split].prompts)


if __name__ == "__main__":
    sys.exit(main())

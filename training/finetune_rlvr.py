"""
Trains a causal LM on answers that can be checked, by reinforcement learning (GRPO, Shao et al. 2024; TRL's trainer).

    python training/finetune_rlvr.py training/recipes/finetune_rlvr.yaml

    python training/finetune_rlvr.py --model my-chat-model --train_file questions.jsonl --reward my_rewards.py:score

Records have a `prompt` (or `question`, or `instruction`, or `messages`) and what an answer is checked by: a number, a
regular expression, or a function of yours, `function(answer, record)`. For each prompt several answers are drawn; those
that earn more than the others become likelier. Start from a model that is right now and then. The best checkpoint earns
most on the validation records, answered without chance; test records are measured once. The same command goes on where
a run was stopped.

Needs TRL: pip install hf-tfm[align]
"""

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import needs_extra
from hf_tfm.data import chat
from hf_tfm.data.chat import ChatEncoder
from hf_tfm.data.records import read_records
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from transformers import AutoModelForCausalLM, set_seed


with needs_extra("align"):
    from trl import GRPOConfig
from hf_tfm.tasks.instruct import format_dialogues
from hf_tfm.tasks.rewards import estimate_reward, read_verifiable_prompts, read_verifier
from hf_tfm.tasks.trl_trainers import VerifiedGRPOTrainer


@dataclass
class RlvrRecipe(FinetuningRecipe):
    reward: str = field(default="number", metadata={"help": "number, pattern, or file.py:function."})
    answer_field: str = field(default="answer", metadata={"help": "Where a record has the number or the pattern."})
    answers_per_prompt: int = field(default=8, metadata={"help": "Answers that are drawn for a prompt and compared."})
    max_new_tokens: int = field(default=64, metadata={"help": "Where an answer is cut."})
    temperature: float = field(default=1.0, metadata={"help": "Of the draws."})
    beta: float = field(default=0.0, metadata={"help": "The higher, the nearer the model stays to what it was."})
    trl: str = field(default="{}", metadata={"help": "Other fields of TRL's GRPOConfig, as JSON."})
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a chat template; by default the tokenizer's, or one that suits it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, max_new_tokens=1, temperature=0.01, beta=0)


@dataclass
class RlvrArguments(FinetuningArguments):
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Answers of a step, over all prompts."})
    train_sampling_strategy: str = "random"
    num_train_epochs: float = 1.0
    warmup_steps: float = 0.0
    weight_decay: float = 0.0
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.1
    save_strategy: str = "steps"
    save_steps: float = 0.1
    include_num_input_tokens_seen: str | bool = "no"  # the trainer counts those that it makes


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, RlvrRecipe, RlvrArguments, __doc__)
    ignored = {
        "label_smoothing_factor": "nothing here has labels",
        "train_sampling_strategy": "prompts are drawn at random",
    }
    finetune.check_finetuning(args, recipe, ignored)
    set_seed(args.seed)

    train = read_records(recipe.train_file)
    keys = [str(chat.read_prompt(record, place)) for record, place in zip(train, train.places)]
    train, validation = finetune.carve_validation(recipe, train, args.seed, keys)
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")

    tokenizer = finetune.load_tokenizer(recipe)
    model, new = finetune.load_model(AutoModelForCausalLM, recipe, tokenizer)
    chat.ensure_chat_template(tokenizer, recipe.chat_template)
    length = finetune.resolve_max_length(recipe, model, tokenizer)
    encoder = ChatEncoder(tokenizer)
    room = length - recipe.max_new_tokens
    questions = {}
    for name, records in splits.items():
        verify = read_verifier(recipe.reward, records, recipe.answer_field)
        questions[name] = found = read_verifiable_prompts(records, encoder, verify, room)
        print_line(name, f"{len(found.rows):,} questions")
        if len(found.rows) < len(records):
            print_line(
                "note", f"{len(records) - len(found.rows):,} {name} prompts are left out: longer than {room} tokens"
            )
    encoder([*questions["train"].prompts[0], {"role": "assistant", "content": "."}], train.places[0])
    chat.stop_at(model, tokenizer, encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "CAUSAL_LM", new)
    record = report.begin_record("finetune_rlvr", recipe, args, model, splits)
    finetune.resolve_arguments(args, recipe, model, ["reward"], pace=0.1, loss=False)
    report.report_model(model, recipe, new)
    per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps / recipe.answers_per_prompt
    print_line(
        "steps", f"{per_step:g} prompts with {recipe.answers_per_prompt} answers each, rate {args.learning_rate:.3g}"
    )
    print_line("example", tokenizer.decode(questions["train"].ids[0]).replace("\n", "⏎") + " ⟦what it says⟧")

    fields = dict(
        num_generations=recipe.answers_per_prompt,
        num_generations_eval=1,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        beta=recipe.beta,
        remove_unused_columns=False,
    )
    trainer = VerifiedGRPOTrainer(
        model=model,
        args=finetune.trl_arguments(GRPOConfig, args, recipe.trl, **fields),
        processing_class=tokenizer,
        record=record,
        train=questions["train"],
        validation=questions["validation"],
        encoder=encoder,
        max_new_tokens=recipe.max_new_tokens,
    )
    split = "test" if "test" in splits else "validation"
    before, said_before = questions[split].measure(trainer.model, tokenizer, recipe.max_new_tokens)
    beside = {"before": estimate_reward(before, recipe.reward)}
    print_line("before", ", ".join(f"{name} {figure} on {split}" for name, figure in beside["before"].items()))
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    after, said = questions[split].measure(model, tokenizer, recipe.max_new_tokens)
    results = estimate_reward(after, recipe.reward)
    report.report_results(record, split, results, beside)
    record["samples"] = format_dialogues(questions[split].prompts, {"before": said_before, "after": said})
    record["chat"] = questions[split].prompts[0][-1]["content"]
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

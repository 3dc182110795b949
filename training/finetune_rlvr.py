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
import time
from dataclasses import dataclass, field

from hf_tfm.core.errors import needs_extra
from hf_tfm.data import chat
from hf_tfm.data.chat import ChatEncoder
from hf_tfm.data.records import read_records
from hf_tfm.evaluate import answers
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from datasets import Dataset
from transformers import AutoModelForCausalLM, set_seed


with needs_extra("align"):
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import RepeatSampler
from hf_tfm.tasks.rewards import Questions, estimate, read_questions, read_verifier
from hf_tfm.train.trainer import RunMixin


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


class _EpochSampler(RepeatSampler):
    """Each epoch's order from seed and epoch alone, so that a resumed run draws it again."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self.seed + epoch)


class RewardedTrainer(RunMixin, GRPOTrainer):
    """GRPO over questions that are tokens already; evaluates with the likeliest answers."""

    def __init__(
        self, *args, train: Questions, validation: Questions, recipe: RlvrRecipe, encoder: ChatEncoder, **kwargs
    ):
        self.questions, self.recipe, self.encoder = validation, recipe, encoder

        def reward(completions, row, **_):
            return [train.verify(said[0]["content"].strip(), number) for said, number in zip(completions, row)]

        rows = [{"prompt": prompt, "row": row} for prompt, row in zip(train.prompts, train.rows)]
        super().__init__(*args, reward_funcs=reward, train_dataset=Dataset.from_list(rows), **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # the reference is the model with its adapter switched off

    def _tokenize_prompts(self, prompts):
        return [self.encoder.prompt(prompt, "prompt") for prompt in prompts], None, {}

    def _get_train_sampler(self, dataset=None):
        stock = super()._get_train_sampler(dataset)
        return _EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        started = time.time()
        earned, _ = self.questions.ask(self.model, self.encoder.tokenizer, self.recipe.max_new_tokens)
        metrics = {f"{metric_key_prefix}_reward": float(earned.mean())}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *_, **__):
        pass


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
        questions[name] = found = read_questions(records, encoder, verify, room)
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
    trainer = RewardedTrainer(
        model=model,
        args=finetune.trl_arguments(GRPOConfig, args, recipe.trl, **fields),
        eval_dataset=Dataset.from_list([{"prompt": questions["validation"].prompts[0]}]),  # TRL wants to see one
        processing_class=tokenizer,
        record=record,
        train=questions["train"],
        validation=questions["validation"],
        recipe=recipe,
        encoder=encoder,
    )
    split = "test" if "test" in splits else "validation"
    before, said_before = questions[split].ask(trainer.model, tokenizer, recipe.max_new_tokens)
    beside = {"before": estimate(before, recipe.reward)}
    print_line("before", ", ".join(f"{name} {figure} on {split}" for name, figure in beside["before"].items()))
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    after, said = questions[split].ask(model, tokenizer, recipe.max_new_tokens)
    results = estimate(after, recipe.reward)
    report.report_results(record, split, results, beside)
    texts = {"before": [answer.text for answer in said_before], "after": [answer.text for answer in said]}
    record["samples"] = answers.dialogues(questions[split].prompts, texts)
    record["chat"] = questions[split].prompts[0][-1]["content"]
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Fine-tune a causal LM to reply: instructions, prompts with responses, conversations of several turns.

    python training/finetune_instruct.py training/recipes/finetune_instruct.yaml

    python training/finetune_instruct.py --model my-decoder --train_file chats.jsonl --lora --output_dir runs/chat

Takes any causal LM of the Auto classes. Records have `messages`, also with tools and their calls; ShareGPT's
`conversations`; `instruction`, `input` and `output`; `prompt` and `response`; or another form of those that
`hf-tfm formats chat` lists. The loss is on the assistant's tokens, the token that ends a reply included, so that the
model learns to stop; messages with `weight` 0 are not trained. Conversations are packed into rows of `max_length`
tokens and do not see each other. The checkpoint with the lowest loss on the validation set is kept; the test set is
measured once. The same command resumes a stopped run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field

from hf_tfm.core.errors import InputError
from hf_tfm.data import chat, chat_rows
from hf_tfm.data.conversations import up_to_answer
from hf_tfm.tasks import chat_run, instruct
from hf_tfm.tasks.fine_tune import train_and_report
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from transformers import AutoModelForCausalLM, set_seed


@dataclass
class InstructRecipe(chat_run.ChatRecipe):
    packing: bool = field(default=True, metadata={"help": "Pack conversations into rows of max_length tokens."})
    messages_field: str | None = field(default=None, metadata={"help": "Field of the messages, in any known shape."})
    response_field: str | None = field(default=None, metadata={"help": "Field of the answer to the prompt."})
    tools_field: str | None = field(default=None, metadata={"help": "Field of the tools that a model can call."})
    train_on: str = field(
        default="assistant",
        metadata={"help": "Tokens to predict: assistant (its messages and calls), last (its last message), or all."},
    )
    train_on_prompts: bool = field(default=False, metadata={"help": "The same as --train_on all."})
    new_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Tokens of the records to add to the tokenizer, or to give one of its spare tokens."},
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Length at which generated replies are cut."})
    answers: int = field(default=100, metadata={"help": "Prompts of the measured split to generate replies to."})
    baselines: bool = field(default=True, metadata={"help": "Measure the model before the training, too."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, max_new_tokens=1, answers=0)
        if self.train_on not in chat_rows.TRAINED:
            raise InputError(f"train_on {self.train_on!r} must be one of {', '.join(chat_rows.TRAINED)}")
        self.train_on = "all" if self.train_on_prompts else self.train_on


@dataclass
class InstructArguments(finetune.FinetuningArguments):
    per_device_train_batch_size: int = 8
    metric_for_best_model: str | None = "loss"


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, InstructRecipe, InstructArguments, __doc__)
    finetune.check_finetuning(args, recipe, {"label_smoothing_factor": "the loss on answers is the plain one"})
    args.remove_unused_columns = False  # the collator chooses the columns
    set_seed(args.seed)

    splits = finetune.read_splits(recipe, args.seed, instruct.conversation_keys, recipe.reading("chat"))
    loaded = chat_run.load_chat_model(recipe, AutoModelForCausalLM, recipe.new_tokens)
    model, tokenizer, encoder, length = loaded.model, loaded.tokenizer, loaded.encoder, loaded.max_length
    if loaded.new_weights:
        raise InputError(f"{recipe.model}: is no causal LM, it lacks {loaded.new_weights[0]}")

    encoded = instruct.encode_splits(encoder, splits, length, recipe.train_on, recipe.skip_bad)
    chat.stop_at(model, tokenizer, encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "CAUSAL_LM", new_tokens=loaded.new_tokens)
    record = report.begin_record("finetune_instruct", recipe, args, model, splits)
    record["loss_name"] = "loss (nats per trained token)"
    finetune.resolve_arguments(args, recipe, model, ["loss"])

    rows = encoded["train"].rows
    train = chat_rows.pack(rows, length, tokenizer.pad_token_id) if recipe.packing else rows
    if recipe.packing:
        full = encoded["train"].tokens / (length * len(train))
        print_line("packing", f"{len(train):,} rows of {length} tokens, {full:.1%} full, no conversation sees another")
    report.report_model(model, recipe, loaded.new_weights)
    report.report_steps(args, rows, length, train if recipe.packing else None)
    print_line("example", chat_rows.show(tokenizer, rows[0]))
    keys = {name: instruct.conversation_keys(records) for name, records in splits.items()}
    record["overlap_with_train"] = report.report_overlap(keys)

    trainer = instruct.ReplyLossTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=encoded["validation"].rows,
        processing_class=tokenizer,
        data_collator=chat_rows.ConversationCollator(tokenizer.pad_token_id),
        record=record,
    )
    if recipe.packing:
        chat_rows.check_packing(trainer.model, train)
    report.report_time_estimate(trainer)

    split = finetune.measured_split(splits)
    measured, records = encoded[split], splits[split]
    numbers = measured.numbers[: recipe.answers]
    prompts = [up_to_answer(records[number]["messages"][:turns]) for number, turns in zip(numbers, measured.turns)]
    prompt_ids = [
        encoder.prompt(prompt, split, records[number].get("tools")) for number, prompt in zip(numbers, prompts)
    ]

    def measure(model, before):
        return instruct.measure_replies(model, encoder, measured.rows, prompt_ids, recipe.max_new_tokens)

    return train_and_report(trainer, recipe, split, measure, prompts, measure_before=recipe.baselines)


if __name__ == "__main__":
    sys.exit(main())

"""
Fine-tunes a causal LM to answer: instructions, prompts with responses, conversations of several turns.

    python training/finetune_instruct.py training/recipes/finetune_instruct.yaml

    python training/finetune_instruct.py --model my-decoder --train_file chats.jsonl --lora --output_dir runs/chat

Takes any causal LM of the Auto classes. Records have `instruction`, `input` and `output`, or `prompt` and `response`,
or `messages`. The loss is on what the assistant says, the token that ends an answer included, so the model learns to
stop. Conversations are packed into rows of `max_length` tokens and do not see one another. The best checkpoint has the
lowest loss on the validation records; test records are measured once. The same command goes on where a run was stopped.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from hf_tfm.core.errors import InputError
from hf_tfm.data import chat
from hf_tfm.data.chat import ChatEncoder, ConversationCollator
from hf_tfm.data.records import Records, read_records
from hf_tfm.tasks.instruct import ReplyLossTrainer, conversation_key, format_dialogues, measure_replies
from hf_tfm.train import finetune, report
from hf_tfm.train.adapters import add_adapter
from hf_tfm.train.finetune import FinetuningArguments
from hf_tfm.train.recipe import FinetuningRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import print_line

from transformers import AutoModelForCausalLM, set_seed


@dataclass
class InstructRecipe(FinetuningRecipe):
    packing: bool = field(default=True, metadata={"help": "Put several conversations into a row of max_length tokens."})
    train_on_prompts: bool = field(default=False, metadata={"help": "Predict all tokens, not the assistant's alone."})
    chat_template: str | None = field(
        default=None, metadata={"help": "File with a chat template; by default the tokenizer's, or one that suits it."}
    )
    new_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Tokens that the records hold and the tokenizer does not have, or has as spare ones."},
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Where answers to measured prompts are cut."})
    answers: int = field(default=100, metadata={"help": "How many prompts of the measured split are answered."})
    baselines: bool = field(default=True, metadata={"help": "Measure the model as it was before, too."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, max_new_tokens=1, answers=0)


@dataclass
class InstructArguments(FinetuningArguments):
    per_device_train_batch_size: int = 8
    metric_for_best_model: str | None = "loss"


def read_splits(recipe: InstructRecipe, seed: int) -> tuple[dict[str, Records], dict[str, list[Any]]]:
    """The splits that there are, validation always among them, and their conversations."""
    train = read_records(recipe.train_file)
    keys = [conversation_key(messages) for messages in chat.read_conversations(train)]
    train, validation = finetune.carve_validation(recipe, train, seed, keys)
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_records(recipe.test_file, "test")
    return splits, {name: chat.read_conversations(records) for name, records in splits.items()}


def encode_splits(
    encoder: ChatEncoder, recipe: InstructRecipe, splits: dict[str, Records], chats: dict[str, list[Any]], length: int
) -> dict[str, chat.Encoded]:
    """Rows of each split, with a line on what they hold and what did not fit."""
    encoded = {}
    for name, records in splits.items():
        found = chat.encode_conversations(encoder, chats[name], records.places, length, recipe.train_on_prompts)
        print_line(
            name, f"{len(found.rows):,} conversations, {found.tokens:,} tokens, {found.trained:,} of them trained"
        )
        for count, what in ((found.shortened, "lost their last turns"), (found.left_out, "are left out")):
            if count:
                print_line("note", f"{count:,} {name} conversations {what}: they are longer than {length} tokens")
        encoded[name] = found
    return encoded


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, args = parse_recipe(argv, InstructRecipe, InstructArguments, __doc__)
    finetune.check_finetuning(args, recipe, {"label_smoothing_factor": "the loss on answers is the plain one"})
    args.remove_unused_columns = False  # the collator knows what the model is to get
    set_seed(args.seed)

    splits, chats = read_splits(recipe, args.seed)
    tokenizer = finetune.load_tokenizer(recipe)
    model, new = finetune.load_model(AutoModelForCausalLM, recipe, tokenizer)
    if new:
        raise InputError(f"{recipe.model}: is no causal LM, it lacks {new[0]}")
    new_tokens = chat.add_tokens(tokenizer, model, recipe.new_tokens or [], recipe.lora)
    chat.ensure_chat_template(tokenizer, recipe.chat_template)
    length = finetune.resolve_max_length(recipe, model, tokenizer)
    encoder = ChatEncoder(tokenizer)

    encoded = encode_splits(encoder, recipe, splits, chats, length)
    chat.stop_at(model, tokenizer, encoder.ends)
    if recipe.lora:
        model = add_adapter(model, recipe, "CAUSAL_LM", new_tokens=new_tokens)
    record = report.begin_record("finetune_instruct", recipe, args, model, splits)
    record["loss_name"] = "loss (nats per trained token)"
    finetune.resolve_arguments(args, recipe, model, ["loss"])

    train = encoded["train"].rows
    if recipe.packing:
        train = chat.pack(train, length, tokenizer.pad_token_id)
        filled = encoded["train"].tokens / (length * len(train))
        print_line(
            "packing", f"{len(train):,} rows of {length} tokens, {filled:.1%} full, no conversation sees another"
        )
    report.report_model(model, recipe, new)
    report.report_steps(args, encoded["train"].rows, length, train if recipe.packing else None)
    print_line("example", chat.show(tokenizer, encoded["train"].rows[0]))
    record["overlap_with_train"] = report.report_overlap(
        {name: [conversation_key(messages) for messages in chats[name]] for name in splits}
    )

    trainer = ReplyLossTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=encoded["validation"].rows,
        processing_class=tokenizer,
        data_collator=ConversationCollator(tokenizer.pad_token_id),
        record=record,
    )
    if recipe.packing:
        chat.check_packing(trainer.model, train)
    report.report_time_estimate(trainer)

    split = "test" if "test" in splits else "validation"
    held_out = encoded[split]
    asked_of = list(zip(held_out.numbers, held_out.turns))[: recipe.answers]
    prompts = [chat.up_to_answer(chats[split][number][:turns]) for number, turns in asked_of]
    asked = [encoder.prompt(prompt, split) for prompt in prompts]
    before, said_before = {}, []
    if recipe.baselines:
        before, said_before = measure_replies(trainer.model, encoder, held_out.rows, asked, recipe.max_new_tokens)
    trainer.train_or_resume(finetune.run_identity(recipe, args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)

    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    results, said = measure_replies(model, encoder, held_out.rows, asked, recipe.max_new_tokens)
    report.report_results(record, split, results, {"before": before} if before else {})
    record["samples"] = format_dialogues(prompts, {"before": said_before, "after": said})
    print("\n\n".join(["", *record["samples"]]))
    record["chat"] = prompts[0][-1]["content"] if prompts else None
    report.write_finished_model(trainer, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())

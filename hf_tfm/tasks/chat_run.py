"""
Shared code of the scripts that train on conversations: model, chat template, and figures before and after training.

`finetune_instruct.py`, `finetune_preference.py` and `finetune_rlvr.py` have different Trainers and different figures;
their records have no labels, so they do not use the runner of labelled tasks (`fine_tune.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.statistics import Estimate
from ..data.chat import ChatEncoder, add_tokens, ensure_chat_template
from ..data.conversations import Message
from ..train import finetune, report
from ..train.base_model import load_base_model, load_base_tokenizer
from ..train.recipe import FinetuningRecipe
from .generation import Reply


@dataclass
class ChatRecipe(FinetuningRecipe):
    """Fields of every script that trains on conversations."""

    chat_template: str | None = field(
        default=None,
        metadata={"help": "File with a chat template; by default the tokenizer's own, or one that fits its tokens."},
    )


class ChatModel(NamedTuple):
    """
    A model with its tokenizer and the encoder of its chat template.

    Attributes:
        new_weights: names of the weights that the folder lacks.
        max_length: tokens that conversations are cut to.
        new_tokens: ids of the tokens that were added.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: ChatEncoder
    new_weights: list[str]
    max_length: int
    new_tokens: list[int]


def load_chat_model(
    recipe: ChatRecipe, auto_class: Any, new_tokens: Sequence[str] | None = None, **config_fields: Any
) -> ChatModel:
    """
    Load the recipe's model and tokenizer, and make sure that there is a chat template.

    Args:
        auto_class: transformers' Auto class of the model.
        new_tokens: tokens to add to the tokenizer and the model.
        config_fields: fields of the model's configuration.

    Raises:
        InputError: model, tokenizer or template cannot be read, or do not fit each other.
    """
    tokenizer = load_base_tokenizer(recipe)
    model, new_weights = load_base_model(auto_class, recipe, tokenizer, **config_fields)
    new_ids = add_tokens(tokenizer, model, new_tokens, recipe.lora) if new_tokens else []
    ensure_chat_template(tokenizer, recipe.chat_template)
    max_length = finetune.resolve_max_length(recipe, model, tokenizer)
    return ChatModel(model, tokenizer, ChatEncoder(tokenizer), new_weights, max_length, new_ids)


@dataclass
class Measurement:
    """
    A model's figures on the measured split.

    Attributes:
        replies: replies to the first prompts, to print as samples.
        scores: numbers that a later measurement is compared with.
    """

    figures: dict[str, Estimate]
    replies: Sequence[Reply] = ()
    scores: Any = None


# Takes the model, and the measurement before the training if it is over.
Measure = Callable[[Any, Measurement | None], Measurement]


def train_and_report(
    trainer: Any,
    recipe: FinetuningRecipe,
    split: str,
    measure: Measure,
    prompts: Sequence[Sequence[Message]] | None = None,
    measure_before: bool = True,
) -> int:
    """
    Measure the model, train or resume, measure it again, and write the folder with card and record.

    Args:
        trainer: a Trainer with this package's `RunMixin`.
        split: name of the measured split.
        prompts: the prompts of the replies in a `Measurement`.
        measure_before: measure the untrained model, to report its figures beside those of the trained one.

    Returns: the exit code of the script.
    """
    record = trainer.record
    before = measure(trainer.model, None) if measure_before else None
    if before:
        figures = ", ".join(f"{name} {figure}" for name, figure in before.figures.items())
        report.print_line("before", f"{figures} on {split}")
    trainer.train_or_resume(finetune.finetuning_identity(recipe, trainer.args, record["data"]))
    if trainer.stopped:
        return report.report_stopped(trainer)
    model = trainer.finished_model()
    if not trainer.is_world_process_zero():
        return 0
    after = measure(model, before)
    report.report_results(record, split, after.figures, {"before": before.figures} if before else {})
    if prompts is not None:
        replies = {"before": before.replies if before else (), "after": after.replies}
        record["samples"] = format_dialogues(prompts, replies)
        record["chat"] = prompts[0][-1]["content"] if prompts else None
        print("\n\n".join(["", *record["samples"]]))
    report.write_finished_model(trainer, model)
    return 0


def format_dialogues(
    prompts: Sequence[Sequence[Message]], replies: Mapping[str, Sequence[Reply]], limit: int = 3
) -> list[str]:
    """Return the first prompts as text, each with the replies of every model under the model's name."""
    dialogues = []
    for number, messages in enumerate(prompts[:limit]):
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        for name, of_model in replies.items():
            if of_model:
                text, finished = of_model[number]
                lines.append(f"{name} → {text}{'' if finished else ' …'}")
        dialogues.append("\n".join(lines))
    return dialogues

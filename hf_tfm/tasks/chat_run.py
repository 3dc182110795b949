"""What the scripts that train on conversations share: model, tokenizer and chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..data.chat import ChatEncoder, add_tokens, ensure_chat_template
from ..data.forms.form import Reading
from ..data.forms.jobs import JOBS
from ..train import finetune
from ..train.base_model import load_base_model, load_base_tokenizer
from ..train.recipe import FinetuningRecipe
from ..train.report import print_line


@dataclass
class ChatRecipe(FinetuningRecipe):
    """Fields of every script that trains on conversations."""

    prompt_field: str | None = field(default=None, metadata={"help": "Field of the prompt: a text, or messages."})
    system_field: str | None = field(default=None, metadata={"help": "Field of the system prompt."})
    chat_template: str | None = field(
        default=None,
        metadata={"help": "File with a chat template; by default the tokenizer's own, or one that fits its tokens."},
    )
    reasoning: str | None = field(
        default=None,
        metadata={"help": "keep or drop the reasoning of messages; by default kept if the chat template writes it."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reasoning not in (None, "keep", "drop"):
            raise InputError(f"reasoning {self.reasoning!r} must be keep or drop")

    def reading(self, job: str, labelled: bool = True) -> Reading:
        """Return how the files are read for a job, with the fields that the recipe names."""
        options = {name: field.option for name, field in JOBS[job].fields.items() if field.option}
        names = {name: value for name, option in options.items() if (value := getattr(self, option, None))}
        return Reading(job, names, self.reading_options(), labelled)


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
    return ChatModel(model, tokenizer, ChatEncoder(tokenizer, recipe.reasoning), new_weights, max_length, new_ids)


def report_refused(split: str, refused: Sequence[str]) -> None:
    """Print how many records of a split were refused, and the first reason."""
    if refused:
        print_line("note", f"{len(refused):,} {split} records are left out, the first because {refused[0]}")

"""The regime of a pretraining run: how often it reads its text, and how much it reads for each parameter."""

import dataclasses
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..data.packed_blocks import group_sources
from ..data.sources import Source
from ..data.tokens import TokenStore
from .pretrain_recipe import PretrainingRecipe, rows_per_step


@dataclass(frozen=True)
class Regime:
    """
    The sizes of a run.

    Attributes:
        steps: planned steps.
        tokens_per_step: tokens of a step over all processes, padding included.
        text_tokens, text_bytes: size of the training text; None for a stream, which is not counted beforehand.
        validation_tokens: tokens of an evaluation, at most.
        parameters, other_parameters: parameters of the model, all of them and without the embeddings.
    """

    steps: int
    tokens_per_step: int
    text_tokens: int | None
    text_bytes: int | None
    validation_tokens: int
    parameters: int = 0
    other_parameters: int = 0

    @property
    def tokens(self) -> int:
        """Return the tokens that the run reads."""
        return self.steps * self.tokens_per_step

    @property
    def passes(self) -> float | None:
        """Return how often the run reads its text, None for a stream."""
        return None if self.text_tokens is None else self.tokens / max(self.text_tokens, 1)

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens that the run reads for each parameter."""
        return self.tokens / self.parameters

    def of_model(self, model: PreTrainedModel) -> "Regime":
        """Return the regime of the same run with another model, which may be without weights."""
        total = model.num_parameters()
        others = total - model.get_input_embeddings().weight.numel()
        return dataclasses.replace(self, parameters=total, other_parameters=others)

    def describe(self) -> str:
        """Return the regime in one line."""
        text = "the text is a stream: how often it is read is not known"
        if self.passes is not None:
            text = f"{self.passes:.2g} passes over {self.text_tokens:,} tokens ({self.text_bytes:,} bytes) of text"
        return (
            f"{text}; {self.tokens_per_parameter:.2g} tokens for each of {self.parameters:,} parameters "
            f"({self.other_parameters:,} without embeddings)"
        )


def measure_regime(
    recipe: PretrainingRecipe,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    wrap: bool,
) -> Regime:
    """
    Return the regime of a run; the text is tokenized into the cache.

    Args:
        model: a model of the run's shape; it may be without weights.
        wrap: whether documents get begin and end tokens.

    Raises:
        InputError: the text cannot be read.
    """

    def read(sources: list[Source], progress: bool = False) -> TokenStore:
        return TokenStore.build(sources, tokenizer, wrap=wrap, cache_dir=recipe.cache_dir, progress=progress)

    groups = [] if recipe.streaming else group_sources(recipe.training_sources())
    train = [read(group, args.process_index == 0) for group in groups]
    return Regime(
        steps=args.max_steps,
        tokens_per_step=rows_per_step(args) * recipe.block_length,
        text_tokens=None if recipe.streaming else sum(store.num_tokens for store in train),
        text_bytes=None if recipe.streaming else sum(store.num_bytes for store in train),
        validation_tokens=min(recipe.validation_tokens, read(recipe.validation_sources()).num_tokens),
    ).of_model(model)

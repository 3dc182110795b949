"""
TRL's trainers with this package's checkpoints and resumption, over records that are tokens already.

Needs TRL: pip install hf-tfm[align]
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from ..core.errors import InputError, needs_extra
from ..core.quiet import no_bars
from ..data.chat import ChatEncoder
from ..data.conversations import Message
from ..data.forms.preferences import SIDES
from ..train.custom_evaluation import MeasuredEvaluation
from ..train.report import refuse_long_warmup
from ..train.trainer import RunMixin
from .preferences import EncodedPairs
from .rewards import VerifiablePrompts


with needs_extra("align"):
    from trl import DPOTrainer, GRPOTrainer, RewardTrainer
    from trl.trainer.utils import RepeatSampler


class _TrlMixin(RunMixin):
    """Changes that all of TRL's trainers need."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with no_bars():  # of datasets and reference log-probabilities, between the lines of the report
            super().__init__(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card to this package."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if not self.model.training:
            # Means of the batches' means: they depend on the size of the batches. The loss does not.
            self._metrics["eval"].clear()
        super().log(logs, *args, **kwargs)

    def delete_reference_adapter(self) -> None:
        """Delete TRL's copy of a new adapter: the reference is the model with its adapter switched off."""
        model: Any = self.model
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")


class PairDPOTrainer(_TrlMixin, DPOTrainer):
    """Direct preference optimisation over encoded pairs (Rafailov et al. 2023)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.delete_reference_adapter()

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


class PairRewardTrainer(_TrlMixin, RewardTrainer):
    """A reward model over encoded pairs (Bradley & Terry 1952)."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


def pair_dataset(encoded: EncodedPairs, reward: bool) -> Dataset:
    """Return the columns that TRL's collator expects; a reward model reads the prompt as a part of each answer."""
    if not reward:
        return Dataset.from_list(encoded.rows)
    return Dataset.from_list(
        [{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES} for row in encoded.rows]
    )


class _EpochSampler(RepeatSampler):
    """Draws each epoch's order from seed and epoch alone, so that a resumed run draws the same."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self.seed + epoch)


def _key(prompt: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in prompt)


class VerifiedGRPOTrainer(MeasuredEvaluation, _TrlMixin, GRPOTrainer):
    """
    GRPO with verifiable rewards (Shao et al. 2024), evaluated by greedy replies.

    Args:
        train, validation: prompts to train on, and to choose the best checkpoint by.
        encoder: encodes prompts as the rest of this package does.
        max_new_tokens: length of the greedy replies.
    """

    def __init__(
        self,
        *args: Any,
        train: VerifiablePrompts,
        validation: VerifiablePrompts,
        encoder: ChatEncoder,
        max_new_tokens: int,
        **kwargs: Any,
    ) -> None:
        self.validation, self.encoder, self.max_new_tokens = validation, encoder, max_new_tokens

        def reward(completions: list[list[Message]], row: list[int], **_: Any) -> list[float]:
            answers = (messages[0]["content"].strip() for messages in completions)
            return [train.verify(answer, number) for answer, number in zip(answers, row)]

        # A table of messages would give each message the fields of all others, so it has the texts alone; the preflight
        # reads whole ones.
        self.conversations = [{"prompt": prompt} for prompt in train.prompts]
        prompts = [[{key: message[key] for key in ("role", "content")} for message in each] for each in train.prompts]
        self.prompt_ids = dict(zip(map(_key, prompts), train.ids))
        if any(self.prompt_ids[_key(prompt)] != ids for prompt, ids in zip(prompts, train.ids)):
            raise InputError("some prompts differ in their tools or calls of tools alone: leave the others out")
        rows = [{"prompt": prompt, "row": row} for prompt, row in zip(prompts, train.rows)]
        super().__init__(
            *args,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),  # TRL demands one; `evaluate` does not read it
            **kwargs,
        )
        self.delete_reference_adapter()

    def describe_steps(self) -> str:
        """
        Return in words how many steps the run makes, and which prompts go into a step and an epoch.

        Raises:
            InputError: there are fewer prompts than a batch has.
        """
        args, prompts = self.args, len(self.train_dataset)
        in_batch = args.generation_batch_size // args.num_generations
        if prompts < in_batch:
            most = prompts * args.num_generations // (args.world_size * args.steps_per_generation)
            raise InputError(
                f"{prompts} prompts to train on, and a batch of {args.generation_batch_size} answers takes {in_batch} "
                f"with {args.num_generations} each: give --per_device_train_batch_size {most} or fewer "
                "--answers_per_prompt"
            )
        _, per_epoch, *_, total = self.set_initial_training_values(args, self.get_train_dataloader())
        refuse_long_warmup(args, total)
        per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps / args.num_generations
        used = prompts - prompts % in_batch
        of_all = f" of {used:,} of the {prompts:,} prompts, others in the next" if used < prompts else ""
        each = f"{per_step:g} prompts with {args.num_generations} answers each"
        return f"{total:,} of {each}, {per_epoch:,} an epoch{of_all}"

    def _tokenize_prompts(self, prompts: Sequence[Sequence[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[_key(prompt)] for prompt in prompts], None, {}

    def _get_train_sampler(self, dataset: Any = None) -> _EpochSampler:
        stock = super()._get_train_sampler(dataset)
        return _EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )

    def measure(self, eval_dataset: Any) -> dict[str, float]:
        rewards, _ = self.validation.measure(self.model, self.encoder.tokenizer, self.max_new_tokens)
        return {"reward": float(rewards.mean())}

"""Learning to reply: which conversations ask the same, loss and replies of a model, and a Trainer that reports them."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..core.quiet import quiet
from ..core.statistics import Estimate, proportion
from ..data.chat import ChatEncoder, Message
from ..train.finetune import FinetuningTrainer
from ..train.measured import MeasuredEvaluation
from .generation import Reply, generate_replies
from .likelihood import estimate_loss, negative_log_likelihoods


def conversation_key(messages: Sequence[Message]) -> str:
    """Return a key that conversations with the same prompts share, whatever the assistant replies."""
    prompts = (message["content"] for message in messages if message["role"] != "assistant")
    return " ".join("\n".join(prompts).casefold().split())


def measure_replies(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    rows: Sequence[Mapping[str, list[int]]],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> tuple[dict[str, Estimate], list[Reply]]:
    """
    Return the loss on encoded conversations and the share of generated replies that end by themselves, and the replies.

    Args:
        rows: `input_ids` and `labels` of conversations.
        prompts: token ids to generate replies to; may be empty.
    """
    with quiet():
        figures = {"loss": estimate_loss(*negative_log_likelihoods(model, encoder.tokenizer, rows))}
        replies = generate_replies(model, encoder.tokenizer, prompts, max_new_tokens)
    if replies:
        figures["stops_by_itself"] = proportion(sum(reply.finished for reply in replies), len(replies))
    return figures, replies


def format_dialogues(
    prompts: Sequence[Sequence[Message]], replies: Mapping[str, Sequence[Reply]], limit: int = 3
) -> list[str]:
    """Return the first prompts as text, each with the replies of every model by the model's name."""
    dialogues = []
    for number, messages in enumerate(prompts[:limit]):
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        for name, of_model in replies.items():
            if of_model:
                text, finished = of_model[number]
                lines.append(f"{name} → {text}{'' if finished else ' …'}")
        dialogues.append("\n".join(lines))
    return dialogues


class ReplyLossTrainer(MeasuredEvaluation, FinetuningTrainer):
    """Evaluates by the mean loss over all predicted tokens; the stock Trainer averages the means of the batches."""

    def measure(self, eval_dataset: Any) -> dict[str, float]:
        nats, tokens = negative_log_likelihoods(self.model, self.processing_class, eval_dataset)
        return {"loss": float(nats.sum() / tokens.sum())}

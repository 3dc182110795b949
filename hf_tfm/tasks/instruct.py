"""Learning to reply: conversations encoded for training, the loss on replies, and which replies end by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..core.quiet import quiet
from ..core.statistics import proportion
from ..data.chat import ChatEncoder
from ..data.chat_rows import Encoded, encode_conversations
from ..data.conversations import Message, read_conversations
from ..data.records import Records
from ..train.custom_evaluation import MeasuredEvaluation
from ..train.finetuning_trainer import FinetuningTrainer
from ..train.report import print_line
from .fine_tune import Measurement
from .generation import generate_replies
from .likelihood import estimate_loss, negative_log_likelihoods


def conversation_keys(records: Records) -> list[str]:
    """Return a key of each record that records with the same prompts share, whatever the assistant replies."""
    return [conversation_key(messages) for messages in read_conversations(records)]


def conversation_key(messages: Sequence[Message]) -> str:
    """Return the prompts of a conversation as one text without case and spacing."""
    prompts = (message["content"] for message in messages if message["role"] != "assistant")
    return " ".join("\n".join(prompts).casefold().split())


def encode_splits(
    encoder: ChatEncoder,
    conversations: Mapping[str, Sequence[Sequence[Message]]],
    splits: Mapping[str, Records],
    max_length: int,
    train_on_prompts: bool,
) -> dict[str, Encoded]:
    """Return the rows of each split, and print how many there are and how many did not fit."""
    encoded = {}
    for name, records in splits.items():
        split = encode_conversations(encoder, conversations[name], records.places, max_length, train_on_prompts, name)
        counts = f"{len(split.rows):,} conversations, {split.tokens:,} tokens, {split.trained:,} of them trained"
        print_line(name, counts)
        for count, loss in ((split.shortened, "lost their last turns"), (split.left_out, "are left out")):
            if count:
                print_line("note", f"{count:,} {name} conversations {loss}: they are longer than {max_length} tokens")
        encoded[name] = split
    return encoded


def measure_replies(
    model: PreTrainedModel,
    encoder: ChatEncoder,
    rows: Sequence[Mapping[str, list[int]]],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> Measurement:
    """
    Measure the loss on encoded conversations, and the share of generated replies that end by themselves.

    Args:
        rows: `input_ids` and `labels` of conversations.
        prompts: token ids to generate replies to; may be empty.
        max_new_tokens: length at which a reply is cut.
    """
    with quiet():
        figures = {"loss": estimate_loss(*negative_log_likelihoods(model, encoder.tokenizer, rows))}
        replies = generate_replies(model, encoder.tokenizer, prompts, max_new_tokens)
    if replies:
        figures["stops_by_itself"] = proportion(sum(reply.finished for reply in replies), len(replies))
    return Measurement(figures, replies)


class ReplyLossTrainer(MeasuredEvaluation, FinetuningTrainer):
    """Evaluates by the mean loss over all predicted tokens; the stock Trainer averages the means of the batches."""

    def measure(self, eval_dataset: Any) -> dict[str, float]:
        nats, tokens = negative_log_likelihoods(self.model, self.processing_class, eval_dataset)
        return {"loss": float(nats.sum() / tokens.sum())}

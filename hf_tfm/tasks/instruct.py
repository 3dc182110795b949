"""Learning to reply: conversations encoded for training, the loss on replies, and which replies end by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..core.quiet import quiet
from ..core.statistics import proportion
from ..data.chat import ChatEncoder
from ..data.chat_rows import Encoded, encode_conversations
from ..data.conversations import conversation_key
from ..data.records import Records
from ..train.custom_evaluation import MeasuredEvaluation
from ..train.finetuning_trainer import FinetuningTrainer
from ..train.report import print_line
from .chat_run import report_refused
from .fine_tune import Measurement
from .generation import generate_replies
from .likelihood import estimate_loss, negative_log_likelihoods


def conversation_keys(records: Records) -> list[str]:
    """Return a key of each record that records with the same prompts share, whatever the assistant replies."""
    return [conversation_key(record["messages"]) for record in records]


def encode_splits(
    encoder: ChatEncoder, splits: Mapping[str, Records], max_length: int, train_on: str, skip_bad: bool
) -> dict[str, Encoded]:
    """Return the rows of each split, and print how many there are and how many were left out."""
    encoded = {}
    for name, records in splits.items():
        split = encode_conversations(encoder, records, max_length, train_on, skip_bad, name)
        counts = f"{len(split.rows):,} conversations, {split.tokens:,} tokens, {split.trained:,} of them trained"
        print_line(name, counts)
        long = f"they are longer than {max_length} tokens"
        for count, loss in (
            (split.shortened, f"lost their last turns: {long}"),
            (split.left_out, f"are left out: {long}"),
            (split.untrained, "are left out: all that is trained of them has weight 0, or is too long"),
        ):
            if count:
                print_line("note", f"{count:,} {name} conversations {loss}")
        report_refused(name, split.refused)
        encoded[name] = split
    if encoder.dropped_reasoning:
        print_line(
            "note",
            f"the reasoning of {encoder.dropped_reasoning:,} messages is left out"
            + ("" if encoder.reasoning else ": the chat template does not write it"),
        )
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

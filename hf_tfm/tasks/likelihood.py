"""
Log-probabilities of chosen tokens under a causal or masked language model.

Bits per byte, minimal pairs, classification by prompt and the loss of answers are sums of what `LanguageModel.score`
returns. Rows of one length are computed together and only the scored positions are projected to the vocabulary, so that
figures do not depend on the batch and memory depends on the batch alone.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import evaluation_mode, unwrap_adapter
from ..core.limits import longest_input, refuse_diverged
from ..core.statistics import Estimate, bootstrap
from ..data.batches import IGNORED
from ..data.tokens import document_ends


# Logits that exist at one time, `(positions, vocabulary)`: 128 MB in fp32.
_MAX_LOGITS = 1 << 25
# Rows are sorted by length within so many batches.
_SORTED_BATCHES = 128


class Row(NamedTuple):
    """
    A row of tokens, and the tokens in it to score.

    Attributes:
        key: returned together with the row's log-probabilities.
        ids: token ids that the model reads.
        positions: indices into `ids` whose outputs predict `targets`; for a causal LM the index before each target.
        targets: token ids to score.
    """

    key: Any
    ids: Sequence[int] | np.ndarray
    positions: Sequence[int] | np.ndarray
    targets: Sequence[int] | np.ndarray


@dataclass
class LanguageModel:
    """
    A causal or masked LM with its tokenizer.

    Attributes:
        causal: whether the model predicts the next token, rather than masked ones.
        batch_tokens: tokens per forward pass. The figures do not depend on it.
        bf16: compute in bf16 autocast: faster where the hardware has bf16, and exact to about 3 digits.
        base_model: the model without an adapter's wrapper.
        prefix_ids, suffix_ids: special tokens in front of and behind every text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    batch_tokens: int = 2048
    bf16: bool = False

    def __post_init__(self) -> None:
        if not self.causal and self.tokenizer.mask_token_id is None:
            raise InputError("a masked LM is measured by masking, and this tokenizer has no mask token")
        self.base_model = unwrap_adapter(self.model)
        self.backbone = self.base_model.base_model
        if self.backbone is self.base_model:
            raise InputError(f"{type(self.base_model).__name__} is no language model: it has no head")
        # BERT's pretraining class has a second head, which reads the first position of the whole sequence.
        self.has_sequence_head = type(self.base_model).__name__.endswith("ForPreTraining")
        embeddings = self.base_model.get_input_embeddings().weight.shape[0]
        if max(self.tokenizer.get_vocab().values()) >= embeddings:
            raise InputError(
                f"the tokenizer has more tokens than the model has embeddings ({embeddings}): another model's"
            )
        begin, end = document_ends(self.tokenizer)
        self.prefix_ids: list[int]
        self.suffix_ids: list[int]
        if self.causal:
            # GPT-2 and others have one token for both ends of a document.
            self.prefix_ids, self.suffix_ids = list(begin or end), []
        else:
            cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
            self.prefix_ids = list(begin) if cls is None else [cls]
            self.suffix_ids = list(end) if sep is None else [sep]

    @property
    def max_length(self) -> int:
        """Return the largest number of tokens in a row."""
        return longest_input(self.base_model.config)

    @property
    def max_window(self) -> int:
        """Return how many tokens of a text fit into a row, beside the special tokens of a masked LM."""
        return self.max_length - (0 if self.causal else len(self.prefix_ids) + len(self.suffix_ids))

    @property
    def default_window(self) -> int:
        """Return the tokens that a long text is read in at a time: 1024, or 128 of a masked LM, if they fit."""
        return min(1024 if self.causal else 128, self.max_window)

    def score(self, rows: Iterable[Row]) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield the key and the log-probabilities (nats, float64) of each row, sorted by length in large chunks."""
        vocabulary = self.base_model.config.vocab_size
        for chunk in _chunks_of_tokens(rows, _SORTED_BATCHES * self.batch_tokens):
            chunk.sort(key=lambda row: (len(row.ids), len(row.targets)))
            start = 0
            while start < len(chunk):
                end, targets = start, 0
                # Rows are sorted, so the last one of a batch is its longest.
                while end < len(chunk) and (
                    end == start
                    or (end + 1 - start) * len(chunk[end].ids) <= self.batch_tokens
                    and (targets + len(chunk[end].targets)) * vocabulary <= _MAX_LOGITS
                ):
                    targets += len(chunk[end].targets)
                    end += 1
                yield from self._score_batch(chunk[start:end])
                start = end

    @torch.inference_mode()
    def _score_batch(self, rows: list[Row]) -> Iterator[tuple[Any, np.ndarray]]:
        device, length = self.base_model.device, max(len(row.ids) for row in rows)
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            mask[number, : len(row.ids)] = 1
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(device)}
        if self.causal:
            inputs["use_cache"] = False  # no token sees the padding behind it, so no mask is needed
        elif not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        flat = torch.tensor([length * n + position for n, row in enumerate(rows) for position in row.positions])
        targets = torch.tensor([target for row in rows for target in row.targets], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            if self.has_sequence_head:
                logits = self.model(**inputs).prediction_logits.flatten(0, 1)[flat.to(device)]
            else:
                with logits_only_at(self.backbone, flat.to(device)):
                    logits = self.model(**inputs).logits[0]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        ends = np.cumsum([len(row.targets) for row in rows])
        for row, nats in zip(rows, np.split(losses.double().cpu().numpy(), ends[:-1]), strict=True):
            yield row.key, -nats

    def pseudo_likelihood_rows(
        self, key: Any, ids: Sequence[int] | np.ndarray, words: Sequence[Any] | None = None
    ) -> Iterator[Row]:
        """
        Yield the rows of a text's pseudo-log-likelihood, in each of which one token is masked.

        Salazar et al. 2020, https://huggingface.co/papers/1910.14659. Given `words`, the word number of each token, the
        rest of the token's word is masked too (PLL-word-l2r; Kauf & Ivanova 2023,
        https://huggingface.co/papers/2305.10588): otherwise long words count as likely because their pieces predict
        each other.
        """
        text = np.array([*self.prefix_ids, *ids, *self.suffix_ids])
        first = len(self.prefix_ids)
        for place, target in enumerate(ids):
            masked = text.copy()
            masked[first + place] = self.tokenizer.mask_token_id
            if words is not None and words[place] is not None:
                end = place + 1
                while end < len(ids) and words[end] == words[place]:
                    masked[first + end] = self.tokenizer.mask_token_id
                    end += 1
            yield Row(key, masked, [first + place], [target])


@contextlib.contextmanager
def logits_only_at(backbone: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """
    Make a model compute the logits at some positions only, as one row `(1, positions, vocabulary)`.

    Heads of language models look at one hidden state at a time, so this works with any model, and saves the output
    layer all other positions.

    Args:
        backbone: the model below the head.
        positions: flat indices, `row * length + column`.
    """

    def gather(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0].flatten(0, 1)[positions][None]
        return output

    hook = backbone.register_forward_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def _chunks_of_tokens(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield lists of rows with about so many tokens together."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.ids)
        if size >= tokens:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def negative_log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the negative log-likelihood of each row's labels under a causal LM, and the number of labels.

    Args:
        rows: `input_ids` and `labels`, not packed.

    Returns: nats `(rows,)` float64, tokens `(rows,)`.

    Raises:
        InputError: the outputs are not finite.
    """
    places = [[place for place, label in enumerate(row["labels"]) if place and label != IGNORED] for row in rows]
    scored = (
        Row(number, row["input_ids"], [p - 1 for p in places[number]], [row["input_ids"][p] for p in places[number]])
        for number, row in enumerate(rows)
    )
    nats = np.zeros(len(rows))
    with evaluation_mode(model):
        for number, log_probabilities in LanguageModel(model, tokenizer, causal=True).score(scored):
            nats[number] = -log_probabilities.sum()
    refuse_diverged(nats)
    return nats, np.array([len(labels) for labels in places])


def estimate_loss(nats: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Return the nats per predicted token over all records, with a bootstrap interval."""
    return bootstrap(lambda n, t: {"loss": float(n.sum() / t.sum())}, nats, tokens)["loss"]

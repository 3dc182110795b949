"""The causal LM, and heads for masked tokens, sequences, tokens and questions."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_tfm import TfmDecoderConfig
from .modeling_tfm import TfmModel, TfmPreTrainedModel
from .modeling_tfm_compat import CACHE_NAME, BothCacheNames, accepts_both_cache_names, refuse_unknown_arguments
from .modeling_tfm_loss import cap_logits, sequence_classification_loss
from .modeling_tfm_masks import build_masks, is_padding_mask, is_prepared_mask, packing_arguments


def select_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    Return the positions of `hidden_states` `(batch, length, hidden)` that need logits.

    Args:
        logits_to_keep: the number of last positions, 0 for all; or indices `(kept,)`, or indices for each row
            `(batch, kept)`; or a boolean mask `(batch, length)`.

    Returns:
        `(batch, kept, hidden)`; for a mask `(kept, hidden)`, row after row.
    """
    # transformers' own `slice_logits_to_keep` came after 5.19, which vLLM still uses.
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep.unsqueeze(-1), dim=1)


class TfmDecoderOutput(BothCacheNames, BaseModelOutputWithPastAndCrossAttentions):
    """Outputs of [`TfmDecoderModel`]."""


class TfmCausalLMOutput(BothCacheNames, CausalLMOutputWithCrossAttentions):
    """Outputs of [`TfmDecoderForCausalLM`]."""


class TfmDecoderClassifierOutput(BothCacheNames, SequenceClassifierOutputWithPast):
    """Outputs of [`TfmDecoderForSequenceClassification`]."""


class TfmDecoderPreTrainedModel(TfmPreTrainedModel):
    config: TfmDecoderConfig


class TfmDecoderModel(TfmDecoderPreTrainedModel, TfmModel):
    """
    Decoder without a head: token ids to hidden states.

    Documents packed into one row are separated by `position_ids` that start again: they never see one another, with or
    without an attention mask, with or without `use_cache`.

    With `prefix_mask` it is a prefix LM (Raffel et al. 2020, https://huggingface.co/papers/1910.10683): prefix tokens
    see one another as in an encoder, later tokens are causal.
    """

    is_causal = True

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.post_init()

    @accepts_both_cache_names
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        is_causal: bool | None = None,
        prefix_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TfmDecoderOutput:
        """
        Args:
            input_ids: `(batch, length)`; or `inputs_embeds` `(batch, length, hidden)`.
            attention_mask: `(batch, past + length)`, 0 at padding; or a prepared mask, `(batch, 1, length, keys)`.
            position_ids: `(batch, length)`, from 0 in each document.
            cache: keys and values of earlier tokens; `past_key_values` is another name for it.
            token_type_ids: `(batch, length)` segments, used if `type_vocab_size` is set.
            encoder_hidden_states: `(batch, encoder length, hidden)` for cross-attention.
            encoder_attention_mask: `(batch, encoder length)`.
            is_causal: False lets each token see its whole document, for masked-token prediction; not with a cache.
            prefix_mask: `(batch, length)`, True for tokens that see one another in both directions, within their
                document and a layer's window. Later calls with the cache see the prefix as it was computed.
        """
        inputs_embeds = self.embed_ids(input_ids, inputs_embeds)
        refuse_unknown_arguments(self.config, kwargs, has_positions=position_ids is not None)
        is_causal = is_causal is None or is_causal
        if not is_causal:  # every token sees all others
            use_cache, prefix_mask = False, None
        self._check_encoder_and_prefix(inputs_embeds, attention_mask, encoder_hidden_states, prefix_mask)
        packing, boundaries = {}, {}
        if cache is None:  # a new cache would hide packing from transformers' mask functions
            packing, boundaries = packing_arguments(self.config, position_ids, attention_mask, inputs_embeds.shape[0])
        cache = self._prepare_cache(cache, use_cache, is_causal)
        past_length = cache.get_seq_length() if isinstance(cache, Cache) else 0
        position_ids = self.build_position_ids(position_ids, inputs_embeds, attention_mask, past_length)
        masks = build_masks(
            self.config, inputs_embeds, attention_mask, packing, is_causal, cache, past_length, prefix_mask
        )
        if not is_causal or prefix_mask is not None:
            kwargs["is_causal"] = False  # kernels must not skip the part above the diagonal

        hidden_states = self.run_blocks(
            self.embed(inputs_embeds, position_ids, token_type_ids),
            position_ids,
            masks,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=self._encoder_mask(inputs_embeds, encoder_hidden_states, encoder_attention_mask),
            cache=cache,
            use_cache=use_cache,
            has_prepared_mask=is_prepared_mask(self.config, attention_mask),
            **{**boundaries, **kwargs},
        )
        return TfmDecoderOutput(last_hidden_state=hidden_states, **{CACHE_NAME: cache if use_cache else None})

    def _check_encoder_and_prefix(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        prefix_mask: torch.Tensor | None,
    ) -> None:
        if encoder_hidden_states is not None and not self.config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states are given, but the model has no cross-attention: set add_cross_attention"
            )
        if prefix_mask is not None:
            if prefix_mask.shape != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"prefix_mask must have the shape of the new tokens, {tuple(inputs_embeds.shape[:2])}, not "
                    f"{tuple(prefix_mask.shape)}"
                )
            if attention_mask is not None and not is_padding_mask(attention_mask):
                raise ValueError("a prepared attention mask and a prefix_mask: put the prefix into the first")

    def _prepare_cache(self, cache: Cache | None, use_cache: bool | None, is_causal: bool) -> Cache | None:
        """Return the cache to fill, if any; with cross-attention it keeps the encoder's keys and values too."""
        if not is_causal:
            if isinstance(cache, Cache):  # the paged cache of `generate_batch` comes with masks of its own
                raise ValueError("is_causal=False reads a text as a whole: cache (past_key_values) must be None")
            return cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and self.config.add_cross_attention:
            if not isinstance(cache, EncoderDecoderCache):
                return EncoderDecoderCache(cache, DynamicCache())
            if self.config.sliding_window is not None and not any(cache.is_updated.values()):
                # `generate` limits both of its caches to the window, which does not apply to the encoder's states.
                cache.cross_attention_cache = DynamicCache()
        return cache

    def _encoder_mask(
        self,
        inputs_embeds: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Return the mask of cross-attention for the padding mask `(batch, encoder length)` of the source."""
        if encoder_hidden_states is None or encoder_attention_mask is None:
            return encoder_attention_mask
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )


class TfmDecoderForCausalLM(TfmDecoderPreTrainedModel, GenerationMixin):
    """Decoder that predicts the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.model = TfmDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        prefix_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TfmCausalLMOutput:
        """
        Args as in [`TfmDecoderModel`], and

            labels: `(batch, length)`, the input ids themselves: they are shifted here. -100 is not predicted.
            logits_to_keep: positions that need logits, see [`select_positions`].
            skip_logits: return the loss only, which takes less time and memory, see [`linear_cross_entropy`].

        Returns: logits `(batch, kept, vocab_size)`, and the mean cross-entropy in nats if labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            prefix_mask=prefix_mask,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits, loss, softcap = None, None, self.config.final_logit_softcapping
        if skip_logits:
            if labels is None:
                raise ValueError("skip_logits returns the loss only, and needs labels")
            shift_labels = kwargs.get("shift_labels")
            if shift_labels is None:
                shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
            items = kwargs.get("num_items_in_batch")
            loss = self.linear_loss_function(hidden_states, self.lm_head, shift_labels, items, softcap)
        else:
            logits = cap_logits(self.lm_head(select_positions(hidden_states, logits_to_keep)), softcap)
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return TfmCausalLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    @accepts_both_cache_names
    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        prefix_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict:
        """Prepare inputs as transformers does, with the part of `prefix_mask` `(batch, prompt)` they need."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        if "prepare_inputs_for_generation" in vars(self):
            # PEFT replaces this method by one of its own while it generates. Its prompt and prefix tuning edit these
            # inputs, and know the cache by its old name only.
            inputs["past_key_values"] = inputs.pop(CACHE_NAME, None)
        if prefix_mask is None or (inputs_embeds is not None and not is_first_iteration):
            return inputs
        uses_ids = inputs.get("inputs_embeds") is None
        length = inputs["input_ids" if uses_ids else "inputs_embeds"].shape[1]
        prompt_length = prefix_mask.shape[1]
        generated = max(input_ids.shape[1] - prompt_length, 0) if uses_ids else 0
        start = prompt_length + generated - length
        if uses_ids and input_ids.shape[1] < prompt_length:  # a chunk of the prompt
            start = int(cache.get_seq_length())
        if start < prompt_length:
            start, end = max(start, 0), start + length
            if start > 0 or end < prompt_length:
                earlier, current, later = (part.any(1) for part in prefix_mask.bool().tensor_split((start, end), dim=1))
                if bool((current & (earlier | later)).any()):
                    raise ValueError("a prefix sees all of itself, so it is read at once: leave prefill_chunk_size out")
            inputs["prefix_mask"] = F.pad(prefix_mask, (0, generated))[:, start:end]
            # For a static cache transformers prepared a mask without the prefix.
            inputs["attention_mask"] = attention_mask
        return inputs


class TfmDecoderForMaskedLM(TfmDecoderPreTrainedModel):
    """
    Masked LM with the weights of the causal LM, for models trained on both objectives.

    Each token sees the whole text, and a masked token is predicted at the token before it, as the causal LM predicts
    (GPT-BERT, https://huggingface.co/papers/2410.24159). `pretrain_clm.py --masked_share 0.5` trains such models.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.model = TfmDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """
        Args as in [`TfmDecoderModel`], and

            labels: `(batch, length)`, the tokens to predict, -100 elsewhere; not shifted.

        Returns: logits `(batch, length, vocab_size)` of the token at each position, computed at the position before it
        (for a document's first token: at its own), and the mean cross-entropy in nats if labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            is_causal=False,
            **kwargs,
        )
        states = outputs.last_hidden_state
        has_previous = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        has_previous[:, 0] = False
        if is_padding_mask(attention_mask):
            has_previous[:, 1:] &= attention_mask[:, :-1].bool()
        if position_ids is not None:
            has_previous &= position_ids != 0
        logits = self.lm_head(torch.where(has_previous.unsqueeze(-1), states.roll(1, dims=1), states))
        logits = cap_logits(logits, self.config.final_logit_softcapping)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmDecoderForSequenceClassification(TfmDecoderPreTrainedModel):
    """Decoder with a classification or regression head on the last token of each row that is not padding."""

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TfmDecoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TfmDecoderClassifierOutput:
        """
        Args as in [`TfmDecoderModel`], and

            labels: classes `(batch,)`, numbers `(batch,)` for regression, or 0/1 `(batch, num_labels)`.

        Returns: logits `(batch, num_labels)`. The last token is found by `attention_mask`, not by its id: without a
        mask it is the last column.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if not is_padding_mask(attention_mask):
            pooled = hidden_states[:, -1]
        else:
            mask = attention_mask[:, -hidden_states.shape[1] :].to(hidden_states.device, torch.int32)
            columns = torch.arange(mask.shape[1], device=mask.device, dtype=torch.int32)
            pooled = hidden_states[torch.arange(mask.shape[0], device=mask.device), (columns * mask).argmax(-1)]
        logits = self.score(self.dropout(pooled))

        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, **kwargs)
        return TfmDecoderClassifierOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TfmDecoderForTokenClassification(TfmDecoderPreTrainedModel):
    """Decoder with a classification head on each token."""

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TfmDecoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """
        Args as in [`TfmDecoderModel`], and

            labels: `(batch, length)`, -100 for tokens without a label.

        Returns: logits `(batch, length, num_labels)`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmDecoderForQuestionAnswering(TfmDecoderPreTrainedModel):
    """Decoder that predicts the start and the end of an answer in the text."""

    def __init__(self, config: TfmDecoderConfig):
        super().__init__(config)
        self.model = TfmDecoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @accepts_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """
        Args as in [`TfmDecoderModel`], and

            start_positions, end_positions: columns of the answer's first and last token `(batch,)`; a column beyond
                the row does not count.

        Returns: start and end logits `(batch, length)`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).float().unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "TfmCausalLMOutput",
    "TfmDecoderClassifierOutput",
    "TfmDecoderForCausalLM",
    "TfmDecoderForMaskedLM",
    "TfmDecoderForQuestionAnswering",
    "TfmDecoderForSequenceClassification",
    "TfmDecoderForTokenClassification",
    "TfmDecoderModel",
    "TfmDecoderOutput",
    "TfmDecoderPreTrainedModel",
]

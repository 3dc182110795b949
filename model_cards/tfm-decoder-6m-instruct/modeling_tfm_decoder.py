"""The causal LM and its heads for sequences, tokens and questions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
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
from .modeling_tfm import (
    CACHE_NAME,
    BothCacheNames,
    TfmModel,
    TfmPreTrainedModel,
    accepts_both_cache_names,
    is_updated_by_attention,
    marks_padding,
    mask_is_ready,
    packing_arguments,
    refuse_unknown_arguments,
    sequence_classification_loss,
)
from .modeling_tfm_loss import linear_cross_entropy, soft_capped


def kept_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    Some positions of `hidden_states` `(batch, length, hidden)`, so that no others are projected to the vocabulary.

    Args:
        logits_to_keep: how many of the last ones, 0 for all; or which ones, `(kept,)`, or for each row `(batch, kept)`;
            or a boolean mask `(batch, length)`.

    Returns: `(batch, kept, hidden)`; for a mask `(kept, hidden)`, rows in line.
    """
    # transformers' own `slice_logits_to_keep` came after 5.19, which vLLM still uses.
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep.unsqueeze(-1), dim=1)


def bidirectional_prefix(prefix_mask: torch.Tensor, past_length: int | torch.Tensor, window: int | None) -> Callable:
    """
    What a prefix adds to a causal mask, for transformers' mask functions: its tokens see one another, those of a layer
    with a window as far ahead as behind.

    Args:
        prefix_mask: `(batch, length)` of the new tokens, which stand behind `past_length` earlier ones.
    """
    prefix, last = prefix_mask.bool(), prefix_mask.shape[1] - 1

    def both_in_prefix(batch_idx, head_idx, q_idx, kv_idx):
        query, key = q_idx - past_length, kv_idx - past_length
        # Earlier tokens are seen anyway; behind the last one a static cache has empty places.
        seen = prefix[batch_idx, query] & (prefix[batch_idx, key.clamp(0, last)] & (key <= last))
        return seen if window is None else seen & ((query - key).abs() < window)

    return both_in_prefix


class TfmDecoderOutput(BothCacheNames, BaseModelOutputWithPastAndCrossAttentions):
    """What [`TfmDecoderModel`] returns."""


class TfmCausalLMOutput(BothCacheNames, CausalLMOutputWithCrossAttentions):
    """What [`TfmDecoderForCausalLM`] returns."""


class TfmDecoderClassifierOutput(BothCacheNames, SequenceClassifierOutputWithPast):
    """What [`TfmDecoderForSequenceClassification`] returns."""


class TfmDecoderPreTrainedModel(TfmPreTrainedModel):
    config: TfmDecoderConfig


class TfmDecoderModel(TfmDecoderPreTrainedModel, TfmModel):
    """
    Decoder without a head: token ids to hidden states.

    Documents packed into one row are told apart by `position_ids` that start again; they never see one another, with
    an attention mask or without, with `use_cache` or without.

    With `prefix_mask` it is a prefix LM (Raffel et al. 2020, https://huggingface.co/papers/1910.10683): the tokens of a
    prefix are read as by an encoder, what follows is written as by a decoder.
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
            attention_mask: `(batch, past + length)`, 0 at padding; or a mask made ready, `(batch, 1, length, keys)`.
            position_ids: `(batch, length)`, from 0 in every document.
            cache: keys and values of earlier tokens; `past_key_values` is another name for it.
            token_type_ids: `(batch, length)` segments, read if `type_vocab_size` is set.
            encoder_hidden_states: `(batch, encoder length, hidden)` for cross-attention.
            encoder_attention_mask: `(batch, encoder length)`.
            is_causal: False lets every token see the whole document, for masked-token prediction; without a cache.
            prefix_mask: `(batch, length)`, true for tokens that see one another in both directions, within their
                document and a layer's window. Later calls with the cache see the prefix as it was read.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        if encoder_hidden_states is not None and not self.config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states are given, but the model has no cross-attention: set add_cross_attention"
            )

        refuse_unknown_arguments(self.config, kwargs, has_positions=position_ids is not None)
        is_causal = is_causal is None or is_causal
        # Packing is looked for before there is a cache, which hides it from transformers' mask functions.
        packing, boundaries = {}, {}
        if cache is None:
            packing, boundaries = packing_arguments(self.config, position_ids, attention_mask, inputs_embeds.shape[0])
        if not is_causal:
            if isinstance(cache, Cache):  # the paged cache of `generate_batch` comes with masks of its own
                raise ValueError("is_causal=False reads a text as a whole: cache (past_key_values) must be None")
            use_cache, kwargs["is_causal"] = False, False
            prefix_mask = None  # all see all
        if prefix_mask is not None:
            if prefix_mask.shape != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"prefix_mask must have the shape of the new tokens, {tuple(inputs_embeds.shape[:2])}, not "
                    f"{tuple(prefix_mask.shape)}"
                )
            if attention_mask is not None and not marks_padding(attention_mask):
                raise ValueError("an attention mask made ready and a prefix_mask: put the prefix into the first")
            kwargs["is_causal"] = False  # kernels must not leave out what stands above the diagonal
        cache = self._prepare_cache(cache, use_cache)
        past_length = cache.get_seq_length() if isinstance(cache, Cache) else 0
        position_ids = self.positions(position_ids, inputs_embeds, attention_mask, past_length)
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = self._build_masks(
                inputs_embeds, attention_mask, cache, past_length, is_causal, prefix_mask, packing
            )
        if encoder_hidden_states is not None and encoder_attention_mask is not None:
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )

        hidden_states = self.run_blocks(
            self.embed(inputs_embeds, position_ids, token_type_ids),
            position_ids,
            masks,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            use_cache=use_cache,
            mask_is_ready=mask_is_ready(self.config, attention_mask),
            **{**boundaries, **kwargs},
        )
        return TfmDecoderOutput(last_hidden_state=hidden_states, **{CACHE_NAME: cache if use_cache else None})

    def _prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """A new cache where one is wanted; with cross-attention one that keeps the encoder's keys and values too."""
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and self.config.add_cross_attention:
            if not isinstance(cache, EncoderDecoderCache):
                return EncoderDecoderCache(cache, DynamicCache())
            if self.config.sliding_window is not None and not any(cache.is_updated.values()):
                # `generate` cuts both of its caches to the window, which the encoder's states do not have.
                cache.cross_attention_cache = DynamicCache()
        return cache

    def _build_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        past_length: int | torch.Tensor,
        is_causal: bool,
        prefix_mask: torch.Tensor | None,
        packing: dict,
    ) -> dict[str, torch.Tensor | None]:
        """The attention mask for each type of layer; arguments as in [`forward`] and of [`packing_arguments`]."""
        arguments = dict(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        if is_causal:
            arguments[CACHE_NAME] = None if is_updated_by_attention(cache) else cache
            create = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        else:
            create = {
                "full_attention": create_bidirectional_mask,
                "sliding_attention": create_bidirectional_sliding_window_mask,
            }
        arguments.update(packing)
        masks = {}
        for name in sorted(set(self.config.layer_types)):
            if prefix_mask is not None:
                window = self.config.sliding_window if name == "sliding_attention" else None
                arguments["or_mask_function"] = bidirectional_prefix(prefix_mask, past_length, window)
            masks[name] = create[name](**arguments)
            # Flash attention and serving engines know padding at most.
            if prefix_mask is not None and (masks[name] is None or len(masks[name].shape) != 4):
                raise ValueError(
                    f"attention by {self.config._attn_implementation!r} takes no prefix_mask: load the model with "
                    "attn_implementation='sdpa'"
                )
        return masks


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
            logits_to_keep: where to compute logits, see [`kept_positions`].
            skip_logits: return the loss alone, which takes less time and memory, see [`linear_cross_entropy`].

        Returns: logits `(batch, kept, vocab_size)`, and the mean cross-entropy in nats if there are labels.
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
        logits, loss, softcap = None, None, self.config.final_logit_softcapping
        if skip_logits:
            if labels is None:
                raise ValueError("skip_logits returns the loss alone, and needs labels")
            following = kwargs.get("shift_labels")
            if following is None:
                following = F.pad(labels[:, 1:], (0, 1), value=-100)
            items = kwargs.get("num_items_in_batch")
            loss = linear_cross_entropy(outputs.last_hidden_state, self.lm_head, following, items, softcap)
        else:
            logits = soft_capped(self.lm_head(kept_positions(outputs.last_hidden_state, logits_to_keep)), softcap)
        if labels is not None and not skip_logits:
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
        """transformers' own, with the part of the prompt's `prefix_mask` `(batch, prompt)` that this step reads."""
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
            # PEFT puts a method of its own in place of this one while it generates. Its prompt and prefix tuning edit
            # these inputs, and know the cache by its old name only.
            inputs["past_key_values"] = inputs.pop(CACHE_NAME, None)
        if prefix_mask is None or (inputs_embeds is not None and not is_first_iteration):
            return inputs
        read = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        written = max(input_ids.shape[1] - prefix_mask.shape[1], 0) if read is inputs["input_ids"] else 0
        first = prefix_mask.shape[1] + written - read.shape[1]
        if read is inputs["input_ids"] and input_ids.shape[1] < prefix_mask.shape[1]:  # a chunk of the prompt, alone
            first = int(cache.get_seq_length())
        if first < prefix_mask.shape[1]:
            first, end = max(first, 0), first + read.shape[1]
            if first > 0 or end < prefix_mask.shape[1]:
                before, now, behind = (part.any(1) for part in prefix_mask.bool().tensor_split((first, end), dim=1))
                if bool((now & (before | behind)).any()):
                    raise ValueError("a prefix sees all of itself, so it is read at once: leave prefill_chunk_size out")
            inputs["prefix_mask"] = F.pad(prefix_mask, (0, written))[:, first:end]
            # For a static cache it was made into one without the prefix.
            inputs["attention_mask"] = attention_mask
        return inputs


class TfmDecoderForMaskedLM(TfmDecoderPreTrainedModel):
    """
    The causal LM's weights as a masked LM: every token sees the whole text, and what a masked token was is predicted at
    the token before it, as the causal LM predicts (GPT-BERT, https://huggingface.co/papers/2410.24159). For models
    trained on both objectives, as `pretrain_clm.py --masked_share 0.5` does.
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

        Returns: logits `(batch, length, vocab_size)` of the token at each place, from the one before it (a document's
        first token: from itself); and the mean cross-entropy in nats if there are labels.
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
        follows = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        follows[:, 0] = False
        if marks_padding(attention_mask):
            follows[:, 1:] &= attention_mask[:, :-1].bool()
        if position_ids is not None:
            follows &= position_ids != 0
        logits = self.lm_head(torch.where(follows.unsqueeze(-1), states.roll(1, dims=1), states))
        logits = soft_capped(logits, self.config.final_logit_softcapping)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmDecoderForSequenceClassification(TfmDecoderPreTrainedModel):
    """Decoder with a classification or regression head on each row's last token that is not padding."""

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

        Returns: logits `(batch, num_labels)`. The last token is found by `attention_mask`, never by its id: without a
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
        if not marks_padding(attention_mask):
            pooled = hidden_states[:, -1]
        else:
            real = attention_mask[:, -hidden_states.shape[1] :].to(hidden_states.device, torch.int32)
            columns = torch.arange(real.shape[1], device=real.device, dtype=torch.int32)
            pooled = hidden_states[torch.arange(real.shape[0], device=real.device), (columns * real).argmax(-1)]
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
    """Decoder with a label for each token."""

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

            labels: `(batch, length)`, -100 where there is none.

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
    """Decoder that marks where the answer starts and ends."""

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

            start_positions, end_positions: columns of the answer's first and last token `(batch,)`; one beyond the row
                is not counted.

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

"""The BERT-style encoder, and heads for masked tokens, sentences, tokens, questions and choices."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_tfm import TfmEncoderConfig
from .modeling_tfm import TfmModel, TfmPreTrainedModel, build_norm, gather_positions
from .modeling_tfm_compat import refuse_unknown_arguments
from .modeling_tfm_infilling import TfmInfilling
from .modeling_tfm_loss import sequence_classification_loss
from .modeling_tfm_masks import build_masks, is_padding_mask, is_prepared_mask, packing_arguments


def first_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the state `(batch, hidden)` of each row's first token that is not padding."""
    if not is_padding_mask(attention_mask):
        return hidden_states[:, 0]
    columns = attention_mask.to(hidden_states.device, torch.int32).argmax(-1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), columns]


def mean_of_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean state `(batch, hidden)` of each row's tokens, without padding."""
    if not is_padding_mask(attention_mask):
        return hidden_states.mean(1)
    # In fp32: a sum in fp16 overflows at 65504, and a count in bf16 stops at 256.
    weights = attention_mask.to(hidden_states.device, torch.float32).unsqueeze(-1)
    return ((hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)).to(hidden_states.dtype)


def pool_sequence(
    config: TfmEncoderConfig,
    outputs: BaseModelOutputWithPooling,
    attention_mask: torch.Tensor | None,
    head: nn.Module | None,
) -> torch.Tensor:
    """Return the vectors `(batch, hidden)` of the pooler, or of the `head` over the pooled states."""
    if config.use_pooler:
        return outputs.pooler_output
    pool = first_token if config.classifier_pooling == "cls" else mean_of_tokens
    return head(pool(outputs.last_hidden_state, attention_mask))


class TfmPooler(nn.Module):
    """BERT's pooler: a dense tanh layer over the first token."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return torch.tanh(self.dense(first_token(hidden_states, attention_mask)))


class TfmPredictionHead(nn.Module):
    """Dense layer, activation and norm before an output projection."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.act = ACT2FN[config.head_act]
        self.norm = build_norm(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act(self.dense(hidden_states)))


class TfmEncoderPreTrainedModel(TfmPreTrainedModel):
    config: TfmEncoderConfig


class TfmEncoderModel(TfmEncoderPreTrainedModel, TfmModel):
    """
    Encoder without a head: token ids to hidden states, and to a pooler's output if configured.

    Documents packed into one row are separated by `position_ids` that start again: they never see one another.
    """

    is_causal = False

    def __init__(self, config: TfmEncoderConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.pooler = TfmPooler(config) if config.use_pooler and add_pooling_layer else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `(batch, length)`; or `inputs_embeds` `(batch, length, hidden)`.
            attention_mask: `(batch, length)`, 0 at padding; or a prepared mask, `(batch, 1, length, length)`.
            token_type_ids: `(batch, length)` segments, used if `type_vocab_size` is set.
            position_ids: `(batch, length)`, from 0 in each document.
            output_positions: `(positions,)`, `row * length + column` of the tokens whose last states are returned, as
                `(positions, hidden)`, for a model without a pooler; by default all of them, `(batch, length, hidden)`.
        """
        inputs_embeds = self.embed_ids(input_ids, inputs_embeds)
        refuse_unknown_arguments(self.config, kwargs, has_positions=position_ids is not None)
        packing, boundaries = packing_arguments(self.config, position_ids, attention_mask, inputs_embeds.shape[0])
        masks = build_masks(self.config, inputs_embeds, attention_mask, packing, is_causal=False)
        position_ids = self.build_position_ids(position_ids, inputs_embeds, attention_mask)

        hidden_states = self.run_blocks(
            self.embed(inputs_embeds, position_ids, token_type_ids),
            position_ids,
            masks,
            has_prepared_mask=is_prepared_mask(self.config, attention_mask),
            output_positions=output_positions,
            **{**boundaries, **kwargs},
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states, attention_mask),
        )


class TfmEncoderForMaskedLM(TfmInfilling, TfmEncoderPreTrainedModel):
    """Encoder that predicts masked tokens, and generates text by filling them."""

    _tied_weights_keys = {"decoder.weight": "model.embed_tokens.weight"}
    _tp_plan = {"decoder": "colwise_gather_output"}
    _fsdp_plan = {"decoder": "keep_full_weight"}

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.model = TfmEncoderModel(config, add_pooling_layer=False)
        self.head = TfmPredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """
        Args as in [`TfmEncoderModel`], and

            labels: `(batch, length)`, the tokens to predict, -100 elsewhere.
            masked_positions: `(predicted,)`, positions to predict, as `row * length + column`; labels are then
                `(predicted,)`, logits `(predicted, vocab_size)`, and the last of `hidden_states` `(predicted, hidden)`.
                In training this saves most of the output layer's work and of the last feed-forward layer's.
            skip_logits: return the loss only, which takes less time and memory, see [`linear_cross_entropy`].

        Returns: logits `(batch, length, vocab_size)`, and the mean cross-entropy in nats if labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_positions=masked_positions,
            **kwargs,
        )
        states = self.head(outputs.last_hidden_state)
        logits, loss = None, None
        if skip_logits:
            if labels is None:
                raise ValueError("skip_logits returns the loss only, and needs labels")
            loss = self.linear_loss_function(states, self.decoder, labels, kwargs.get("num_items_in_batch"))
        else:
            logits = self.decoder(states)
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmSentenceHead(TfmEncoderPreTrainedModel):
    """Base of sentence heads: one vector for each sequence, from the pooler or the pooled prediction head."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.model = TfmEncoderModel(config)
        self.head = None if config.use_pooler else TfmPredictionHead(config)
        self.dropout = nn.Dropout(config.classifier_dropout)

    def encode(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """Return the vector of each sequence, `(batch, hidden)`, after dropout, and the encoder's outputs."""
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        pooled = pool_sequence(self.config, outputs, attention_mask, self.head)
        return self.dropout(pooled), outputs


class TfmEncoderForNextSentencePrediction(TfmSentenceHead):
    """Encoder that predicts whether the second segment follows the first (Devlin et al. 2019)."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NextSentencePredictorOutput:
        """
        Args as in [`TfmEncoderModel`], and

            labels: `(batch,)`, 0 if the second segment follows the first, 1 if it is from elsewhere.

        Returns: logits `(batch, 2)`.
        """
        pooled, outputs = self.encode(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.seq_relationship(pooled)
        loss = None
        if labels is not None:
            loss = fixed_cross_entropy(logits.float(), labels.view(-1), kwargs.get("num_items_in_batch"))
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class TfmEncoderForPreTrainingOutput(ModelOutput):
    """
    Outputs of [`TfmEncoderForPreTraining`].

    `loss` is the sum of both losses, `prediction_logits` `(batch, length, vocab_size)`, `seq_relationship_logits`
    `(batch, 2)`.
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TfmEncoderForPreTraining(TfmEncoderPreTrainedModel):
    """BERT's heads for masked tokens and next sentences (https://huggingface.co/papers/1810.04805)."""

    _tied_weights_keys = {"decoder.weight": "model.embed_tokens.weight"}
    _tp_plan = {"decoder": "colwise_gather_output"}
    _fsdp_plan = {"decoder": "keep_full_weight"}

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.model = TfmEncoderModel(config)
        self.head = TfmPredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TfmEncoderForPreTrainingOutput:
        """
        Args as in [`TfmEncoderModel`], and

            labels, masked_positions, skip_logits: as in [`TfmEncoderForMaskedLM`].
            next_sentence_label: `(batch,)`, 0 if the second segment follows the first, 1 if it is from elsewhere.
            num_items_in_batch: tokens to predict over all accumulated batches.

        Returns: [`TfmEncoderForPreTrainingOutput`]. The loss, if both kinds of labels are given, is the mean over the
        tokens to predict plus the mean over the pairs, each pair weighted by its number of tokens to predict.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states = self.head(gather_positions(outputs.last_hidden_state, masked_positions))
        prediction_logits = None if skip_logits else self.decoder(states)
        # Without a pooler the sentence uses the same prediction head as the tokens, as the classifiers do.
        pooled = pool_sequence(self.config, outputs, attention_mask, self.head)
        seq_relationship_logits = self.seq_relationship(pooled)

        loss = None
        if labels is not None and next_sentence_label is not None:
            if skip_logits:
                masked_loss = self.linear_loss_function(states, self.decoder, labels, num_items_in_batch)
            else:
                masked_loss = fixed_cross_entropy(
                    prediction_logits.view(-1, self.config.vocab_size).float(), labels.view(-1), num_items_in_batch
                )
            sentence_losses = F.cross_entropy(
                seq_relationship_logits.float(), next_sentence_label.view(-1), reduction="none"
            )
            # A pair is weighted by its number of tokens to predict, so that the losses of a split batch add up.
            if masked_positions is None:
                weights = (labels != -100).sum(-1)
            else:
                rows = masked_positions // outputs.last_hidden_state.shape[1]
                weights = torch.zeros_like(next_sentence_label.view(-1)).index_add(0, rows, (labels != -100).long())
            total = weights.sum() if num_items_in_batch is None else num_items_in_batch
            loss = masked_loss + (sentence_losses * weights).sum() / total
        return TfmEncoderForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TfmEncoderForSequenceClassification(TfmSentenceHead):
    """Encoder with a classification or regression head on each sequence or pair of sequences."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        Args as in [`TfmEncoderModel`], and

            labels: classes `(batch,)`, numbers `(batch,)` for regression, or 0/1 `(batch, num_labels)`.

        Returns: logits `(batch, num_labels)`.
        """
        pooled, outputs = self.encode(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmEncoderForMultipleChoice(TfmSentenceHead):
    """Encoder that scores the choices of a question, each a pair of the question and one answer."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """
        Args as in [`TfmEncoderModel`], each with the choices as a second dimension, `(batch, choices, length)`, and

            labels: index of the correct choice `(batch,)`.

        Returns: logits `(batch, choices)`.
        """
        choices = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        rows = {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        pooled, outputs = self.encode(
            None if input_ids is None else input_ids.flatten(0, 1),
            None if attention_mask is None else attention_mask.flatten(0, 1),
            **{name: None if value is None else value.flatten(0, 1) for name, value in rows.items()},
            **kwargs,
        )
        logits = self.classifier(pooled).view(-1, choices)
        loss = None
        if labels is not None:
            loss = fixed_cross_entropy(logits.float(), labels.view(-1), kwargs.get("num_items_in_batch"))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmTokenHead(TfmEncoderPreTrainedModel):
    """Base of token heads: the prediction head, unless the model has a pooler, and dropout."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.model = TfmEncoderModel(config, add_pooling_layer=False)
        self.head = nn.Identity() if config.use_pooler else TfmPredictionHead(config)
        self.dropout = nn.Dropout(config.classifier_dropout)


class TfmEncoderForTokenClassification(TfmTokenHead):
    """Encoder with a classification head on each token."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """
        Args as in [`TfmEncoderModel`], and

            labels: `(batch, length)`, -100 for tokens without a label.

        Returns: logits `(batch, length, num_labels)`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.head(outputs.last_hidden_state)))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TfmEncoderForQuestionAnswering(TfmTokenHead):
    """Encoder that predicts the start and the end of an answer in the text."""

    def __init__(self, config: TfmEncoderConfig):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """
        Args as in [`TfmEncoderModel`], and

            start_positions, end_positions: columns of the answer's first and last token `(batch,)`; a column beyond
                the row does not count.

        Returns: start and end logits `(batch, length)`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.qa_outputs(self.dropout(self.head(outputs.last_hidden_state)))
        start_logits, end_logits = logits.float().unbind(-1)
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
    "TfmEncoderForMaskedLM",
    "TfmEncoderForMultipleChoice",
    "TfmEncoderForNextSentencePrediction",
    "TfmEncoderForPreTraining",
    "TfmEncoderForPreTrainingOutput",
    "TfmEncoderForQuestionAnswering",
    "TfmEncoderForSequenceClassification",
    "TfmEncoderForTokenClassification",
    "TfmEncoderModel",
    "TfmEncoderPreTrainedModel",
]

"""Encoder and decoder as one sequence-to-sequence model: transformers' `EncoderDecoderModel`."""

import inspect
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PreTrainedConfig
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput

from .configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from .modeling_tfm_compat import CACHE_NAME, BothCacheNames, accepts_both_cache_names, refuse_unknown_arguments
from .modeling_tfm_decoder import TfmDecoderForCausalLM
from .modeling_tfm_encoder import TfmEncoderModel


@strict
class TfmEncoderDecoderConfig(EncoderDecoderConfig):
    r"""
    Configuration of [`TfmEncoderDecoderModel`]: an encoder's, and a decoder's with cross-attention.

    The class of transformers finds the classes of both parts through the Auto classes. These know this package only if
    it is installed, and do not pass on `trust_remote_code`. This class names them. It is in the file of the model
    because transformers loads a folder's configuration and modeling files as separate modules, with separate classes.
    """

    model_type = "tfm_encoder_decoder"
    # `__post_init__` sets both parts: transformers has defaults for them since 5.20, in a form that changed in 5.21.
    sub_configs_defaults = {}
    sub_configs = {"encoder": TfmEncoderConfig, "decoder": TfmDecoderConfig}
    has_no_defaults_at_init = False

    encoder: PreTrainedConfig | dict | None = None
    decoder: PreTrainedConfig | dict | None = None
    auto_map: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.encoder, PreTrainedConfig):
            self.encoder = TfmEncoderConfig(**(self.encoder or {}))
        if not isinstance(self.decoder, PreTrainedConfig):
            with_cross_attention = {"is_decoder": True, "add_cross_attention": True}
            self.decoder = TfmDecoderConfig(**{**with_cross_attention, **(self.decoder or {})})
        self.auto_map = {
            "AutoConfig": "modeling_tfm_encoder_decoder.TfmEncoderDecoderConfig",
            "AutoModelForSeq2SeqLM": "modeling_tfm_encoder_decoder.TfmEncoderDecoderModel",
        }
        # Not `super()`: before 5.20 it would look both parts up in transformers' own registry.
        PreTrainedConfig.__post_init__(self, **kwargs)


class TfmSeq2SeqLMOutput(BothCacheNames, Seq2SeqLMOutput):
    """Outputs of [`TfmEncoderDecoderModel`]."""


class TfmEncoderDecoderModel(EncoderDecoderModel):
    """
    A [`TfmEncoderModel`], and a [`TfmDecoderForCausalLM`] with cross-attention in every block.

    Args:
        config: configuration of both parts; or pass both parts themselves, as `encoder` and `decoder`.
    """

    config: TfmEncoderDecoderConfig

    def __init__(
        self,
        config: TfmEncoderDecoderConfig | None = None,
        encoder: TfmEncoderModel | None = None,
        decoder: TfmDecoderForCausalLM | None = None,
    ):
        if config is None and encoder is not None and decoder is not None:
            # The configurations themselves, not copies: later changes must reach both.
            decoder.config.is_decoder = decoder.config.add_cross_attention = True
            parts = {"encoder": encoder.config, "decoder": decoder.config}
            # Without this both parts would lose their attention implementation, and with it their masks.
            attention = {name: part._attn_implementation for name, part in parts.items()}
            config = TfmEncoderDecoderConfig(**parts, attn_implementation=attention)
        if config is not None:
            encoder = encoder or TfmEncoderModel._from_config(config.encoder)
            decoder = decoder or TfmDecoderForCausalLM._from_config(config.decoder)
        super().__init__(config, encoder, decoder)
        if self.decoder.config.tie_word_embeddings:
            # Tied weights are not saved; Trainer ties them again after loading.
            self._keys_to_ignore_on_save = {"decoder.lm_head.weight"}

    @accepts_both_cache_names
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> TfmSeq2SeqLMOutput | tuple:
        """
        Args as in [`TfmEncoderModel`] and, with the prefix `decoder_`, as in [`TfmDecoderForCausalLM`].

        Returns: logits `(batch, target length, vocab_size)`, and the mean cross-entropy in nats if labels are given.
        """
        known = inspect.signature(self.encoder.forward).parameters
        for_encoder = {name: value for name, value in kwargs.items() if not name.startswith("decoder_")}
        unknown = {name: value for name, value in for_encoder.items() if name not in known and name != "return_dict"}
        refuse_unknown_arguments(self.encoder.config, unknown)
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        return outputs if isinstance(outputs, tuple) else TfmSeq2SeqLMOutput(**outputs)

    def generate(self, *args: Any, labels: torch.LongTensor | None = None, **kwargs: Any) -> Any:
        """
        Generate as transformers does, without `labels`.

        `Seq2SeqTrainer` passes whole batches, and transformers would forward their labels to the encoder, which raises
        an error for unknown arguments.
        """
        return super().generate(*args, **kwargs)


__all__ = ["TfmEncoderDecoderConfig", "TfmEncoderDecoderModel", "TfmSeq2SeqLMOutput"]

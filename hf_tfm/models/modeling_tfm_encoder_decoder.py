"""An encoder and a decoder of this package as one model for translation: transformers' `EncoderDecoderModel`."""

import inspect
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import EncoderDecoderConfig, EncoderDecoderModel, PreTrainedConfig
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput

from .configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from .modeling_tfm import CACHE_NAME, BothCacheNames, accepts_both_cache_names, refuse_unknown_arguments
from .modeling_tfm_decoder import TfmDecoderForCausalLM
from .modeling_tfm_encoder import TfmEncoderModel


@strict
class TfmEncoderDecoderConfig(EncoderDecoderConfig):
    r"""
    Configuration of [`TfmEncoderDecoderModel`]: an encoder's, and a decoder's with cross-attention.

    transformers' own class finds the halves' classes through the Auto classes, which know this package only where it is
    installed, and passes on nobody's trust in a folder's code. This one names them. It stands beside the model because
    a folder's configuration and modeling files are loaded as separate modules, each with classes of its own.
    """

    model_type = "tfm_encoder_decoder"
    # `__post_init__` sets the halves: transformers' defaults for them exist since 5.20, in a form that changed in 5.21.
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
        # Not `super()`: before 5.20 it would look the halves up in transformers' own registry.
        PreTrainedConfig.__post_init__(self, **kwargs)


class TfmSeq2SeqLMOutput(BothCacheNames, Seq2SeqLMOutput):
    """What [`TfmEncoderDecoderModel`] returns."""


class TfmEncoderDecoderModel(EncoderDecoderModel):
    """
    Reads a source with [`TfmEncoderModel`] and writes a target with [`TfmDecoderForCausalLM`], which looks at the
    source by cross-attention in every block (Vaswani et al. 2017).

    Args:
        config: of both halves, or both halves themselves.
    """

    config: TfmEncoderDecoderConfig

    def __init__(
        self,
        config: TfmEncoderDecoderConfig | None = None,
        encoder: TfmEncoderModel | None = None,
        decoder: TfmDecoderForCausalLM | None = None,
    ):
        if config is None and encoder is not None and decoder is not None:
            # The halves' own configurations, not copies: what is set in one later, both shall know.
            decoder.config.is_decoder = decoder.config.add_cross_attention = True
            halves = {"encoder": encoder.config, "decoder": decoder.config}
            # Not told, they would lose theirs, and with it their masks.
            attention = {name: half._attn_implementation for name, half in halves.items()}
            config = TfmEncoderDecoderConfig(**halves, attn_implementation=attention)
        if config is not None:
            encoder = encoder or TfmEncoderModel._from_config(config.encoder)
            decoder = decoder or TfmDecoderForCausalLM._from_config(config.decoder)
        super().__init__(config, encoder, decoder)
        if self.decoder.config.tie_word_embeddings:
            # Not in a file of weights; Trainer ties it again after loading one.
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
        Args as in [`TfmEncoderModel`] and, with `decoder_` in front, as in [`TfmDecoderForCausalLM`].

        Returns: logits `(batch, target length, vocab_size)`, and the mean cross-entropy in nats if there are labels.
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
        As transformers' own. `Seq2SeqTrainer` passes whole batches: their labels have no use here, and the encoder, to
        which transformers would hand them on, refuses what it does not know.
        """
        return super().generate(*args, **kwargs)


__all__ = ["TfmEncoderDecoderConfig", "TfmEncoderDecoderModel", "TfmSeq2SeqLMOutput"]

"""An encoder and a decoder of this package as one model for translation: transformers' `EncoderDecoderModel`."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import EncoderDecoderConfig, EncoderDecoderModel
from transformers.configuration_utils import SubConfigSpec

from .configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
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
    sub_configs_defaults = {
        "encoder": SubConfigSpec(config_class=TfmEncoderConfig),
        "decoder": SubConfigSpec(
            config_class=TfmDecoderConfig, init_kwargs={"is_decoder": True, "add_cross_attention": True}
        ),
    }

    auto_map: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.auto_map = {
            "AutoConfig": "modeling_tfm_encoder_decoder.TfmEncoderDecoderConfig",
            "AutoModelForSeq2SeqLM": "modeling_tfm_encoder_decoder.TfmEncoderDecoderModel",
        }
        super().__post_init__(**kwargs)


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
        if self.config.decoder.tie_word_embeddings:
            # Not in a file of weights; Trainer ties it again after loading one.
            self._keys_to_ignore_on_save = {"decoder.lm_head.weight"}


__all__ = ["TfmEncoderDecoderConfig", "TfmEncoderDecoderModel"]

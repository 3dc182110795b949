"""
A causal LM and a BERT-style encoder, built from one Transformer block, as citizens of Hugging Face transformers.

Importing this package registers both families with the Auto classes, so `AutoModel.from_pretrained` and the pipelines
know them. What needs datasets, peft, trl or matplotlib is imported where it is used.
"""

from typing import TYPE_CHECKING, Any

from .core.quiet import quiet_imports
from .core.version import __version__, check_versions


with quiet_imports():
    check_versions()
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForMultipleChoice,
        AutoModelForNextSentencePrediction,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        PreTrainedModel,
    )

    from .core.errors import InputError
    from .models import modeling_tfm_decoder, modeling_tfm_encoder, modeling_tfm_encoder_decoder
    from .models.configuration_tfm import SIZES, TfmConfig, TfmDecoderConfig, TfmEncoderConfig
    from .models.modeling_tfm import TfmPreTrainedModel
    from .models.modeling_tfm_decoder import (
        TfmDecoderForCausalLM,
        TfmDecoderForMaskedLM,
        TfmDecoderForQuestionAnswering,
        TfmDecoderForSequenceClassification,
        TfmDecoderForTokenClassification,
        TfmDecoderModel,
    )
    from .models.modeling_tfm_encoder import (
        TfmEncoderForMaskedLM,
        TfmEncoderForMultipleChoice,
        TfmEncoderForNextSentencePrediction,
        TfmEncoderForPreTraining,
        TfmEncoderForQuestionAnswering,
        TfmEncoderForSequenceClassification,
        TfmEncoderForTokenClassification,
        TfmEncoderModel,
    )
    from .models.modeling_tfm_encoder_decoder import TfmEncoderDecoderConfig, TfmEncoderDecoderModel

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import CommitInfo

    from .audit.report import Report


def _push_to_hub(model: PreTrainedModel, repo_id: str, **options: Any) -> "CommitInfo":
    """See [`hf_tfm.hub.trainer.push_model`], which is imported when it is needed."""
    from .hub.trainer import push_model

    return push_model(model, repo_id, **options)


def preflight(trainer: Any, **options: Any) -> "Report":
    """See [`hf_tfm.audit.trainers.preflight.preflight`], which is imported when it is needed."""
    from .audit.trainers.preflight import preflight

    return preflight(trainer, **options)


def preflight_run(folder: "str | Path", **options: Any) -> "Report":
    """See [`hf_tfm.audit.runs.preflight.preflight_run`], which is imported when it is needed."""
    from .audit.runs.preflight import preflight_run

    return preflight_run(folder, **options)


def _register() -> None:
    """Enter the families into the Auto classes, by the same `auto_map` that saved folders carry."""
    auto_classes = {
        auto_class.__name__: auto_class
        for auto_class in (
            AutoModel,
            AutoModelForCausalLM,
            AutoModelForMaskedLM,
            AutoModelForMultipleChoice,
            AutoModelForNextSentencePrediction,
            AutoModelForPreTraining,
            AutoModelForQuestionAnswering,
            AutoModelForSeq2SeqLM,
            AutoModelForSequenceClassification,
            AutoModelForTokenClassification,
        )
    }
    families = (
        (TfmDecoderConfig, modeling_tfm_decoder),
        (TfmEncoderConfig, modeling_tfm_encoder),
        (TfmEncoderDecoderConfig, modeling_tfm_encoder_decoder),
    )
    for config_class, module in families:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for name, reference in config_class().auto_map.items():
            if name != "AutoConfig":
                model_class = getattr(module, reference.split(".")[1])
                auto_classes[name].register(config_class, model_class, exist_ok=True)
                # Saved folders carry the code of classes that know their Auto class.
                model_class.register_for_auto_class(name)
    # Saved folders' code knows nothing of cards and tokenizers; where this package is installed, both are pushed along.
    TfmPreTrainedModel.push_to_hub = TfmEncoderDecoderModel.push_to_hub = _push_to_hub


_register()

__all__ = [
    "SIZES",
    "InputError",
    "TfmConfig",
    "TfmDecoderConfig",
    "TfmDecoderForCausalLM",
    "TfmDecoderForMaskedLM",
    "TfmDecoderForQuestionAnswering",
    "TfmDecoderForSequenceClassification",
    "TfmDecoderForTokenClassification",
    "TfmDecoderModel",
    "TfmEncoderConfig",
    "TfmEncoderDecoderConfig",
    "TfmEncoderDecoderModel",
    "TfmEncoderForMaskedLM",
    "TfmEncoderForMultipleChoice",
    "TfmEncoderForNextSentencePrediction",
    "TfmEncoderForPreTraining",
    "TfmEncoderForQuestionAnswering",
    "TfmEncoderForSequenceClassification",
    "TfmEncoderForTokenClassification",
    "TfmEncoderModel",
    "__version__",
    "preflight",
    "preflight_run",
]

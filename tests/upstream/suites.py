"""
Base classes that run transformers' common test suites over the models of this package.

A suite uses a model tester (a tiny configuration and random inputs) and derives a model's inputs and labels from its
class name. Llama and BERT use the same base classes as references; `compare.py` prints the differences.
"""

import inspect
import os

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers_tests import test_fsdp_mixin, test_tensor_parallel_mixin
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_fsdp_mixin import FSDPTesterMixin
from transformers_tests.test_memory_cleanup_mixin import MemoryCleanupMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from hf_tfm import TfmDecoderConfig, TfmEncoderConfig


# transformers restricts its distributed tests to some model types to save time.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None

# The suites look class names up in MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and the like.
for _config_class in (TfmDecoderConfig, TfmEncoderConfig):
    for _auto_class, _reference in _config_class().auto_map.items():
        if _auto_class != "AutoConfig":
            _names = getattr(modeling_auto, _auto_class)._model_mapping._model_mapping
            _names[_config_class.model_type] = _reference.split(".")[1]

reference = pytest.mark.skipif(
    not os.environ.get("UPSTREAM_REFERENCE"), reason="transformers' own model: runs if UPSTREAM_REFERENCE is set"
)


def is_encoder(suite: "ModelSuite") -> bool:
    return isinstance(suite, EncoderSuite)


def has_no_rotary_positions(suite: "ModelSuite") -> bool:
    return getattr(suite, "preset", None) in ("gpt2", "bert")


# Excluded tests, the models concerned, and the reason. All other tests run unchanged.
LEFT_OUT = (
    ("test_tp_generation", is_encoder, "an encoder does not generate"),
    (
        "test_model_rope_",
        has_no_rotary_positions,
        "the suite assumes RoPE for any configuration with `rope_parameters`",
    ),
)


class Tester:
    """The model tester that the suites require."""

    batch_size = 13
    seq_length = 7
    num_choices = 4
    is_training = True

    def __init__(self, suite: "ModelSuite"):
        self.suite = suite
        self.vocab_size = 99
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4

    @property
    def causal_lm_class(self) -> type | None:
        return next((model for model in self.suite.all_model_classes if model.can_generate()), None)

    @property
    def sequence_classification_class(self) -> type | None:
        named = (model for model in self.suite.all_model_classes if model.__name__.endswith("SequenceClassification"))
        return next(named, None)

    def get_config(self) -> PreTrainedConfig:
        return self.suite.build_config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=512,
            pad_token_id=0,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.get_config(), self.suite.build_inputs((self.batch_size, self.seq_length), self.vocab_size)


class ModelSuite(MemoryCleanupMixin, ModelTesterMixin, TrainingTesterMixin, TensorParallelTesterMixin):
    """
    All of transformers' common tests that need only the model. Its pipeline tests load tiny models from the Hub, and
    the source distribution does not contain them.
    """

    run_under_no_grad = False
    # The suite reads the year of a file's copyright line; our files have none.
    test_can_init_all_missing_weights_before_2023 = True

    config_class: type[PreTrainedConfig]
    all_model_classes: tuple[type, ...]

    def setUp(self):
        super().setUp()
        for tests, shape, reason in LEFT_OUT:
            if self._testMethodName.startswith(tests) and shape(self):
                self.skipTest(reason)
        self.model_tester = Tester(self)
        self.config_tester = ConfigTester(self, config_class=self.config_class, hidden_size=64)

    def build_config(self, **fields) -> PreTrainedConfig:
        """Returns a tiny configuration of the tested shape."""
        return self.config_class(**fields)

    def build_inputs(self, shape: tuple[int, int], vocab_size: int) -> dict[str, torch.Tensor]:
        """Returns random inputs `(batch, length)` of the base model."""
        raise NotImplementedError

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config).eval()
        for arguments in (inputs, {"input_ids": inputs["input_ids"]}):
            states = model(**arguments).last_hidden_state
            self.assertEqual(states.shape, (*inputs["input_ids"].shape, config.hidden_size))

    def test_every_head_has_a_finite_loss(self):
        for model_class in self.all_model_classes[1:]:
            with self.subTest(model_class.__name__):
                config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
                model = model_class(config).eval()
                outputs = model(**self._prepare_for_class(inputs, model_class, return_labels=True))
                self.assertEqual(outputs.loss.shape, ())
                self.assertTrue(outputs.loss.isfinite())


class DecoderSuite(ModelSuite, FSDPTesterMixin, GenerationTesterMixin):
    """The common tests of a causal LM."""

    def build_inputs(self, shape: tuple[int, int], vocab_size: int) -> dict[str, torch.Tensor]:
        # Right padding, a different number of tokens in each row.
        mask = torch.ones(shape, dtype=torch.long).tril()
        return {"input_ids": ids_tensor(shape, vocab_size), "attention_mask": mask}


class EncoderSuite(ModelSuite):
    """The common tests of an encoder, without FSDP, whose tests load an `AutoModelForCausalLM`."""

    def build_inputs(self, shape: tuple[int, int], vocab_size: int) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": ids_tensor(shape, vocab_size), "attention_mask": random_attention_mask(shape)}
        if self.model_tester.get_config().type_vocab_size:
            inputs["token_type_ids"] = ids_tensor(shape, 2)
        return inputs

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and "next_sentence_label" in inspect.signature(model_class.forward).parameters:
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
        return inputs

    def masked_lm_class(self) -> type:
        return next(model for model in self.all_model_classes if model.__name__.endswith("ForMaskedLM"))

    # The suites use a causal LM here; a masked LM takes the same arguments.
    _get_trainable_model_class = masked_lm_class
    _get_tp_model_class = masked_lm_class


class TfmShape:
    """A model of this package in its default shape or that of a preset."""

    preset: str | None = None

    def build_config(self, **fields) -> PreTrainedConfig:
        fields.update(hidden_dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
        return self.config_class(**fields) if self.preset is None else self.config_class.preset(self.preset, **fields)

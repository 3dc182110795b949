"""transformers' common test suites over the decoder, in the shapes of Qwen3 (the default) and GPT-2."""

import unittest

import pytest
from suites import DecoderSuite, TfmShape, reference
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from hf_tfm import (
    TfmDecoderConfig,
    TfmDecoderForCausalLM,
    TfmDecoderForQuestionAnswering,
    TfmDecoderForSequenceClassification,
    TfmDecoderForTokenClassification,
    TfmDecoderModel,
)


pytestmark = pytest.mark.upstream


@reference
class LlamaTest(DecoderSuite, unittest.TestCase):
    config_class = LlamaConfig
    all_model_classes = (
        LlamaModel,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
        LlamaForQuestionAnswering,
    )

    def build_config(self, **fields):
        return super().build_config(**fields, num_key_value_heads=2)


class TfmDecoderSuite(TfmShape, DecoderSuite):
    config_class = TfmDecoderConfig
    all_model_classes = (
        TfmDecoderModel,
        TfmDecoderForCausalLM,
        TfmDecoderForSequenceClassification,
        TfmDecoderForTokenClassification,
        TfmDecoderForQuestionAnswering,
    )


class TfmDecoderTest(TfmDecoderSuite, unittest.TestCase):
    def build_config(self, **fields):
        return super().build_config(**fields, num_key_value_heads=2)


class TfmDecoderAsGpt2Test(TfmDecoderSuite, unittest.TestCase):
    preset = "gpt2"

"""transformers' common test suites over the encoder, in the shapes of ModernBERT (the default) and BERT."""

import unittest

import pytest
from suites import EncoderSuite, TfmShape, reference
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_tfm import (
    TfmEncoderConfig,
    TfmEncoderForMaskedLM,
    TfmEncoderForMultipleChoice,
    TfmEncoderForNextSentencePrediction,
    TfmEncoderForPreTraining,
    TfmEncoderForQuestionAnswering,
    TfmEncoderForSequenceClassification,
    TfmEncoderForTokenClassification,
    TfmEncoderModel,
)


pytestmark = pytest.mark.upstream


@reference
class BertTest(EncoderSuite, unittest.TestCase):
    config_class = BertConfig
    test_can_init_all_missing_weights_before_2023 = False
    all_model_classes = (
        BertModel,
        BertForMaskedLM,
        BertForPreTraining,
        BertForNextSentencePrediction,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMultipleChoice,
    )


class TfmEncoderSuite(TfmShape, EncoderSuite):
    config_class = TfmEncoderConfig
    all_model_classes = (
        TfmEncoderModel,
        TfmEncoderForMaskedLM,
        TfmEncoderForPreTraining,
        TfmEncoderForNextSentencePrediction,
        TfmEncoderForSequenceClassification,
        TfmEncoderForTokenClassification,
        TfmEncoderForQuestionAnswering,
        TfmEncoderForMultipleChoice,
    )


class TfmEncoderTest(TfmEncoderSuite, unittest.TestCase):
    pass


class TfmEncoderAsModernBertTest(TfmEncoderSuite, unittest.TestCase):
    preset = "modernbert"


class TfmEncoderAsBertTest(TfmEncoderSuite, unittest.TestCase):
    preset = "bert"

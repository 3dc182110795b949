"""The models that tests of several tasks start from."""

import pytest
import torch
from tiny import build, build_tokenizer
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny pretrained models, each with a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    built = {
        "encoder": build("TfmEncoderForMaskedLM", hidden_dropout=0.1, classifier_dropout=0.1, initializer_range=0.05),
        "decoder": build("TfmDecoderForCausalLM", initializer_range=0.05),
        "bert": BertModel(BertConfig(**size, max_position_embeddings=64, hidden_dropout_prob=0.0)),
        "llama": LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=64, pad_token_id=None)),
    }
    for name, model in built.items():
        model.save_pretrained(root / name)
        tokenizer = build_tokenizer()
        if name == "llama":
            tokenizer.pad_token = None
            tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds no token
        tokenizer.save_pretrained(root / name)
        if name == "decoder":  # an attribute set later would not be saved
            AutoTokenizer.from_pretrained(root / name, padding_side="left").save_pretrained(root / name)
    return root

"""Tiny models in every shape of the block, inputs for each head, and a tiny tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import hf_tfm
from hf_tfm import TfmConfig, TfmDecoderConfig, TfmEncoderConfig


# Larger data may stand beside the checkout; tests that need it are skipped without it.
SHARED = Path(__file__).parents[3] / "shared"

CORPUS = [
    "the cat sat on the mat and looked at the moon",
    "a small model learns what a small text can teach",
    "who reads the last page first knows how it ends",
    "rain fell on the roof while the kettle sang",
    "seven ships sailed south and six of them came home",
    "every answer in the book begins with a question",
] * 4

PAD, BOS, EOS, UNK, CLS, SEP, MASK = range(7)
VOCAB_SIZE = 320

_SIZE = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    head_dim=8,
    max_position_embeddings=64,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    embedding_dropout=0.0,
    classifier_dropout=0.0,
    # Large weights, so that a leak or a wrong position changes the outputs.
    initializer_range=0.2,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
)

_TWO_BASES = {
    "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

# Every switch of the block is on in one of these shapes and off in another.
DECODER_SHAPES = {
    "qwen3": dict(num_key_value_heads=2),
    "llama": dict(preset="llama", num_key_value_heads=1, tie_word_embeddings=False),
    "gpt2": dict(preset="gpt2"),
    "vaswani2017": dict(preset="vaswani2017"),
    "mistral": dict(preset="mistral", sliding_window=4, num_key_value_heads=2),
    "mixed": dict(
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=4,
        rope_parameters=_TWO_BASES,
        embedding_norm=True,
        attention_gate=True,
        value_residual=True,
        final_logit_softcapping=15.0,
    ),
    "none": dict(position_embedding_type="none", type_vocab_size=2, hidden_act="relu2", gated_mlp=False),
}
ENCODER_SHAPES = {
    "default": dict(),
    "bert": dict(preset="bert"),
    "vaswani2017": dict(preset="vaswani2017", classifier_pooling="cls"),
    "modernbert": dict(
        preset="modernbert", layer_types=["full_attention", "sliding_attention"], sliding_window=2, hidden_act="relu"
    ),
    "none": dict(
        position_embedding_type="none",
        norm_type="rmsnorm",
        qk_norm=True,
        num_key_value_heads=2,
        attention_gate=True,
        value_residual=True,
    ),
}

DECODER_HEADS = [
    "ForCausalLM",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
ENCODER_HEADS = [
    "ForMaskedLM",
    "ForPreTraining",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
]
# Class name of every model: the Auto class that opens it.
MODELS = {
    **{f"Tfm{family}Model": "AutoModel" for family in ("Decoder", "Encoder")},
    **{f"TfmDecoder{head}": f"AutoModel{head}" for head in DECODER_HEADS},
    **{f"TfmEncoder{head}": f"AutoModel{head}" for head in ENCODER_HEADS},
}


def _config(config_class: type[TfmConfig], shape: dict, switches: dict) -> TfmConfig:
    fields = {**_SIZE, **shape, **switches}
    preset = fields.pop("preset", None)
    return config_class(**fields) if preset is None else config_class.preset(preset, **fields)


def decoder_config(shape: str = "qwen3", **switches) -> TfmDecoderConfig:
    return _config(TfmDecoderConfig, DECODER_SHAPES[shape], switches)


def encoder_config(shape: str = "default", **switches) -> TfmEncoderConfig:
    special = dict(cls_token_id=CLS, sep_token_id=SEP, mask_token_id=MASK)
    return _config(TfmEncoderConfig, {**special, **ENCODER_SHAPES[shape]}, switches)


def build(name: str, shape: str | None = None, seed: int = 0, **switches) -> torch.nn.Module:
    """Returns a model by class name, in evaluation mode, with random weights, biases and gains."""
    make = decoder_config if "Decoder" in name else encoder_config
    config = make(**switches) if shape is None else make(shape, **switches)
    torch.manual_seed(seed)
    model = getattr(hf_tfm, name)(config).eval()
    # Biases of zero and gains of one would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns random ids of tokens that are not special."""
    return torch.randint(MASK + 1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def inputs_for(name: str, batch: int = 2, length: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns inputs with labels for a model by class name; some 25 % of the labels per token are ignored."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    shape = (batch, 3, length) if name.endswith("ForMultipleChoice") else (batch, length)
    inputs = {"input_ids": random_ids(*shape, seed=seed), "attention_mask": torch.ones(shape, dtype=torch.long)}
    ignored = draw(4, batch, length) == 0
    if name.endswith("ForCausalLM"):
        inputs["labels"] = inputs["input_ids"].masked_fill(ignored, -100)
    elif name.endswith(("ForMaskedLM", "ForPreTraining")):
        inputs["labels"] = draw(VOCAB_SIZE, batch, length).masked_fill(ignored, -100)
    elif name.endswith("ForTokenClassification"):
        inputs["labels"] = draw(2, batch, length).masked_fill(ignored, -100)
    elif name.endswith("ForMultipleChoice"):
        inputs["labels"] = draw(3, batch)
    elif name.endswith(("ForSequenceClassification", "ForNextSentencePrediction")):
        inputs["labels"] = draw(2, batch)
    elif name.endswith("ForQuestionAnswering"):
        inputs["start_positions"], inputs["end_positions"] = draw(length, batch), draw(length, batch)
    if name.endswith("ForPreTraining"):
        inputs["next_sentence_label"] = draw(2, batch)
    return inputs


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE of 320 tokens that encodes `[CLS] text [SEP]`, with the special ids above."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name.strip('[]').lower()}_token": name for name in special},
    )

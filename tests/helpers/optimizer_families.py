"""Tiny models of many families, whose parameters the optimizers have to sort."""

import tiny
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForPreTraining,
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


SIZE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


EXPERTS = SIZE | dict(num_key_value_heads=2, head_dim=8)


GPT2 = dict(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2)


def llama(**kwargs):
    return LlamaForCausalLM(LlamaConfig(**SIZE | dict(num_key_value_heads=2) | kwargs))


def qwen3(**kwargs):
    return Qwen3ForCausalLM(Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **kwargs))


def modernbert():
    return ModernBertForMaskedLM(ModernBertConfig(**SIZE, cls_token_id=1, sep_token_id=2))


FAMILIES = {
    "llama": llama,
    "qwen3": qwen3,
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "bert": lambda: BertForPreTraining(BertConfig(**SIZE)),
    "modernbert": modernbert,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZE, num_key_value_heads=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZE, num_key_value_heads=2, num_local_experts=3)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**EXPERTS, num_local_experts=3, num_experts_per_tok=2)),
    "llama4": lambda: Llama4ForCausalLM(Llama4TextConfig(**EXPERTS, num_local_experts=3, intermediate_size_mlp=48)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**GPT2)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
    ),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**SIZE, embedding_size=16)),
    "decoder": lambda: tiny.build("TfmDecoderForCausalLM"),
    "encoder": lambda: tiny.build("TfmEncoderForMaskedLM"),
}


def fill_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)

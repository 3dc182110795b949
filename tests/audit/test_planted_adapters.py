"""
Faults of adapters, frozen weights and precision that people reported, planted in runs as they wrote them.

Each run is also checked without its fault.
"""

from functools import partial

import pytest
import torch
from audit_helpers import (
    SENTENCES,
    arguments,
    byte_tokenizer,
    chats,
    sft_trainer,
    tiny_bert,
    tiny_llama,
    token_rows,
    train_shortly,
)
from datasets import Dataset
from planted import assert_found, assert_sound, planted
from torch.utils.checkpoint import checkpoint
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, LlamaForCausalLM, Trainer


peft = pytest.importorskip("peft")


def lora(**options):
    settings = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return peft.LoraConfig(**settings | options)


def finetune(folder, model, tokenizer=None, optimizers=(None, None), **options):
    tokenizer = tokenizer or byte_tokenizer()
    return Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=Dataset.from_list(token_rows(tokenizer, chats())),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        optimizers=optimizers,
    )


def checkpointing_without_gradients_of_inputs(folder, fault):
    """The first layer is checkpointed by the script; its input needs no gradient, so that its lora_B stays zero."""
    model = peft.get_peft_model(tiny_llama(byte_tokenizer()), lora())
    layer = model.base_model.model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, **options: checkpoint(partial(forward, **options), hidden, use_reentrant=fault)
    return finetune(folder, model)


def head_left_out(folder, fault):
    """`list.append` returns None, so that no module is saved whole; the type of the task is not given either."""
    tokenizer = byte_tokenizer(chat_template=None)
    targets = ["query", "value"]
    head = None if fault else ["classifier"]
    model = peft.get_peft_model(
        tiny_bert(tokenizer, labels=2),
        peft.LoraConfig(r=4, target_modules=targets, modules_to_save=head),
    )
    rows = [{"input_ids": tokenizer(SENTENCES[n % 8]).input_ids, "labels": n % 2} for n in range(16)]
    return Trainer(
        model=model,
        args=arguments(folder),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def new_tokens_stay_random(folder, fault):
    """Markers of turns are added to a base model, and the adapter trains the attention only."""
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"), eos_token="</s>")
    model = train_shortly(tiny_llama(tokenizer))
    model.save_pretrained(folder / "base")
    model = LlamaForCausalLM.from_pretrained(folder / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    model.resize_token_embeddings(len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    saved = None if fault else ["embed_tokens", "lm_head"]
    model = peft.get_peft_model(model, lora(modules_to_save=saved))
    return finetune(folder, model, tokenizer)


def adapter_on_one_of_two_tied_weights(folder, fault):
    """The head is the embedding; an adapter on the head alone is merged into both, or lost on saving."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, tie_word_embeddings=True)
    targets = ["q_proj", "v_proj"] + (["lm_head"] if fault else [])
    return finetune(folder, peft.get_peft_model(model, lora(target_modules=targets)), tokenizer)


def adapter_loaded_for_inference(folder, fault):
    tokenizer = byte_tokenizer()
    first = peft.get_peft_model(tiny_llama(tokenizer), lora())
    train_shortly(first)
    first.save_pretrained(folder / "adapter")
    model = peft.PeftModel.from_pretrained(tiny_llama(tokenizer), folder / "adapter", is_trainable=not fault)
    return finetune(folder, model, tokenizer)


def optimizer_of_the_bare_model(folder, fault):
    """The optimizer is made from the parameters of before the adapter."""
    model = tiny_llama(byte_tokenizer())
    if fault:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model = peft.get_peft_model(model, lora())
    else:
        model = peft.get_peft_model(model, lora())
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    return finetune(folder, model, optimizers=(optimizer, None))


def adapter_switched_off(folder, fault):
    """Adapters were switched off for a comparison, and not on again."""
    model = peft.get_peft_model(tiny_llama(byte_tokenizer()), lora())
    if fault:
        model.base_model.disable_adapter_layers()
        for name, weight in model.named_parameters():
            weight.requires_grad = "lora_" in name
    return finetune(folder, model)


def head_trained_beside_the_adapter(folder, fault):
    """The head is made trainable by hand, and the adapter's folder will not hold it."""
    model = peft.get_peft_model(tiny_llama(byte_tokenizer()), lora())
    if fault:
        model.base_model.model.lm_head.weight.requires_grad_(True)
    return finetune(folder, model)


def steps_below_bf16(folder, fault):
    tokenizer = byte_tokenizer()
    model = train_shortly(tiny_llama(tokenizer))
    if fault:
        model = model.to(torch.bfloat16)
    return finetune(folder, model, tokenizer, learning_rate=1e-6)


def embeddings_of_another_size_left_random(folder, fault):
    """The vocabulary grew, and loading leaves matrices of another size as new ones."""
    tokenizer = byte_tokenizer()
    train_shortly(tiny_llama(tokenizer)).save_pretrained(folder / "base")
    sizes = dict(vocab_size=len(tokenizer) + 2, ignore_mismatched_sizes=True) if fault else {}
    return finetune(folder, LlamaForCausalLM.from_pretrained(folder / "base", **sizes), tokenizer)


def head_replaced_though_tied(folder, fault):
    """A new head is put in, and the configuration says that it is the embedding."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, tie_word_embeddings=True)
    if fault:
        model.lm_head = torch.nn.Linear(32, len(tokenizer), bias=False)
    return finetune(folder, model, tokenizer)


def layers_detached(folder, fault):
    """A hook for logging hands on detached hidden states, so that the layers below get no gradient."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    if fault:
        model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    return finetune(folder, model, tokenizer)


def wrong_adapter_active(folder, fault):
    """A second adapter was loaded for comparison, and stays active and frozen, in a run of SFTTrainer."""
    pytest.importorskip("trl")
    tokenizer = byte_tokenizer()
    model = peft.get_peft_model(tiny_llama(tokenizer), lora())
    if fault:
        model.add_adapter("other", lora())
        model.set_adapter("other")
        for name, weight in model.named_parameters():
            weight.requires_grad = "lora_" in name and ".default." in name
    return sft_trainer(folder, chats(), tokenizer=tokenizer, model=model)


FAULTS = [
    planted("locuslab/open-unlearning#178", checkpointing_without_gradients_of_inputs, "P401"),
    planted("huggingface/peft#577", head_left_out, "P402"),
    planted("huggingface/peft#334", new_tokens_stay_random, "P406"),
    planted("huggingface/transformers#45127", adapter_on_one_of_two_tied_weights, "P410"),
    planted("huggingface/peft#282", adapter_loaded_for_inference, "P408", "P411"),
    planted("huggingface/peft#1402", optimizer_of_the_bare_model, "P407"),
    planted("huggingface/peft#1410", adapter_switched_off, "P411", "P401"),
    planted("eggai-tech/EggAI#123", head_trained_beside_the_adapter, "P413"),
    planted("meta-pytorch/torchtune#2254", steps_below_bf16, "P403"),
    planted("unslothai/unsloth#1971", head_replaced_though_tied, "P404"),
    planted("huggingface/transformers#12664", embeddings_of_another_size_left_random, "P405"),
    planted("ostris/ai-toolkit#1054", layers_detached, "P401"),
    planted("huggingface/peft#2759", wrong_adapter_active, "P411", "P401"),
]


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_finds_the_reported_fault(build, codes, tmp_path):
    assert_found(build(tmp_path, True), codes)


@pytest.mark.parametrize(("build", "codes"), FAULTS)
def test_is_silent_without_the_fault(build, codes, tmp_path):
    assert_sound(build(tmp_path, False))

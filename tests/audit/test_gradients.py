"""Planted faults that keep gradients from weights, and the sound runs beside them."""

import pytest
import torch
from audit_helpers import byte_tokenizer, causal_trainer, chats, tiny_bert, tiny_llama, token_rows, train_shortly
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_tfm import preflight
from hf_tfm.audit.trainers.gradients import PRIVATE_NAMES, enable_checkpointing


TOKENIZER = byte_tokenizer()


def trainer_of(model, folder, **options):
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=-100)
    return causal_trainer(folder, token_rows(TOKENIZER, chats(8)), collator, model, TOKENIZER, **options)


def report_of(model, folder, **options):
    return preflight(trainer_of(model, folder, **options), show=None)


def levels(report, code="P401"):
    return [found.level for found in report.findings if found.code == code]


def lora(**options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(train_shortly(tiny_llama(TOKENIZER)), config)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_all_weights_get_a_gradient(tmp_path, reentrant):
    options = {} if reentrant is None else dict(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for model in (tiny_llama(TOKENIZER), lora()):
        report = report_of(model, tmp_path, gradient_checkpointing=reentrant is not None, **options)
        assert not report.codes and report.facts["gradients"].endswith("2 layers")


def test_checkpointing_of_a_frozen_base(tmp_path):
    """huggingface/transformers#26221, locuslab/open-unlearning#178: LoRA learns nothing under reentrant checkpoints."""
    model = lora(modules_to_save=["lm_head"])
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert not levels(report_of(model, tmp_path))
    model.disable_input_require_grads()
    report = report_of(model, tmp_path)
    assert set(levels(report)) == {"error"} and "layers.0" in report.errors[0].what


def test_a_part_of_the_model_that_is_detached(tmp_path):
    """huggingface/transformers#35826 and others: layers behind a detached tensor learn, those before do not."""
    model = tiny_llama(TOKENIZER, num_hidden_layers=4)
    model.model.layers[2].register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))
    report = report_of(model, tmp_path)
    assert set(levels(report)) == {"error"}
    what = report.errors[0].what
    assert "layers.1" in what and "layers.2" not in what and "embedding" in what


def test_weights_that_the_loss_does_not_reach(tmp_path):
    model = tiny_llama(TOKENIZER)
    model.model.layers[1].mlp.extra = torch.nn.Linear(4, 4)
    assert set(levels(report_of(model, tmp_path))) == {"warning"}
    model.model.layers[1].mlp.extra.requires_grad_(False)
    assert not levels(report_of(model, tmp_path))


def test_an_adapter_behind_frozen_zeros(tmp_path):
    model = lora()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_A" in name)
    assert levels(report_of(model, tmp_path)) == ["error"]


def test_gradients_that_are_not_finite(tmp_path):
    model = tiny_llama(TOKENIZER)
    model.model.norm.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * torch.inf,))
    assert "error" in levels(report_of(model, tmp_path))


def test_weights_that_have_no_use_are_a_note(tmp_path):
    from audit_helpers import arguments
    from transformers import Trainer

    rows = [{"input_ids": TOKENIZER(f"text {number} of some length")["input_ids"]} for number in range(8)]
    model = tiny_bert(TOKENIZER)
    model.bert.pooler = torch.nn.Linear(32, 32)
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.3)
    trainer = Trainer(model, arguments(tmp_path), collator, Dataset.from_list(rows), processing_class=TOKENIZER)
    report = preflight(trainer, show=None)
    assert not report.codes and levels(report) == ["note"]


def test_experts_and_dropped_layers_are_sound(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(TOKENIZER), pad_token_id=0, bos_token_id=1, eos_token_id=4)
    mixtral = MixtralConfig(
        **sizes, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    assert not report_of(MixtralForCausalLM(mixtral), tmp_path).codes
    bart = BartConfig(
        **sizes, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=256, decoder_start_token_id=4,
        forced_eos_token_id=4, encoder_layerdrop=0.5,
    )  # fmt: skip
    assert "error" not in levels(report_of(BartForConditionalGeneration(bart), tmp_path))


def test_the_model_is_left_as_it_was(tmp_path):
    model = lora()
    trainer = trainer_of(model, tmp_path, gradient_checkpointing=True)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    layer, embedding = model.base_model.model.model.layers[0], model.get_input_embeddings()
    hooks = dict(embedding._forward_hooks)
    preflight(trainer, show=None)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert not layer.gradient_checkpointing and dict(embedding._forward_hooks) == hooks


def test_private_names_are_those_of_transformers(tmp_path):
    model = tiny_llama(TOKENIZER)
    enable_checkpointing(trainer_of(model, tmp_path).args, model)
    owners = (model, model.model, model.model.layers[0], model.get_input_embeddings())
    assert isinstance(model.model.layers[0], GradientCheckpointingLayer)
    for name in PRIVATE_NAMES:
        assert any(vars(owner).get(name) for owner in owners), name

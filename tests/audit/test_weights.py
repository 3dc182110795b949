"""Planted faults in weights, their origin, their ties and their optimizer, and the sound runs beside them."""

import pytest
import torch
from audit_helpers import byte_tokenizer, causal_trainer, chats, tiny_bert, tiny_llama, token_rows, train_shortly
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertForSequenceClassification, DataCollatorForSeq2Seq, LlamaForCausalLM

from hf_tfm import preflight


TOKENIZER = byte_tokenizer()


def report_of(model, folder, optimizer=None, tokenizer=TOKENIZER, **options):
    """Returns the report of a plain Trainer on tiny chats."""
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    trainer = causal_trainer(folder / "run", token_rows(tokenizer, chats(8)), collator, model, tokenizer, **options)
    trainer.optimizer = optimizer
    return preflight(trainer, show=None)


def levels(report, code):
    return [found.level for found in report.findings if found.code == code]


def save(model, folder, rename=None):
    """Saves a model, perhaps with other names of its weights."""
    model.save_pretrained(folder)
    if rename:
        (path,) = folder.glob("*.safetensors")
        tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_new_and_loaded_models_are_sound(tmp_path, tied):
    model = train_shortly(tiny_llama(TOKENIZER, tie_word_embeddings=tied))
    assert not report_of(model, tmp_path).codes
    loaded = LlamaForCausalLM.from_pretrained(save(model, tmp_path / "saved"))
    report = report_of(loaded, tmp_path)
    assert not report.codes and not any("loaded" in line for line in report.unseen)


def test_names_that_the_checkpoint_lacks(tmp_path):
    """huggingface/transformers#3142: weights under another name stay random without an error."""
    model = train_shortly(tiny_llama(TOKENIZER))
    for rename in (lambda name: name.replace("layers.1.mlp", "layers.1.ffn"), lambda name: f"module.{name}"):
        folder = save(model, tmp_path / "saved", rename)
        report = report_of(LlamaForCausalLM.from_pretrained(folder), tmp_path)
        assert "error" in levels(report, "P405")


def test_a_checkpoint_without_the_output_layer(tmp_path):
    folder = save(train_shortly(tiny_llama(TOKENIZER)).model, tmp_path / "saved")
    assert levels(report_of(LlamaForCausalLM.from_pretrained(folder), tmp_path), "P405") == ["warning"]


def test_weights_that_are_initialized_again_after_loading(tmp_path):
    """huggingface/transformers#46620: from_pretrained returns random weights, and says that all were loaded."""
    folder = save(train_shortly(tiny_llama(TOKENIZER)), tmp_path / "saved")
    model = LlamaForCausalLM.from_pretrained(folder)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(std=0.02)
    assert levels(report_of(model, tmp_path), "P405") == ["error"]


def test_a_new_model_with_the_configuration_of_a_checkpoint(tmp_path):
    folder = save(train_shortly(tiny_llama(TOKENIZER)), tmp_path / "saved")
    model = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    assert levels(report_of(model, tmp_path), "P405") == ["warning"]


def test_new_layers_between_trained_ones(tmp_path):
    model = train_shortly(tiny_llama(TOKENIZER, num_hidden_layers=4))
    assert not report_of(model, tmp_path).codes
    new = tiny_llama(TOKENIZER, seed=5).model.layers[0]
    model.model.layers[2].load_state_dict(new.state_dict())
    report = report_of(model, tmp_path)
    assert levels(report, "P405") == ["error"] and "layers.2" in report.errors[0].where


def test_a_new_head_of_a_loaded_body_is_no_finding(tmp_path):
    folder = save(train_shortly(tiny_bert(TOKENIZER)), tmp_path / "saved")
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    from hf_tfm.audit.trainers.origin import compare_with_checkpoint

    assert {name.split(".")[0] for name in compare_with_checkpoint(model).missing} <= {"classifier", "bert"}
    report = report_of_classifier(model, tmp_path)
    assert not report.codes and "classifier.weight" in report.facts["new weights"]


def report_of_classifier(model, folder):
    rows = [{"input_ids": TOKENIZER(f"text {number}")["input_ids"], "labels": number % 2} for number in range(8)]
    from transformers import DataCollatorWithPadding

    trainer = causal_trainer(folder / "run", rows, DataCollatorWithPadding(TOKENIZER), model, TOKENIZER)
    return preflight(trainer, show=None)


def test_a_new_head_that_is_frozen(tmp_path):
    """4AI/LS-LLaMA#3: does anything train the classifier's new head?"""
    folder = save(train_shortly(tiny_bert(TOKENIZER)), tmp_path / "saved")
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    model.classifier.requires_grad_(False)
    assert levels(report_of_classifier(model, tmp_path), "P402") == ["error"]
    trained = BertForSequenceClassification.from_pretrained(save(train_shortly(model), tmp_path / "trained"))
    trained.classifier.requires_grad_(False)
    assert not report_of_classifier(trained, tmp_path).codes


def test_tied_weights_that_are_two(tmp_path):
    """huggingface/transformers#43207: tie_word_embeddings is true, and the tensors are different ones."""
    model = train_shortly(tiny_llama(TOKENIZER, tie_word_embeddings=True))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert levels(report_of(model, tmp_path), "P404") == ["error"]


def test_one_matrix_that_the_configuration_calls_two(tmp_path):
    model = train_shortly(tiny_llama(TOKENIZER))
    model.lm_head.weight = model.model.embed_tokens.weight
    assert levels(report_of(model, tmp_path), "P404") == ["note"]


@pytest.mark.parametrize("fault", ["another model", "a part", "none"])
def test_optimizers_hold_what_learns(tmp_path, fault):
    """huggingface/peft#1313 and others: the optimizer was made before the model had its last weights."""
    model = train_shortly(tiny_llama(TOKENIZER))
    source = tiny_llama(TOKENIZER) if fault == "another model" else model
    weights = list(source.parameters())[: -2 if fault == "a part" else None]
    report = report_of(model, tmp_path, optimizer=torch.optim.AdamW(weights, lr=1e-4))
    assert levels(report, "P407") == ([] if fault == "none" else ["error"])


def test_nothing_and_little_that_learns(tmp_path):
    model = tiny_llama(TOKENIZER).requires_grad_(False)
    assert levels(report_of(model, tmp_path), "P408") == ["error"]
    model.lm_head.requires_grad_(True)
    report = report_of(model, tmp_path)
    assert levels(report, "P409") == ["note"] and not report.codes


def test_steps_that_bf16_rounds_away(tmp_path):
    """NVIDIA-NeMo/Automodel#3444: at a rate of 6e-6, updates of bf16 weights round back to the same value."""
    model = train_shortly(tiny_llama(TOKENIZER)).bfloat16()
    assert levels(report_of(model, tmp_path, learning_rate=6e-6), "P403") == ["warning"]
    assert "warning" not in levels(report_of(model, tmp_path, learning_rate=1e-3), "P403")
    assert not levels(report_of(model.float(), tmp_path, learning_rate=6e-6, bf16=True), "P403")


def test_fp16_weights_under_a_gradient_scaler(tmp_path):
    """huggingface/transformers#23165: Attempting to unscale FP16 gradients."""
    model = train_shortly(tiny_llama(TOKENIZER))
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=-100)
    trainer = causal_trainer(tmp_path, token_rows(TOKENIZER, chats(8)), collator, model.half(), TOKENIZER)
    trainer.args.fp16 = True  # without a GPU, its check would refuse it
    assert levels(preflight(trainer, show=None), "P412") == ["error"]


@pytest.mark.parametrize("mean_resizing", [True, False])
def test_new_tokens_with_frozen_embeddings(tmp_path, mean_resizing):
    """huggingface/peft#1689: the rows of new tokens are random, and must be trained."""
    tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"), eos_token="</s>")
    folder = save(train_shortly(tiny_llama(tokenizer)), tmp_path / "saved")
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=mean_resizing)
    assert not levels(report_of(model, tmp_path, tokenizer=tokenizer), "P406")
    model.model.embed_tokens.requires_grad_(False)
    report = report_of(model, tmp_path, tokenizer=tokenizer)
    (found,) = (found for found in report.findings if found.code == "P406")
    assert found.level == "error" and "<|im_start|>" in found.where


def test_frozen_embeddings_of_trained_tokens_are_sound(tmp_path):
    model = train_shortly(tiny_llama(TOKENIZER))
    model.model.embed_tokens.requires_grad_(False)
    assert not report_of(model, tmp_path).codes


def test_weights_loaded_under_another_prefix_are_sound(tmp_path):
    folder = save(
        train_shortly(tiny_llama(TOKENIZER)), tmp_path / "model", lambda name: name.replace("model.", "transformer.", 1)
    )
    model = LlamaForCausalLM.from_pretrained(folder, key_mapping={r"^transformer\.": "model."})
    assert not levels(report_of(model, tmp_path), "P405")

"""Planted faults of adapters, and the sound runs beside them."""

import pytest
from audit_helpers import byte_tokenizer, causal_trainer, chats, tiny_bert, tiny_llama, token_rows, train_shortly
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

from hf_tfm import preflight


peft = pytest.importorskip("peft")
TOKENIZER = byte_tokenizer()
LORA = dict(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def report_of(model, folder, **options):
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=-100)
    trainer = causal_trainer(folder / "run", token_rows(TOKENIZER, chats(8)), collator, model, TOKENIZER, **options)
    return preflight(trainer, show=None)


def adapted(config=None, tied=False):
    model = train_shortly(tiny_llama(TOKENIZER, tie_word_embeddings=tied))
    return peft.get_peft_model(model, config or peft.LoraConfig(**LORA))


def levels(report, code):
    return [found.level for found in report.findings if found.code == code]


SOUND = {
    "LoRA": lambda: peft.LoraConfig(**LORA, bias="lora_only"),
    "DoRA": lambda: peft.LoraConfig(**LORA, use_dora=True, rank_pattern={"q_proj": 2}),
    "all linear": lambda: peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1),
    "new tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[3, 4]),
    "both embeddings": lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["q_proj"]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(**LORA, total_step=10, init_r=4, target_r=2),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", SOUND)
def test_sound_adapters(tmp_path, name, tied):
    report = report_of(adapted(SOUND[name](), tied), tmp_path)
    assert not report.codes and "failed" not in " ".join(report.unseen)


def test_two_adapters_at_once(tmp_path):
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(**LORA))
    model.base_model.set_adapter(["default", "second"])
    report = report_of(model, tmp_path)
    assert not report.codes and report.facts["adapters"] == "default (LORA), second (LORA)"


@pytest.mark.parametrize("trainable", [False, True])
def test_adapters_loaded_for_inference(tmp_path, trainable):
    """huggingface/trl#6700: training goes on from an adapter that was loaded with is_trainable=False."""
    adapted().save_pretrained(tmp_path / "adapter")
    base = train_shortly(tiny_llama(TOKENIZER))
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=trainable)
    model.get_output_embeddings().requires_grad_(not trainable)
    assert levels(report_of(model, tmp_path), "P411") == ([] if trainable else ["error"])


@pytest.mark.parametrize("state", ["switched off", "merged", "other adapter"])
def test_adapters_that_are_not_computed_with(tmp_path, state):
    """huggingface/peft#2759 and others: what is active, enabled, merged and trainable are four things."""
    model = adapted()
    if state == "merged":
        model.merge_adapter()
    elif state == "other adapter":
        model.add_adapter("second", peft.LoraConfig(**LORA))
        model.set_requires_grad("default", False)
        model.set_requires_grad("second", True)
    else:
        model.base_model.disable_adapter_layers()
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora" in name)
    assert levels(report_of(model, tmp_path), "P411") == ["error"]


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens", "lm_head"]])
def test_merging_into_tied_embeddings(tmp_path, modules):
    """huggingface/peft#2972: the merged weights are one matrix, and one of two updates is lost."""
    config = peft.LoraConfig(target_modules=["q_proj", *modules], task_type="CAUSAL_LM")
    assert levels(report_of(adapted(config, tied=True), tmp_path), "P410") == ["error"]
    assert not report_of(adapted(config), tmp_path).codes


@pytest.mark.parametrize("part", ["norm", "embed_tokens"])
def test_weights_that_a_saved_adapter_lacks(tmp_path, part):
    """artidoro/qlora#214: the embeddings are trained, and are not saved with the adapter."""
    model = adapted()
    for name, weight in model.named_parameters():
        if part in name:
            weight.requires_grad_(True)
    assert levels(report_of(model, tmp_path), "P413") == ["warning" if part == "embed_tokens" else "error"]


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_a_classifier_whose_head_the_adapter_freezes(tmp_path, task_type):
    """huggingface/peft#1070: without a task type or modules_to_save, the new head stays random."""
    config = peft.LoraConfig(target_modules=["query", "value"], task_type=task_type)
    model = peft.get_peft_model(tiny_bert(TOKENIZER, labels=2), config)
    rows = [{"input_ids": TOKENIZER(f"text {number}")["input_ids"], "labels": number % 2} for number in range(8)]
    trainer = causal_trainer(tmp_path, rows, DataCollatorWithPadding(TOKENIZER), model, TOKENIZER)
    assert levels(preflight(trainer, show=None), "P402") == ([] if task_type else ["error"])

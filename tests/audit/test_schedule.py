"""Planted faults in the settings of runs, and the sound runs beside them."""

import pytest
import torch
from audit_helpers import arguments, byte_tokenizer, causal_trainer, chats, tiny_llama, token_rows, train_shortly
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, LlamaForCausalLM, Trainer

from hf_tfm import preflight


TOKENIZER = byte_tokenizer()
BEST = dict(load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps")


def report_of(folder, model=None, **options):
    rows = token_rows(TOKENIZER, chats(8))
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=-100)
    model = model or tiny_llama(TOKENIZER)
    trainer = causal_trainer(folder / "run", rows, collator, model, TOKENIZER, **{"eval_strategy": "no"} | options)
    return preflight(trainer, show=None)


def levels(report, code):
    return [found.level for found in report.findings if found.code == code]


def test_facts_of_a_sound_run(tmp_path):
    report = report_of(tmp_path, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2)
    assert not report.codes and report.facts["steps"] == "3 (3.00 epochs of 1)"
    assert report.facts["records"] == "8" and report.facts["records per step"] == "4 × 2 = 8"


@pytest.mark.parametrize(
    "options",
    [dict(per_device_train_batch_size=16, dataloader_drop_last=True), dict(max_steps=-1, num_train_epochs=0)],
)
def test_runs_without_a_step(tmp_path, options):
    assert levels(report_of(tmp_path, **options), "P801") == ["error"]


def test_records_that_are_left_out(tmp_path):
    report = report_of(tmp_path, per_device_train_batch_size=3, dataloader_drop_last=True)
    assert levels(report, "P804") == ["note"] and not report.codes
    assert not levels(report_of(tmp_path, dataloader_drop_last=True), "P804")


def test_rates_that_are_far_from_usual(tmp_path):
    assert levels(report_of(tmp_path, learning_rate=0), "P802") == ["error"]
    assert levels(report_of(tmp_path, learning_rate=1e-9), "P802") == ["warning"]
    assert levels(report_of(tmp_path, learning_rate=5), "P802") == ["warning"]
    train_shortly(tiny_llama(TOKENIZER)).save_pretrained(tmp_path / "saved")
    trained = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert levels(report_of(tmp_path, trained, learning_rate=1e-2), "P802") == ["warning"]
    for model, options in [
        (None, dict(learning_rate=6e-3)),  # a new model
        (trained, dict(learning_rate=1e-3)),
        (trained, dict(learning_rate=1e-1, optim="sgd")),
        (trained, dict(learning_rate=1e-2, optim="adafactor")),
    ]:
        assert not levels(report_of(tmp_path, model, **options), "P802")


def test_rates_of_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    for config, rate, expected in [(lora, 1e-2, []), (lora, 5e-2, ["warning"]), (prompts, 3e-1, [])]:
        model = peft.get_peft_model(tiny_llama(TOKENIZER), config)
        assert levels(report_of(tmp_path, model, learning_rate=rate), "P802") == expected


@pytest.mark.parametrize("steps, expected", [(100, ["warning"]), (0.5, []), (2, [])])
def test_a_warm_up_that_takes_the_whole_run(tmp_path, steps, expected):
    """coqui-ai/TTS#1611: the rate never comes to its highest value."""
    assert levels(report_of(tmp_path, warmup_steps=steps), "P803") == expected


@pytest.mark.parametrize(
    "name, greater, expected",
    [
        ("perplexity", None, ["error"]),
        ("eval_wer", True, ["error"]),
        ("eval_accuracy", False, ["error"]),
        ("loss", None, []),
        ("eval_other_loss", None, []),
        ("f1", None, []),
        ("wer", False, []),
        ("score_of_ours", False, []),
    ],
)
def test_the_best_checkpoint_is_chosen_by_the_right_end(tmp_path, name, greater, expected):
    """huggingface/transformers#31142: after 7 hours, the worst model was saved."""
    args = arguments(tmp_path, **BEST, metric_for_best_model=name, greater_is_better=greater)
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=-100)
    trainer = causal_trainer(tmp_path, token_rows(TOKENIZER, chats(8)), collator, tiny_llama(TOKENIZER), TOKENIZER)
    trainer.args = args  # without data to evaluate on, the trainer would refuse it
    assert levels(preflight(trainer, show=None), "P805") == expected


def scheduled(folder, factor, **options):
    rows, model = token_rows(TOKENIZER, chats(8)), tiny_llama(TOKENIZER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    collator = DataCollatorForSeq2Seq(TOKENIZER)
    trainer = Trainer(
        model,
        arguments(folder, max_steps=40, **options),
        collator,
        Dataset.from_list(rows),
        optimizers=(optimizer, scheduler),
    )
    return preflight(trainer, show=None)


@pytest.mark.parametrize(
    ("factor", "code", "level"),
    [
        (lambda step: step // 1000, "P802", "error"),
        (lambda step: max(0.0, 1 - step / 10), "P802", "warning"),  # made for a quarter of the steps
        (lambda step: min(1.0, step / 100), "P803", None),
    ],
)
def test_given_schedulers_that_do_not_fit_the_run(tmp_path, factor, code, level):
    report = scheduled(tmp_path, factor)
    assert code in report.codes and level in (None, *levels(report, code))


@pytest.mark.parametrize(
    "factor", [lambda step: 1.0, lambda step: min(1.0, step / 4), lambda step: max(0.0, 1 - step / 40)]
)
def test_given_schedulers_that_fit_the_run(tmp_path, factor):
    assert not scheduled(tmp_path, factor).codes


def test_data_without_a_record(tmp_path):
    trainer = Trainer(tiny_llama(TOKENIZER), arguments(tmp_path), train_dataset=Dataset.from_list([]))
    assert levels(preflight(trainer, show=None), "P801") == ["error"]

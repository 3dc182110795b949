"""Preferences: DPO and reward models learn them, runs resume exactly, and errors name the record or option."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from finetune_checks import check_evaluation_batches, check_resumption, record_of, write
from peft import PeftModel
from safetensors.torch import load_file
from tiny import build, build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.data.chat import ChatEncoder
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_rows
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks.preferences import encode_pairs


pytest.importorskip("trl")
import finetune_preference


WORDS = ["cat", "moon", "rain", "ship", "book", "roof"]


def pair(number: int) -> dict:
    word, other = WORDS[number % 6], WORDS[number // 6 % 6]
    return {"prompt": f"say {word} for {other}", "chosen": f"{word}, please", "rejected": f"{other}? duh"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    build("TfmDecoderForCausalLM", **ids).save_pretrained(root / "ours")
    train_tokenizer(kind="bytes").save_pretrained(root / "ours")
    torch.manual_seed(0)
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=128)).save_pretrained(root / "llama")
    build_tokenizer().save_pretrained(root / "llama")
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    records = [pair(number) for number in range(36)]
    write(root / "train.jsonl", [record for number, record in enumerate(records) if number % 3])
    write(root / "test.jsonl", records[::3])
    return root


def arguments(model: Path, files: Path, out: Path, **changes) -> list[str]:
    fields = {
        "model": model,
        "train_file": files / "train.jsonl",
        "validation_file": files / "test.jsonl",
        "test_file": files / "test.jsonl",
        "output_dir": out,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "bf16": "false",
        **changes,
    }
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


def log_likelihoods(model, tokenizer, pairs: list[dict], which: str) -> torch.Tensor:
    """Return the log-likelihood of each answer behind its prompt."""
    sums = []
    for one in pairs:
        chat = [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one[which]}]
        (_, answer), ids = (tokens := ChatEncoder(tokenizer)(chat, "x")).split(), torch.tensor([tokens.ids])
        start = tokens.answer_start()
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, start - 1 : start - 1 + len(answer)].log_softmax(-1)
        sums.append(logs.gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(sums)


def test_useless_pairs_are_dropped_and_counted():
    encoder = ChatEncoder(train_tokenizer(kind="bytes"))
    rows = [pair(1), {**pair(2), "rejected": pair(2)["chosen"]}, {**pair(3), "rejected": "no " * 30}]
    records = read_rows(rows, Reading("preferences"))
    assert len(records) == 2 and "both answers are the same" in records.reports[0].left_out
    found = encode_pairs(encoder, records, 64)
    assert (found.num_too_long, found.numbers) == (1, [0])
    end = encoder.tokenizer.eos_token_id
    assert found.rows[0]["chosen_ids"][-1] == found.rows[0]["rejected_ids"][-1] == end
    talk = {"prompt": [{"role": "user", "content": "x"}], "chosen": [], "rejected": []}
    thoughts = [{"role": "assistant", "content": "y", "reasoning_content": text} for text in ("a", "b")]
    same = Records([{**talk, "chosen": thoughts[:1], "rejected": thoughts[1:]}, records[0]], ["x"] * 2, "x")
    assert encode_pairs(ChatEncoder(encoder.tokenizer, "drop"), same, 64).num_identical == 1


def test_whole_dialogues_train_the_last_answers_alone(bases, tmp_path, capsys):
    """HH-RLHF's texts, one of which the template refuses."""
    start = "\n\nHuman: hi\n\nAssistant: hello"
    rows = [
        {"chosen": f"{start}\n\nHuman: {p['prompt']}\n\nAssistant: {p['chosen']}",
         "rejected": f"{start}\n\nHuman: {p['prompt']}\n\nAssistant: {p['rejected']}"}
        for p in map(pair, range(1, 13)) if p["chosen"][:3] != p["rejected"][:3]
    ]  # fmt: skip
    rows.append({side: text.replace("\n\nAssistant: hello", "") for side, text in rows[0].items()})
    file = write(tmp_path / "train.jsonl", rows)
    argv = arguments(
        bases / "ours", tmp_path, tmp_path / "run", train_file=file, validation_file=None, test_file=None,
        validation_fraction=0.3, max_steps=1, max_length=64, num_train_epochs=None,
    )  # fmt: skip
    assert finetune_preference.main(argv) == 2
    assert "expected assistant" in capsys.readouterr().err
    assert finetune_preference.main([*argv, "--skip_bad", "true"]) == 0
    shown = capsys.readouterr().out
    assert "form dialogues" in " ".join(shown.split()) and "records are left out, the first because" in shown
    example = next(line for line in shown.splitlines() if line.startswith("chosen"))
    assert "<|user|>hi<|end|><|assistant|>hello<|eos|><|user|>say" in example and "⟦hello" not in example


@pytest.mark.parametrize(("base", "lora"), [("ours", False), ("ours", True), ("llama", False)])
def test_dpo_makes_chosen_answers_likelier(bases, files, tmp_path, capsys, base, lora):
    out = tmp_path / "run"
    changes = dict(lora="true", learning_rate=3e-2) if lora else {}
    assert finetune_preference.main(arguments(bases / base, files, out, **changes)) == 0
    shown = capsys.readouterr().out
    assert "⟦moon, please" in shown and "likelier" in shown

    record, pairs = record_of(out), [json.loads(line) for line in open(files / "test.jsonl")]
    tokenizer = AutoTokenizer.from_pretrained(out)
    before = AutoModelForCausalLM.from_pretrained(bases / base).eval()
    old = {which: log_likelihoods(before, tokenizer, pairs, which) for which in ("chosen", "rejected")}
    model = PeftModel.from_pretrained(before, out) if lora else AutoModelForCausalLM.from_pretrained(out)
    new = {which: log_likelihoods(model.eval(), tokenizer, pairs, which) for which in ("chosen", "rejected")}
    gained = (new["chosen"] - old["chosen"]) > (new["rejected"] - old["rejected"])
    assert record["results"]["accuracy"]["value"] == pytest.approx(gained.float().mean().item()) and gained.all()
    likelier = (new["chosen"] > new["rejected"]).float().mean().item()
    assert record["results"]["likelier"]["value"] == pytest.approx(likelier)
    tokens = sum(len(tokenizer(one["chosen"], add_special_tokens=False)["input_ids"]) + 1 for one in pairs)
    assert record["results"]["chosen_loss"]["value"] == pytest.approx(-new["chosen"].sum().item() / tokens, rel=1e-4)
    assert record["results"]["chosen_loss"]["value"] < record["baselines"]["before"]["chosen_loss"]["value"]
    for folder in (out, *complete_checkpoints(out)):
        assert (
            "likelier" not in json.dumps(record_of(folder)["evaluations"])
            and (folder / "chat_template.jinja").is_file()
        )
        assert not (folder / "ref").exists(), "TRL's copy of the adapter is no part of the model"
        assert "adapter" in (folder / "README.md").read_text() if lora else (folder / "config.json").is_file()
    if not lora:
        assert json.loads((out / "config.json").read_text())["use_cache"] is True


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_gives_the_better_answer_a_higher_reward(bases, files, tmp_path, lora):
    out = tmp_path / "run"
    argv = arguments(bases / "ours", files, out, mode="reward", lora=str(lora).lower(), num_train_epochs=6)
    assert finetune_preference.main(argv) == 0
    record = record_of(out)
    assert record["results"]["accuracy"]["value"] == 1.0 > record["baselines"]["before"]["accuracy"]["value"]
    if not lora:
        model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        rewards = []
        for word in ("ship, please", "rain? duh"):
            chat = [{"role": "user", "content": "say ship for rain"}, {"role": "assistant", "content": word}]
            inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
            rewards.append(model(**inputs).logits.item())
        assert rewards[0] > rewards[1]


def test_accumulated_batches_train_as_one(bases, files, tmp_path):
    weights = []
    for accumulated in (1, 4):
        out = tmp_path / str(accumulated)
        argv = arguments(
            bases / "ours", files, out, max_steps=3, per_device_train_batch_size=8 // accumulated, optim="sgd",
            gradient_accumulation_steps=accumulated, learning_rate=0.3, max_grad_norm=0, warmup_steps=0,
            eval_strategy="no", save_strategy="no", load_best_model_at_end="false",
        )  # fmt: skip
        assert finetune_preference.main(argv) == 0
        weights.append(load_file(out / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    start = load_file(bases / "ours" / "model.safetensors")
    assert any((weights[0][name] - start[name]).abs().max() > 1e-3 for name in start)


@pytest.mark.parametrize("mode", ["dpo", "reward"])
def test_a_terminal_shows_no_bar_but_that_of_the_training(bases, files, tmp_path, capsys, monkeypatch, mode):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    argv = arguments(bases / "ours", files, tmp_path / "run", mode=mode, max_steps=2)
    assert finetune_preference.main(argv) == 0
    bars = {
        line.partition(":")[0]
        for line in capsys.readouterr().err.replace("\r", "\n").split("\n")
        if "it/s" in line or "%|" in line
    }
    assert bars == {"train"}


@pytest.mark.parametrize("mode", ["dpo", "reward"])
def test_the_evaluation_loss_does_not_depend_on_its_batches(bases, files, tmp_path, mode):
    run = partial(arguments, bases / "ours", files)
    check_evaluation_batches(finetune_preference, run, tmp_path, mode=mode)


@pytest.mark.parametrize("changes", [{}, {"lora": "true"}, {"mode": "reward"}])
def test_a_stopped_run_resumes_to_the_same_bits(bases, files, tmp_path, monkeypatch, capsys, changes):
    run = partial(arguments, bases / "ours", files)
    # The stop is in the second epoch.
    check_resumption(finetune_preference, run, tmp_path, monkeypatch, capsys, steps=14, stops=[8], **changes)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": "x", "chosen": "y"}, "line 3: field 'rejected' is missing"),
        ({"prompt": "x", "chosen": "y", "rejected": " "}, "line 3: field 'rejected' is blank"),
        ({"prompt": "x", "chosen": float("nan"), "rejected": "y"}, "line 3: field 'chosen' is nan"),
        ({"prompt": None, "chosen": "x", "rejected": "y"}, "line 3: nothing is asked"),
        ({"chosen": "x", "rejected": "y"}, "line 3: nothing is asked"),
        (
            {"prompt": "x", "chosen": "y", "rejected": [{"role": "user", "content": "y"}]},
            "line 3: field 'rejected' ends with the user, not with an answer",
        ),
    ],
)
def test_bad_records_are_named(bases, tmp_path, capsys, bad, complaint):
    file = write(tmp_path / "train.jsonl", [pair(1), pair(2), bad, *map(pair, range(3, 30))])
    argv = arguments(bases / "ours", tmp_path, tmp_path / "run", train_file=file, validation_file=None, test_file=None)
    assert finetune_preference.main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(beta=-1), "--beta -1.0: must be at least 0"),
        (dict(mode="ppo"), "mode 'ppo' must be dpo or reward"),
        (dict(max_length=10), "of 24 pairs of train 24 are longer"),
        (dict(trl='{"betta": 1}'), "betta"),
        (dict(trl='{"loss_weights": [1, 2]}'), "same length"),
        (dict(trl="[1]"), "trl: must be a mapping"),
        (dict(train_sampling_strategy="group_by_length"), "pairs are drawn at random"),
        (dict(label_smoothing_factor=0.1), "--label_smoothing_factor has no effect"),
    ],
)
def test_bad_settings_are_refused(bases, files, tmp_path, capsys, changes, complaint):
    assert finetune_preference.main(arguments(bases / "ours", files, tmp_path / "run", **changes)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown


def test_the_recipe_has_valid_fields():
    from hf_tfm.train.recipe import parse_recipe

    recipe = Path(__file__).parents[2] / "training" / "recipes" / "finetune_preference.yaml"
    script, _ = parse_recipe(
        [str(recipe)], finetune_preference.PreferenceRecipe, finetune_preference.PreferenceArguments
    )
    assert all((recipe.parents[2] / file).is_file() for file in script.train_file) and script.mode == "dpo"

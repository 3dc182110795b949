"""Fine-tuning on conversations: a model that learns to reply and to stop, equal batches, resumption, errors."""

import json
from functools import partial
from pathlib import Path

import finetune_instruct
import pytest
import torch
from finetune_checks import check_evaluation_batches, check_resumption, record_of, write
from safetensors.torch import load_file
from tiny import build, build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.data.tokenizer import train_tokenizer


WORDS = ["cat", "moon", "rain", "ship", "book", "roof"]


def own_tokenizer():
    return train_tokenizer(kind="bytes")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """Folders of pretrained models: ours with a tokenizer of ours, and a Llama whose tokenizer has no chat template."""
    root = tmp_path_factory.mktemp("bases")
    build(
        "TfmDecoderForCausalLM", initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3
    ).save_pretrained(root / "ours")
    own_tokenizer().save_pretrained(root / "ours")
    torch.manual_seed(0)
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=128)).save_pretrained(root / "llama")
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # as many have it
    tokenizer.save_pretrained(root / "llama")
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    pairs = [(word, other) for word in WORDS for other in WORDS]
    records = [{"prompt": f"say {word} for {other}", "response": f"{word}!"} for word, other in pairs]
    write(root / "train.jsonl", [record for number, record in enumerate(records) if number % 5])
    write(root / "test.jsonl", records[::5])
    return root


def arguments(model: Path, files: Path, out: Path, **changes) -> list[str]:
    fields = {
        "model": model,
        "train_file": files / "train.jsonl",
        "validation_file": files / "test.jsonl",
        "test_file": files / "test.jsonl",
        "output_dir": out,
        "max_length": 64,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "bf16": "false",
        "answers": 2,
        "max_new_tokens": 12,
        **changes,
    }
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("base", ["ours", "llama"])
def test_learns_to_answer_and_to_stop(bases, files, tmp_path, base, capsys):
    out = tmp_path / "run"
    argv = arguments(
        bases / base,
        files,
        out,
        num_train_epochs=40,
        answers=8,
        eval_steps=0.5,
        eval_strategy="steps",
        save_strategy="steps",
        save_steps=0.5,
    )
    assert finetune_instruct.main(argv) == 0
    shown = capsys.readouterr().out
    assert "⟦" in shown and "% full" in shown and "packed rows" in shown and "before →" in shown

    record = record_of(out)
    after, before = record["results"], record["baselines"]["before"]
    assert after["loss"]["value"] < 0.5 * before["loss"]["value"]
    assert after["stops_by_itself"]["value"] == 1.0 > before["stops_by_itself"]["value"]
    assert "after → " in record["samples"][0] and "before → " in record["samples"][0]

    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ends = model.generation_config.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and model.generation_config.pad_token_id not in (ends, None)
    assert tokenizer.chat_template
    asked = [{"role": "user", "content": "say moon for rain"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True).strip().endswith("!") and output[-1] == ends

    for folder in (out, *complete_checkpoints(out)):
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True, "Trainer switches it off"
        assert GenerationConfig.from_pretrained(folder).eos_token_id == ends
        for name in ("tokenizer.json", "chat_template.jinja", "README.md", "model.safetensors"):
            assert (folder / name).is_file(), f"{folder.name} lacks {name}"
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace('path = "."', f"path = {str(out)!r}"), {})
    assert capsys.readouterr().out.strip()


def test_accumulated_and_packed_batches_train_as_one_padded_batch(bases, files, tmp_path):
    ways = {
        "padded": dict(packing="false", per_device_train_batch_size=28),
        "accumulated": dict(packing="false", per_device_train_batch_size=7, gradient_accumulation_steps=4),
        "packed": dict(packing="true", per_device_train_batch_size=100),
    }
    weights = {}
    for name, way in ways.items():
        argv = arguments(
            bases / "ours", files, tmp_path / name, optim="sgd", learning_rate=0.1, max_steps=3, max_grad_norm=0,
            eval_strategy="no", save_strategy="no", load_best_model_at_end="false", baselines="false", warmup_steps=0,
            **way,
        )  # fmt: skip
        assert finetune_instruct.main(argv) == 0
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    start = load_file(bases / "ours" / "model.safetensors")
    for name in ("accumulated", "packed"):
        for parameter, tensor in weights["padded"].items():
            torch.testing.assert_close(
                weights[name][parameter], tensor, atol=1e-5, rtol=1e-4, msg=f"{name} {parameter}"
            )
    assert any((weights["padded"][name] - start[name]).abs().max() > 1e-3 for name in start)


def test_the_evaluation_loss_does_not_depend_on_its_batches(bases, files, tmp_path):
    run = partial(arguments, bases / "ours", files)
    check_evaluation_batches(finetune_instruct, run, tmp_path)


@pytest.mark.parametrize("changes", [{}, {"lora": "true", "lora_dropout": 0.1, "packing": "false"}])
def test_a_stopped_run_resumes_to_the_same_bits(bases, files, tmp_path, monkeypatch, capsys, changes):
    run = partial(arguments, bases / "ours", files)
    changes = {"per_device_train_batch_size": 2, **changes}
    check_resumption(finetune_instruct, run, tmp_path, monkeypatch, capsys, steps=12, stops=[4], **changes)


def test_forms_tools_and_weights_reach_the_training(tmp_path, capsys):
    """ShareGPT with tools, calls, a weight and a bad record, from named fields, is trained as it says."""
    tools = json.dumps([{"name": "look", "parameters": {"type": "object"}}])
    rows = [
        {
            "talk": [
                {"from": "human", "value": f"say {word}"},
                {"from": "gpt", "value": "never mind", "weight": 0},
                {"from": "human", "value": "say it"},
                {"from": "function_call", "value": json.dumps({"name": "look", "arguments": {"at": word}})},
                {"from": "observation", "value": "found"},
                {"from": "gpt", "value": word},
            ],
            "apis": tools,
        }
        for word in WORDS
    ]
    file = write(tmp_path / "train.jsonl", [*rows, {"talk": [{"from": "boss", "value": "x"}], "apis": tools}])
    out = tmp_path / "run"
    base = tmp_path / "base"
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    build("TfmDecoderForCausalLM", max_position_embeddings=1024, **ids).save_pretrained(base)
    own_tokenizer().save_pretrained(base)
    argv = arguments(
        base, tmp_path, out, train_file=file, validation_file=None, test_file=None, validation_fraction=0.4,
        max_length=1024, max_steps=1, baselines="false", messages_field="talk", tools_field="apis", skip_bad="true",
        max_new_tokens=2, packing="false",
    )  # fmt: skip
    assert finetune_instruct.main(argv) == 0
    shown = capsys.readouterr().out
    assert "form sharegpt, 7 rows → 6 records; left out: 1 × a message has role 'boss'" in " ".join(shown.split())
    assert "6 × message with weight 0 is not trained" in shown
    trained = shown.partition("example")[2].partition("⟦")[2]
    assert trained.startswith('<tool_call>⏎{"name": "look')
    assert '<tools>⏎{"type": "function", "function": {"name": "look"' in shown and "⟦never" not in shown
    assert (
        finetune_instruct.main(
            [*argv, "--chat_template", str(write_template(tmp_path)), "--output_dir", str(out) + "2"]
        )
        == 2
    )
    assert "does not write tools: give another by --chat_template" in capsys.readouterr().err


def write_template(folder: Path) -> Path:
    """Write a chat template without tools."""
    path = folder / "template.jinja"
    path.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")
    return path


GOOD = [{"prompt": f"say {word}", "response": word} for word in WORDS]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": "say"}, "line 4: field 'response' is missing"),
        ({"prompt": "say", "response": "  "}, "line 4: the content of a message is blank"),
        ({"prompt": "say", "response": float("nan")}, "line 4: field 'response' is nan"),
        ({"instruction": None, "output": "x"}, "line 4: field 'prompt' is missing"),
        ({"prompt": [{"role": "boss", "content": "x"}], "response": "x"}, "line 4: a message has role 'boss'"),
        (
            {"prompt": [{"role": "user", "content": "x"}] * 2, "response": "x"},
            "line 4: malformed conversation: message 2: role is user, expected assistant",
        ),
    ],
)  # fmt: skip
def test_bad_records_are_named(bases, tmp_path, capsys, bad, complaint):
    file = write(tmp_path / "train.jsonl", [*GOOD[:3], bad, *GOOD[3:]])
    argv = arguments(
        bases / "ours",
        tmp_path,
        tmp_path / "run",
        train_file=file,
        validation_file=None,
        test_file=None,
        validation_fraction=0.5,
        seed=1,
    )
    assert finetune_instruct.main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(max_length=8), "max_length 8: no conversation of train fits"),
        (dict(chat_template="nowhere.jinja"), "--chat_template nowhere.jinja: cannot be read"),
        (dict(lora="true", new_tokens="<|tool|>", model="full"), "embeddings are all taken"),
        (dict(lora_int8="true"), "add --lora"),
        (dict(max_new_tokens=0), "--max_new_tokens 0: must be at least 1"),
        (dict(metric_for_best_model="accuracy"), "must be one of loss"),
        (dict(train_file="nothing.jsonl"), "nothing.jsonl"),
        (dict(prompt_field="ask"), "no field 'ask' (--prompt_field), there are prompt, response"),
        (dict(train_on="prompts"), "train_on 'prompts' must be one of assistant, last, all"),
        (dict(reasoning="some"), "reasoning 'some' must be keep or drop"),
        # transformers would smooth labels that do not stand one place behind what predicts them.
        (dict(label_smoothing_factor=0.1), "--label_smoothing_factor has no effect"),
    ],
)
def test_bad_settings_are_refused(bases, files, tmp_path, capsys, changes, complaint):
    if changes.get("model") == "full":
        tokenizer = own_tokenizer()
        model = build("TfmDecoderForCausalLM", vocab_size=len(tokenizer))
        changes = {**changes, "model": tmp_path / "full"}
        model.save_pretrained(tmp_path / "full")
        tokenizer.save_pretrained(tmp_path / "full")
    if changes.get("train_file") == "nothing.jsonl":
        changes = {"train_file": write(tmp_path / "nothing.jsonl", [])}
    argv = arguments(changes.pop("model", bases / "ours"), files, tmp_path / "run", **changes)
    capsys.readouterr()  # what saving the model said
    assert finetune_instruct.main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown


def test_the_recipe_has_valid_fields():
    from hf_tfm.train.recipe import parse_recipe

    recipe = Path(__file__).parents[2] / "training" / "recipes" / "finetune_instruct.yaml"
    script, args = parse_recipe([str(recipe)], finetune_instruct.InstructRecipe, finetune_instruct.InstructArguments)
    assert script.lora and all((recipe.parents[2] / file).is_file() for file in script.train_file) and args.output_dir

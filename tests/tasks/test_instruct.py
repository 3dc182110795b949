"""Fine-tuning to answer: which tokens are trained, packing that changes nothing, a model that learns to stop."""

import json
import os
import signal
from pathlib import Path

import finetune_instruct
import pytest
import torch
from finetune_checks import record_of, write
from safetensors.torch import load_file
from tiny import build, build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.data import chat_rows, conversations
from hf_tfm.data.chat import ChatEncoder, ensure_chat_template
from hf_tfm.data.chat_rows import ConversationCollator, encode_conversations
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks.generation import generate_replies
from hf_tfm.tasks.likelihood import negative_log_likelihoods
from hf_tfm.train.callbacks import ProgressLine


# Templates as they come with models: without marks for what is trained, with marks that leave the turn's end out.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '[CLS]system\nBe kind.[SEP]\n' "
    "}}{% endif %}{{ '[CLS]' + message['role'] + '\n' + message['content'] + '[SEP]' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '[CLS]' }}{% generation %}"
    "{{ message['content'] }}{% endgeneration %}{{ '[SEP]' }}{% else %}{{ message['content'] + '[EOS]' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[CLS]' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "who sang?"},
    {"role": "assistant", "content": "the kettle sang"},
    {"role": "user", "content": "and who sailed?"},
    {"role": "assistant", "content": "six ships sailed"},
]
WORDS = ["cat", "moon", "rain", "ship", "book", "roof"]


def own_tokenizer():
    return train_tokenizer(kind="bytes")


def foreign_tokenizer(template: str | None):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    return tokenizer


TOKENIZERS = {
    "own": own_tokenizer,
    "chatml": lambda: foreign_tokenizer(CHATML),
    "marked": lambda: foreign_tokenizer(MARKED),
    "plain": lambda: foreign_tokenizer(None),
}


def spoken(tokenizer, tokens) -> list[str]:
    """What the assistant says, run by run."""
    runs, ids = [], []
    for token, said in zip([*tokens.ids, 0], [*tokens.spoken, False]):
        if said:
            ids.append(token)
        elif ids:
            runs.append(tokenizer.decode(ids))
            ids = []
    return runs


def test_records_of_three_shapes_say_the_same():
    records = [
        {"instruction": "add", "input": "1 and 2", "output": "3"},
        {"prompt": "add\n\n1 and 2", "response": "3"},
        {"messages": [{"role": "user", "content": "add\n\n1 and 2"}, {"role": "assistant", "content": "3"}]},
        {"prompt": [{"role": "user", "content": "add\n\n1 and 2"}], "completion": "3"},
    ]
    found = conversations.read_conversations(Records(records, ["x"] * 4, "x"))
    assert all(messages == found[2] for messages in found)
    [without_input] = conversations.read_conversations(
        Records([{"instruction": "add", "input": float("nan"), "output": "3"}], ["x"], "x")
    )
    assert without_input[0]["content"] == "add"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_only_what_the_assistant_says_is_trained_and_its_end(kind):
    tokenizer = TOKENIZERS[kind]()
    encoder = ChatEncoder(tokenizer)
    tokens = encoder(TALK, "here")
    end = {"own": "<|eos|>", "chatml": "[SEP]", "marked": "[SEP]", "plain": "[EOS]"}[kind]
    assert spoken(tokenizer, tokens) == [f"the kettle sang{end}", f"six ships sailed{end}"]
    assert encoder.ends == {tokenizer.convert_tokens_to_ids(end)} and tokenizer.pad_token_id not in encoder.ends
    # What is trained is what every other tool will feed the model.
    assert tokens.ids == list(tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"])
    asked = tokenizer.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoder.prompt(TALK[:3], "here") == list(asked) == tokens.split()[0]
    assert tokenizer.decode(tokens.split()[1]) == f"six ships sailed{end}"
    row = encode_conversations(encoder, [TALK], ["here"], 200).rows[0]
    shown = chat_rows.show(tokenizer, row)
    assert f"⟦the kettle sang{end}⟧" in shown and shown.count("⟦") == 2


def test_text_that_looks_like_a_token_is_text_or_refused():
    talk = [{"role": "user", "content": "what is <|eos|>?"}, {"role": "assistant", "content": "an <|end|>"}]
    tokenizer = own_tokenizer()
    tokens = ChatEncoder(tokenizer)(talk, "here")
    assert tokens.ids.count(tokenizer.eos_token_id) == 1 and tokenizer.decode(tokens.split()[1]) == "an <|end|><|eos|>"
    talk = [{"role": "user", "content": "what is [SEP]?"}, {"role": "assistant", "content": "nothing"}]
    with pytest.raises(InputError, match=r"line 7: message 1 holds '\[SEP\]'"):
        ChatEncoder(foreign_tokenizer(CHATML))(talk, "line 7")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "at which nothing can stop"),
        (
            "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] + '[SEP]' }}{% endif %}"
            "{% endfor %}",
            "writes it otherwise when more follows",
        ),
        ("{% for m in messages %}{{ raise_exception('only tools') }}{% endfor %}", "refuses it: only tools"),
        (
            "{% for m in messages %}{% if m['role'] == 'bot' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
            "{% endif %}{{ m['content'] + '[SEP]' }}{% endfor %}",
            "no token to train",
        ),
    ],
)
def test_templates_that_cannot_teach_are_refused(template, complaint):
    with pytest.raises(InputError, match=f"line 3: .*{complaint}"):
        ChatEncoder(foreign_tokenizer(template))(TALK, "line 3")


def test_long_conversations_lose_turns_and_are_counted():
    encoder = ChatEncoder(own_tokenizer())
    whole, first = (len(encoder(TALK[:end], "x").ids) for end in (4, 2))
    long = [{"role": "user", "content": "why? " * 30}, {"role": "assistant", "content": "so"}]
    found = encode_conversations(encoder, [TALK, long, TALK[:2]], ["x"] * 3, whole - 1)
    assert (found.shortened, found.left_out, found.numbers, found.turns) == (1, 1, [0, 2], [2, 2])
    assert [len(row["input_ids"]) for row in found.rows] == [first, first]
    assert found.rows[0]["input_ids"][-1] == encoder.tokenizer.eos_token_id, "no answer is cut"
    with pytest.raises(InputError, match="no conversation fits"):
        encode_conversations(encoder, [long], ["x"], 20)


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return {
        "ours": build("TfmDecoderForCausalLM"),
        "gpt2": build("TfmDecoderForCausalLM", "gpt2"),
        "mixed": build("TfmDecoderForCausalLM", "mixed"),
        "llama": LlamaForCausalLM(LlamaConfig(**size, use_cache=False, initializer_range=0.2)),
    }


@pytest.mark.parametrize("train_on_prompts", [False, True])
def test_packed_equals_padded_equals_alone(train_on_prompts):
    encoder = ChatEncoder(foreign_tokenizer(MARKED))
    talks = [TALK[:2], TALK[2:], TALK, [TALK[0], TALK[3]]]
    rows = encode_conversations(encoder, talks, ["x"] * 4, 64, train_on_prompts).rows
    packed = chat_rows.pack(rows, 64, 0)
    assert len(packed) < len(rows) and all(len(row["input_ids"]) == 64 for row in packed)
    collate = ConversationCollator(0)
    for name, model in models().items():
        count = sum(label != -100 for row in rows for label in row["labels"])
        gradients = []
        for batch in (packed, rows):
            model.zero_grad()
            (model(**collate(batch), num_items_in_batch=count).loss).backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        for parameter, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][parameter], atol=2e-5, rtol=1e-3, msg=name)
        nats, tokens = negative_log_likelihoods(model, encoder.tokenizer, rows)
        assert tokens.sum() == count
        for row, expected in zip(rows, nats):
            alone = model(**collate([row]), num_items_in_batch=1).loss.item()
            assert alone == pytest.approx(expected, rel=1e-4), name


def test_a_model_that_leaks_is_found_out(monkeypatch):
    encoder = ChatEncoder(foreign_tokenizer(MARKED))
    rows = encode_conversations(encoder, [TALK[:2], TALK[2:]], ["x"] * 2, 64).rows
    packed = chat_rows.pack(rows, 64, 0)
    for model in models().values():
        chat_rows.check_packing(model, packed)
    real = LlamaForCausalLM.forward

    def leaky(self, input_ids=None, position_ids=None, **kwargs):
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", leaky)
    with pytest.raises(InputError, match="--packing false"):
        chat_rows.check_packing(models()["llama"], packed)


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


def test_answers_are_the_same_alone_and_in_a_batch():
    tokenizer = own_tokenizer()
    model = build("TfmDecoderForCausalLM", pad_token_id=0, eos_token_id=3)
    prompts = [list(range(30, 30 + length)) for length in (3, 9, 5, 12)]
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=9.0)
    together = generate_replies(model, tokenizer, prompts, 8)
    assert model.generation_config.repetition_penalty == 9.0
    with torch.no_grad():
        first = model(input_ids=torch.tensor([prompts[1]])).logits[0, -1].argmax()
    assert together[1].text.startswith(tokenizer.decode([first]))
    assert together == [generate_replies(model, tokenizer, [prompt], 8)[0] for prompt in prompts]


def test_answers_end_where_a_model_has_no_more_positions():
    tokenizer = own_tokenizer()
    config = GPT2Config(vocab_size=320, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config).eval()
    prompts = [list(range(30, 30 + length)) for length in (3, 14, 16, 17, 9)]
    together = generate_replies(model, tokenizer, prompts, 8)
    assert together == [generate_replies(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert [len(said.text) > 0 for said in together] == [True, True, False, False, True]


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


@pytest.mark.parametrize("changes", [{}, {"lora": "true", "lora_dropout": 0.1, "packing": "false"}])
def test_stopped_and_resumed_equals_straight_through(bases, files, tmp_path, monkeypatch, capsys, changes):
    weights = "adapter_model.safetensors" if changes else "model.safetensors"
    for out in ("whole", "parts"):
        argv = arguments(bases / "ours", files, tmp_path / out, max_steps=12, per_device_train_batch_size=2, **changes)
        with monkeypatch.context() as context:
            if out == "parts":
                stop_at, real = {4}, ProgressLine.on_step_end

                def signalled(self, args, state, control, stop_at=stop_at, real=real, **kwargs):
                    if state.global_step in stop_at:
                        stop_at.remove(state.global_step)
                        os.kill(os.getpid(), signal.SIGTERM)
                    return real(self, args, state, control, **kwargs)

                context.setattr(ProgressLine, "on_step_end", signalled)
                assert finetune_instruct.main(argv) == 0
                assert "at step 5 of 12" in capsys.readouterr().out
            assert finetune_instruct.main(argv) == 0
    whole, parts = (load_file(tmp_path / out / "checkpoint-12" / weights) for out in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    assert record_of(tmp_path / "whole")["results"] == record_of(tmp_path / "parts")["results"]


GOOD = [{"prompt": f"say {word}", "response": word} for word in WORDS]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": "say"}, "line 4: fields are prompt; give messages, or"),
        ({"prompt": "say", "response": "  "}, "line 4: field 'response' is blank"),
        ({"prompt": "say", "response": float("nan")}, "line 4: field 'response' is nan, not text"),
        ({"instruction": None, "output": "x"}, "line 4: field 'instruction' is missing"),
        ({"messages": []}, "line 4: messages: must be a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 4: no message of the assistant"),
        ({"messages": [{"role": "user"}]}, "line 4: messages: message 1 is {'role': 'user'}, it needs role"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "line 4: messages: message 1 has role 'boss'"),
        (
            {"messages": [{"role": "user", "content": "x"}] * 2 + [{"role": "assistant", "content": "x"}]},
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
        (dict(max_length=8), "max_length 8: no conversation fits"),
        (dict(chat_template="nowhere.jinja"), "--chat_template nowhere.jinja: cannot be read"),
        (dict(lora="true", new_tokens="<|tool|>", model="full"), "embeddings are all taken"),
        (dict(lora_int8="true"), "add --lora"),
        (dict(max_new_tokens=0), "--max_new_tokens 0: must be at least 1"),
        (dict(metric_for_best_model="accuracy"), "must be one of loss"),
        (dict(train_file="nothing.jsonl"), "nothing.jsonl"),
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


def test_the_recipe_names_fields_that_there_are():
    from hf_tfm.train.recipe import parse_recipe

    recipe = Path(__file__).parents[2] / "training" / "recipes" / "finetune_instruct.yaml"
    script, args = parse_recipe([str(recipe)], finetune_instruct.InstructRecipe, finetune_instruct.InstructArguments)
    assert script.lora and (recipe.parents[2] / script.train_file).is_file() and args.output_dir

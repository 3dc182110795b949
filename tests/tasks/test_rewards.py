"""Reinforcement learning with verifiable rewards: verifiers, a model that gains reward, exact resumption."""

import json
from functools import partial
from pathlib import Path

import pytest
from finetune_checks import check_resumption, record_of, write
from peft import PeftModel
from tiny import build
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks.rewards import read_verifier


pytest.importorskip("trl")
import finetune_rlvr
import make_sums


FUNCTION = """
def score(answer, record):
    return sum(letter in record["letters"] for letter in answer) / max(1, len(answer))

def fails(answer, record):
    return record["nothing"]

def says_nothing(answer, record):
    return float("nan")
"""


def test_rewards_of_three_kinds(tmp_path):
    records = Records(
        [{"answer": "12 * 2 = 24\n#### 24", "letters": "ab"}, {"answer": r"^(yes|ja)\b", "letters": "c"}],
        ["a", "b"],
        "x",
    )
    number = read_verifier("number", records.subset([0]))
    assert [number(text, 0) for text in ("24", "it is 24.0", "42", "")] == [1.0, 1.0, 0.0, 0.0]
    pattern = read_verifier("pattern", records.subset([1]))
    assert [pattern(text, 0) for text in ("yes, it is", "yesterday", "no")] == [1.0, 0.0, 0.0]
    (tmp_path / "mine.py").write_text(FUNCTION)
    own = read_verifier(f"{tmp_path}/mine.py:score", records)
    assert [own("abc", 0), own("abc", 1)] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("number", "line 2: field 'answer' is '\\(', not one number"),
        ("pattern", "line 2: field 'answer' is no regular expression"),
        ("best", "must be number, pattern, or file.py:function"),
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("{}/mine.py:worst", "no function worst in .*mine.py, there are score, fails, says_nothing"),
        ("{}/broken.py:score", "cannot be imported: SyntaxError"),
        ("{}/mine.py:fails", "fails on an answer to line 1: KeyError"),
        ("{}/mine.py:says_nothing", "gives nan for an answer to line 1, not a number"),
    ],
)
def test_impossible_rewards_are_refused(tmp_path, kind, complaint):
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "broken.py").write_text("def score(")
    records = Records([{"answer": "1"}, {"answer": "("}], ["line 1", "line 2"], "x")
    with pytest.raises(InputError, match=complaint):
        read_verifier(kind.format(tmp_path), records)("so", 0)


def test_test_sums_occur_in_no_other_split(tmp_path):
    assert make_sums.main(["--output", str(tmp_path), "--digits", "1"]) == 0
    assert make_sums.main(["--output", str(tmp_path / "train.jsonl")]) == 2, "a file is no folder to write"
    assert make_sums.main(["--output", str(tmp_path), "--lines", "0"]) == 2
    splits = make_sums.split_pairs(1, 0)
    seen = {tuple(sorted(pair)) for name in ("train", "validation") for pair in splits[name]}
    assert splits["test"] and not seen & {tuple(sorted(pair)) for pair in splits["test"]}
    assert len(splits["train"]) + sum(1 + (a != b) for name in ("validation", "test") for a, b in splits[name]) == 100
    texts = [
        json.loads(line)["text"] for name in ("", "_validation") for line in (tmp_path / f"pretrain{name}.jsonl").open()
    ]
    lines = {line.partition(" =")[0] for text in texts for line in text.split("\n")}
    assert len(lines) == len(splits["train"])
    assert not lines & {f"{a} + {b}" for pair in splits["test"] for a, b in (pair, pair[::-1])}
    records = [json.loads(line) for line in (tmp_path / "test.jsonl").open()]
    for record, (a, b) in zip(records, splits["test"]):
        assert str(a) in record["prompt"] and str(b) in record["prompt"] and int(record["answer"]) == a + b


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    build("TfmDecoderForCausalLM", **ids).save_pretrained(folder)
    train_tokenizer(kind="bytes").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    records = [{"prompt": f"say {number}", "answer": "[a-f]", "letters": "abcdef"} for number in range(40)]
    write(root / "train.jsonl", records[:32])
    write(root / "test.jsonl", records[32:])
    (root / "mine.py").write_text(FUNCTION)
    return root


def arguments(model: Path, files: Path, out: Path, **changes) -> list[str]:
    fields = {
        "model": model,
        "train_file": files / "train.jsonl",
        "validation_file": files / "test.jsonl",
        "test_file": files / "test.jsonl",
        "output_dir": out,
        "reward": "pattern",
        "max_steps": 8,
        "eval_steps": 0.25,
        "save_steps": 0.25,
        "per_device_train_batch_size": 32,
        "answers_per_prompt": 8,
        "max_new_tokens": 4,
        "learning_rate": 1e-2,
        "bf16": "false",
        **changes,
    }
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("lora", [False, True])
def test_rewarded_answers_become_likelier(base, files, tmp_path, capsys, lora):
    out = tmp_path / "run"
    changes = dict(lora="true", learning_rate=5e-2, beta=0.01) if lora else {}
    assert finetune_rlvr.main(arguments(base, files, out, **changes)) == 0
    assert "⟦what it says⟧" in capsys.readouterr().out
    record = record_of(out)
    assert record["results"]["accuracy"]["value"] > 0.8 > record["baselines"]["before"]["accuracy"]["value"]
    best = max(entry["eval_reward"] for entry in record["evaluations"] if "eval_reward" in entry)
    assert record["best"]["reward"] == best and "after → " in record["samples"][0]
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(base if lora else out).eval()
    model = PeftModel.from_pretrained(model, out) if lora else model
    chat = [{"role": "user", "content": "say 35"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert set(tokenizer.decode(said)) & set("abcdef")
    for folder in (out, *complete_checkpoints(out)):
        assert (folder / "chat_template.jinja").is_file() and not (folder / "ref").exists()
        assert (folder / ("adapter_model.safetensors" if lora else "config.json")).is_file()
    if not lora:
        assert json.loads((out / "config.json").read_text())["use_cache"] is True


def test_a_function_of_the_user_is_the_reward(base, files, tmp_path):
    out = tmp_path / "run"
    argv = arguments(base, files, out, reward=f"{files}/mine.py:score", test_file=None, max_steps=4)
    assert finetune_rlvr.main(argv) == 0
    record = record_of(out)
    assert record["results"]["reward"]["value"] > record["baselines"]["before"]["reward"]["value"]
    assert record["measured_on"] == "validation"


@pytest.mark.parametrize("count", [3, 4, 6])
def test_few_prompts_are_refused_or_counted(base, files, tmp_path, capsys, count):
    """A step takes four prompts with eight answers each."""
    records = [{"prompt": f"say {number}", "answer": "[a-f]"} for number in range(count)]
    train, out = write(tmp_path / "train.jsonl", records), tmp_path / "run"
    argv = arguments(base, files, out, train_file=train, max_steps=None, num_train_epochs=3, eval_strategy="no",
                     save_strategy="no", load_best_model_at_end="false")  # fmt: skip
    code, shown = finetune_rlvr.main(argv), capsys.readouterr()
    if count < 4:
        assert code == 2 and not (out / "run_record.json").exists()
        assert "3 prompts to train on, and a batch of 32 answers takes 4" in shown.err
        assert "give --per_device_train_batch_size 24" in shown.err and shown.err.count("\n") == 1
        assert finetune_rlvr.main([*argv, "--per_device_train_batch_size", "24"]) == 0
    else:
        assert code == 0 and "3 of 4 prompts with 8 answers each, 1 an epoch" in shown.out
        assert ("1 an epoch of 4 of the 6 prompts, others in the next" in shown.out) == (count == 6)
    assert record_of(out)["steps"] == 3


def test_a_stopped_run_resumes_to_the_same_bits(base, files, tmp_path, monkeypatch, capsys):
    run = partial(arguments, base, files, eval_steps=6, save_steps=6)
    # An epoch has eight steps; the stop is in the second one.
    check_resumption(finetune_rlvr, run, tmp_path, monkeypatch, capsys, steps=12, stops=[9])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(answer_field="solution"), "no field 'solution' (--answer_field), there are prompt, answer, letters"),
        (dict(max_length=8), "no prompt of train is short enough"),
        (dict(answers_per_prompt=5), "GRPOConfig: generation_batch_size (32) must be divisible by"),
        (dict(metric_for_best_model="loss"), "must be one of reward"),
        (dict(warmup_steps=9), "--warmup_steps 9: the run has 8"),
        (dict(temperature=0), "--temperature 0.0: must be at least 0.01"),
        (dict(max_new_tokens=0), "--max_new_tokens 0: must be at least 1"),
        (dict(train_sampling_strategy="sequential"), "prompts are drawn at random"),
        (dict(answers_per_prompt=1), "at least 2 generations"),
        (dict(metric_for_best_model="accuracy"), "must be one of reward"),
    ],
)
def test_bad_settings_are_refused(base, files, tmp_path, capsys, changes, complaint):
    assert finetune_rlvr.main(arguments(base, files, tmp_path / "run", **changes)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown


def test_answers_that_cannot_be_checked_are_listed_or_skipped(base, files, tmp_path, capsys):
    """GSM8K's questions, two of which have no number, with a system prompt of their own."""
    rows = [{"question": f"say {number}", "answer": f"so\n#### {number}", "system": "be short"} for number in range(8)]
    rows[2]["answer"] = rows[5]["answer"] = "none"
    file, out = write(tmp_path / "train.jsonl", rows), tmp_path / "run"
    argv = arguments(
        base,
        files,
        out,
        train_file=file,
        validation_file=file,
        test_file=None,
        reward="number",
        max_steps=1,
        max_length=64,
    )
    assert finetune_rlvr.main(argv) == 2
    shown = capsys.readouterr().err
    assert "2 of 8 records cannot be used; mend them, or leave them out with --skip_bad:" in shown
    assert "line 3: field 'answer' is 'none', not one number" in shown and "line 6: field 'answer'" in shown
    assert finetune_rlvr.main([*argv, "--skip_bad", "true"]) == 0
    shown = capsys.readouterr().out
    assert "6 questions" in shown and "2 train records are left out" in shown
    assert "<|system|>be short<|end|><|user|>say 0" in shown
    assert finetune_rlvr.main(arguments(base, files, tmp_path / "other", reward="number")) == 2
    shown = capsys.readouterr().err
    assert "32 of 32 records" in shown and "--skip_bad" not in shown


@pytest.mark.parametrize("tools_differ", [False, True])
def test_prompts_with_tools_are_sampled_with_them(tmp_path, files, tools_differ, capsys):
    folder = tmp_path / "base"
    ids = dict(initializer_range=0.05, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    build("TfmDecoderForCausalLM", max_position_embeddings=512, **ids).save_pretrained(folder)
    train_tokenizer(kind="bytes").save_pretrained(folder)
    calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}]
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    talk.append({"role": "tool", "content": "found"})
    rows = [
        {"prompt": [*talk, {"role": "tool", "content": str(number)}], "answer": "[a-f]", "tools": [{"name": "look"}]}
        for number in range(8)
    ]
    if tools_differ:
        rows[1] = {**rows[0], "tools": [{"name": "find"}]}
    file = write(tmp_path / "train.jsonl", rows)
    argv = arguments(folder, files, tmp_path / "run", train_file=file, validation_file=file, test_file=None,
                     max_steps=1, max_length=400)  # fmt: skip
    if tools_differ:
        assert finetune_rlvr.main(argv) == 2 and "differ in their tools" in capsys.readouterr().err
    else:
        assert finetune_rlvr.main(argv) == 0
        assert '<tools>⏎{"type": "function", "function": {"name": "look"}}⏎</tools>' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"answer": "x"}, "line 2: field 'prompt' is missing"),
        ({"prompt": " ", "answer": "x"}, "line 2: field 'prompt' is blank"),
        ({"prompt": [{"role": "user"}], "answer": "x"}, "line 2: a message has no content (message 1)"),
        ({"prompt": "x", "answer": None}, "line 2: field 'answer' is null"),
    ],
)
def test_bad_records_are_named(base, files, tmp_path, capsys, bad, complaint):
    file = write(tmp_path / "train.jsonl", [{"prompt": "x", "answer": "x"}, bad])
    assert finetune_rlvr.main(arguments(base, files, tmp_path / "run", train_file=file)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and complaint in shown
    assert not (tmp_path / "run").exists()


def test_the_recipe_has_valid_fields():
    from hf_tfm.train.recipe import parse_recipe

    recipe = Path(__file__).parents[2] / "training" / "recipes" / "finetune_rlvr.yaml"
    script, _ = parse_recipe([str(recipe)], finetune_rlvr.RlvrRecipe, finetune_rlvr.RlvrArguments)
    assert script.reward == "number" and script.test_file

"""Small runs of the pretraining scripts: texts, arguments, comparison of weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_tfm.data.tokenizer import train_tokenizer


STORY = (
    "Once there was a {a} who lived by the {b}. Every day the {a} asked the {b} for a story. The {b} told {n} of them."
)


WORDS = [("miller", "river"), ("fisher", "sea"), ("hunter", "forest"), ("widow", "well")]


OVERRIDES = '{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}'


TEXTS = [STORY.format(a=a, b=b, n=n) for n in range(2, 30) for a, b in WORDS]


WHOLE_FOLDER = (
    "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md",
    "run_record.json", "configuration_tfm.py", "modeling_tfm.py", "modeling_tfm_decoder.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of the texts and of both tokenizers."""
    root = tmp_path_factory.mktemp("pretraining")
    for name, texts in (("train", TEXTS), ("held_out", TEXTS[:8])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for style in ("decoder", "encoder"):
        tokenizer = train_tokenizer(TEXTS, vocab_size=320, style=style, num_spare_tokens=0)
        tokenizer.save_pretrained(root / style)
    return root


@pytest.fixture
def quick_runs(monkeypatch):
    """Leave out the plot and the samples at the end of a run, which take half of its time."""
    import pretrain_clm

    monkeypatch.setattr("hf_tfm.artifacts.write.plot_curve", lambda *args: None)
    monkeypatch.setattr(pretrain_clm, "sample_continuation", lambda model, tokenizer, prompt, seed: prompt)


def arguments(files, out, style="decoder", **changes):
    fields = {
        "data": files / "train.jsonl",
        "validation_data": files / "held_out.jsonl",
        "tokenizer": files / style,
        "model": "nano",
        "model_overrides": OVERRIDES,
        "block_length": 32,
        "validation_tokens": 1000,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "save_steps": 4,
        "eval_steps": 4,
        "logging_steps": 2,
        "cache_dir": files / "cache",
        "output_dir": out,
        "bf16": "false",
        **changes,
    }
    pairs = ((name, value) for name, value in fields.items() if value is not None)
    return [part for name, value in pairs for part in (f"--{name}", str(value))]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one, other, **tolerance):
    for name, tensor in weights(one).items():
        if tolerance:
            torch.testing.assert_close(weights(other)[name], tensor, **tolerance)
        else:
            assert torch.equal(weights(other)[name], tensor), name

"""The models in `model_cards/` are complete and small, equal their native exports and confirm their cards."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig

from hf_tfm import cpu
from hf_tfm.artifacts.open import auto_class_of, open_model
from hf_tfm.artifacts.refresh import code_files
from hf_tfm.artifacts.verify_checks import reference_outputs
from hf_tfm.convert.native import export_folder
from hf_tfm.core.clean_process import stranger_environment


CARDS = Path(__file__).parents[2] / "model_cards"
MODELS = sorted(path.parent for path in CARDS.glob("*/model.safetensors"))
READER = str(Path(__file__).parents[1] / "helpers" / "reference_reader.py")
ADAPTERS = sorted(path.parent for path in CARDS.glob("*/adapter_config.json"))


def names(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders]


def test_all_together_are_small():
    assert sum(file.stat().st_size for file in CARDS.rglob("*") if file.is_file()) < 60e6


@pytest.mark.parametrize("folder", MODELS, ids=names(MODELS))
def test_each_is_complete(folder):
    for file in ("config.json", "README.md", "run_record.json", "tokenizer.json", "loss_curve.png", "modeling_tfm.py"):
        assert (folder / file).is_file(), file
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    record = json.loads((folder / "run_record.json").read_text())
    assert record["license"] == "apache-2.0" and record["weights"].startswith("bfloat16")


@pytest.mark.parametrize("folder", MODELS, ids=names(MODELS))
def test_each_carries_the_current_code(folder):
    config_class = type(AutoConfig.from_pretrained(folder))
    carried = {file.name: file.read_bytes() for file in folder.glob("*.py")}
    assert carried == {name: source.read_bytes() for name, source in code_files(config_class).items()}


@pytest.fixture(scope="module")
def outputs_without_package() -> dict[str, dict]:
    """Outputs of each model for its reference text in a process without this package."""
    arguments = [argument for folder in MODELS for argument in (str(folder), auto_class_of(str(folder)))]
    with tempfile.TemporaryDirectory() as home:
        environment = {**stranger_environment(home), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = [sys.executable, READER, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {folder.name: outputs for folder, outputs in zip(MODELS, lines, strict=True)}


@pytest.mark.parametrize("folder", MODELS, ids=names(MODELS))
def test_each_reproduces_its_reference_outputs(folder, outputs_without_package):
    """With each decoding method, and also without this package, whatever versions are installed."""
    reference = json.loads((folder / "run_record.json").read_text())["reference"]
    model, tokenizer = open_model(str(folder))
    assert tokenizer(reference["text"])["input_ids"] == reference["input_ids"]
    assert reference_outputs(model, reference["input_ids"]) == reference["outputs"]
    assert outputs_without_package[folder.name] == reference["outputs"]

    if "tokens" in reference["outputs"]:
        ids, expected = torch.tensor([reference["input_ids"]]), reference["outputs"]["tokens"]
        settings = dict(do_sample=False, max_new_tokens=24, min_new_tokens=24)
        for options in (
            dict(use_cache=False),
            dict(cache_implementation="static", disable_compile=True),
            dict(prompt_lookup_num_tokens=3),
        ):
            assert model.generate(ids, **settings, **options)[0, -24:].tolist() == expected, options
        assert cpu.generate(model, ids, **settings)[0, -24:].tolist() == expected
        beams = [model.generate(ids, **settings, num_beams=3, use_cache=cached) for cached in (True, False)]
        assert torch.equal(*beams)


@pytest.mark.parametrize("folder", MODELS, ids=names(MODELS))
def test_each_equals_its_native_export(folder, tmp_path):
    decoder = json.loads((folder / "config.json").read_text())["model_type"] == "tfm_decoder"
    report = export_folder(folder, tmp_path / "native", "qwen3" if decoder else "modernbert").report
    # The report compares in bfloat16, whose sums round differently in other code; here is float32.
    assert report.num_parameters > 4.8e6
    auto_class = auto_class_of(str(folder))
    ours, tokenizer = open_model(str(folder))
    native = getattr(transformers, auto_class).from_pretrained(tmp_path / "native", dtype=torch.float32).eval()
    assert type(native).__module__.startswith("transformers.models.")
    inputs = tokenizer("Once upon a time there lived a king, and he had three sons.", return_tensors="pt")
    with torch.no_grad():
        expected, actual = ours(**inputs), native(**inputs)
    for name in ("logits", "start_logits", "end_logits"):
        if name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=names(ADAPTERS))
def test_an_adapter_on_its_base_equals_the_merged_model(adapter):
    base, merged = CARDS / "tfm-decoder-6m", CARDS / adapter.name.removesuffix("-lora")
    (adapted, tokenizer), (whole, _) = open_model(str(adapter), base=str(base)), open_model(str(merged))
    inputs = tokenizer("What is the plural of 'child'?", return_tensors="pt")
    with torch.no_grad():
        expected, actual = adapted(**inputs).logits, whole(**inputs).logits
    # The base was rounded to bfloat16 before the adapter was added, the merged model afterwards.
    assert (expected - actual).norm() < 0.03 * expected.norm()


def test_the_encoder_fills_a_gap():
    pipe = transformers.pipeline("fill-mask", model=str(CARDS / "tfm-encoder-6m"))
    assert pipe("Once upon a [MASK] there lived a king.")[0]["token_str"].strip() == "time"


def test_the_classifier_has_the_accuracy_on_its_card():
    folder = CARDS / "tfm-encoder-6m-banking77"
    lines = (CARDS.parent / "training/data/banking77/test.jsonl").read_text(encoding="utf-8").splitlines()[::10]
    records = [json.loads(line) for line in lines]
    pipe = transformers.pipeline("text-classification", model=str(folder), batch_size=16)
    predictions = pipe([record["text"] for record in records], truncation=True, max_length=64)
    correct = sum(
        prediction["label"] == record["label_text"] for prediction, record in zip(predictions, records, strict=True)
    )
    recorded = json.loads((folder / "run_record.json").read_text())["results"]["accuracy"]["value"]
    assert abs(correct / len(records) - recorded) < 0.05, "three standard errors of a tenth of the records"


def test_the_question_answering_model_finds_an_answer():
    model, tokenizer = open_model(str(CARDS / "tfm-encoder-6m-fairytaleqa"))
    context = "The old woman lived in a hut in the forest. Her son was called Hans, and he was a tailor."
    inputs = tokenizer("What was the name of the son?", context, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    start, end = int(outputs.start_logits[0].argmax()), int(outputs.end_logits[0].argmax())
    assert "Hans" in tokenizer.decode(inputs["input_ids"][0, start : end + 1])


def test_the_instruction_model_ends_its_answer():
    model, tokenizer = open_model(str(CARDS / "tfm-decoder-6m-instruct"))
    chat = [{"role": "user", "content": "What is the plural of 'child'?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=100, do_sample=False)
    assert output[0, -1] == model.generation_config.eos_token_id

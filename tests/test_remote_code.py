"""A saved folder is complete: without this package it opens, runs and can be saved again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from outsider import FILLING
from shapes import logits_of
from tiny import MASK, MODELS, build, inputs_for
from transformers import AutoConfig, pipeline

import hf_tfm


PIPELINES = [
    ("text-generation", "TfmDecoderForCausalLM", dict(max_new_tokens=5, do_sample=False)),
    ("fill-mask", "TfmEncoderForMaskedLM", dict(top_k=2)),
    ("text-classification", "TfmEncoderForSequenceClassification", dict(top_k=None)),
    ("token-classification", "TfmEncoderForTokenClassification", dict()),
    ("feature-extraction", "TfmEncoderModel", dict()),
]
SHARED_CODE = {
    "configuration_tfm.py",
    *(f"modeling_tfm{part}.py" for part in ("", "_compat", "_loss", "_masks")),
}
CODE = {
    "Decoder": {*SHARED_CODE, "modeling_tfm_decoder.py"},
    "Encoder": {*SHARED_CODE, "modeling_tfm_encoder.py", "modeling_tfm_infilling.py"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with each model, and the tasks of `outsider.py`."""
    root = tmp_path_factory.mktemp("models")
    cases = {}
    for name, auto_class in MODELS.items():
        model, inputs = build(name), inputs_for(name)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        with torch.no_grad():
            cases[name] = (auto_class, inputs, logits_of(model(**inputs)))
    torch.save(cases, root / "cases.pt")
    torch.save(PIPELINES, root / "pipelines.pt")
    return root


@pytest.fixture(scope="module")
def results(folder) -> dict:
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    script = Path(__file__).parent / "helpers" / "outsider.py"
    run = subprocess.run(
        [sys.executable, script, folder], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0 and (folder / "found.pt").exists(), run.stderr[-3000:]
    results = torch.load(folder / "found.pt", weights_only=False)
    assert results["imported"] == []
    return results


@pytest.mark.parametrize("name", MODELS)
def test_every_folder_has_its_code_and_the_full_auto_map(folder, name):
    family = "Decoder" if "Decoder" in name else "Encoder"
    config = json.loads((folder / name / "config.json").read_text())
    assert config["architectures"] == [name]
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_tfm.Tfm{family}Config",
        **{auto: f"modeling_tfm_{family.lower()}.{other}" for other, auto in MODELS.items() if family in other},
    }
    package = Path(hf_tfm.__file__).parent / "models"
    files = {path.name for path in (folder / name).glob("*.py")}
    assert files == CODE[family]
    for file in files:
        assert (folder / name / file).read_bytes() == (package / file).read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_opens_without_the_package(results, name):
    result = results["models"][name]
    assert result["class_name"] == name
    assert result["module"].startswith("transformers_modules.")
    # The last bit may differ: weights read from a file lie elsewhere in memory.
    assert result["error"] < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_a_model_saves_its_whole_folder_without_the_package(results, folder, name):
    result = results["models"][name]
    assert result["again_equal"]
    # Module names hold a hash of the code.
    assert result["again_module"] == result["module"]
    for file in CODE["Decoder" if "Decoder" in name else "Encoder"] | {"config.json", "model.safetensors"}:
        assert (folder / "again" / name / file).read_bytes() == (folder / name / file).read_bytes(), file


@pytest.mark.parametrize("task, name, arguments", PIPELINES, ids=[task for task, *_ in PIPELINES])
def test_pipelines_without_the_package(results, folder, tokenizer, task, name, arguments):
    run = pipeline(task, model=build(name), tokenizer=tokenizer)
    texts = ["the cat sat on the mat", "rain fell"]
    expected = run([text + (" [MASK]" if task == "fill-mask" else "") for text in texts], **arguments)
    assert repr_rounded(results["pipelines"][task]) == repr_rounded(expected)


def repr_rounded(value):
    """Return pipeline outputs with rounded numbers, for comparison."""
    if isinstance(value, dict):
        return {key: repr_rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [repr_rounded(item) for item in value]
    return round(float(value), 3) if not isinstance(value, str) else value


def test_heads_change_and_masks_are_filled_without_the_package(results):
    filled = build("TfmEncoderForMaskedLM").generate(torch.tensor(FILLING)).tolist()
    assert MASK not in filled[0]
    assert results["heads"] == dict(labels=4, back=True, base=True, decoder="TfmDecoderModel", filled=filled)


@pytest.mark.parametrize("name", MODELS)
def test_the_installed_package_wins(folder, name):
    """With `hf_tfm` imported, no code is loaded from the folder, trusted or not."""
    for trust in (True, False):
        config = AutoConfig.from_pretrained(folder / name, trust_remote_code=trust)
        model = getattr(transformers, MODELS[name]).from_pretrained(folder / name, trust_remote_code=trust)
        assert type(model) is getattr(hf_tfm, name)
        assert type(config).__module__ == "hf_tfm.models.configuration_tfm"


def test_without_trust_the_error_names_the_remedy(results):
    assert "trust_remote_code=True" in results["untrusted"]

"""Translation: a new model learns a toy language, resumes, and opens without this package."""

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from finetune_checks import (
    check_evaluation_batches,
    check_refusal,
    check_resumption,
    check_whole_folder,
    record_of,
    write,
)
from tiny import build_tokenizer
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration


sacrebleu = pytest.importorskip("sacrebleu")

import finetune_translation

import hf_tfm
from hf_tfm import InputError
from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.tasks import translation
from hf_tfm.tasks.losses import token_loss


# In the toy language the verb comes last, and every word has its own translation.
SUBJECTS = {"the cat": "le chat", "a hen": "une poule", "the moon": "la lune", "a ship": "un bateau"}
VERBS = {"sees": "voit", "likes": "aime", "finds": "trouve"}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}


def sentences(count: int, seed: int) -> list[dict]:
    draw, records = random.Random(seed), []
    for _ in range(count):
        subject, verb, target = draw.choice(list(SUBJECTS)), draw.choice(list(VERBS)), draw.choice(list(SUBJECTS))
        english, french = f"{subject} {verb} {target}", f"{SUBJECTS[subject]} {SUBJECTS[target]} {VERBS[verb]}"
        records.append({"translation": {"en": english, "fr": french}})
    return records


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("translation")
    for split, count in (("train", 200), ("test", 30)):
        write(root / f"{split}.jsonl", sentences(count, len(split)))
    return root


def arguments(root: Path, out: Path, **changes) -> list[str]:
    fields = {
        "model": "nano",
        "model_overrides": json.dumps(SMALL | {"num_key_value_heads": 2}),
        "vocab_size": 400,
        "train_file": root / "train.jsonl",
        "test_file": root / "test.jsonl",
        "output_dir": out,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 16,
        "max_length": 24,
        "beams": 2,
        "bf16": "false",
        **changes,
    }
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def learned(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "run"
    assert finetune_translation.main(arguments(root, out, num_train_epochs=10)) == 0
    return out


def test_a_new_model_learns_to_translate(root, learned):
    record = record_of(learned)
    curve = [entry["eval_bleu"] for entry in record["evaluations"]]
    assert curve[-1] > curve[0] + 20 and record["best"]["bleu"] == max(curve)
    assert record["results"]["bleu"]["value"] > 60 > 20 > record["baselines"]["source copied"]["bleu"]["value"]
    assert record["model"]["class"] == "TfmEncoderDecoderModel" and record["base_model"] is None
    assert len(record["samples"]) == 8 and " → " in record["samples"][0]

    # What was measured is what the folder gives to whoever calls generate: beam search, no settings.
    records = sentences(30, len("test"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(learned).eval(), AutoTokenizer.from_pretrained(learned)
    assert model.generation_config.num_beams == 2
    translations = []
    for pair in records:
        ids = model.generate(**tokenizer(pair["translation"]["en"], return_tensors="pt"))
        translations.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    bleu = sacrebleu.corpus_bleu(translations, [[pair["translation"]["fr"] for pair in records]]).score
    assert record["results"]["bleu"]["value"] == pytest.approx(bleu, abs=1e-6)
    assert translations[0] in record["samples"][0]


def test_folders_are_complete(learned, tmp_path):
    code = {"configuration_tfm.py", "modeling_tfm.py", "modeling_tfm_decoder.py", "modeling_tfm_encoder.py"}
    files = code | {"modeling_tfm_encoder_decoder.py", "config.json", "generation_config.json"}
    for folder in (learned, *complete_checkpoints(learned)):
        check_whole_folder(folder)
        assert files <= {path.name for path in folder.iterdir()}, folder.name
    card = (learned / "README.md").read_text()
    assert "pipeline_tag: translation" in card and "AutoModelForSeq2SeqLM" in card and "base_model" not in card
    variables = {}
    exec(card.split("```python\n")[1].split("```")[0].replace('path = "."', f"path = {str(learned)!r}"), variables)
    assert type(variables["model"]) is hf_tfm.TfmEncoderDecoderModel
    for name in ("README.md", "run_record.json", "config.json", "tokenizer_config.json"):
        assert str(learned.parent) not in (learned / name).read_text(), f"{name} names folders of this machine"
    config = json.loads((learned / "config.json").read_text())
    assert config["decoder"]["use_cache"] and config["auto_map"]["AutoModelForSeq2SeqLM"]


OUTSIDER = """
import sys
sys.path.insert(0, sys.argv[2])
from outsider import NotInstalled
sys.meta_path.insert(0, NotInstalled())
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("the cat likes a hen", return_tensors="pt")
for folder in (sys.argv[1], "again"):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    for part in (model, model.encoder, model.decoder):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))
    model.save_pretrained("again")
assert not any(name.partition(".")[0] == "hf_tfm" for name in sys.modules)
"""


def test_the_folder_opens_without_this_package(learned, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", OUTSIDER, learned, Path(__file__).parents[1] / "helpers"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(learned), AutoTokenizer.from_pretrained(learned)
    here = tokenizer.decode(
        model.generate(**tokenizer("the cat likes a hen", return_tensors="pt"))[0], skip_special_tokens=True
    )
    assert run.stdout.splitlines() == [here, here]


def test_a_folder_is_trained_further_with_flat_fields_too(learned, tmp_path):
    flat = [pair["translation"] for pair in sentences(60, 3)]
    train = write(tmp_path / "flat.jsonl", flat)
    argv = arguments(
        tmp_path, tmp_path / "run", model=learned, model_overrides=None, vocab_size=None, train_file=train,
        test_file=train, source_field="en", target_field="fr", max_steps=2, learning_rate=1e-4,
    )  # fmt: skip
    assert finetune_translation.main(argv) == 0
    record = record_of(tmp_path / "run")
    assert record["base_model"] == "run" and record["results"]["bleu"]["value"] > 60


def test_other_models_and_adamw(root, tmp_path):
    size = dict(vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(T5Config(**size, pad_token_id=0, eos_token_id=5)).save_pretrained(tmp_path / "t5")
    build_tokenizer().save_pretrained(tmp_path / "t5")
    argv = arguments(
        root, tmp_path / "run", model=tmp_path / "t5", model_overrides=None, vocab_size=None, optimizer="adamw",
        num_train_epochs=2,
    )  # fmt: skip
    assert finetune_translation.main(argv) == 0
    losses = [entry["loss"] for entry in record_of(tmp_path / "run")["curve"]]
    assert losses[-1] < losses[0] - 0.5
    assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")) is T5ForConditionalGeneration


def test_weight_decay_comes_from_the_arguments_or_the_optimizer(root, tmp_path, monkeypatch):
    given = []

    def build(*args, **rates):
        given.append(rates)
        raise InputError("seen")

    monkeypatch.setattr(translation, "build_optimizer", build)
    for weight_decay in (None, 0.3):
        argv = arguments(root, tmp_path / "run", weight_decay=weight_decay)
        assert finetune_translation.main(argv) == 2
    assert [rates["weight_decay"] for rates in given] == [None, 0.3]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_evaluation_loss_does_not_depend_on_its_batches(root, tmp_path, smoothing):
    run = partial(arguments, root)
    check_evaluation_batches(finetune_translation, run, tmp_path, label_smoothing_factor=smoothing)


def test_stopped_and_resumed_run_equals_one_without_a_stop(root, tmp_path, monkeypatch, capsys):
    def run(out: Path, **changes) -> list[str]:
        return arguments(root, out, per_device_train_batch_size=18, **changes)  # 10 steps an epoch

    check_resumption(finetune_translation, run, tmp_path, monkeypatch, capsys)


def test_the_attention_implementation_reaches_every_layer():
    tokenizer = translation.train_shared_tokenizer(["the cat", "le chat"], 300, 16)
    model = translation.build_translator("vaswani2017/nano", tokenizer, 16, {"num_hidden_layers": 1}).eval()
    model.set_attn_implementation("eager")
    for name, module in model.named_modules():
        if hasattr(module, "config"):
            assert module.config._attn_implementation == "eager", name
    inputs = dict(input_ids=torch.tensor([[2, 30, 3]]), decoder_input_ids=torch.tensor([[2, 31]]))
    halves = hf_tfm.TfmEncoderDecoderModel(encoder=model.encoder, decoder=model.decoder).eval()
    assert torch.equal(halves(**inputs).logits, model(**inputs).logits)
    assert halves.config.to_dict()["decoder"] == model.config.to_dict()["decoder"]


def test_labels_follow_the_start_token():
    tokenizer = translation.train_shared_tokenizer(["the cat", "le chat"], 300, 16)
    model = translation.build_translator("nano", tokenizer, 16, {"num_hidden_layers": 1})
    (row,) = translation.encode_translations(tokenizer, 16, model, ["the cat"], ["le chat"])
    assert (
        tokenizer.decode(row["labels"]) == "le chat[SEP]" and tokenizer.decode(row["input_ids"]) == "[CLS]the cat[SEP]"
    )
    assert set(row) == {"input_ids", "attention_mask", "labels"}


def test_the_loss_is_the_mean_over_all_tokens():
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    labels[1, 2:] = -100
    loss = token_loss(0.1)
    expected = F.cross_entropy(logits.view(-1, 7), labels.view(-1), label_smoothing=0.1)
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    torch.testing.assert_close(loss({"logits": logits}, labels, 24), expected * 12 / 24)


def test_figures_are_sacrebleus():
    translations, references = (
        ["le chat voit la lune", "une poule aime"],
        ["le chat trouve la lune", "une poule aime un chat"],
    )
    bleu, chrf = (
        sacrebleu.corpus_bleu(translations, [references]).score,
        sacrebleu.corpus_chrf(translations, [references]).score,
    )
    assert translation.scores(translations, references) == pytest.approx({"bleu": bleu, "chrf": chrf})
    figures = translation.estimate_scores(translations, references, resamples=100)
    assert (figures["bleu"].value, figures["chrf"].value) == pytest.approx((bleu, chrf))
    assert figures["chrf"].low < figures["chrf"].high and figures["chrf"].n == 2


def test_wrong_input_ends_in_one_line(root, tmp_path, capsys):
    good = sentences(20, 1)

    def spoiled(name, pair):
        return write(tmp_path / f"{name}.jsonl", [*good[:2], {"translation": pair}, *good[3:]])

    refused = [
        (dict(train_file=spoiled("flat", "le chat")), "flat.jsonl, line 3: field 'translation' is a str, not texts by"),
        (dict(train_file=spoiled("half", {"en": "the cat"})), "half.jsonl, line 3: no field 'fr' (there are en)"),
        (dict(train_file=spoiled("blank", {"en": "a", "fr": ""})), "blank.jsonl, line 3: field 'fr' is blank"),
        (dict(train_file=spoiled("null", None)), "null.jsonl, line 3: field 'translation' is null"),
        (dict(target_field="translation.de"), "--target_field"),
        (dict(model="enormous"), "model enormous: unknown preset"),
        (dict(model="nobody/nothing-at-all"), "no tokenizer can be loaded"),
        (dict(model_overrides='{"layers": 2}'), "unknown field 'layers'"),
        (dict(model_overrides="{"), "model_overrides is not JSON"),
        (dict(model_overrides="[1]"), "model_overrides: must be a mapping"),
        (dict(beams=0), "--beams 0: must be at least 1"),
        (dict(decay=2), "decay 2: a share of the run"),
        (dict(optim="sgd"), "choose --optimizer muon, normuon or adamw"),
        (dict(lr_scheduler_type="cosine"), "give --warmup_steps and --decay"),
        (dict(optimizer="sgdx"), "must be one of muon, normuon, adamw"),
        (dict(lora="true"), "this script trains all weights"),
        (dict(vocab_size=100), "vocab_size 100 is too small"),
    ]
    for changes, complaint in refused:
        argv = arguments(root, tmp_path / "out", **changes)
        check_refusal(finetune_translation, argv, complaint, tmp_path / "out", capsys)


def test_the_recipe_has_known_fields():
    from hf_tfm.train.recipe import parse_recipe

    path = Path(__file__).parents[2] / "training" / "recipes" / "finetune_translation.yaml"
    recipe, args = parse_recipe(
        [str(path)], finetune_translation.TranslationRecipe, finetune_translation.TranslationArguments
    )
    assert recipe.test_file and args.output_dir and json.loads(recipe.model_overrides)

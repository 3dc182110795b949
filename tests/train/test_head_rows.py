"""Training further on other labels: each row of the head follows the name of its label, not its number."""

import finetune_classification
import pytest
import torch
from finetune_checks import arguments, record_of, write
from tiny import build, build_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BartForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_tfm.artifacts.open import open_model
from hf_tfm.tasks.labels import label_fields
from hf_tfm.train.base_model import load_base_model
from hf_tfm.train.recipe import FinetuningRecipe


LABELS = label_fields(["neg", "neutral", "pos"])
SIZE = dict(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0, **LABELS)
BART = dict(
    vocab_size=400, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, eos_token_id=2, **LABELS,
)  # fmt: skip
MODELS = {
    "encoder": lambda: build("TfmEncoderForSequenceClassification", **LABELS),
    "decoder": lambda: build("TfmDecoderForSequenceClassification", **LABELS),
    "encoder tags": lambda: build("TfmEncoderForTokenClassification", **LABELS),
    "decoder tags": lambda: build("TfmDecoderForTokenClassification", **LABELS),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(intermediate_size=32, **SIZE)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(intermediate_size=32, **SIZE)),
    "llama tags": lambda: LlamaForTokenClassification(LlamaConfig(intermediate_size=32, **SIZE)),
    "bart": lambda: BartForSequenceClassification(BartConfig(**BART)),
}
IDS = torch.tensor([[7, 30, 31, 2]])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [["pos", "neutral", "neg"], ["pos", "neg"], ["new", "pos", "old", "neg"]])
def test_rows_follow_the_names_of_their_labels(name, labels, tmp_path, capsys):
    base = MODELS[name]().eval()
    base.save_pretrained(tmp_path)
    auto = AutoModelForTokenClassification if name.endswith("tags") else AutoModelForSequenceClassification
    recipe = FinetuningRecipe(model=str(tmp_path), train_file="")
    model, new = load_base_model(auto, recipe, build_tokenizer(), **label_fields(labels))
    with torch.no_grad():
        before, after = base(IDS)["logits"], model.eval()(IDS)["logits"]
    kept = [label for label in labels if label in LABELS["label2id"]]
    for label in kept:
        expected = before[..., LABELS["label2id"][label]]
        torch.testing.assert_close(after[..., labels.index(label)], expected, msg=label)
    shown = capsys.readouterr().out
    assert f"the base's rows for {', '.join(kept)}, found by name" in shown
    assert ("new rows for new, old" in shown) == ("new" in labels) == bool(new)


def test_rows_of_labels_without_a_common_name_are_new(tmp_path, capsys):
    base = build("TfmEncoderForSequenceClassification", num_labels=3)  # LABEL_0, LABEL_1, LABEL_2
    base.classifier.weight.data.fill_(3.0)
    base.save_pretrained(tmp_path)
    recipe, tokenizer = FinetuningRecipe(model=str(tmp_path), train_file=""), build_tokenizer()
    auto = AutoModelForSequenceClassification
    model, new = load_base_model(auto, recipe, tokenizer, **label_fields(["a", "b", "c"]))
    assert model.classifier.weight.abs().max() < 1 and model.classifier.bias.abs().max() == 0
    assert new == ["classifier.bias", "classifier.weight"]
    assert "new rows for a, b, c; those of the base are for 0, 1, 2" in capsys.readouterr().out
    # A number is the name of a label that has no other.
    model, new = load_base_model(auto, recipe, tokenizer, **label_fields(["2", "1"]))
    assert model.classifier.weight.min() == 3.0 and not new
    model, new = load_base_model(auto, recipe, tokenizer, **label_fields(["0", "1", "2"]))
    assert torch.equal(model.classifier.weight, base.classifier.weight) and not new


def test_the_only_output_of_a_regression_needs_no_name(tmp_path):
    base = build("TfmDecoderForSequenceClassification", problem_type="regression", **label_fields(["stars"]))
    base.save_pretrained(tmp_path)
    recipe, tokenizer = FinetuningRecipe(model=str(tmp_path), train_file=""), build_tokenizer()
    fields = {"problem_type": "regression", **label_fields(["score"])}
    model, _ = load_base_model(AutoModelForSequenceClassification, recipe, tokenizer, **fields)
    assert torch.equal(model.score.weight, base.score.weight)
    fields = {"problem_type": "multi_label_classification", **label_fields(["score"])}
    model, _ = load_base_model(AutoModelForSequenceClassification, recipe, tokenizer, **fields)
    assert not torch.equal(model.score.weight, base.score.weight)


WORDS = {"animal": "cat", "ship": "sail", "weather": "rain"}
FILLERS = ["the", "and", "small"]


def texts(order: list[str]) -> list[dict]:
    return [
        {"text": f"{filler} {WORDS[name]}", "label": order.index(name), "label_text": name}
        for filler in FILLERS * 6
        for name in WORDS
    ]


@pytest.mark.parametrize("lora", ["false", "true"])
def test_a_classifier_goes_on_with_labels_in_another_order(tmp_path, lora):
    build("TfmEncoderForMaskedLM").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    order = list(WORDS)
    first = write(tmp_path / "first.jsonl", texts(order))
    second = write(tmp_path / "second.jsonl", texts(order[::-1]))
    argv = arguments(tmp_path / "base", first, tmp_path / "one", validation_file=first, num_train_epochs=8)
    assert finetune_classification.main(argv) == 0
    assert record_of(tmp_path / "one")["results"]["accuracy"]["value"] == 1.0
    argv = arguments(
        tmp_path / "one", second, tmp_path / "two", validation_file=second, max_steps=1, learning_rate=1e-5, lora=lora,
        eval_strategy="no", save_strategy="no", load_best_model_at_end="false",
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    assert record_of(tmp_path / "two")["results"]["accuracy"]["value"] == 1.0
    model, _ = open_model(tmp_path / "two", "AutoModelForSequenceClassification")
    assert model.config.id2label == dict(enumerate(order[::-1]))
    inputs = build_tokenizer()([row["text"] for row in texts(order)[:3]], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model.eval()(**inputs).logits.argmax(-1).tolist() == [2, 1, 0]

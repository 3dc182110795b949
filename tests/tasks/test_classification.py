"""Fine-tuning a classifier: every kind of task and model, exact resumption, errors for wrong input."""

import csv
import gzip
import json
import os
import random
import shutil
from pathlib import Path

import evaluate_model
import finetune_classification
import numpy as np
import pytest
import torch
from finetune_checks import arguments, check_evaluation_batches, check_refusal, check_resumption, record_of
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import CLS, PAD, SEP, build, build_tokenizer, encoder_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)

import hf_tfm
from hf_tfm.artifacts.card import card_code
from hf_tfm.artifacts.open import open_model
from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.core.errors import InputError
from hf_tfm.core.limits import longest_input
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records, read_rows
from hf_tfm.data.records import Records, carve, read_table
from hf_tfm.evaluate.predict import open_predictor
from hf_tfm.hub.push import checked_folder
from hf_tfm.tasks.classification import Classification, plot_confusion, predict_baselines
from hf_tfm.tasks.labels import read_labels
from hf_tfm.train.adapters import merge_adapter
from hf_tfm.train.base_model import ensure_pad_token, load_base_model
from hf_tfm.train.finetuning_trainer import FinetuningTrainer
from hf_tfm.train.recipe import FinetuningRecipe


SUBJECTS = {"animal": ["cat", "hen"], "ship": ["ships", "sail"], "weather": ["rain", "moon"]}
FILLERS = ["the", "and", "a", "on", "of", "what", "small", "them"]


def sentence(draw: random.Random, *subjects: str) -> str:
    words = [draw.choice(SUBJECTS[subject]) for subject in subjects] + draw.choices(FILLERS, k=draw.randint(2, 8))
    draw.shuffle(words)
    return " ".join(words)


def single(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    names = list(SUBJECTS)
    labels = [draw.randrange(3) for _ in range(count)]
    return [{"text": sentence(draw, names[i]), "label": i, "label_text": names[i]} for i in labels]


def pairs(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    kinds = [draw.choice(["animal", "weather"]) for _ in range(count)]
    return [{"first": sentence(draw, "ship"), "second": sentence(draw, kind), "label": kind} for kind in kinds]


def several(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    sets = [draw.sample(list(SUBJECTS), draw.randint(0, 2)) for _ in range(count)]
    return [{"text": sentence(draw, *names), "label": names} for names in sets]


def scored(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    scores = [draw.randrange(4) for _ in range(count)]
    return [{"text": sentence(draw, *["weather"] * score), "score": 0.5 * score} for score in scores]


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            rows = csv.DictWriter(file, records[0])
            rows.writeheader()
            rows.writerows(records)
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    for name, make in (("single", single), ("pairs", pairs), ("several", several), ("scored", scored)):
        suffix = ".csv" if name == "scored" else ".jsonl.gz" if name == "single" else ".jsonl"
        write(root / name / f"train{suffix}", make(160, 1))
        write(root / name / f"test{suffix}", make(40, 2))
    return root


def logits_one_by_one(folder: Path, columns: list[list[str]], model=None) -> np.ndarray:
    """The outputs of the folder's model for single records, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (model or AutoModelForSequenceClassification.from_pretrained(folder)).eval()
    with torch.no_grad():
        rows = [model(**tokenizer(*texts, return_tensors="pt")).logits[0].numpy() for texts in zip(*columns)]
    return np.stack(rows)


@pytest.fixture
def in_memory(monkeypatch):
    """The outputs that a run measured on its last split, before it saved the model."""
    outputs = []
    real = FinetuningTrainer.predict_in_order
    monkeypatch.setattr(FinetuningTrainer, "predict_in_order", lambda *args: outputs.append(real(*args)) or outputs[-1])
    return outputs


def test_single_labels_with_an_encoder(models, files, tmp_path, in_memory, capsys):
    train, test = files / "single" / "train.jsonl.gz", files / "single" / "test.jsonl.gz"
    out = tmp_path / "run"
    argv = arguments(models / "encoder", train, out, test_file=test, num_train_epochs=3, baselines="true")
    assert finetune_classification.main(argv) == 0
    shown = capsys.readouterr().out
    assert "→" in shown and "TF-IDF + logistic regression" in shown and "majority" in shown

    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "animal", 1: "ship", 2: "weather"}
    records = read_table(test)
    logits = logits_one_by_one(out, [[r["text"] for r in records]])
    np.testing.assert_allclose(in_memory[-1], logits, atol=1e-5)

    record = record_of(out)
    right = (logits.argmax(-1) == [r["label"] for r in records]).mean()
    accuracy = record["results"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right) and accuracy["n"] == 40 and right > 0.8
    assert accuracy["low"] < right and accuracy["high"] >= right
    assert record["baselines"]["majority"]["accuracy"]["value"] < 0.6
    assert [facts["records"] for facts in record["data"]] == [145, 15, 40]
    assert sum(map(sum, record["confusion_matrix"]["actual_by_predicted"])) == 40

    for folder in (out, *complete_checkpoints(out)):
        for name in ("config.json", "tokenizer.json", "README.md", "modeling_tfm_encoder.py", "model.safetensors"):
            assert (folder / name).is_file(), f"{folder.name} lacks {name}"
    for name in ("confusion_matrix.png", "loss_curve.png"):
        assert (out / name).stat().st_size > 1000
    card = (out / "README.md").read_text()
    assert f"{right:.3f} [" in card and "confusion_matrix.png" in card and "base_model: encoder" in card
    for name in ("README.md", "run_record.json", "config.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (out / name).read_text(), f"{name} has paths of this machine"
    # Truncation during training is not saved with the tokenizer.
    assert json.loads((out / "tokenizer.json").read_text())["truncation"] is None

    assert finetune_classification.main(argv) == 2
    assert "finished run already" in capsys.readouterr().err


REMOTE_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class BagConfig(PreTrainedConfig):
    model_type = "bag_of_words_for_a_test"
    vocab_size: int = 320
    hidden_size: int = 16
    pad_token_id: int | None = 0

class BagForSequenceClassification(PreTrainedModel):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        words = self.words(input_ids) * attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.score(words.sum(1)))
"""


def test_a_model_with_its_own_code_keeps_it(files, tmp_path, capsys):
    base, out = tmp_path / "bag", tmp_path / "run"
    build_tokenizer().save_pretrained(base)
    (base / "modeling_bag.py").write_text(REMOTE_CODE)
    auto_map = {"AutoConfig": "modeling_bag.BagConfig"}
    auto_map["AutoModelForSequenceClassification"] = "modeling_bag.BagForSequenceClassification"
    (base / "config.json").write_text(json.dumps({"model_type": "bag_of_words_for_a_test", "auto_map": auto_map}))
    save_file({"words.weight": torch.randn(320, 16)}, base / "model.safetensors", metadata={"format": "pt"})
    train = files / "single" / "train.jsonl.gz"
    assert_refused(base, train, tmp_path, capsys, "look at it and add --trust_remote_code")
    argv = arguments(base, train, out, test_file=train, trust_remote_code="true", num_train_epochs=4)
    assert finetune_classification.main(argv) == 0
    for folder in (out, *complete_checkpoints(out)):
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "BagForSequenceClassification" and (folder / "modeling_bag.py").is_file()
    record = record_of(out)
    assert record["results"]["accuracy"]["value"] > 0.8
    assert record["overlap_with_train"] == {"validation": 0, "test": 145}, "what was carved out is not in train"
    assert "145 of 160 test records have a text that train has too" in capsys.readouterr().out


def test_the_best_checkpoint_is_kept_and_another_recipe_does_not_resume(models, files, tmp_path, capsys):
    out = tmp_path / "run"
    argv = arguments(models / "bert", files / "single" / "train.jsonl.gz", out)
    assert finetune_classification.main(argv) == 0
    record = record_of(out)
    best = max(record["evaluations"], key=lambda entry: entry.get("eval_accuracy", -1))
    assert record["best"] == {"step": best["step"], "accuracy": best["eval_accuracy"]}
    checkpoint = load_file(out / f"checkpoint-{best['step']}" / "model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, checkpoint[name]), name
    assert record["measured_on"] == "validation" and "was chosen on these" in (out / "README.md").read_text()

    (out / "run_record.json").unlink()  # as if it had been killed before the end
    assert finetune_classification.main([*argv, "--learning_rate", "1"]) == 2
    assert "learning_rate: 0.005, now 1.0" in capsys.readouterr().err
    assert finetune_classification.main(argv) == 0


def test_the_last_checkpoint_can_be_kept(models, files, tmp_path):
    every_two_steps = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, max_steps=4)
    argv = arguments(
        models / "bert", files / "single" / "train.jsonl.gz", tmp_path / "run", load_best_model_at_end="false",
        **every_two_steps,
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    assert "best" not in record_of(tmp_path / "run")
    last = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(tensor, last[name]), name


@pytest.mark.parametrize(
    "changes, complaint",
    [
        (dict(optim="adamw_8bit"), "error: --optim adamw_8bit: You need to install `bitsandbytes`"),
        (dict(lr_scheduler_type="cosine_with_min_lr"), "error: --lr_scheduler_type cosine_with_min_lr: One of min_lr"),
    ],
)
def test_errors_of_transformers_end_in_one_line(models, files, tmp_path, capsys, changes, complaint):
    argv = arguments(models / "bert", files / "single" / "train.jsonl.gz", tmp_path / "run", max_steps=2, **changes)
    assert finetune_classification.main(argv) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("base", ["decoder", "llama"])
def test_pairs_with_decoders_and_class_weights(models, files, tmp_path, in_memory, base):
    out, folder = tmp_path / "run", files / "pairs"
    argv = arguments(
        models / base, folder / "train.jsonl", out, test_file=folder / "test.jsonl", text_field="first",
        text_pair_field="second", class_weights="true", label_smoothing_factor=0.1, num_train_epochs=3,
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    records = read_table(folder / "test.jsonl")
    logits = logits_one_by_one(out, [[r["first"] for r in records], [r["second"] for r in records]])
    np.testing.assert_allclose(in_memory[-1], logits, atol=1e-4)
    assert record_of(out)["results"]["accuracy"]["value"] > 0.8, "the label is in the second text"
    if base == "llama":
        tokenizer = AutoTokenizer.from_pretrained(out)
        apart = [*tokenizer("a cat")["input_ids"], SEP, *tokenizer("rain")["input_ids"]]
        assert tokenizer("a cat", "rain")["input_ids"] == apart, "the folder separates pairs as the training did"


def test_multiple_labels_in_bf16(models, files, tmp_path, in_memory):
    out, folder = tmp_path / "run", files / "several"
    argv = arguments(
        models / "encoder", folder / "train.jsonl", out, test_file=folder / "test.jsonl", num_train_epochs=4,
        baselines="true", pooling="mean", bf16="true",
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    record = record_of(out)
    assert record["model"]["config"]["classifier_pooling"] == "mean"
    assert record["model"]["config"]["problem_type"] == "multi_label_classification"
    assert record["results"]["micro_f1"]["value"] > 0.7
    assert record["baselines"]["TF-IDF + logistic regression"]["micro_f1"]["value"] > 0.7
    assert "pictures" not in record
    texts = [[r["text"] for r in read_table(folder / "test.jsonl")]]
    np.testing.assert_allclose(in_memory[-1], logits_one_by_one(out, texts), atol=1e-5)


def test_regression_from_csv_with_llama(models, files, tmp_path, in_memory, capsys):
    out, folder = tmp_path / "run", files / "scored"
    argv = arguments(
        models / "llama", folder / "train.csv", out, test_file=folder / "test.csv", label_field="score",
        num_train_epochs=4, baselines="true",
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    record = record_of(out)
    assert record["model"]["config"]["problem_type"] == "regression" and set(record["baselines"]) == {
        "mean",
        "TF-IDF + ridge",
    }
    assert record["results"]["spearman"]["value"] > 0.6
    records = read_table(folder / "test.csv")
    # Llama's own classifier looks for the last token that is not padding: padding needs a token of its own.
    assert AutoModelForSequenceClassification.from_pretrained(out).config.pad_token_id == 0
    np.testing.assert_allclose(
        in_memory[-1], logits_one_by_one(out, [[r["text"] for r in records]]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("variant", "base"), [("lora", "encoder"), ("dora", "llama"), ("rslora", "decoder")])
def test_adapters(models, files, tmp_path, in_memory, variant, base):
    out, folder = tmp_path / "run", files / "single"
    argv = arguments(
        models / base, folder / "train.jsonl.gz", out, test_file=folder / "test.jsonl.gz", lora="true",
        lora_variant=variant, lora_rank=4, lora_alpha=8, learning_rate=1e-2, num_train_epochs=6, eval_strategy="no",
        save_strategy="no", load_best_model_at_end="false",
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    records = read_table(folder / "test.jsonl.gz")
    texts = [[r["text"] for r in records]]
    assert (in_memory[-1].argmax(-1) == [r["label"] for r in records]).mean() > 0.6
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()

    auto = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=3)
    np.testing.assert_allclose(in_memory[-1], logits_one_by_one(out, texts, auto), atol=1e-4)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = {}
    exec(code.replace('path = "."', f"path = {str(out)!r}"), loaded)
    assert loaded["model"].config.id2label == {0: "animal", 1: "ship", 2: "weather"}
    np.testing.assert_allclose(in_memory[-1], logits_one_by_one(out, texts, loaded["model"]), atol=1e-4)

    record = record_of(out)
    whole = AutoModelForSequenceClassification.from_pretrained(models / base, num_labels=3)
    assert record["model"]["parameters"] == whole.num_parameters(), "the adapter's weights are not the model's"
    assert record["adapter"]["type"] == variant

    merged = merge_adapter(loaded["model"])
    np.testing.assert_allclose(in_memory[-1], logits_one_by_one(out, texts, merged), atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_merging_keeps_tied_matrices_apart_or_refuses(tmp_path):
    def adapted(targets):
        model = build("TfmDecoderForCausalLM", tie_word_embeddings=True)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return wrapped

    ids = torch.arange(7, 17)[None]
    with pytest.raises(InputError, match="share one matrix"):
        merge_adapter(adapted(["lm_head", "q_proj"]))

    wrapped = adapted(["lm_head", "q_proj"])
    before = wrapped.eval()(input_ids=ids).logits
    merge_adapter(wrapped, untie=True).save_pretrained(tmp_path / "untied")
    again = hf_tfm.TfmDecoderForCausalLM.from_pretrained(tmp_path / "untied")
    torch.testing.assert_close(again(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)

    wrapped = adapted(["q_proj"])
    before = wrapped.eval()(input_ids=ids).logits
    merged = merge_adapter(wrapped, untie=True)
    merged.save_pretrained(tmp_path / "tied")
    again = hf_tfm.TfmDecoderForCausalLM.from_pretrained(tmp_path / "tied")
    for model in (merged, again):
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight, "an adapter elsewhere leaves the tie alone"


def test_a_run_without_gain_ends_early_with_its_best_checkpoint(models, files, tmp_path, capsys):
    train, out = files / "single" / "train.jsonl.gz", tmp_path / "run"
    argv = arguments(models / "encoder", train, out, learning_rate=1e-9, num_train_epochs=9, early_stopping_patience=2)
    assert finetune_classification.main(argv) == 0
    assert "ended early: no better accuracy in 2 evaluations, after 57 of 171 steps" in capsys.readouterr().out
    record = record_of(out)
    assert record["steps"] == 57 and record["best"]["step"] == 19
    assert finetune_classification.main(argv) == 2
    assert f"To train its model longer, give --model {out}" in capsys.readouterr().err


def test_labels_as_tables_write_them_are_one_class(tmp_path):
    train, reading = tmp_path / "train.csv", Reading("classification")
    written = enumerate(["1", "1.0", "1 ", "0"])
    train.write_text("text,label\n" + "".join(f"a {number},{label}\n" for number, label in written))
    records = read_records(train, reading)
    task = Classification()
    task.learn_labels(records)
    assert task.labels.names == ["0", "1"] and task.labels.encode(records) == [1, 1, 1, 0]
    (tmp_path / "labels.json").write_text('["1.0", "2.0"]')
    train.write_text("text,label\na,1\nb,2.0\n")
    task.learn_labels(read_records(train, reading))
    assert task.labels.encode(read_records(train, reading)) == [0, 1]


@pytest.mark.parametrize("changes", [{"class_weights": "true"}, {"label_smoothing_factor": 0.1}])
def test_the_evaluation_loss_does_not_depend_on_its_batches(models, files, tmp_path, changes):
    def run(out: Path, **more) -> list[str]:
        train, test = (files / "single" / f"{name}.jsonl.gz" for name in ("train", "test"))
        return arguments(models / "encoder", train, out, validation_file=test, **more)

    check_evaluation_batches(finetune_classification, run, tmp_path, **changes)


def test_stopped_and_resumed_run_equals_one_without_a_stop(models, files, tmp_path, monkeypatch, capsys):
    def run(out: Path, **more) -> list[str]:
        train, test = (files / "single" / f"{name}.jsonl.gz" for name in ("train", "test"))
        fields = dict(validation_file=test, per_device_train_batch_size=16)  # 10 steps an epoch
        return arguments(models / "encoder", train, out, **fields, **more)

    check_resumption(finetune_classification, run, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("kind", ["single", "several", "scored"])
def test_accumulated_batches_train_as_one_large_batch(models, files, tmp_path, kind):
    # BERT's own loss does not read num_items_in_batch and would be too large by the number of batches.
    train = next((files / kind).glob("train*"))
    field = "score" if kind == "scored" else "label"
    for accumulated in (1, 4):
        argv = arguments(
            models / "bert", train, tmp_path / str(accumulated), label_field=field, max_steps=3, max_grad_norm=0,
            optim="sgd", per_device_train_batch_size=16 // accumulated, gradient_accumulation_steps=accumulated,
            learning_rate=0.5, save_strategy="no", load_best_model_at_end="false",
        )  # fmt: skip
        assert finetune_classification.main(argv) == 0
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in "14")
    for name, tensor in one.items():
        torch.testing.assert_close(four[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_minus_100_is_a_number_to_learn(models, tmp_path):
    rows = [{"text": f"rain {n}", "label": -100.0 if n else -99.5} for n in range(16)]
    train = write(tmp_path / "train.jsonl", rows)
    argv = arguments(models / "bert", train, tmp_path / "run", validation_file=train, max_steps=2, learning_rate=1e-3)
    assert finetune_classification.main(argv) == 0
    assert 90 < record_of(tmp_path / "run")["results"]["rmse"]["value"] < 101


def test_baselines_are_scikit_learns():
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    def features(train, test):
        matrices = []
        for options in (dict(ngram_range=(1, 2)), dict(analyzer="char", ngram_range=(2, 4))):
            vectorizer = TfidfVectorizer(sublinear_tf=True, **options)
            matrices.append((vectorizer.fit_transform(train), vectorizer.transform(test)))
        return [hstack(part) for part in zip(*matrices)]

    for make, field in ((single, "label"), (scored, "score")):
        train, test = make(120, 1), [r["text"] for r in make(40, 2)]
        texts = [r["text"] for r in train]
        records = read_rows(train, Reading("classification", {"label": field}), "nowhere")
        task = read_labels(records)
        labels = task.encode(records)
        guesses = predict_baselines(task.problem_type, texts, labels, test)
        seen, unseen = features(texts, test)
        if field == "label":
            direct = LogisticRegression(C=10, max_iter=1000).fit(seen, labels).predict(unseen)
            assert (guesses["TF-IDF + logistic regression"] == direct).all()
            assert (guesses["majority"] == np.bincount(labels).argmax()).all()
        else:
            direct = Ridge().fit(seen, labels).predict(unseen)
            np.testing.assert_allclose(guesses["TF-IDF + ridge"], direct, rtol=1e-6)
            np.testing.assert_allclose(guesses["mean"], np.mean(labels))


def records_of(*labels, **more) -> Records:
    rows = [
        {"text": f"text {n}", "label": label, **{k: v[n] for k, v in more.items()}} for n, label in enumerate(labels)
    ]
    return read_rows(rows, Reading("classification"), "nowhere/train.jsonl")


def test_labels_have_names_in_order(tmp_path):
    assert read_labels(records_of("b", "a", "c")).names == ["a", "b", "c"]
    assert read_labels(records_of(10, 9, 9)).names == ["9", "10"]
    assert read_labels(records_of("10", "9", "9")).names == ["9", "10"]
    assert read_labels(records_of(True, False)).names == ["False", "True"]
    assert read_labels(records_of(1, 0, label_text=["yes", "no"])).names == ["no", "yes"]
    assert read_labels(records_of(1.0, 0.0)).problem_type == "single_label_classification"
    assert read_labels(records_of(1.5, 0.0)).problem_type == "regression"
    assert read_labels(records_of(["b"], ["a", "b"], [])).encode(records_of(["a"], [])) == [(1.0, 0.0), (0.0, 0.0)]
    assert read_labels(records_of(3, 5)).encode(records_of("5", 3.0)) == [1, 0], "JSON and CSV write the same label"

    (tmp_path / "labels.json").write_text('{"label": ["zero", "one", "two"]}')
    listed = records_of(2, "zero")
    listed.path = str(tmp_path / "train.jsonl")
    task = read_labels(listed)
    assert task.names == ["zero", "one", "two"] and task.encode(listed) == [2, 0]


def test_labels_named_by_numbers_are_not_taken_for_ids(tmp_path):
    (tmp_path / "labels.json").write_text('["1", "2", "3"]')
    for written in ([1, 2, 3], ["1", "2", "3"], [0, 1, 2]):
        records = records_of(*written)
        records.path = str(tmp_path / "train.jsonl")
        assert read_labels(records).encode(records) == [0, 1, 2], written
    model = build("TfmEncoderForSequenceClassification", num_labels=2)
    model.config.id2label = {0: "1", 1: "2"}
    for written in ((1, 2), (0, 1)):
        task = Classification()
        task.adopt_labels(model.config, records_of(*written))
        assert [example.label for example in task.read(records_of(*written)).examples] == [0, 1]


def test_lists_of_labels_in_cells_of_a_table(tmp_path):
    cells = ['["a", "b"]', "['a', 'b']", "a, b"]
    reading = Classification(problem_type="multi_label_classification").reading()
    for cell in cells:
        rows = [{"text": "x", "label": label} for label in (cell, "b", "")]
        records = read_rows(rows, reading)
        task = read_labels(records)
        assert task.names == ["a", "b"] and task.encode(records)[:2] == [(1.0, 1.0), (0.0, 1.0)], cell


def test_baselines_without_words_and_with_one_label_alone():
    for texts in (["😀", "😁"] * 4, ["a", "b"] * 4, [chr(0x4E00 + n) * 2 for n in range(1000)]):
        task = read_labels(records_of(0, 1))
        labels = [0, 1] * (len(texts) // 2)
        guesses = predict_baselines(task.problem_type, texts, labels, texts[:4])
        assert guesses["TF-IDF + logistic regression"].tolist() == [0, 1, 0, 1], texts[:2]
    task, texts = read_labels(records_of(["a"], [])), ["one", "two", "one"]
    for guess in predict_baselines(task.problem_type, texts, [[1.0], [0.0], [1.0]], texts).values():
        assert guess.shape == (3, 1)
        assert 0 <= task.figures(guess, np.array([[1.0], [0.0], [1.0]]))["micro_f1"] <= 1


def test_labels_with_dollar_signs_are_not_formulas(tmp_path):
    plot_confusion(np.eye(2, dtype=int), ["$_{$", "under $5"], tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").is_file()


def test_a_folder_has_files_for_each_split(tmp_path):
    for name in ("train", "validation", "test"):
        write(tmp_path / "all" / f"{name}.jsonl", [{"text": name}])
        assert read_table(tmp_path / "all", name) == [{"text": name}]
    write(tmp_path / "part" / "0001.jsonl", [{"text": "x"}])
    assert read_table(tmp_path / "part", "test") == [{"text": "x"}], "no file name says which split it belongs to"


@pytest.mark.parametrize("kind", ["mpnet", "ibert", "luke", "markuplm", "roberta-prelayernorm", "xlm-roberta"])
def test_models_whose_positions_start_behind_padding_take_fewer_tokens(kind):
    size = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    size |= {"entity_vocab_size": 8, "entity_emb_size": 16} if kind == "luke" else {}
    config = AutoConfig.for_model(kind, **size, max_position_embeddings=24, pad_token_id=1)
    model, ids = AutoModel.from_config(config).eval(), torch.full((1, longest_input(config)), 9)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.cat([ids, ids[:, :1]], 1), attention_mask=torch.ones(1, ids.shape[1] + 1))


@pytest.mark.parametrize(
    ("keys", "strata", "message"),
    [
        ("a", None, "1 record is too few to carve 10% out for validation: give a --validation_file$"),
        ("abc", "xyz", "3 records are too few .* give a --validation_file$"),
        ("abc", "xxz", "3 records are too few .* or a larger --validation_fraction$"),
    ],
)
def test_a_larger_share_is_advised_only_where_it_works(keys, strata, message):
    records = Records([{"text": key} for key in keys], ["a.jsonl, line 1"] * len(keys), "a.jsonl")
    with pytest.raises(InputError, match=message):
        carve(records, 0.1, 0, keys, strata)
    if message.endswith("fraction$"):
        assert len(carve(records, 0.5, 0, keys, strata)[1]) == 1


def test_a_carved_validation_set_has_its_share_of_each_label_and_no_copies():
    labels = ["rare"] * 2 + ["some"] * 20 + ["many"] * 200
    records = records_of(*labels)
    keys = [n // 2 for n in range(len(labels))]  # every text occurs twice
    stays, carved = carve(records, 0.1, 7, keys, labels)
    assert [r["label"] for r in carved].count("many") == 20 and [r["label"] for r in carved].count("some") == 2
    assert {r["label"] for r in stays} == {"rare", "some", "many"}
    taken = {int(r["text"].split()[1]) // 2 for r in carved}
    assert not taken & {int(r["text"].split()[1]) // 2 for r in stays}
    assert carved == carve(records, 0.1, 7, keys, labels)[1] != carve(records, 0.1, 8, keys, labels)[1]


def test_records_are_the_same_from_every_format(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": 'a "b", c', "label": "x"}, {"text": "zwei\nlines", "label": "ü"}]
    paths = [write(tmp_path / "r.jsonl", rows), write(tmp_path / "r.jsonl.gz", rows), write(tmp_path / "r.csv", rows)]
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    for path in [*paths, tmp_path / "r.json", tmp_path / "r.parquet"]:
        records = read_table(path)
        assert list(records) == rows and all(str(path) in place for place in records.places)


def test_pad_tokens():
    model = build("TfmDecoderForCausalLM")
    for changes, expected in (
        ({}, "[PAD]"),
        ({"pad_token": None}, "[PAD]"),
        ({"pad_token": "[EOS]"}, "[PAD]"),
        ({"pad_token": None, "eos_token": "[PAD]"}, "[UNK]"),
        ({"pad_token": None, "eos_token": "[PAD]", "unk_token": None}, "[PAD]"),  # nothing else is left
    ):
        tokenizer = build_tokenizer()
        for name, token in changes.items():
            setattr(tokenizer, name, token)
        ensure_pad_token(tokenizer, model)
        assert tokenizer.pad_token == expected, changes
        assert model.config.pad_token_id == tokenizer.pad_token_id


def test_pooling_replaces_a_pooler(tmp_path):
    build("TfmEncoderForMaskedLM", "bert").save_pretrained(tmp_path)
    recipe, fields = FinetuningRecipe(model=str(tmp_path), train_file=""), {"num_labels": 2}
    plain, _ = load_base_model(AutoModelForSequenceClassification, recipe, build_tokenizer(), **fields)
    pooled, _ = load_base_model(
        AutoModelForSequenceClassification, recipe, build_tokenizer(), **fields, classifier_pooling="mean"
    )
    assert plain.config.use_pooler and not pooled.config.use_pooler
    one, two = torch.tensor([[4, 9, 30, 5]]), torch.tensor([[4, 30, 9, 5]])
    with torch.no_grad():
        states = [pooled.model(ids).last_hidden_state.mean(1) for ids in (one, two)]
        expected = pooled.classifier(pooled.head(torch.cat(states)))
        torch.testing.assert_close(pooled.eval()(torch.cat([one, two])).logits, expected)


@pytest.mark.parametrize("base", ["encoder", "pooler"])
def test_an_adapter_is_loaded_with_the_pooling_of_its_training(models, files, tmp_path, in_memory, base):
    out, folder, pooling = tmp_path / "run", files / "single", "cls" if base == "encoder" else "mean"
    where = models / base
    if base == "pooler":
        where = tmp_path / base
        build("TfmEncoderForMaskedLM", "bert", initializer_range=0.05).save_pretrained(where)
        build_tokenizer().save_pretrained(where)
    test = write(tmp_path / "test.jsonl", single(6, 2))
    argv = arguments(
        where, folder / "train.jsonl.gz", out, test_file=test, lora="true", pooling=pooling, max_steps=2
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    texts = [[record["text"] for record in read_table(test)]]
    model, _ = open_model(str(out))
    np.testing.assert_allclose(logits_one_by_one(out, texts, model), in_memory[-1], atol=1e-4)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded = {}
    exec(code.replace('path = "."', f"path = {str(out)!r}"), loaded)
    np.testing.assert_allclose(logits_one_by_one(out, texts, loaded["model"]), in_memory[-1], atol=1e-4)


def test_an_adapter_on_a_base_whose_head_has_another_size(files, tmp_path, in_memory):
    """Its card's code runs, as it is, also where this package is not installed: `hf-tfm push` tries it there."""
    build("TfmEncoderForSequenceClassification", num_labels=5).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    out, test = tmp_path / "run", write(tmp_path / "test.jsonl", single(6, 2))
    argv = arguments(
        tmp_path / "base", files / "single" / "train.jsonl.gz", out, test_file=test, lora="true", max_steps=2
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    texts = [[record["text"] for record in read_records(test, Reading("classification"))]]
    loaded = {}
    exec(card_code((out / "README.md").read_text()).replace('path = "."', f"path = {str(out)!r}"), loaded)
    np.testing.assert_allclose(logits_one_by_one(out, texts, loaded["model"]), in_memory[-1], atol=1e-4)
    with checked_folder(out, hub_base="me/base") as checked:
        assert checked.kind == "adapter"


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_left_padding_and_hidden_states_behind_the_logits(files, tmp_path, in_memory, kind):
    """GPT-2 counts positions from the left even where there is padding; BART returns its encoder's states too."""
    special = dict(pad_token_id=PAD, eos_token_id=SEP, bos_token_id=CLS)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=64, **special))
    else:
        size = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
        size |= dict(encoder_ffn_dim=16, decoder_ffn_dim=16, d_model=16, max_position_embeddings=64)
        model = BartForConditionalGeneration(BartConfig(vocab_size=320, decoder_start_token_id=SEP, **special, **size))
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    options = dict(padding_side="left", bos_token="[CLS]", eos_token="[SEP]")
    AutoTokenizer.from_pretrained(tmp_path / "base", **options).save_pretrained(tmp_path / "base")
    test = write(tmp_path / "test.jsonl", single(8, 2))
    argv = arguments(
        tmp_path / "base", files / "single" / "train.jsonl.gz", tmp_path / "run", test_file=test, max_steps=3,
        learning_rate=0.02,
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    texts = [record["text"] for record in read_table(test)]
    np.testing.assert_allclose(logits_one_by_one(tmp_path / "run", [texts]), in_memory[-1], atol=1e-4)
    several = pipeline("text-classification", model=str(tmp_path / "run"), batch_size=8)(texts)
    shares = torch.tensor(in_memory[-1]).softmax(-1).amax(-1)
    np.testing.assert_allclose([one["score"] for one in several], shares, atol=1e-4)


def test_predictions_and_later_measurements_cut_texts_as_in_training(models, files, tmp_path, in_memory):
    test = write(tmp_path / "test.jsonl", [{**row, "text": row["text"] * 3} for row in single(12, 2)])
    argv = arguments(
        models / "encoder", files / "single" / "train.jsonl.gz", tmp_path / "run", test_file=test, max_steps=3,
        max_length=8, learning_rate=0.02,
    )  # fmt: skip
    assert finetune_classification.main(argv) == 0
    predictions = open_predictor(str(tmp_path / "run"))(read_records(test, Reading("classification")))
    shares = torch.tensor(in_memory[-1]).softmax(-1).amax(-1)
    np.testing.assert_allclose([one["predicted_score"] for one in predictions], shares, atol=1e-4)
    argv = ["--model", str(tmp_path / "run"), "--test_file", str(test), "--output_dir", str(tmp_path / "figures")]
    assert evaluate_model.main(argv) == 0
    [task] = json.loads((tmp_path / "figures" / "evaluation.json").read_text())["tasks"]
    assert task["results"] == record_of(tmp_path / "run")["results"]


@pytest.mark.parametrize("base", ["encoder", "bert", "decoder"])
def test_keeping_the_first_layers(models, base):
    path, fields = str(models / base), {"num_labels": 2}
    whole, _ = load_base_model(
        AutoModelForSequenceClassification, FinetuningRecipe(path, ""), build_tokenizer(), **fields
    )
    recipe = FinetuningRecipe(path, "", keep_layers=[1])
    cut, new = load_base_model(AutoModelForSequenceClassification, recipe, build_tokenizer(), **fields)
    body, parts = cut.base_model.state_dict(), whole.base_model.state_dict()
    # Neither the pooler, which BERT's folder has, nor anything below the second block is new.
    assert not [name for name in new if name in {f"{cut.base_model_prefix}.{part}" for part in body}]
    assert body.keys() == {name for name in parts if ".1." not in name}
    assert all(torch.equal(body[name], parts[name]) for name in body)
    if base != "bert":
        assert whole.config.num_hidden_layers == len(whole.config.layer_types) > len(cut.config.layer_types) == 1
    with pytest.raises(InputError, match="keep_layers 9: this .* has 2 layers"):
        load_base_model(
            AutoModelForSequenceClassification, FinetuningRecipe(path, "", keep_layers=[9]), build_tokenizer()
        )


def _drop(name):
    return lambda rows: [row.pop(name) for row in rows[2:3]]


def _set(name, value, which=slice(2, 3)):
    return lambda rows: [row.__setitem__(name, value) for row in rows[which]]


def _blank_label(rows):
    for row in rows:
        del row["label_text"]
    rows[2]["label"] = ""


BAD_RECORDS = {
    "no text": (_drop("text"), "train.jsonl, line 3: field 'text' is missing; mend it"),
    "null text": (_set("text", None), "train.jsonl, line 3: field 'text' is null"),
    "a number as text": (_set("text", 5), "train.jsonl, line 3: field 'text' is a int"),
    "blank text": (_set("text", " \n"), "train.jsonl, line 3: field 'text' is blank"),
    "no label": (_drop("label"), "train.jsonl, line 3: field 'label' is missing; mend it"),
    "null label": (_set("label", None), "train.jsonl, line 3: field 'label' is null"),
    "NaN label": (_set("label", float("nan")), "train.jsonl, line 3: field 'label' is nan"),
    "one class": (_set("label", 0, slice(None)), "all 30 records have the label"),
    "two names": (_set("label_text", "elephant"), "but 'ship' before; mend 'label_text'"),
    "blank label": (_blank_label, "train.jsonl, line 3: field 'label' is blank"),
    "half a character": (_set("text", "a \ud800"), "line 3: field 'text' has half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_end_in_one_line(models, tmp_path, capsys, case):
    spoil, complaint = BAD_RECORDS[case]
    rows = single(30, 1)
    rows[1]["label"] = rows[2]["label"] = 1
    rows[1]["label_text"] = rows[2]["label_text"] = "ship"
    spoil(rows)
    if case == "one class":
        for row in rows:
            row["label_text"] = "animal"
    assert_refused(models / "bert", write(tmp_path / "train.jsonl", rows), tmp_path, capsys, complaint)


def assert_refused(model, train, tmp_path, capsys, complaint, **changes):
    out = tmp_path / "out"
    argv = arguments(model, train, out, **changes)
    check_refusal(finetune_classification, argv, complaint, out, capsys)


def test_bad_files_and_settings_end_in_one_line(models, files, tmp_path, capsys):
    train = files / "single" / "train.jsonl.gz"
    refused = [
        (dict(train_file=tmp_path / "none.jsonl"), "none.jsonl: no such file"),
        (dict(model=tmp_path / "none"), "there is no such folder"),
        (dict(model="nobody/nothing-at-all"), "no tokenizer can be loaded"),
        (dict(max_length=65), "max_length 65"),
        (dict(keep_layers=0), "keep_layers 0: this bert has 2 layers"),
        (dict(keep_layers=1, lora="true"), "keep_layers: an adapter is loaded on its whole base"),
        (dict(text_field="body"), "--text_field"),
        (dict(text_pair_field="second"), "--text_pair_field"),
        (dict(label_field="kind"), "--label_field"),
        (dict(problem_type="regression", label_field="label_text"), "not a number"),
        (dict(problem_type="guess"), "must be one of"),
        (dict(problem_type="regression", label_smoothing_factor=0.1), "--label_smoothing_factor is for one label"),
        (dict(pooling="mean"), "has no switch classifier_pooling"),
        (dict(lora="true", lora_variant="qlora"), "lora, dora, rslora"),
        (dict(lora="true", lora_target_modules="q_proj"), "the model's linear modules are"),
        (dict(output_dir=models / "bert"), "holds another model"),
        (dict(validation_fraction=0), "between 0 and 1"),
        (dict(num_train_epoch=3), "did you mean num_train_epochs"),
        (dict(metric_for_best_model="f1"), "must be one of accuracy, macro_f1, matthews, loss"),
        (dict(per_device_train_batch_size=0), "--per_device_train_batch_size 0: must be at least 1"),
        (dict(num_train_epochs=0), "num_train_epochs 0 must be above 0"),
        (dict(warmup_steps=900), "--warmup_steps 900: the run has 38; give fewer, or a share of the run below 1"),
        (dict(early_stopping_patience=0), "--early_stopping_patience 0: must be at least 1"),
        (
            dict(early_stopping_patience=2, load_best_model_at_end="false"),
            "early_stopping_patience keeps the best checkpoint",
        ),
        (dict(max_steps=0), "max_steps 0 would train nothing"),
        (
            dict(dataloader_drop_last="true", per_device_train_batch_size=500),
            "--dataloader_drop_last leaves no batch of 500",
        ),
        (dict(max_length=3), "takes at most 64 tokens, and 4 at least"),
        (dict(learning_rate=-1), "learning_rate -1.0 must be above 0"),
        (dict(learning_rate="nan"), "learning_rate nan must be above 0"),
        (dict(label_smoothing_factor=2), "label_smoothing_factor 2.0 must be 0 or more and below 1"),
        (dict(lora="true", lora_dropout=2), "lora_dropout 2.0 must be 0 or more and below 1"),
        (dict(lora="true", lora_alpha=0), "--lora_alpha 0: must be at least 1"),
        (dict(prediction_loss_only="true"), "--prediction_loss_only has no effect in this script"),
        (dict(resume_from_checkpoint="true"), "--resume_from_checkpoint true: no checkpoint there"),
    ]
    spoiled = {
        "empty.jsonl": (b"", "holds no records"),
        "junk.jsonl": (os.urandom(300) + b"\xff\xfe\n", "junk.jsonl"),
        "junk.parquet": (b"\x00\x01" * 200, "junk.parquet: cannot be read"),
        "junk.jsonl.gz": (b"not gzip at all", "junk.jsonl.gz"),
        "broken.jsonl": (b'{"text": "a", "label": 0}\n{"text": "b"', "broken.jsonl, line 2: broken JSON"),
        "list.jsonl": (b'{"text": "a", "label": 0}\n[1, 2]\n', "list.jsonl, line 2: is a list"),
        "wide.csv": (b"text,label\na,0\nb, c,1\n", "wide.csv, line 3: has more cells"),
        "plain.txt": (b"text\n", "plain.txt: is plain text, which has no form of classification"),
        "tiny.jsonl": (b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', "too few to carve"),
    }
    for name, (content, complaint) in spoiled.items():
        (tmp_path / name).write_bytes(content)
        refused.append((dict(train_file=tmp_path / name), complaint))
    unseen = write(tmp_path / "unseen.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 7}])
    refused += [
        (dict([(split, unseen)]), "unseen.jsonl, line 2: label 7") for split in ("test_file", "validation_file")
    ]
    before = sorted(models.rglob("*"))
    for changes, complaint in refused:
        changes = {"model": models / "bert", "train_file": train, **changes}
        assert_refused(changes.pop("model"), changes.pop("train_file"), tmp_path, capsys, complaint, **changes)
    assert sorted(models.rglob("*")) == before


def test_damaged_models_are_refused(models, files, tmp_path, capsys):
    train = files / "single" / "train.jsonl.gz"
    small, cut = tmp_path / "small", tmp_path / "cut"
    hf_tfm.TfmEncoderForMaskedLM(encoder_config(vocab_size=100)).save_pretrained(small)
    build_tokenizer().save_pretrained(small)
    assert_refused(small, train, tmp_path, capsys, "has ids up to 319, the model 100 embeddings")

    shutil.copytree(models / "bert", cut)
    config = json.loads((cut / "config.json").read_text())
    (cut / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert_refused(cut, train, tmp_path, capsys, "they would be random")
    (cut / "model.safetensors").write_bytes(b"\x00" * 64)
    assert_refused(cut, train, tmp_path, capsys, "no model can be loaded")


def test_recipes_have_known_fields():
    from hf_tfm.train.recipe import parse_recipe

    recipes = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("finetune_*.yaml"))
    names = {path.stem: path for path in recipes}
    for name in ("finetune_sst2", "finetune_trec", "finetune_banking77", "finetune_stsb", "finetune_rte"):
        recipe, args = parse_recipe(
            [str(names[name])],
            finetune_classification.ClassificationRecipe,
            finetune_classification.FinetuningArguments,
        )
        assert isinstance(recipe, FinetuningRecipe) and recipe.test_file and args.output_dir


def test_columns_of_0_and_1_are_trained_measured_and_predicted(models, tmp_path, capsys):
    names = list(SUBJECTS)
    rows = [{"text": row["text"], **{name: int(name in row["label"]) for name in names}} for row in several(120, 3)]
    train, test, out = (
        write(tmp_path / "train.csv", rows[:90]),
        write(tmp_path / "test.csv", rows[90:]),
        tmp_path / "run",
    )
    argv = arguments(models / "encoder", train, out, test_file=test, num_train_epochs=4)
    assert finetune_classification.main([*argv, "--label_field", *names]) == 0
    record = record_of(out)
    assert record["model"]["config"]["problem_type"] == "multi_label_classification"
    assert list(record["model"]["config"]["label2id"]) == names and record["results"]["micro_f1"]["value"] > 0.7
    argv = ["--model", str(out), "--test_file", str(test), "--output_dir", str(tmp_path / "figures")]
    assert evaluate_model.main(argv) == 0
    [task] = json.loads((tmp_path / "figures" / "evaluation.json").read_text())["tasks"]
    assert task["results"] == record["results"], "the columns of the training are known"
    predictions = open_predictor(str(out))
    read = read_records(test, predictions.reading())
    right = [set(one["predicted_labels"]) == {name for name in names if row[name]} for one, row in
             zip(predictions(read), rows[90:], strict=True)]  # fmt: skip
    assert np.mean(right) == pytest.approx(record["results"]["exact_match"]["value"])

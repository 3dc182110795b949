"""Distillation on every task: what a student learns, from which rows, exact resume and accumulation, refusals."""

import random

import distill
import pytest
import torch
from finetune_checks import (
    arguments,
    check_refusal,
    check_resumption,
    check_whole_folder,
    few_steps,
    record_of,
    write,
)
from safetensors.torch import load_file
from tiny import build, build_tokenizer
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks import distillation
from hf_tfm.tasks.soft_labels import ABSENT, class_loss, label_loss, pad_logits, state_loss
from hf_tfm.train.kept_layers import choose_layers, keep_layers


WORDS = ["cat", "moon", "rain", "ship", "book", "roof", "page", "hen"]
TAGS = ["O", "B-X"]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(count)]


def question(text: str) -> dict:
    answers = {"text": ["moon"], "answer_start": [len(text) + 1]}
    return {"question": f"who? {text}", "context": f"{text} moon {text}", "answers": answers}


TEXTS = texts(24, 1)
RECORDS = {
    "classification": [{"text": text, "label": "ab"["cat" in text]} for text in TEXTS],
    "several labels": [{"text": text, "label": [word for word in ("cat", "hen") if word in text]} for text in TEXTS],
    "numbers": [{"text": text, "label": len(text) / 10} for text in TEXTS],
    "tokens": [
        {"tokens": text.split(), "ner_tags": [TAGS[word in ("cat", "hen")] for word in text.split()]} for text in TEXTS
    ],
    "qa": [question(text) for text in TEXTS],
    "multiple_choice": [
        {"question": text, "options": WORDS[: 2 + n % 3], "answer": "AB"[n % 2]} for n, text in enumerate(TEXTS)
    ],
}
MORE = texts(12, 3)
UNLABELLED = {
    "tokens": [{"tokens": text.split()} for text in MORE],
    "qa": [{"question": text, "context": f"{text} moon"} for text in MORE],
    "multiple_choice": [{"question": text, "options": WORDS[:4]} for text in MORE],
}
HEADS = {
    "classification": ("SequenceClassification", dict(id2label={0: "b", 1: "a"})),
    "several labels": (
        "SequenceClassification",
        dict(id2label={0: "cat", 1: "hen"}, problem_type="multi_label_classification"),
    ),
    "numbers": ("SequenceClassification", dict(id2label={0: "label"}, problem_type="regression")),
    "tokens": ("TokenClassification", dict(id2label=dict(enumerate(TAGS)))),
    "qa": ("QuestionAnswering", {}),
    "multiple_choice": ("MultipleChoice", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a teacher of each task and of other models, and files of records."""
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    for kind, (head, fields) in HEADS.items():
        build(f"TfmEncoderFor{head}", num_hidden_layers=3, initializer_range=0.2, **fields).save_pretrained(root / kind)
        build_tokenizer().save_pretrained(root / kind)
        write(root / f"{kind}.jsonl", RECORDS[kind])
        write(root / f"{kind}-more.jsonl", UNLABELLED.get(kind, [{"text": text} for text in MORE]))
    size = dict(vocab_size=320, hidden_size=16, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    for name in ("narrow", "other tokens"):
        BertModel(BertConfig(**size, max_position_embeddings=64)).save_pretrained(root / name)
    build_tokenizer().save_pretrained(root / "narrow")
    train_tokenizer([" ".join(WORDS)] * 20, vocab_size=290, num_spare_tokens=0).save_pretrained(root / "other tokens")
    return root


@pytest.fixture(autouse=True)
def short_measurement_of_speed(monkeypatch):
    monkeypatch.setattr(distillation, "_SPEED_SECONDS", 0.0)


def command(folders, kind, out, model=None, **changes) -> list[str]:
    fields = dict(
        teacher=folders / kind, cache_dir=out.parent / "cache", keep_layers=2 if model is None else None,
        validation_file=folders / f"{kind}.jsonl", preflight="false",
    )  # fmt: skip
    return arguments(model, folders / f"{kind}.jsonl", out, **{**fields, **changes})


@pytest.mark.parametrize("kind", HEADS)
def test_a_student_comes_near_its_teacher_also_without_labels(folders, tmp_path, kind):
    """With soft_weight 1 labels do not count, and half as many records again have none."""
    argv = command(
        folders, kind, tmp_path / "out", unlabelled=folders / f"{kind}-more.jsonl", max_steps=40, soft_weight=1.0,
        eval_strategy="no", save_strategy="no", load_best_model_at_end="false", logging_steps=1,
    )  # fmt: skip
    assert distill.main(argv) == 0
    record = record_of(tmp_path / "out")
    losses = [entry["loss"] for entry in record["curve"]]
    # Entropy of the teacher's labels stays in the loss of several labels.
    assert sum(losses[-5:]) < (0.95 if kind == "several labels" else 0.6) * sum(losses[:5])
    assert record["distillation"]["share"] == pytest.approx(
        record["results"][record["distillation"]["metric"]]["value"]
        / record["baselines"]["teacher"][record["distillation"]["metric"]]["value"]
    )
    assert [source["split"] for source in record["data"]] == ["train", "validation", "unlabelled"]
    check_whole_folder(tmp_path / "out")
    assert f"Distilled from `{kind}`: " in (tmp_path / "out" / "README.md").read_text()


def test_the_teachers_labels_and_figures_are_kept(folders, tmp_path):
    out = tmp_path / "out"
    assert distill.main(command(folders, "classification", out, learning_rate=1e-9, max_steps=1, keep_layers=3)) == 0
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "b", 1: "a"}  # not in the order of the records
    # With all layers and no training the student is its teacher.
    record = record_of(out)
    assert record["results"] == record["baselines"]["teacher"]
    assert record["curve"][0]["loss"] == pytest.approx(0.1 * record["evaluations"][0]["eval_loss"], rel=0.3)


def test_outputs_are_computed_once(folders, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    real = distillation.cached_outputs
    for run in ("first", "second"):
        argv = command(folders, "classification", out / run, max_steps=1, cache_dir=tmp_path / "cache")
        if run == "second":
            monkeypatch.setattr("hf_tfm.tasks.teacher_outputs._compute", lambda *args: calls.append(args) or iter(()))
        assert distill.main(argv) == 0
    assert len(list((tmp_path / "cache" / "teachers").glob("*/meta.json"))) == 1
    assert real is distillation.cached_outputs
    weights = [load_file(out / run / "model.safetensors") for run in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_accumulated_batches_train_as_one(folders, tmp_path, kind):
    weights = []
    for accumulated in (4, 1):
        out = tmp_path / str(accumulated)
        more = dict(unlabelled=folders / f"{kind}-more.jsonl", **few_steps(16, accumulated=accumulated))
        assert distill.main(command(folders, kind, out, soft_weight=0.5, **more)) == 0
        weights.append(load_file(out / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_a_stopped_run_ends_bit_for_bit(folders, tmp_path, monkeypatch, capsys):
    def run(out, **changes):
        more = {"unlabelled": folders / "classification-more.jsonl", "cache_dir": tmp_path / "cache", **changes}
        return command(folders, "classification", out, per_device_train_batch_size=4, **more)

    check_resumption(distill, run, tmp_path, monkeypatch, capsys, steps=12, stops=(5,))


def test_a_student_may_have_another_width_or_other_tokens(folders, tmp_path):
    for model in ("narrow", "other tokens"):
        out = tmp_path / model
        argv = command(folders, "classification", out, folders / model, max_steps=2, teacher=folders / "classification")
        assert distill.main(argv) == 0
        assert record_of(out)["model"]["config"]["hidden_size"] == 16


def test_wrong_settings_end_in_one_line(folders, tmp_path, capsys):
    out = tmp_path / "out"
    refused = [
        ("classification", dict(soft_weight=1.5), "soft_weight 1.5 must be between 0 and 1"),
        ("classification", dict(temperature=0), "--temperature 0.0: must be at least 0.01"),
        ("classification", dict(soft_weight=0, unlabelled=folders / "classification-more.jsonl"), "--unlabelled"),
        ("classification", dict(keep_layers=7), "keep_layers 7: this tfm_encoder has 3 layers"),
        ("classification", dict(keep_layers="1 2"), "the layers of this tfm_encoder are not interchangeable"),
        ("classification", dict(task="tokens"), "is a model for AutoModelForSequenceClassification, not for"),
        ("classification", dict(task="sums"), "task 'sums' must be one of classification, tokens"),
        ("classification", dict(model=folders / "narrow", keep_layers=None, hidden_weight=1), "has states of 16, not"),
        ("tokens", dict(model=folders / "other tokens", keep_layers=None), "has other tokens than its teacher"),
        ("classification", dict(train_file=folders / "several labels.jsonl"), "is not among those"),
    ]
    for kind, changes, complaint in refused:
        model = changes.pop("model", None)
        argv = command(folders, kind, out, model, **{"teacher": folders / kind, **changes})
        keep = argv.index("--keep_layers") + 1 if "--keep_layers" in argv else None
        if keep:
            argv[keep : keep + 1] = argv[keep].split()
        check_refusal(distill, argv, complaint, out, capsys)


# Losses


def test_class_loss_is_the_divergence_over_present_classes():
    torch.manual_seed(0)
    target = pad_logits([torch.randn(1, 3).numpy(), torch.randn(2, 2).numpy()])
    assert target.shape == (2, 2, 3) and target[0, 1].tolist() == [ABSENT] * 3 and target[1, 1, 2] == ABSENT
    logits = torch.randn(2, 2, 3, requires_grad=True)
    loss = class_loss(logits, target, 2.0)
    loss.backward()
    expected = sum(
        4.0 * F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="sum")
        for z, t in [
            (logits[0, 0], target[0, 0]),
            (logits[1, 0, :2], target[1, 0, :2]),
            (logits[1, 1, :2], target[1, 1, :2]),
        ]
    )
    torch.testing.assert_close(loss, expected)
    assert logits.grad.isfinite().all() and not logits.grad[0, 1].any() and not logits.grad[1, :, 2].any()
    torch.testing.assert_close(class_loss(target, target, 1.0), torch.tensor(0.0))


def test_other_losses_are_least_at_the_teachers_outputs():
    torch.manual_seed(0)
    target = torch.randn(4, 1, 3)
    for moved in (0.1, -0.1):
        assert label_loss(target + moved, target, 1.5) > label_loss(target, target, 1.5)
    states = torch.randn(5, 8)
    torch.testing.assert_close(state_loss(1.1 * states, states), torch.tensor(5 * 0.01))


# Layers


@pytest.mark.parametrize(
    ("keep", "numbers"), [([1], [0]), ([2], [0, 5]), ([3], [0, 2, 5]), ([6], [0, 1, 2, 3, 4, 5]), ([1, 4], [1, 4])]
)
def test_layers_are_evenly_spaced_or_named(keep, numbers):
    assert choose_layers(BertConfig(num_hidden_layers=6), keep) == numbers


@pytest.mark.parametrize("keep", [[0], [7], [2, 1], [1, 1], [-1, 2], [2, 6]])
def test_layers_that_are_not_there_are_refused(keep):
    with pytest.raises(InputError, match="keep_layers"):
        choose_layers(BertConfig(num_hidden_layers=6), keep)


def test_a_model_of_some_layers_computes_what_the_layers_compute():
    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2)
    torch.manual_seed(0)
    whole = AutoModelForSequenceClassification.from_config(config).eval()
    part = keep_layers(AutoModelForSequenceClassification, whole, [0, 3], trust_remote_code=False).eval()
    layers = whole.bert.encoder.layer
    whole.bert.encoder.layer = torch.nn.ModuleList([layers[0], layers[3]])
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(part(ids).logits, whole(ids).logits)
    assert part.config.num_hidden_layers == 2 and config.num_hidden_layers == 4

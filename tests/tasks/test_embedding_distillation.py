"""Distillation of sentence embeddings: from pairs and from texts alone, narrower students, exact resume."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_checks import arguments, check_refusal, check_resumption, check_whole_folder, record_of, write
from tiny import build, build_tokenizer
from transformers import BertConfig, BertModel


sentence_transformers = pytest.importorskip("sentence_transformers")

import distill

from hf_tfm.tasks import distillation
from hf_tfm.tasks.embedding_distillation import TeacherLoss, fit_width


WORDS = ["cat", "moon", "rain", "ship", "book", "roof", "page", "hen"]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return list(dict.fromkeys(" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(count)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders of a teacher and a narrower model, files of pairs and of texts."""
    root = tmp_path_factory.mktemp("embeddings")
    torch.manual_seed(0)
    build("TfmEncoderModel", num_hidden_layers=3, initializer_range=0.3).save_pretrained(root / "teacher")
    size = dict(vocab_size=320, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    for name, width in (("narrow", 16), ("wide", 64)):
        BertModel(BertConfig(**size, hidden_size=width, max_position_embeddings=64)).save_pretrained(root / name)
    for name in ("teacher", "narrow", "wide"):
        build_tokenizer().save_pretrained(root / name)
    pairs = [{"text": a, "text_pair": b, "score": n % 6} for n, (a, b) in enumerate(zip(texts(40, 1), texts(40, 2)))]
    write(root / "pairs.jsonl", pairs)
    (root / "more.txt").write_text("\n".join(texts(100, 3)))
    return root


@pytest.fixture(autouse=True)
def short_measurement_of_speed(monkeypatch):
    monkeypatch.setattr(distillation, "_SPEED_SECONDS", 0.0)


def command(root: Path, out: Path, model: str | None = None, pairs: bool = True, **changes) -> list[str]:
    file = root / "pairs.jsonl" if pairs else None
    fields = dict(
        teacher=root / "teacher", cache_dir=out.parent / "cache", keep_layers=None if model else 2, baselines=None,
        validation_file=file, train_file=file, unlabelled=root / "more.txt", preflight="false",
    )  # fmt: skip
    return arguments(root / model if model else None, root, out, **{**fields, **changes})


@pytest.mark.parametrize(("model", "pairs"), [(None, True), (None, False), ("narrow", True)])
def test_a_student_comes_near_its_teacher(root, tmp_path, model, pairs):
    out = tmp_path / "out"
    argv = command(root, out, model, pairs, num_train_epochs=10, learning_rate=1e-3, logging_steps=1)
    assert distill.main(argv) == 0
    record = record_of(out)
    losses = [entry["loss"] for entry in record["curve"]]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert {"share", "speed"} <= record["distillation"].keys() and "teacher" in record["baselines"]
    check_whole_folder(out)
    embedder = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    assert embedder.encode(["cat", "moon"]).shape == (2, 16 if model else 32)
    if not pairs:  # the figure is the correlation with the teacher's own cosines
        assert record["baselines"]["teacher"]["spearman"]["value"] == pytest.approx(1.0)
        assert record["results"]["spearman"]["value"] > record["baselines"]["before"]["spearman"]["value"]


def test_a_stopped_run_ends_bit_for_bit(root, tmp_path, monkeypatch, capsys):
    def run(out, **changes):
        return command(root, out, cache_dir=tmp_path / "cache", **changes)

    check_resumption(distill, run, tmp_path, monkeypatch, capsys, steps=9, stops=(4,))


def test_narrower_vectors_keep_the_similarities_that_they_can():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(50, 4)) @ np.linalg.qr(draw.normal(size=(8, 8)))[0][:4]  # of rank 4 in 8 dimensions

    class Student:
        def get_embedding_dimension(self):
            return 4

    narrow = fit_width(vectors.astype(np.float32), Student(), None)
    assert narrow.shape == (50, 4)
    np.testing.assert_allclose(narrow @ narrow.T, vectors @ vectors.T, atol=1e-4)


def test_the_loss_is_least_at_the_teachers_vectors():
    loss = TeacherLoss.__new__(TeacherLoss)
    torch.nn.Module.__init__(loss)
    loss.distance_metric, loss.projection, loss.ranking_weight = "cosine", None, 1.0
    torch.manual_seed(0)
    vectors, other = torch.randn(2, 5, 8)
    assert loss.compute_loss_from_embeddings([3 * vectors], [vectors]).abs() < 1e-5
    turned = vectors @ torch.linalg.qr(torch.randn(8, 8))[0]
    loss.ranking_weight = 0.0
    distance = loss.compute_loss_from_embeddings([turned], [vectors])
    loss.ranking_weight = 1.0
    # A rotation keeps all similarities.
    torch.testing.assert_close(loss.compute_loss_from_embeddings([turned], [vectors]), distance, atol=1e-4, rtol=0)
    assert loss.compute_loss_from_embeddings([other], [vectors]) > distance + 0.1


def test_wrong_settings_end_in_one_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    refused = [
        (dict(train_file=None, unlabelled=None), "there is nothing to learn from"),
        (dict(ranking_weight=-1), "--ranking_weight -1.0: must be at least 0"),
        (dict(model="wide"), "its embeddings have 64 numbers, the teacher's 32"),
    ]
    for changes, complaint in refused:
        check_refusal(distill, command(root, out, **changes), complaint, out, capsys)

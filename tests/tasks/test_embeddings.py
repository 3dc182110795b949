"""Fine-tuning sentence embeddings: losses, adapters, resumption, folders that open without this package."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_checks import check_refusal, check_resumption, check_whole_folder, record_of, write
from safetensors.torch import load_file
from scipy.stats import spearmanr
from tiny import build, build_tokenizer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel


sentence_transformers = pytest.importorskip("sentence_transformers")

import finetune_embeddings

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.data.records import Records
from hf_tfm.evaluate.predict import open_predictor
from hf_tfm.tasks.embeddings import PairBatches, Pairs, build_embedder


SUBJECTS = ["cat", "hen", "ships", "rain", "moon", "kettle", "mat", "page"]
FILLERS = ["the", "and", "a", "on", "of", "what", "small", "them"]


def sentence(draw: random.Random, subjects: list[str]) -> str:
    words = [*subjects, *draw.choices(FILLERS, k=draw.randint(1, 6))]
    draw.shuffle(words)
    return " ".join(words)


def scored(count: int, seed: int) -> list[dict]:
    """Pairs of sentences about two subjects each; the score is the number of common subjects."""
    draw, records = random.Random(seed), []
    for _ in range(count):
        shared, subjects = draw.randrange(3), draw.sample(SUBJECTS, 4)
        second = [*subjects[:shared], *subjects[2 : 4 - shared]]
        records.append(
            {"sentence1": sentence(draw, subjects[:2]), "sentence2": sentence(draw, second), "score": 2 * shared}
        )
    return records


def related(count: int, seed: int) -> list[dict]:
    """Pairs about the same two subjects, and a negative about others."""
    draw, records = random.Random(seed), []
    for _ in range(count):
        subjects = draw.sample(SUBJECTS, 4)
        question, answer, other = (sentence(draw, two) for two in (subjects[:2], subjects[:2], subjects[2:]))
        records.append({"question": question, "answer": answer, "other": other})
    return records


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders of tiny models, and files of records."""
    root = tmp_path_factory.mktemp("embeddings")
    size = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    models = {
        "encoder": build("TfmEncoderForMaskedLM", initializer_range=0.05, hidden_dropout=0.1),
        "decoder": build("TfmDecoderForCausalLM", initializer_range=0.05),
        "bert": BertModel(BertConfig(**size, max_position_embeddings=64)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    for name, make in (("scored", scored), ("related", related)):
        for split, count in (("train", 160), ("test", 40)):
            write(root / f"{name}_{split}.jsonl", make(count, len(split)))
    return root


def arguments(root: Path, out: Path, model: str = "encoder", kind: str = "scored", **changes) -> list[str]:
    fields = {
        "model": root / model,
        "train_file": root / f"{kind}_train.jsonl",
        "test_file": root / f"{kind}_test.jsonl",
        "output_dir": out,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "bf16": "false",
        **({"score_field": "score"} if kind == "scored" else {"text_field": "question", "text_pair_field": "answer"}),
        **changes,
    }
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


def embed_alone(folder: Path, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """Embeddings of single texts through the Auto classes, without sentence-transformers."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    return torch.stack([state.mean(0) if pooling == "mean" else state.amax(0) for state in states])


@pytest.mark.parametrize(("model", "loss"), [("encoder", "cosine"), ("bert", "cosent")])
def test_scores(root, tmp_path, capsys, model, loss):
    out = tmp_path / "run"
    argv = arguments(
        root, out, model, loss=loss, pooling="max" if model == "bert" else None, num_train_epochs=4,
        learning_rate=1e-3 if model == "bert" else 3e-3,
    )  # fmt: skip
    assert finetune_embeddings.main(argv) == 0
    printed = capsys.readouterr().out
    assert "before  " in printed and f"{loss} loss" in printed

    records = [json.loads(line) for line in (root / "scored_test.jsonl").read_text().splitlines()]
    embedder = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    first, second = (embedder.encode([r[name] for r in records]) for name in ("sentence1", "sentence2"))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    expected = spearmanr(cosines, [r["score"] for r in records])[0]
    record = record_of(out)
    assert record["results"]["spearman"]["value"] == pytest.approx(expected, abs=1e-4)
    assert expected > record["baselines"]["before"]["spearman"]["value"] + 0.1 and expected > 0.6
    alone = embed_alone(out, [r["sentence1"] for r in records], "max" if model == "bert" else "mean")
    np.testing.assert_allclose(first, alone, atol=1e-5)

    files = {"config.json", "modules.json", "1_Pooling", *(["modeling_tfm_encoder.py"] if model == "encoder" else [])}
    for folder in (out, *complete_checkpoints(out)):
        check_whole_folder(folder)
        there = {path.name for path in folder.iterdir()}
        assert files <= there and "eval" not in there, folder.name
        sentence_transformers.SentenceTransformer(str(folder))
    card = (out / "README.md").read_text()
    assert (
        "sentence-similarity" in card and "library_name: sentence-transformers" in card and f"{expected:.3f} [" in card
    )
    variables = {}
    exec(card.split("```python\n")[1].split("```")[0].replace('path = "."', f"path = {str(out)!r}"), variables)
    assert variables["embeddings"].shape == (2, 32)
    for name in ("README.md", "run_record.json", "config.json", "modules.json"):
        assert str(tmp_path) not in (out / name).read_text(), f"{name} has paths of this machine"
    best = max(record["evaluations"], key=lambda entry: entry["eval_spearman"])
    assert record["best"] == {"step": best["step"], "spearman": best["eval_spearman"]}
    assert finetune_embeddings.main(argv) == 2


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_positive_pairs(root, tmp_path, model):
    out = tmp_path / "run"
    argv = arguments(
        root, out, model, "related", negative_field="other", num_train_epochs=4,
        pooling="lasttoken" if model == "decoder" else None,
    )  # fmt: skip
    assert finetune_embeddings.main(argv) == 0
    record = record_of(out)
    before, after = record["baselines"]["before"], record["results"]
    assert after["mrr"]["value"] > before["mrr"]["value"] + 0.1
    assert record["best"]["mrr"] == max(entry["eval_mrr"] for entry in record["evaluations"])


def test_texts_do_not_go_through_a_chat_template(root, tmp_path):
    """sentence-transformers applies a chat template to texts; the Auto classes do not."""
    model, tokenizer = AutoModel.from_pretrained(root / "decoder"), build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[BOS]{{ message['content'] }}[EOS]{% endfor %}"
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    build_embedder(model, tokenizer, str(tmp_path / "base"), 32).save(str(tmp_path / "embedder"))
    texts = ["rain fell on the roof", "seven ships"]
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path / "embedder"), device="cpu")
    records = Records([{"text": text} for text in texts], ["here"] * 2, "texts")
    embeddings = [row["embedding"] for row in open_predictor(str(tmp_path / "embedder"))(records)]
    np.testing.assert_allclose(embedder.encode(texts), embeddings, atol=1e-5)

    templated = sentence_transformers.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    templated.save(str(tmp_path / "chats"))
    embeddings = [row["embedding"] for row in open_predictor(str(tmp_path / "chats"))(records)]
    np.testing.assert_allclose(templated.encode(texts), embeddings, atol=1e-5)
    assert not np.allclose(templated.encode(texts), embedder.encode(texts), atol=1e-2)


def test_adapters_are_merged(root, tmp_path):
    out = tmp_path / "run"
    argv = arguments(root, out, lora="true", lora_rank=4, learning_rate=2e-2, num_train_epochs=4)
    assert finetune_embeddings.main(argv) == 0
    record = record_of(out)
    assert record["adapter"]["merged"] and record["adapter"]["share"] < 0.2
    assert record["results"]["spearman"]["value"] > record["baselines"]["before"]["spearman"]["value"] + 0.1
    before, after = load_file(root / "encoder" / "model.safetensors"), load_file(out / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in after)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[f"model.{name}"])}
    assert changed and all("proj" in name for name in changed)
    kept = complete_checkpoints(out)[-1]  # whole and merged, with the adapter beside it to resume from
    assert (kept / "adapter_model.safetensors").is_file()
    assert load_file(kept / "model.safetensors").keys() == after.keys()

    records = [json.loads(line) for line in (root / "scored_test.jsonl").read_text().splitlines()]
    first, second = (embed_alone(out, [r[name] for r in records]) for name in ("sentence1", "sentence2"))
    cosines = torch.cosine_similarity(first, second).numpy()
    expected = spearmanr(cosines, [r["score"] for r in records])[0]
    assert record["results"]["spearman"]["value"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("kind", "adapter"), [("related", {}), ("scored", {"lora": "true"})])
def test_stopped_and_resumed_run_equals_one_without_a_stop(root, tmp_path, monkeypatch, capsys, kind, adapter):
    def run(out: Path, **changes) -> list[str]:
        return arguments(root, out, kind=kind, per_device_train_batch_size=15, **changes)  # 10 steps an epoch

    check_resumption(finetune_embeddings, run, tmp_path, monkeypatch, capsys, **adapter)


OUTSIDER = """
import sys
sys.path.insert(0, sys.argv[2])
from outsider import NotInstalled
sys.meta_path.insert(0, NotInstalled())
import numpy
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
embedder = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
assert type(embedder[0].auto_model).__module__.startswith("transformers_modules.")
assert type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "TfmEncoderModel"
numpy.save("embeddings.npy", embedder.encode(["the cat sat on the mat", "rain fell"]))
assert not any(name.partition(".")[0] == "hf_tfm" for name in sys.modules)
"""


def test_the_folder_opens_without_this_package(root, tmp_path):
    out = tmp_path / "run"
    assert finetune_embeddings.main(arguments(root, out, num_train_epochs=1)) == 0
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", OUTSIDER, out, Path(__file__).parents[1] / "helpers"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    here = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    expected = here.encode(["the cat sat on the mat", "rain fell"])
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), expected, atol=1e-5)


def test_no_batch_of_positive_pairs_has_a_text_twice():
    texts = [f"text {number // 3}" for number in range(30)]
    pairs = Pairs([texts, [f"other {number}" for number in range(30)]], None)
    lengths = [number % 7 + 1 for number in range(30)]
    options = dict(batch_size=8, drop_last=False, seed=3)
    batches = PairBatches(range(30), lengths, pairs.keys(), **options)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 4
    for batch in drawn:
        assert len({texts[number] for number in batch}) == len(batch)
    numbers = [number for batch in drawn for number in batch]
    assert len(numbers) == len(set(numbers)) > 25
    assert drawn == list(batches)
    batches.set_epoch(1)
    assert drawn != list(batches)
    everything = [number for batch in PairBatches(range(30), lengths, **options) for number in batch]
    assert sorted(everything) == list(range(30))


def test_ranks_are_among_all_second_texts():
    class Embedder:
        def encode(self, texts, **_):
            table = {"a": [1, 0], "b": [0, 1], "c": [0.8, 0.6]}
            return np.array([table[text] for text in texts], dtype=np.float32)

    # c is nearer to its own copy than to a; b to c than to a; the second a is the same text as the first.
    pairs = Pairs([["a", "b", "c", "a"], ["a", "a", "c", "a"]], None)
    (ranks,) = pairs.outcomes(Embedder(), 8)
    assert ranks.tolist() == [1, 2, 1, 1]
    assert pairs.figures(ranks) == {"mrr": 0.875, "accuracy_at_1": 0.75, "recall_at_10": 1.0}


def test_wrong_input_ends_in_one_line(root, tmp_path, capsys):
    good = scored(20, 1)

    def spoiled(name, **changes):
        return write(tmp_path / f"{name}.jsonl", [*good[:2], {**good[2], **changes}, *good[3:]])

    refused = [
        (dict(train_file=spoiled("word", score="high")), "word.jsonl, line 3: field 'score' is not a number ('high')"),
        (dict(train_file=spoiled("far", score=7)), "far.jsonl, line 3: score 7; scores from 0 to 7"),
        (dict(train_file=spoiled("null", sentence2=None)), "null.jsonl, line 3: field 'sentence2' is null"),
        (dict(train_file=spoiled("blank", sentence1=" ")), "blank.jsonl, line 3: field 'sentence1' is blank"),
        (dict(text_pair_field="second"), "--text_pair_field"),
        (dict(loss="triplet"), "must be one of contrastive, cosine, cosent"),
        (dict(kind="related", loss="cosine"), "--score_field"),
        (dict(loss="contrastive"), "contrastive goes without scores: --ignore_fields score"),
        (dict(negative_field="sentence2"), "negatives go with --loss contrastive"),
        (dict(pooling="best"), "pooling 'best' must be one of"),
        (dict(lora="true", lora_target_modules="nothing"), "the model's linear modules are"),
        (dict(max_length=65), "max_length 65"),
        (dict(metric_for_best_model="loss"), "must be one of spearman, pearson"),
        (dict(train_sampling_strategy="random"), "batches are of texts of similar length"),
    ]
    for changes, complaint in refused:
        argv = arguments(root, tmp_path / "out", **changes)
        check_refusal(finetune_embeddings, argv, complaint, tmp_path / "out", capsys)


def test_the_recipe_has_known_fields():
    from hf_tfm.train.recipe import parse_recipe

    path = Path(__file__).parents[2] / "training" / "recipes" / "finetune_embeddings.yaml"
    recipe, args = parse_recipe(
        [str(path)], finetune_embeddings.EmbeddingRecipe, finetune_embeddings.EmbeddingArguments
    )
    assert recipe.test_file and args.output_dir and recipe.score_field

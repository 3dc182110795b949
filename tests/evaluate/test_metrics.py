"""The local `evaluate` metrics equal those of their libraries, and intervals equal their formulas."""

import datasets
import evaluate
import numpy as np
import pytest
import sacrebleu
import seqeval.metrics
import sklearn.metrics
from scipy import stats

from hf_tfm.core import statistics
from hf_tfm.core.errors import InputError
from hf_tfm.evaluate import metrics
from hf_tfm.tasks.labels import Labels


pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """`evaluate` writes its inputs to files."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def classes(labels: int = 4, n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that equal their references half of the time; the last label occurs in neither."""
    draw = np.random.default_rng(seed)
    references = draw.integers(labels - 1, size=n)
    return np.where(draw.random(n) < 0.5, references, draw.integers(labels - 1, size=n)), references


def test_every_kind_of_task_has_a_metric():
    assert metrics.NAMES == [
        "accuracy", "chrf", "f1", "matthews_correlation", "pearsonr", "sacrebleu", "seqeval", "spearmanr", "squad",
    ]  # fmt: skip
    with pytest.raises(InputError, match="there are accuracy, chrf"):
        metrics.load("bleurt")


def test_classification_metrics_are_scikit_learns():
    predictions, references = classes()
    columns = {"predictions": predictions, "references": references}
    assert metrics.load("accuracy").compute(**columns) == {
        "accuracy": sklearn.metrics.accuracy_score(references, predictions)
    }
    assert metrics.load("matthews_correlation").compute(**columns) == {
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(references, predictions)
    }
    f1 = metrics.load("f1")
    for average in ("macro", "micro", "weighted", None):
        expected = sklearn.metrics.f1_score(references, predictions, average=average)
        np.testing.assert_array_equal(f1.compute(**columns, average=average)["f1"], expected)
    assert f1.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {"f1": pytest.approx(2 / 3)}


def test_multiple_labels_have_their_configuration():
    from pathlib import Path

    rows = {"predictions": [[1, 0], [1, 1]], "references": [[1, 1], [1, 1]]}
    folder = Path(metrics.__file__).parent
    assert evaluate.load(str(folder / "accuracy"), "multilabel").compute(**rows) == {"accuracy": 0.5}
    f1 = evaluate.load(str(folder / "f1" / "f1.py"), "multilabel").compute(**rows, average="micro")
    assert f1 == {"f1": pytest.approx(6 / 7)}


def test_correlations_are_scipys():
    draw = np.random.default_rng(0)
    references = draw.normal(size=40)
    predictions = references + draw.normal(size=40)
    columns = {"predictions": predictions, "references": references}
    for name, function in (("pearsonr", stats.pearsonr), ("spearmanr", stats.spearmanr)):
        expected = function(references, predictions)
        scores = metrics.load(name).compute(**columns, return_pvalue=True)
        assert scores == {name: pytest.approx(expected.statistic), "p-value": pytest.approx(expected.pvalue)}
        assert metrics.load(name).compute(**columns) == {name: scores[name]}


def test_entities_are_seqevals():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"], ["B-LOC", "I-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-ORG"], ["B-LOC", "O"]]
    scores = metrics.load("seqeval").compute(predictions=predictions, references=references)
    assert scores["overall_f1"] == seqeval.metrics.f1_score(references, predictions) == pytest.approx(0.5)
    assert scores["overall_precision"] == seqeval.metrics.precision_score(references, predictions)
    assert scores["overall_recall"] == seqeval.metrics.recall_score(references, predictions)
    assert scores["overall_accuracy"] == seqeval.metrics.accuracy_score(references, predictions)
    assert scores["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "number": 1}
    strict = metrics.load("seqeval").compute(
        predictions=[["I-PER"]], references=[["B-PER"]], mode="strict", scheme="IOB2", zero_division=0
    )
    assert strict["overall_f1"] == 0


def test_answers_are_scored_as_in_squad():
    answers = {
        "a": ("The cat.", ["cat", "dog"]),  # article and punctuation do not count
        "b": ("a red fox", ["fox runs"]),  # one common word of two each
        "c": ("nothing", ["something"]),
        "d": (None, ["never answered"]),
    }
    given = [{"id": i, "prediction_text": text} for i, (text, _) in answers.items() if text is not None]
    gold = [
        {"id": i, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for i, (_, texts) in answers.items()
    ]
    scores = metrics.load("squad").compute(predictions=given, references=gold[:3])
    assert scores == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * 1.5 / 3)}
    # evaluate refuses predictions and references of different number, so the method is called.
    scores = metrics.load("squad")._compute(given, gold)
    assert scores == {"exact_match": 25.0, "f1": 37.5}


def test_translations_are_sacrebleus():
    predictions = ["the cat is on the mat", "there is a dog in the garden"]
    references = [["the cat sat on the mat", "a cat is on the mat"], ["a dog is in the garden", "there is a dog"]]
    streams = [list(stream) for stream in zip(*references)]
    bleu = metrics.load("sacrebleu").compute(predictions=predictions, references=references)
    expected = sacrebleu.corpus_bleu(predictions, streams)
    assert bleu["score"] == expected.score > 20 and bleu["ref_len"] == expected.ref_len
    lower = metrics.load("sacrebleu").compute(predictions=["A B C D"], references=["a b c d"], lowercase=True)
    assert lower["score"] == pytest.approx(100)
    for options in ({}, {"word_order": 2}, {"lowercase": True, "beta": 3}):
        chrf = metrics.load("chrf").compute(predictions=predictions, references=references, **options)
        assert chrf["score"] == sacrebleu.CHRF(**options).corpus_score(predictions, streams).score
    with pytest.raises(ValueError, match="same number of references"):
        metrics.load("chrf").compute(predictions=predictions, references=[["a"], ["a", "b"]])


def task(problem_type: str, names: list[str]) -> Labels:
    return Labels(problem_type, names, "label", {})


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_single_labels(labels, seed):
    predictions, references = classes(labels + 1, seed=seed)
    figures = task("single_label_classification", [str(n) for n in range(labels + 1)]).figures(predictions, references)
    assert figures == {
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(references, predictions)),
        "macro_f1": pytest.approx(sklearn.metrics.f1_score(references, predictions, average="macro")),
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(references, predictions)),
    }
    constant = np.zeros_like(references)
    figures = task("single_label_classification", ["0", "1", "2", "3", "4"]).figures(constant, references)
    assert figures["matthews"] == sklearn.metrics.matthews_corrcoef(references, constant) == 0


def test_figures_of_multiple_labels_and_of_numbers():
    draw = np.random.default_rng(0)
    references = draw.integers(2, size=(50, 3))
    predictions = np.where(draw.random((50, 3)) < 0.7, references, 1 - references)
    predictions[:, 2] = references[:, 2] = 0  # a label that does not occur
    figures = task("multi_label_classification", ["a", "b", "c"]).figures(predictions, references)
    options = dict(zero_division=0)
    assert figures == {
        "micro_f1": pytest.approx(sklearn.metrics.f1_score(references, predictions, average="micro", **options)),
        "macro_f1": pytest.approx(sklearn.metrics.f1_score(references, predictions, average="macro", **options)),
        "exact_match": pytest.approx(sklearn.metrics.accuracy_score(references, predictions)),
    }
    numbers = np.round(draw.normal(size=50), 1)  # with ties
    guesses = numbers + draw.normal(size=50)
    assert task("regression", ["score"]).figures(guesses, numbers) == {
        "spearman": pytest.approx(stats.spearmanr(guesses, numbers).statistic),
        "pearson": pytest.approx(stats.pearsonr(guesses, numbers).statistic),
        "rmse": pytest.approx(sklearn.metrics.root_mean_squared_error(numbers, guesses)),
    }


def test_interval_of_a_share_is_wilsons():
    z = stats.norm.ppf(0.975)
    for hits, n in ((0, 10), (7, 10), (480, 500), (500, 500)):
        share, spread = hits / n, z * np.sqrt(hits / n * (1 - hits / n) / n + z**2 / (4 * n**2))
        middle, scale = share + z**2 / (2 * n), 1 + z**2 / n
        estimate = statistics.proportion(hits, n)
        assert (estimate.value, estimate.n) == (share, n)
        assert estimate.low == pytest.approx(max(0, (middle - spread) / scale), abs=1e-9)
        assert estimate.high == pytest.approx(min(1, (middle + spread) / scale), abs=1e-9)


def test_bootstrapped_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).exponential(size=400)
    mean = lambda rows: {"mean": rows.mean()}  # noqa: E731
    estimate = statistics.bootstrap(mean, values, resamples=4000)["mean"]
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert estimate.value == values.mean() and estimate.n == 400
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert (
        statistics.bootstrap(mean, values)
        == statistics.bootstrap(mean, values)
        != statistics.bootstrap(mean, values, seed=1)
    )


def test_estimates_have_the_figures_of_their_task():
    predictions, references = classes(n=200)
    labels = task("single_label_classification", ["a", "b", "c", "d"])
    estimates, figures = labels.estimates(predictions, references), labels.figures(predictions, references)
    assert {name: estimate.value for name, estimate in estimates.items()} == pytest.approx(figures)
    assert all(e.low < e.value < e.high and e.n == 200 for e in estimates.values())
    assert estimates["accuracy"] == statistics.proportion((predictions == references).sum(), 200)
    assert str(statistics.Estimate(0.5, 0.25, 0.75, 8)) == "0.500 [0.250, 0.750]"

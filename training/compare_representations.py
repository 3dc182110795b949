"""
What a classifier makes of texts as bags of words, as averages of static embeddings, and as averages of contextual ones.

    python training/compare_representations.py --model runs/encoder --output_dir runs/representations \\
        --train_file trec/train.jsonl banking77/train.jsonl.gz --test_file trec/test.jsonl banking77/test.jsonl \\
        --label_field label_text

The classifier is the same everywhere, logistic regression, its strength chosen on a tenth of the training records. The
model is not trained: what differs is only what the classifier sees. Every figure has its 95 % interval.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_tfm import InputError
from hf_tfm.artifacts.open import open_model
from hf_tfm.core.files import write_atomically
from hf_tfm.core.limits import longest_input
from hf_tfm.core.privacy import public_name
from hf_tfm.core.statistics import Estimate, bootstrap, proportion
from hf_tfm.data.records import Records, read_records
from hf_tfm.evaluate.predict import Predictor
from hf_tfm.tasks.labels import read_labels
from hf_tfm.train.finetune import encode_texts
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below

import numpy as np
import torch


STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass
class ComparisonRecipe:
    """Which model, and which sets of labelled texts."""

    model: str = field(metadata={"help": "folder or Hub name of an encoder or a causal LM"})
    train_file: list[str] = field(metadata={"help": "labelled records, a file for each set"})
    test_file: list[str] = field(metadata={"help": "labelled records to measure on, in the same order"})
    output_dir: str = field(default="runs/representations", metadata={"help": "of results.json"})
    text_field: str = field(default="text", metadata={"help": "where a record has its text"})
    label_field: str = field(default="label", metadata={"help": "where it has its label"})
    max_train: int = field(default=10_000, metadata={"help": "training records of each set, drawn with the seed"})
    max_length: int = field(default=128, metadata={"help": "tokens that texts are cut to"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the model's folder carries"})
    seed: int = field(default=0, metadata={"help": "of the draws"})

    def __post_init__(self):
        if len(self.train_file) != len(self.test_file):
            raise InputError(f"{len(self.train_file)} train files but {len(self.test_file)} test files: give pairs")
        names = [public_name(path) for path in self.test_file]
        if len(set(names)) < len(names):
            raise InputError(f"two test files are called {max(names, key=names.count)}: give each a folder of its own")
        if self.max_train < 20:
            raise InputError(f"max_train {self.max_train} leaves too little to choose on: 20 at least")
        refuse_below(self, max_length=1, seed=0)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, ComparisonRecipe, None, __doc__)
    sets = {
        public_name(test): (read_records(train), read_records(test))
        for train, test in zip(recipe.train_file, recipe.test_file)
    }
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give the name of a folder")
    model, tokenizer = open_model(recipe.model, "AutoModel", trust_remote_code=recipe.trust_remote_code)
    recipe.max_length = min(recipe.max_length, longest_input(model.config))
    print(f"model      {recipe.model}, {type(model).__name__}, {model.num_parameters():,} parameters", flush=True)
    predictor = Predictor(
        model, tokenizer, "AutoModel", {"text_field": recipe.text_field}, recipe.max_length, pooling="mean"
    )
    results: dict[str, dict[str, Estimate]] = {}
    for name, (train, test) in sets.items():
        print(f"\n{name}: {min(len(train), recipe.max_train):,} training records, n {len(test):,}", flush=True)
        results[name] = {}
        for row, figure in compare(predictor, recipe, train, test):
            print(f"  {row:28} {figure}", flush=True)
            results[name][row] = figure
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: {row: figure.as_dict() for row, figure in rows.items()} for name, rows in results.items()}
    path = folder / "results.json"
    write_atomically(path, json.dumps({"recipe": vars(recipe), "accuracy": plain}, indent=1) + "\n")
    print(f"\nresults    {path}")


def compare(
    predictor: Predictor, recipe: ComparisonRecipe, train: Records, test: Records
) -> Iterator[tuple[str, Estimate]]:
    """Accuracy of each representation, and by how much the contextual one is better than the others."""
    draw = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.max_train].tolist()
    train = train.subset(draw)
    names = read_labels(train, recipe.label_field, "single_label_classification")
    labels, expected = np.array(names.encode(train)), np.array(names.encode(test))
    texts, test_texts = (records.texts(recipe.text_field, "text_field") for records in (train, test))
    representations: dict[str, Callable[[], tuple[Any, Any]]] = {
        "bag of words": lambda: bags_of_words(texts, test_texts),
        "static": lambda: scaled(*(static(predictor, part) for part in (texts, test_texts))),
        "contextual": lambda: scaled(*(contextual(predictor, part) for part in (train, test))),
    }
    majority = np.bincount(labels).argmax()
    yield "commonest label", proportion(int((expected == majority).sum()), len(expected))
    right = {}
    for name, represent in representations.items():
        right[name] = classify(*represent(), labels) == expected
        yield name, proportion(int(right[name].sum()), len(expected))
    for name in ("bag of words", "static"):
        gain = bootstrap(lambda a, b: {"gain": float(a.mean() - b.mean())}, right["contextual"], right[name])
        yield f"contextual − {name}", gain["gain"]


def bags_of_words(train: list[str], test: list[str]) -> tuple[Any, Any]:
    """How often each word of the training texts is in a text, rare words counting more (tf-idf), each of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    return vectorizer.fit_transform(train), vectorizer.transform(test)


def static(predictor: Predictor, texts: list[str]) -> np.ndarray:
    """The mean of a text's token embeddings, whatever stands around each, `(texts, hidden)`."""
    table = predictor.model.get_input_embeddings().weight.detach().float()
    special = set(predictor.tokenizer.all_special_ids)
    rows = encode_texts(predictor.tokenizer, predictor.max_length, texts)
    kept = [[number for number in row["input_ids"] if number not in special] for row in rows]
    return torch.stack([table[ids].mean(0) if ids else torch.zeros(table.shape[1]) for ids in kept]).numpy()


def contextual(predictor: Predictor, records: Records) -> np.ndarray:
    """The mean of the last block's states, `(texts, hidden)`."""
    return np.array([row["embedding"] for row in predictor(records)], dtype=np.float32)


def scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each feature with mean 0 and deviation 1 over the training texts."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def classify(train: Any, test: Any, labels: np.ndarray) -> np.ndarray:
    """Labels of the test texts by logistic regression; a tenth of the training texts decides how much it is held."""
    from sklearn.linear_model import LogisticRegression

    def fit(features: Any, targets: np.ndarray, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(features, targets)

    tenth = np.arange(train.shape[0]) % 10 == 0
    if len(np.unique(labels[~tenth])) < 2:
        raise InputError(f"{len(labels)} training records are too few: without a tenth to choose on one label is left")
    held_out = [
        (fit(train[~tenth], labels[~tenth], strength).score(train[tenth], labels[tenth]), -strength)
        for strength in STRENGTHS
    ]
    return fit(train, labels, -max(held_out)[1]).predict(test)


if __name__ == "__main__":
    sys.exit(main())

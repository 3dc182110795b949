"""
Compare bags of words, static embeddings and contextual embeddings as inputs of one classifier.

    python training/compare_representations.py --model runs/encoder --output_dir runs/representations \\
        --train_file trec/train.jsonl banking77/train.jsonl.gz --test_file trec/test.jsonl banking77/test.jsonl \\
        --label_field label_text

The classifier is logistic regression, its strength chosen on a tenth of the training records. The model is not trained;
the representations differ only in what the classifier sees. Every figure has its 95 % interval.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.artifacts.open import open_model
from hf_tfm.core.atomic_files import write_atomically
from hf_tfm.core.limits import longest_input
from hf_tfm.core.secret_scan import public_name
from hf_tfm.core.statistics import Estimate
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.reader import read_records
from hf_tfm.evaluate.predict import Predictor
from hf_tfm.evaluate.representations import compare_representations
from hf_tfm.evaluate.result_store import as_json
from hf_tfm.train.recipe import ReadingRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import report_reading

import numpy as np


@dataclass
class ComparisonRecipe(ReadingRecipe):
    """The model, and the data sets of labelled texts."""

    model: str = field(metadata={"help": "Folder or Hub name of an encoder or a causal LM."})
    train_file: list[str] = field(metadata={"help": "Labelled records, one file, folder or glob per data set."})
    test_file: list[str] = field(metadata={"help": "Labelled records to measure on, in the same order."})
    output_dir: str = field(default="runs/representations", metadata={"help": "Folder of results.json."})
    text_field: str | None = field(default=None, metadata={"help": "Field of the text; by default recognised."})
    label_field: str | None = field(default=None, metadata={"help": "Field of the label; by default recognised."})
    max_train: int = field(default=10_000, metadata={"help": "Maximum number of training records of each data set."})
    max_length: int = field(default=128, metadata={"help": "Tokens that texts are cut to."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that the model's folder carries."})
    seed: int = field(default=0, metadata={"help": "Seed that the training records are drawn with."})

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
    names = {"text": recipe.text_field, "label": recipe.label_field}
    names = {name: field for name, field in names.items() if field}
    reading = Reading("classification", names, recipe.reading_options())
    data_sets = {
        public_name(test): (read_records(train, reading), read_records(test, reading, "test"))
        for train, test in zip(recipe.train_file, recipe.test_file)
    }
    for records in (records for pair in data_sets.values() for records in pair):
        report_reading(records)
        if any("text_pair" in record for record in records):
            raise InputError(f"{records.path}: has pairs of texts; name the field of single ones with --text_field")
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give the name of a folder")
    model, tokenizer = open_model(recipe.model, "AutoModel", trust_remote_code=recipe.trust_remote_code)
    recipe.max_length = min(recipe.max_length, longest_input(model.config, recipe.max_length))
    print(f"model      {recipe.model}, {type(model).__name__}, {model.num_parameters():,} parameters", flush=True)
    predictor = Predictor(model, tokenizer, "AutoModel", max_length=recipe.max_length, pooling="mean")
    accuracy: dict[str, dict[str, Estimate]] = {}
    for name, (train, test) in data_sets.items():
        print(f"\n{name}: {min(len(train), recipe.max_train):,} training records, n {len(test):,}", flush=True)
        draw = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.max_train].tolist()
        accuracy[name] = {}
        comparison = compare_representations(predictor, train.subset(draw), test)
        for representation, figure in comparison:
            print(f"  {representation:28} {figure}", flush=True)
            accuracy[name][representation] = figure
    folder.mkdir(parents=True, exist_ok=True)
    path, facts = folder / "results.json", {"recipe": vars(recipe), "accuracy": as_json(accuracy)}
    write_atomically(path, json.dumps(facts, indent=1) + "\n")
    print(f"\nresults    {path}")


if __name__ == "__main__":
    sys.exit(main())

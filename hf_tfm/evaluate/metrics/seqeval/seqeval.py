"""Precision, recall and F1 of whole named entities, by seqeval."""

import importlib
from typing import Any

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report


class Seqeval(evaluate.Metric):
    def _info(self):
        kind = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="A list of tags (B-PER, I-PER, O) for each sentence.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(
        self, predictions, references, suffix=False, scheme=None, mode=None, sample_weight=None, zero_division="warn"
    ):
        report = classification_report(
            y_true=references,
            y_pred=predictions,
            suffix=suffix,
            output_dict=True,
            scheme=None if scheme is None else getattr(importlib.import_module("seqeval.scheme"), scheme),
            mode=mode,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        averages = {name: report.pop(name) for name in ("micro avg", "macro avg", "weighted avg")}
        scores: dict[str, Any] = {
            kind: {
                "precision": float(row["precision"]),
                "recall": float(row["recall"]),
                "f1": float(row["f1-score"]),
                "number": int(row["support"]),
            }
            for kind, row in report.items()
        }
        overall = averages["micro avg"]
        scores["overall_precision"] = float(overall["precision"])
        scores["overall_recall"] = float(overall["recall"])
        scores["overall_f1"] = float(overall["f1-score"])
        scores["overall_accuracy"] = float(accuracy_score(y_true=references, y_pred=predictions))
        return scores

"""The harmonic mean of precision and recall, by scikit-learn; `average` as in scikit-learn."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("int32")
        if self.config_name == "multilabel":
            kind = datasets.Sequence(kind)
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="Integer classes; lists of 0 and 1 with the configuration `multilabel`.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions, references, labels=None, pos_label=1, average="binary", sample_weight=None):
        score = f1_score(
            references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
        )
        return {"f1": score.tolist() if average is None else float(score)}

"""Spearman's rank correlation, by scipy."""

import datasets
import evaluate
from scipy.stats import spearmanr


class Spearmanr(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="Numbers; the p-value too with `return_pvalue=True`.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions, references, return_pvalue=False):
        result = spearmanr(references, predictions)
        scores = {"spearmanr": float(result.statistic), "p-value": float(result.pvalue)}
        return scores if return_pvalue else {"spearmanr": scores["spearmanr"]}

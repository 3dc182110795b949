"""Exact match and token F1 of extracted answers, in percent, as SQuAD 1.1 counts them (Rajpurkar et al. 2016)."""

import datasets
import evaluate

from hf_tfm.tasks.squad import exact_match, token_f1


class Squad(evaluate.Metric):
    def _info(self):
        answers = datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="Records `{id, prediction_text}` and `{id, answers: {text: […], answer_start: […]}}`.",
            features=datasets.Features(
                {
                    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
                    "references": {"id": datasets.Value("string"), "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references):
        answered = {record["id"]: record["prediction_text"] for record in predictions}
        scores = {}
        for name, score in (("exact_match", exact_match), ("f1", token_f1)):
            # A question without a prediction counts as wrong.
            best = [
                max(score(answered[record["id"]], gold) for gold in record["answers"]["text"])
                if record["id"] in answered
                else 0.0
                for record in references
            ]
            scores[name] = 100 * sum(best) / len(best)
        return scores

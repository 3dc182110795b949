"""The character n-gram F-score of translations, from 0 to 100, by sacrebleu (Popović 2015)."""

import datasets
import evaluate
import sacrebleu


class Chrf(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="A text for each segment, and lists of references, all of one length.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions, references, **options):
        if isinstance(references[0], str):
            references = [[reference] for reference in references]
        if len({len(texts) for texts in references}) > 1:
            raise ValueError("chrF needs the same number of references for every segment")
        metric = sacrebleu.CHRF(**options)
        score = metric.corpus_score(predictions, list(zip(*references)))
        return {
            "score": score.score,
            "char_order": score.char_order,
            "word_order": score.word_order,
            "beta": score.beta,
        }

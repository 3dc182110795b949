"""BLEU of detokenised translations, from 0 to 100, by sacrebleu (Post 2018)."""

import datasets
import evaluate
import sacrebleu


class Sacrebleu(evaluate.Metric):
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
            raise ValueError("sacrebleu needs the same number of references for every segment")
        score = sacrebleu.corpus_bleu(predictions, list(zip(*references)), **options)
        return {
            "score": score.score,
            "counts": score.counts,
            "totals": score.totals,
            "precisions": score.precisions,
            "bp": score.bp,
            "sys_len": score.sys_len,
            "ref_len": score.ref_len,
        }

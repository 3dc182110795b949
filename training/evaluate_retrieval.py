"""
Measure how well passages are found, and how much they improve the answers of a causal LM.

    python training/evaluate_retrieval.py --questions xquad.jsonl.gz --encoder my-encoder
    python training/evaluate_retrieval.py --questions xquad.jsonl.gz --encoder my-encoder --decoder my-instruct
    python training/evaluate_retrieval.py --questions scifact --encoder my-encoder

Reads questions with their contexts and answers, in SQuAD's format, and indexes the contexts as `hf-tfm index` does. A
passage is right if it belongs to the question's own context and contains the whole answer at its place there. Of a BEIR
folder (corpus.jsonl, queries.jsonl, qrels/) documents are indexed, and passages of relevant documents are right. The
encoder is compared with BM25 and with both rankings combined. Then a sample of the questions is answered greedily:
without passages, with the nearest ones, and with the context itself. The same command resumes a stopped run.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.apps.retrieval import measure
from hf_tfm.apps.retrieval.index import build_index
from hf_tfm.artifacts.open import fingerprint, open_model
from hf_tfm.data.forms.form import Reading
from hf_tfm.data.forms.pairs import is_beir, open_judged
from hf_tfm.data.forms.reader import read_records
from hf_tfm.evaluate.result_store import ResultStore
from hf_tfm.tasks.squad import Question, read_questions
from hf_tfm.train.recipe import ReadingRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import report_reading

import torch


@dataclass
class RetrievalRecipe(ReadingRecipe):
    """The questions to index and answer, and the models."""

    questions: list[str] = field(
        metadata={"help": "Questions with context and answers, as SQuAD's: files, folders, globs; or a BEIR folder."}
    )
    encoder: str = field(metadata={"help": "Folder or Hub name of a model that embeds texts."})
    decoder: str | None = field(default=None, metadata={"help": "Causal LM with a chat template, to answer with."})
    split: str = field(default="test", metadata={"help": "Split of a BEIR folder."})
    question_field: str | None = field(default=None, metadata={"help": "Field of the question."})
    context_field: str | None = field(default=None, metadata={"help": "Field of the text that has the answer."})
    answers_field: str | None = field(default=None, metadata={"help": "Field of the answers."})
    output_dir: str = field(default="runs/retrieval", metadata={"help": "Folder of the index and the results."})
    passage_length: int = field(default=160, metadata={"help": "Maximum tokens of a passage."})
    overlap: int | None = field(default=None, metadata={"help": "Tokens that two passages share; by default a fifth."})
    recall_at: list[int] = field(
        default_factory=lambda: [1, 5, 20], metadata={"help": "Numbers of best passages to measure the recall at."}
    )
    passages: list[int] = field(default_factory=lambda: [1, 3], metadata={"help": "Numbers of passages in the prompt."})
    bf16: bool = field(default=False, metadata={"help": "Answer in bf16: faster where the hardware has it."})
    sample: int = field(default=100, metadata={"help": "Number of questions to answer."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample."})
    max_new_tokens: int = field(default=32, metadata={"help": "Maximum tokens of an answer."})
    batch_tokens: int = field(default=4096, metadata={"help": "Tokens embedded at once; changes the speed only."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that the models' folders carry."})

    def __post_init__(self):
        refuse_below(self, recall_at=1, passages=1, sample=1, max_new_tokens=1, batch_tokens=1)


def read_answered(recipe: RetrievalRecipe) -> list[Question]:
    """Return the questions that have an answer. Raises `InputError` if there is none."""
    fields = {name: getattr(recipe, f"{name}_field") for name in ("question", "context", "answers")}
    names = {name: field for name, field in fields.items() if field}
    records = read_records(recipe.questions, Reading("questions", names, recipe.reading_options()))
    report_reading(records)
    questions = [question for question in read_questions(records) if question.answers]
    if not questions:
        raise InputError(f"{', '.join(recipe.questions)}: no question has an answer, so nothing can be found")
    return questions


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, RetrievalRecipe, None, __doc__)
    remote, folder = {"trust_remote_code": recipe.trust_remote_code}, Path(recipe.output_dir)
    questions: list[Question] = []
    if is_beir(Path(recipe.questions[0])):
        if recipe.decoder is not None:
            raise InputError(f"{recipe.questions[0]}: a BEIR folder has no answers to measure; leave out --decoder")
        texts, contexts, judged = open_judged(recipe.questions[0], recipe.split)
    else:
        questions = read_answered(recipe)
        texts = [question.question for question in questions]
        contexts = list(dict.fromkeys(question.context for question in questions))
    decoder = None
    if recipe.decoder is not None:
        dtype = torch.bfloat16 if recipe.bf16 else torch.float32
        decoder = open_model(recipe.decoder, "AutoModelForCausalLM", dtype=dtype, **remote)

    documents = measure.write_documents(contexts, folder / "documents.jsonl")
    sizes = {"passage_length": recipe.passage_length, "overlap": recipe.overlap, "batch_tokens": recipe.batch_tokens}
    index = build_index(documents, folder / "index", recipe.encoder, **sizes, **remote)
    print(f"index      {len(index):,} passages of {len(contexts):,} contexts, {len(texts):,} questions", flush=True)
    names = [Path(path).name for path in (recipe.encoder, recipe.decoder) if path]
    model = {"name": " + ".join(names), "index": index.facts["made_from"]}
    results = ResultStore(folder, model | ({"decoder": fingerprint(*decoder)} if decoder else {}))

    k = max(*recipe.recall_at, *recipe.passages)

    def search() -> dict[str, list[list[int]]]:
        encoder = index.open_encoder(recipe.encoder, recipe.trust_remote_code, batch_tokens=recipe.batch_tokens)
        return measure.search_each_way(index, encoder, texts, k)

    hits = results.compute_once({"task": "search", "k": k, "questions": texts}, search)
    if questions:
        relevant = [measure.answer_passages(index, contexts.index(q.context), q) for q in questions]
    else:
        relevant = [measure.document_passages(index, numbers) for numbers in judged]
    recall = measure.estimate_recall(hits, relevant, recipe.recall_at)
    results.add_task("retrieval", recipe.questions, {"passage_length": recipe.passage_length}, recall)

    if decoder is not None:
        drawn = sorted(random.Random(recipe.seed).sample(range(len(questions)), min(recipe.sample, len(questions))))
        nearest = {n: [[index[i].text for i in hits["encoder"][row][:n]] for row in drawn] for n in recipe.passages}
        passages = {
            "no passage": [[] for _ in drawn],
            **{f"{n} nearest": texts for n, texts in nearest.items()},
            "its context": [[questions[row].context] for row in drawn],
        }
        sample = [questions[row] for row in drawn]
        answers = measure.measure_answers(*decoder, sample, passages, recipe.max_new_tokens, results)
        settings = {"max_new_tokens": recipe.max_new_tokens, "seed": recipe.seed}
        results.add_task("answers", recipe.questions, settings, answers.estimates, samples=answers.samples)
    print(f"results    {results.write()}")


if __name__ == "__main__":
    sys.exit(main())

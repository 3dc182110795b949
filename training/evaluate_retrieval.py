"""
Measure how well passages are found, and what they do for the answers of a causal LM.

    python training/evaluate_retrieval.py --questions xquad.jsonl.gz --encoder my-encoder
    python training/evaluate_retrieval.py --questions xquad.jsonl.gz --encoder my-encoder --decoder my-instruct

Questions with their contexts and answers, in SQuAD's shape. The contexts are indexed as `hf-tfm index` does it. A
passage counts as found if it is of the question's own context and holds the whole answer where it stands there; beside
the encoder stand BM25, and both rankings made one. Then a sample of the questions is answered greedily: without
passages, with the nearest ones, and with the context itself. Stopped and started again with the same --output_dir it
goes on.
"""

import json
import random
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.apps.retrieval.grounding import encode_question, holds
from hf_tfm.apps.retrieval.retrieval import Index, build_index
from hf_tfm.artifacts.open import fingerprint, open_model
from hf_tfm.core.errors import explain
from hf_tfm.core.statistics import proportion
from hf_tfm.data.records import read_records
from hf_tfm.evaluate.result_store import ResultStore
from hf_tfm.tasks.generation import generate_replies
from hf_tfm.tasks.question_answering import Question, read_questions, unfold
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below

import numpy as np
import torch


BATCH = 10  # questions that are answered, and kept, at one time


@dataclass
class RetrievalRecipe:
    """What to index, what to ask."""

    questions: str = field(metadata={"help": "records with question, context and answers, as SQuAD has them"})
    encoder: str = field(metadata={"help": "folder or Hub name of a model that embeds texts"})
    decoder: str | None = field(default=None, metadata={"help": "a causal LM with a chat template, to answer with"})
    output_dir: str = field(default="runs/retrieval", metadata={"help": "of index and results"})
    passage_length: int = field(default=160, metadata={"help": "tokens of a passage at most"})
    overlap: int | None = field(default=None, metadata={"help": "tokens that two passages may share; a fifth of these"})
    recall_at: list[int] = field(
        default_factory=lambda: [1, 5, 20], metadata={"help": "how many passages are looked at"}
    )
    passages: list[int] = field(default_factory=lambda: [1, 3], metadata={"help": "how many the prompt has"})
    bf16: bool = field(default=False, metadata={"help": "answer in bf16: faster where the hardware has it"})
    sample: int = field(default=100, metadata={"help": "how many questions are answered"})
    seed: int = field(default=0, metadata={"help": "of the sample"})
    max_new_tokens: int = field(default=32, metadata={"help": "of an answer"})
    batch_tokens: int = field(default=4096, metadata={"help": "embedded at once; changes the speed alone"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the models' folders carry"})

    def __post_init__(self):
        refuse_below(self, recall_at=1, passages=1, sample=1, max_new_tokens=1, batch_tokens=1)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, RetrievalRecipe, None, __doc__)
    records, questions = read_questions(unfold(read_records(recipe.questions)), ("question", "context", "answers"))
    questions = [question for question in questions if question.answers]
    if not questions:
        raise InputError(f"{recipe.questions}: no question has an answer, so nothing can be found")
    decoder = None
    if recipe.decoder is not None:
        options = {"dtype": torch.bfloat16 if recipe.bf16 else torch.float32}
        decoder = open_model(
            recipe.decoder, "AutoModelForCausalLM", trust_remote_code=recipe.trust_remote_code, **options
        )
    contexts = list(dict.fromkeys(question.context for question in questions))
    folder = Path(recipe.output_dir)
    index = build_index(
        write_documents(contexts, folder / "documents.jsonl"),
        folder / "index",
        recipe.encoder,
        recipe.passage_length,
        recipe.overlap,
        trust_remote_code=recipe.trust_remote_code,
        batch_tokens=recipe.batch_tokens,
    )
    print(f"index      {len(index):,} passages of {len(contexts):,} contexts, {len(questions):,} questions", flush=True)
    names = [Path(path).name for path in (recipe.encoder, recipe.decoder) if path]
    model = {"name": " + ".join(names), "index": index.facts["made_from"]}
    results = ResultStore(folder, model | ({"decoder": fingerprint(*decoder)} if decoder else {}))
    k = max(*recipe.recall_at, *recipe.passages)
    hits = results.compute_once(
        {"task": "search", "k": k, "questions": [question.question for question in questions]},
        partial(search, index, recipe, [question.question for question in questions], k),
    )
    own = [own_passages(index, contexts.index(question.context), question) for question in questions]
    found = {
        f"recall@{n} {way}": proportion(sum(bool(set(top[:n]) & right) for top, right in zip(several, own)), len(own))
        for way, several in hits.items()
        for n in recipe.recall_at
    }
    found["can be found"] = proportion(sum(map(bool, own)), len(own))
    results.add_task("retrieval", recipe.questions, {"passage_length": recipe.passage_length}, found)
    if decoder is not None:
        answers(*decoder, recipe, results, index, questions, hits["encoder"])
    print(f"results    {results.write()}")


def write_documents(contexts: list[str], path: Path) -> str:
    """The contexts as a file to index; the same ones leave it as it is."""
    text = "".join(json.dumps({"text": context}, ensure_ascii=False) + "\n" for context in contexts)
    with explain(f"--output_dir {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return str(path)


def search(index: Index, recipe: RetrievalRecipe, questions: list[str], k: int) -> dict[str, list[list[int]]]:
    """Numbers of the `k` best passages for each question, by each way of searching."""
    encoder = index.open_encoder(recipe.encoder, recipe.trust_remote_code, batch_tokens=recipe.batch_tokens)
    found = {way: index.search(encoder, questions, k, way) for way in ("encoder", "words", "both")}
    return {way: [[hit.number for hit in hits] for hits in several] for way, several in found.items()}


def own_passages(index: Index, document: int, question: Question) -> set[int]:
    """The passages that hold the question's answer where it stands in its context."""
    first, last = np.searchsorted(index.documents, [document, document + 1])
    passages = ((number, index[number]) for number in range(first, last))
    return {n for n, passage in passages if passage.start <= question.start and question.end <= passage.end}


def answers(model, tokenizer, recipe, results, index: Index, questions: list[Question], hits: list[list[int]]) -> None:
    """Share of answers that hold what is right, with different things in the prompt."""
    drawn = sorted(random.Random(recipe.seed).sample(range(len(questions)), min(recipe.sample, len(questions))))
    given: dict[str, list[list[str]]] = {"no passage": [[] for _ in drawn]}
    for count in recipe.passages:
        given[f"{count} nearest"] = [[index[n].text for n in hits[number][:count]] for number in drawn]
    given["its context"] = [[questions[number].context] for number in drawn]
    shown, texts = {}, {}
    settings = {"max_new_tokens": recipe.max_new_tokens}
    for name, several in given.items():
        said: list[str] = []
        for start in range(0, len(drawn), BATCH):
            asked = [
                (questions[number].question, several[place])
                for place, number in list(enumerate(drawn))[start : start + BATCH]
            ]
            part = {"task": "answers", "asked": asked, **settings}
            said += results.compute_once(part, partial(say, model, tokenizer, asked, recipe.max_new_tokens))
            print(f"{name}: {len(said)} of {len(drawn)}", flush=True)
        right = [holds(text, questions[number].answers) for text, number in zip(said, drawn)]
        shown[f"right with {name}"] = proportion(sum(right), len(right))
        texts[name] = [{"question": questions[n].question, "answer": text} for n, text in zip(drawn[:5], said)]
    results.add_task("answers", recipe.questions, {**settings, "seed": recipe.seed}, shown, samples=texts)


def say(model, tokenizer, asked: list[tuple[str, list[str]]], max_new_tokens: int) -> list[str]:
    """The likeliest answers to questions with their passages."""
    prompts = [encode_question(model, tokenizer, *pair, max_new_tokens)[0] for pair in asked]
    return [one.text for one in generate_replies(model, tokenizer, prompts, max_new_tokens, batch_size=BATCH)]


if __name__ == "__main__":
    sys.exit(main())

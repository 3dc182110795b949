"""
Measure a model on what is given to it, and put the figures into its card.

    python training/evaluate_model.py --model runs/decoder --text held_out.jsonl.gz --minimal_pairs blimp.jsonl.gz
    python training/evaluate_model.py --model runs/decoder --test_file test.jsonl --train_file train.jsonl \\
        --template "Review: {text}\\nSentiment: {label}" --examples 4
    python training/evaluate_model.py --model runs/classifier --test_file sst2.jsonl --hub_dataset stanfordnlp/sst2

Takes any model folder of ours or a native one, a name on the Hub, or an adapter. Each figure has its 95 % interval and
the number of records; what the Hub shows beside a model, figures on a --hub_dataset, goes into `.eval_results/` there.
Stopped and started again with the same --output_dir it goes on behind what is finished.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.artifacts.card import HubData, add_evaluation
from hf_tfm.artifacts.open import LANGUAGE_MODELS, auto_class_of, fingerprint, open_model, recorded
from hf_tfm.data.records import read_records
from hf_tfm.evaluate import few_shot
from hf_tfm.evaluate import language_model as evaluation
from hf_tfm.evaluate.labelled import measure_head
from hf_tfm.evaluate.result_store import ResultStore, content_hash
from hf_tfm.tasks.labels import read_labels
from hf_tfm.tasks.likelihood import LanguageModel
from hf_tfm.train.recipe import one_line_errors, parse_recipe, refuse_below

import torch


@dataclass
class EvaluationRecipe:
    """What to measure: what is not given is not measured."""

    model: str = field(metadata={"help": "folder or Hub name of a model, or folder of an adapter"})
    base_model: str | None = field(default=None, metadata={"help": "an adapter's base, if not where the adapter says"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run the code that the model's folder carries"})
    output_dir: str | None = field(default=None, metadata={"help": "of results; by default runs/evaluation/MODEL"})
    card: bool = field(default=True, metadata={"help": "put the figures into the card of the model's own folder"})
    bf16: bool = field(default=False, metadata={"help": "compute in bf16: faster, with three digits"})
    batch_tokens: int = field(default=2048, metadata={"help": "tokens computed at once; changes the speed alone"})
    seed: int = field(default=0, metadata={"help": "of examples and samples"})
    text: list[str] = field(default_factory=list, metadata={"help": "files of text: bits per byte and perplexity"})
    text_field: str = field(default="text", metadata={"help": "where a record has its text"})
    source_field: str | None = field(default=None, metadata={"help": "where a record says which source it is of"})
    window: int | None = field(default=None, metadata={"help": "tokens read at once; as in training, or 1024"})
    stride: int | None = field(default=None, metadata={"help": "tokens between windows; half a window"})
    max_documents: int | None = field(default=None, metadata={"help": "read only so many of each file"})
    minimal_pairs: str | None = field(default=None, metadata={"help": "records of a good and a bad sentence, as BLiMP"})
    good_field: str = field(default="sentence_good", metadata={"help": "where a pair has the good sentence"})
    bad_field: str = field(default="sentence_bad", metadata={"help": "and the bad one"})
    group_field: str | None = field(default=None, metadata={"help": "what to group pairs by: UID in BLiMP"})
    pairs_per_group: int | None = field(default=None, metadata={"help": "take only so many of each group"})
    by_word: bool = field(default=False, metadata={"help": "masked LMs: PLL-word-l2r instead of PLL"})
    test_file: str | None = field(default=None, metadata={"help": "labelled records, by head or by prompt"})
    train_file: str | None = field(default=None, metadata={"help": "labelled records to draw examples from"})
    text_pair_field: str | None = field(default=None, metadata={"help": "where a record has the second text"})
    label_field: str | None = field(default=None, metadata={"help": "where it has its label (answers, tags)"})
    hub_dataset: str | None = field(default=None, metadata={"help": "test_file on the Hub: NAME[:CONFIG[:SPLIT]]"})
    hub_task: str | None = field(default=None, metadata={"help": "in its eval.yaml; by default CONFIG, or default"})
    template: str | None = field(default=None, metadata={"help": "prompt: fields in braces, {label} at its end"})
    label_words: list[str] = field(default_factory=list, metadata={"help": "words for labels: 0=bad 1=good"})
    instruction: str = field(default="", metadata={"help": "stands in front of the prompt"})
    examples: int = field(default=0, metadata={"help": "how many labelled examples the prompt shows"})
    prompts: list[str] = field(default_factory=list, metadata={"help": "texts to continue"})
    max_new_tokens: int = field(default=80, metadata={"help": "of each continuation"})
    temperature: float = field(default=0.8, metadata={"help": "of the continuations; 0 takes the likeliest token"})

    def __post_init__(self):
        refuse_below(self, max_documents=1, pairs_per_group=1, examples=0, max_new_tokens=1, temperature=0.0)
        refuse_below(self, batch_tokens=1, seed=0)
        if (self.hub() and not self.test_file) or (self.hub_task and not self.hub()):
            raise InputError("--hub_dataset tells what the --test_file is on the Hub, and --hub_task its task there")

    def hub(self) -> HubData | None:
        """What the test file is on the Hub."""
        return HubData.read(self.hub_dataset, self.hub_task, split="test") if self.hub_dataset else None


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, EvaluationRecipe, None, __doc__)
    tasks = {"text": text, "minimal_pairs": pairs, "test_file": prompted, "prompts": samples}
    asked = [name for name in tasks if getattr(recipe, name)]
    if not asked:
        raise InputError(f"nothing to measure: give one of --{', --'.join(tasks)}")
    auto_class = auto_class_of(recipe.model, recipe.trust_remote_code)
    language_model = auto_class in LANGUAGE_MODELS
    if not language_model and asked != ["test_file"]:
        raise InputError(f"{recipe.model} is no language model: it can be measured on a --test_file alone")
    if language_model and recipe.test_file and recipe.template is None:
        raise InputError("a language model labels by prompt: write one as --template")
    model, tokenizer = open_model(recipe.model, auto_class, recipe.base_model, recipe.trust_remote_code)
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    folder = Path(recipe.model)
    name = folder.resolve().name if folder.exists() else recipe.model
    identity = {"name": name, "sha256": fingerprint(model, tokenizer), "bf16": recipe.bf16}
    results = ResultStore(recipe.output_dir or f"runs/evaluation/{name.replace('/', '--')}", identity)
    print(f"model      {name}, {type(model).__name__}, {model.num_parameters():,} parameters", flush=True)
    if language_model:
        lm = LanguageModel(model, tokenizer, auto_class == LANGUAGE_MODELS[0], recipe.batch_tokens, recipe.bf16)
        for task in asked:
            tasks[task](lm, recipe, results)
    else:
        head(model, tokenizer, auto_class, recipe, results)

    print(f"results    {(path := results.write())}")
    for written in add_evaluation(folder if recipe.card and folder.is_dir() else path.parent, path):
        print(f"written    {written}")


def text(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Bits per byte (pseudo for masked LMs) and perplexity of each file, and of the sources in it."""
    settings = {n: getattr(recipe, n) for n in ("window", "stride", "max_documents", "source_field", "text_field")}
    if not lm.causal:
        print("text       a masked LM reads a piece once for each token in it; --max_documents takes less", flush=True)
    elif recipe.window is None:  # longer rows than in training cost accuracy
        settings["window"] = recorded(recipe.model, "block_length")
    for path in recipe.text:
        documents = islice(evaluation.read_text(path, recipe.text_field, recipe.source_field), recipe.max_documents)
        figures = results.compute_once(
            {"task": "text", "data": content_hash(path), **settings},
            partial(evaluation.bits_per_byte, lm, documents, settings["window"], recipe.stride),
        )
        kind = "" if lm.causal else "pseudo-"
        shown = {f"{kind}{name}": figures["all"][name] for name in ("bits_per_byte", "perplexity")}
        shown |= {f"{kind}bits_per_byte, {s}": figures[s]["bits_per_byte"] for s in figures if s != "all"}
        results.add_task("text", path, settings, shown, by_source=figures)


def pairs(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Share of minimal pairs whose good sentence is likelier, of each group."""
    records = read_records(path := recipe.minimal_pairs)
    columns = [records.texts(getattr(recipe, name), name) for name in ("good_field", "bad_field")]
    score = "log-likelihood" if lm.causal else "PLL-word-l2r" if recipe.by_word else "PLL"
    settings = {"data": content_hash(path), "score": score, "fields": [recipe.good_field, recipe.bad_field]}
    groups = evaluation.group_rows(records, recipe.group_field or ("UID" if "UID" in records[0] else None))
    hits = {}
    for number, (group, rows) in enumerate(groups.items(), 1):
        chosen = [(columns[0][row], columns[1][row]) for row in rows[: recipe.pairs_per_group]]
        part = {"task": "minimal pairs", "group": group, "rows": len(chosen), **settings}
        right = sum(results.compute_once(part, partial(evaluation.minimal_pairs, lm, chosen, recipe.by_word)))
        hits[group] = (right, len(chosen))
        print(f"{number:3} of {len(groups)}  {group} {right / len(chosen):.3f}, n {len(chosen):,}", flush=True)
    shares = evaluation.accuracy_by_group(hits)
    results.add_task("minimal pairs", path, settings, {f"accuracy by {score}": shares["all"]}, by_group=shares)


def prompted(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Classification by the likelihood of each label's words behind a prompt."""
    records = read_records(recipe.test_file, "test")
    if recipe.examples and recipe.train_file is None:
        raise InputError(f"--examples {recipe.examples}: give the --train_file to draw them from")
    train = read_records(recipe.train_file) if recipe.train_file else records
    labels = read_labels(train, recipe.label_field or "label", "single_label_classification")
    actual = labels.encode(records)
    template = recipe.template.replace("\\n", "\n")  # as shells give it
    prompt = few_shot.Prompt(template, few_shot.label_words(labels, recipe.label_words), recipe.instruction)
    drawn = train.subset(few_shot.draw_examples(train, recipe.examples, recipe.seed))
    examples = list(zip(drawn, labels.encode(drawn)))
    settings = {"task": f"{len(examples)}-shot classification", "template": template, "words": prompt.words}
    settings |= {"instruction": prompt.instruction, "label_field": labels.field, "seed": recipe.seed}
    figures = results.compute_once(
        {**settings, "data": content_hash(recipe.test_file, "test"), "examples": examples},
        lambda: few_shot.estimate_by_rule(labels, few_shot.score_labels(lm, prompt, records, examples), actual),
    )
    shown = {f"{metric}, {decision}": figures[decision][metric] for decision in figures for metric in labels.metrics}
    results.add_task(settings["task"], recipe.test_file, settings, shown, recipe.hub())


def head(model, tokenizer, auto_class: str, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Labelled records by the model's own head."""
    records, threshold = read_records(recipe.test_file, "test"), recorded(recipe.model, "no_answer_threshold")
    fields = [recipe.text_field, *([recipe.text_pair_field] if recipe.text_pair_field else [])]
    settings = {"task": auto_class.removeprefix("AutoModelFor"), "fields": fields, "label_field": recipe.label_field}
    cut = {n: told for n in ("max_length", "stride") if (told := recorded(recipe.model, n)) is not None}  # as trained
    batching = {**cut, "batch_tokens": recipe.batch_tokens, "bf16": recipe.bf16}
    figures = results.compute_once(
        {**settings, **cut, "data": content_hash(recipe.test_file, "test"), "threshold": threshold},
        partial(measure_head, model, tokenizer, auto_class, records, fields, recipe.label_field, threshold, **batching),
    )
    results.add_task(settings["task"], recipe.test_file, settings, figures, recipe.hub())


def samples(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Continuations of prompts."""
    sampling = {"do_sample": True, "temperature": recipe.temperature} if recipe.temperature else {"do_sample": False}
    settings = {"task": "samples", "seed": recipe.seed, "max_new_tokens": recipe.max_new_tokens, **sampling}
    texts = results.compute_once(
        {**settings, "prompts": recipe.prompts},
        partial(evaluation.generate_samples, lm, recipe.prompts, recipe.max_new_tokens, recipe.seed, **sampling),
    )
    print("\n\n".join(texts))
    results.add_task("samples", None, settings, {}, samples=texts)


if __name__ == "__main__":
    sys.exit(main())

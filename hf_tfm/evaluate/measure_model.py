"""
The measurements of `training/evaluate_model.py`: what a recipe asks for, and one function for each kind of data.

Each function computes the figures of its data, unless the `ResultStore` has them already, and adds them to the store.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.measurements import HubData
from ..artifacts.open import recorded
from ..core.errors import InputError
from ..data.forms.reader import read_records
from ..data.records import read_table
from ..tasks.labels import read_labels
from ..tasks.likelihood import LanguageModel
from ..train.recipe import TextRecipe, refuse_below
from ..train.report import report_reading
from . import few_shot, language_model
from .labelled import measure_head, open_task
from .result_store import ResultStore, content_hash


@dataclass
class EvaluationRecipe(TextRecipe):
    """The model, the data to measure it on, and how."""

    model: str = field(metadata={"help": "Folder or Hub name of a model, or folder of an adapter."})
    base_model: str | None = field(
        default=None, metadata={"help": "Base of an adapter, if it is not where the adapter's configuration says."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the model's folder."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the results; by default runs/evaluation/MODEL."}
    )
    card: bool | None = field(
        default=None,
        metadata={"help": "Put the figures into the model's folder and its card; by default without --output_dir."},
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16: faster, exact to about three digits."})
    batch_tokens: int = field(default=2048, metadata={"help": "Tokens computed together; changes only the speed."})
    seed: int = field(default=0, metadata={"help": "Seed of examples and samples."})
    text: list[str] = field(default_factory=list, metadata={"help": "Files of text: bits per byte and perplexity."})
    source_field: str | None = field(default=None, metadata={"help": "Field of the source that a text comes from."})
    window: int | None = field(
        default=None, metadata={"help": "Tokens read together; by default as in training, or 1024."}
    )
    stride: int | None = field(default=None, metadata={"help": "Tokens between windows; by default half a window."})
    max_documents: int | None = field(default=None, metadata={"help": "Documents to read of each file."})
    minimal_pairs: str | None = field(
        default=None, metadata={"help": "Records of a good and a bad sentence, such as BLiMP."}
    )
    good_field: str = field(default="sentence_good", metadata={"help": "Field of the good sentence."})
    bad_field: str = field(default="sentence_bad", metadata={"help": "Field of the bad sentence."})
    group_field: str | None = field(default=None, metadata={"help": "Field by which pairs are grouped: UID in BLiMP."})
    pairs_per_group: int | None = field(default=None, metadata={"help": "Pairs to take of each group."})
    by_word: bool = field(default=False, metadata={"help": "Masked LMs: PLL-word-l2r instead of PLL."})
    test_file: list[str] | None = field(
        default=None, metadata={"help": "Labelled records, measured by head or by prompt: files, folders or globs."}
    )
    train_file: list[str] | None = field(
        default=None, metadata={"help": "Labelled records from which examples are drawn."}
    )
    text_pair_field: str | None = field(default=None, metadata={"help": "Field of the second text."})
    label_field: list[str] | None = field(default=None, metadata={"help": "Field of the label, or several of 0 and 1."})
    words_field: str | None = field(default=None, metadata={"help": "Field of the words, for tags."})
    tags_field: str | None = field(default=None, metadata={"help": "Field of the tags."})
    question_field: str | None = field(default=None, metadata={"help": "Field of the question."})
    context_field: str | None = field(default=None, metadata={"help": "Field of the text that has the answer."})
    answers_field: str | None = field(default=None, metadata={"help": "Field of the answers."})
    options_fields: list[str] | None = field(default=None, metadata={"help": "Field of the options, or one for each."})
    answer_field: str | None = field(default=None, metadata={"help": "Field of the right option."})
    hub_dataset: str | None = field(
        default=None, metadata={"help": "Name of the test_file on the Hub: NAME[:CONFIG[:SPLIT]]."}
    )
    hub_task: str | None = field(
        default=None, metadata={"help": "Its task in eval.yaml; by default CONFIG, or default."}
    )
    template: str | None = field(default=None, metadata={"help": "Prompt: fields in braces, and {label} at the end."})
    label_words: list[str] = field(default_factory=list, metadata={"help": "Words for labels: 0=bad 1=good."})
    instruction: str = field(default="", metadata={"help": "Text in front of the prompt."})
    examples: int = field(default=0, metadata={"help": "Labelled examples in the prompt."})
    prompts: list[str] = field(default_factory=list, metadata={"help": "Texts to continue."})
    max_new_tokens: int = field(default=80, metadata={"help": "Tokens of each continuation."})
    temperature: float = field(
        default=0.8, metadata={"help": "Temperature of the continuations; 0 takes the likeliest token."}
    )

    def __post_init__(self) -> None:
        refuse_below(self, max_documents=1, pairs_per_group=1, examples=0, max_new_tokens=1, temperature=0.0)
        refuse_below(self, batch_tokens=1, seed=0)
        if (self.hub() and not self.test_file) or (self.hub_task and not self.hub()):
            raise InputError("--hub_dataset tells what the --test_file is on the Hub, and --hub_task its task there")

    def hub(self) -> HubData | None:
        """Return the data set on the Hub that the test file is from."""
        return HubData.read(self.hub_dataset, self.hub_task, split="test") if self.hub_dataset else None


def measure_text(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Measure bits per byte (pseudo for masked LMs) and perplexity of each text file, and of the sources in it."""
    names = ("window", "stride", "max_documents", "source_field", "text_field")
    settings = {name: getattr(recipe, name) for name in names} | recipe.reading_settings()
    if not lm.causal:
        print("text       a masked LM reads a piece once for each token in it; --max_documents takes less", flush=True)
    elif recipe.window is None:  # rows longer than in training cost accuracy
        settings["window"] = recorded(recipe.model, "block_length")
    for path in recipe.text:
        documents = language_model.TextReader(path, recipe.source_field, **recipe.source_settings())
        figures = results.compute_once(
            {"task": "text", "data": content_hash(path), **settings},
            partial(
                language_model.bits_per_byte,
                lm,
                islice(documents, recipe.max_documents),
                settings["window"],
                recipe.stride,
            ),
        )
        report_reading(documents)
        kind = "" if lm.causal else "pseudo-"
        headline = {f"{kind}{name}": figures["all"][name] for name in ("bits_per_byte", "perplexity")}
        headline |= {f"{kind}bits_per_byte, {s}": figures[s]["bits_per_byte"] for s in figures if s != "all"}
        results.add_task("text", path, settings, headline, by_source=figures)


def measure_minimal_pairs(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Measure the share of minimal pairs whose good sentence is likelier, overall and for each group."""
    path = str(recipe.minimal_pairs)
    records = read_table(path)
    good, bad = (records.texts(getattr(recipe, name), name) for name in ("good_field", "bad_field"))
    score = "log-likelihood" if lm.causal else "PLL-word-l2r" if recipe.by_word else "PLL"
    settings = {"data": content_hash(path), "score": score, "fields": [recipe.good_field, recipe.bad_field]}
    groups = language_model.group_rows(records, recipe.group_field or ("UID" if "UID" in records[0] else None))
    hits = {}
    for number, (group, rows) in enumerate(groups.items(), 1):
        pairs = [(good[row], bad[row]) for row in rows[: recipe.pairs_per_group]]
        part = {"task": "minimal pairs", "group": group, "rows": len(pairs), **settings}
        right = sum(results.compute_once(part, partial(language_model.minimal_pairs, lm, pairs, recipe.by_word)))
        hits[group] = (right, len(pairs))
        print(f"{number:3} of {len(groups)}  {group} {right / len(pairs):.3f}, n {len(pairs):,}", flush=True)
    accuracy = language_model.accuracy_by_group(hits)
    results.add_task("minimal pairs", path, settings, {f"accuracy by {score}": accuracy["all"]}, by_group=accuracy)


def measure_by_prompt(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Measure zero- or few-shot classification of labelled records."""
    path, template = recipe.test_file or [], str(recipe.template).replace("\\n", "\n")  # as shells pass it
    task = open_task("AutoModelForSequenceClassification", vars(recipe))
    reading = task.reading(recipe.reading_options())
    records = read_records(path, reading, "test")
    report_reading(records)
    if recipe.examples and recipe.train_file is None:
        raise InputError(f"--examples {recipe.examples}: give the --train_file to draw them from")
    train = read_records(recipe.train_file, reading) if recipe.train_file else records
    labels = read_labels(train, "single_label_classification")
    actual = labels.encode(records)
    prompt = few_shot.Prompt(template, few_shot.label_words(labels, recipe.label_words), recipe.instruction)
    drawn = train.subset(few_shot.draw_examples(train, recipe.examples, recipe.seed))
    examples = [(record | row, label) for record, row, label in zip(drawn, drawn.rows, labels.encode(drawn))]
    task = f"{len(examples)}-shot classification"
    settings: dict[str, Any] = {
        "task": task,
        "template": template,
        "words": prompt.words,
        "instruction": prompt.instruction,
    }
    settings |= {"label_field": labels.field, "seed": recipe.seed, **recipe.reading_settings()}
    figures = results.compute_once(
        {**settings, "data": content_hash(path, "test"), "examples": examples},
        lambda: few_shot.estimate_by_rule(labels, few_shot.score_labels(lm, prompt, records, examples), actual),
    )
    headline = {f"{metric}, {rule}": figures[rule][metric] for rule in figures for metric in labels.metrics}
    results.add_task(task, path, settings, headline, recipe.hub(), "test")


def measure_by_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    auto_class: str,
    recipe: EvaluationRecipe,
    results: ResultStore,
) -> None:
    """Measure labelled records by the model's own head."""
    lengths = {name: recorded(recipe.model, name) for name in ("max_length", "stride")}  # as in training
    lengths = {name: length for name, length in lengths.items() if length is not None}
    threshold = recorded(recipe.model, "no_answer_threshold")
    task = open_task(auto_class, {**vars(recipe), "stride": lengths.pop("stride", None), "threshold": threshold})
    path = recipe.test_file or []
    reading = task.reading(recipe.reading_options(), trained=recorded(recipe.model, "fields"))
    records = read_records(path, reading, "test")
    report_reading(records)
    settings: dict[str, Any] = {"task": auto_class.removeprefix("AutoModelFor"), "fields": dict(records.names)}
    settings |= recipe.reading_settings()
    figures = results.compute_once(
        {**settings, **lengths, "data": content_hash(path, "test"), "threshold": threshold},
        partial(
            measure_head, model, tokenizer, task, records,
            batch_tokens=recipe.batch_tokens, bf16=recipe.bf16, **lengths,
        ),
    )  # fmt: skip
    results.add_task(settings["task"], path, settings, figures, recipe.hub(), "test")


def generate_continuations(lm: LanguageModel, recipe: EvaluationRecipe, results: ResultStore) -> None:
    """Generate and print continuations of the prompts."""
    sampling: dict[str, Any] = {"do_sample": False}
    if recipe.temperature:
        sampling = {"do_sample": True, "temperature": recipe.temperature}
    settings = {"task": "samples", "seed": recipe.seed, "max_new_tokens": recipe.max_new_tokens, **sampling}
    texts = results.compute_once(
        {**settings, "prompts": recipe.prompts},
        partial(language_model.generate_samples, lm, recipe.prompts, recipe.max_new_tokens, recipe.seed, **sampling),
    )
    print("\n\n".join(texts))
    results.add_task("samples", None, settings, {}, samples=texts)


# The measurements of a language model, by the field of the recipe that asks for each.
LANGUAGE_MODEL_MEASUREMENTS: dict[str, Callable[[LanguageModel, EvaluationRecipe, ResultStore], None]] = {
    "text": measure_text,
    "minimal_pairs": measure_minimal_pairs,
    "test_file": measure_by_prompt,
    "prompts": generate_continuations,
}

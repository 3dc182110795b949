"""
Measures a model on files of text, minimal pairs, labelled records or prompts, and puts the figures into its card.

    python training/evaluate_model.py --model runs/decoder --text held_out.jsonl.gz --minimal_pairs blimp.jsonl.gz
    python training/evaluate_model.py --model runs/decoder --test_file test.jsonl --train_file train.jsonl \\
        --template "Review: {text}\\nSentiment: {label}" --examples 4
    python training/evaluate_model.py --model runs/classifier --test_file sst2.jsonl --hub_dataset stanfordnlp/sst2

Takes any model folder, of this package or native, a name on the Hub, or an adapter. Each figure has its 95 % interval
and the number of records. Figures on a --hub_dataset, which the Hub shows beside a model, go into `.eval_results/` of
its folder. The same command resumes a stopped evaluation.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.artifacts.card import add_evaluation
from hf_tfm.artifacts.measurements import HubData
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
    """What is measured: only the parts for which there is data."""

    model: str = field(metadata={"help": "Folder or Hub name of a model, or folder of an adapter."})
    base_model: str | None = field(
        default=None, metadata={"help": "Base of an adapter, if it is not where the adapter's configuration says."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the model's folder."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the results; by default runs/evaluation/MODEL."}
    )
    card: bool = field(default=True, metadata={"help": "Put the figures into the card in the model's folder."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16: faster, exact to about three digits."})
    batch_tokens: int = field(default=2048, metadata={"help": "Tokens computed together; changes only the speed."})
    seed: int = field(default=0, metadata={"help": "Seed of examples and samples."})
    text: list[str] = field(default_factory=list, metadata={"help": "Files of text: bits per byte and perplexity."})
    text_field: str = field(default="text", metadata={"help": "Field of a record that has its text."})
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
    test_file: str | None = field(default=None, metadata={"help": "Labelled records, measured by head or by prompt."})
    train_file: str | None = field(default=None, metadata={"help": "Labelled records from which examples are drawn."})
    text_pair_field: str | None = field(default=None, metadata={"help": "Field of the second text."})
    label_field: str | None = field(default=None, metadata={"help": "Field of the label, the answers or the tags."})
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

    def __post_init__(self):
        refuse_below(self, max_documents=1, pairs_per_group=1, examples=0, max_new_tokens=1, temperature=0.0)
        refuse_below(self, batch_tokens=1, seed=0)
        if (self.hub() and not self.test_file) or (self.hub_task and not self.hub()):
            raise InputError("--hub_dataset tells what the --test_file is on the Hub, and --hub_task its task there")

    def hub(self) -> HubData | None:
        """Return the name of the test file on the Hub."""
        return HubData.read(self.hub_dataset, self.hub_task, split="test") if self.hub_dataset else None


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, EvaluationRecipe, None, __doc__)
    tasks = {"text": text, "minimal_pairs": pairs, "test_file": prompted, "prompts": samples}
    chosen = [name for name in tasks if getattr(recipe, name)]
    if not chosen:
        raise InputError(f"nothing to measure: give one of --{', --'.join(tasks)}")
    auto_class = auto_class_of(recipe.model, recipe.trust_remote_code)
    language_model = auto_class in LANGUAGE_MODELS
    if not language_model and chosen != ["test_file"]:
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
        for task in chosen:
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
    """Measure a model on labelled records by its head."""
    records, threshold = read_records(recipe.test_file, "test"), recorded(recipe.model, "no_answer_threshold")
    fields = [recipe.text_field, *([recipe.text_pair_field] if recipe.text_pair_field else [])]
    settings = {"task": auto_class.removeprefix("AutoModelFor"), "fields": fields, "label_field": recipe.label_field}
    lengths = {name: recorded(recipe.model, name) for name in ("max_length", "stride")}
    lengths = {name: value for name, value in lengths.items() if value is not None}  # as in training
    batching = {**lengths, "batch_tokens": recipe.batch_tokens, "bf16": recipe.bf16}
    figures = results.compute_once(
        {**settings, **lengths, "data": content_hash(recipe.test_file, "test"), "threshold": threshold},
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

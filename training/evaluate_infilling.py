"""
Measure how well a model fills gaps: words are cut out of held-out passages, and the model restores them.

    python training/evaluate_infilling.py --model runs/ul2 --text training/data/text/test.jsonl.gz
    python training/evaluate_infilling.py --model runs/encoder --text training/data/text/test.jsonl.gz

    once          a masked LM fills all masks in one pass
    iterative     a masked LM fills the masks step by step and masks the least certain ones again
    left          a causal LM continues the text to the left of the gap, and sees nothing behind it
    denoise       a decoder trained with `pretrain_clm.py --denoisers` reads both sides and generates the gaps
    denoise_free  the same without knowing how many tokens are missing

Passages and gaps depend on the text and the seed only, whatever the model. A gap is right if all of its tokens are;
every method except the last knows their number. For causal LMs the bits per byte of the missing text are reported too.
All figures have 95 % intervals.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from hf_tfm import InputError
from hf_tfm.artifacts.open import auto_class_of, fingerprint, open_model, recorded
from hf_tfm.data.sources import DocumentStream, parse_sources
from hf_tfm.evaluate.result_store import content_hash, open_results
from hf_tfm.tasks.infilling import FILL_METHODS, cut_gaps, measure_infilling
from hf_tfm.train.recipe import TextRecipe, one_line_errors, parse_recipe, refuse_below
from hf_tfm.train.report import report_reading

import torch


@dataclass
class InfillingRecipe(TextRecipe):
    """The model, and the number and lengths of the gaps."""

    model: str = field(metadata={"help": "Folder or Hub name of a masked or causal LM."})
    text: list[str] = field(metadata={"help": "Held-out text to cut gaps into: files, folders or globs."})
    ways: list[str] = field(
        default_factory=list,
        metadata={"help": "Some of once, iterative, left, denoise, denoise_free; by default as trained."},
    )
    passages: int = field(default=300, metadata={"help": "Maximum number of passages."})
    per_text: int = field(default=6, metadata={"help": "Maximum number of consecutive passages per document."})
    words: int = field(default=60, metadata={"help": "Words per passage; shorter documents are left out."})
    gaps: int = field(default=3, metadata={"help": "Gaps per passage."})
    longest_gap: int = field(default=3, metadata={"help": "Maximum words of a gap; all lengths are equally frequent."})
    batch_size: int = field(default=16, metadata={"help": "Passages at once; changes the speed only."})
    seed: int = field(default=0, metadata={"help": "Seed of the gaps' places."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that the model's folder carries."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the results; by default runs/infilling/MODEL."}
    )

    def __post_init__(self):
        refuse_below(self, passages=1, per_text=1, words=1, gaps=1, longest_gap=1, batch_size=1)
        if unknown := [method for method in self.ways if method not in FILL_METHODS]:
            raise InputError(f"--ways {unknown[0]}: there are {', '.join(FILL_METHODS)}")


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, InfillingRecipe, None, __doc__)
    methods = recipe.ways or trained_methods(recipe)
    cutting = {name: getattr(recipe, name) for name in ("words", "gaps", "longest_gap", "per_text", "seed")}
    documents = DocumentStream(parse_sources(recipe.text, **recipe.source_settings()))
    texts = list(islice(cut_gaps(documents, **cutting), recipe.passages))
    if not texts:
        raise InputError(f"{', '.join(recipe.text)}: no document has {recipe.words} words; lower --words")

    report_reading(documents)
    settings = {"text_field": recipe.text_field, "passages": len(texts), **cutting, **recipe.reading_settings()}
    key = {"task": "infilling", "text": content_hash(recipe.text), **settings}
    results, loaded_class = None, None
    for method in methods:
        auto_class = "AutoModelForMaskedLM" if method in ("once", "iterative") else "AutoModelForCausalLM"
        if auto_class != loaded_class:
            model, tokenizer = open_model(recipe.model, auto_class, trust_remote_code=recipe.trust_remote_code)
            model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
            loaded_class = auto_class
        if results is None:
            identity = fingerprint(model, tokenizer)
            results = open_results("infilling", recipe.model, recipe.output_dir, sha256=identity)
            print(
                f"model      {results.name}, {model.num_parameters():,} parameters; {len(texts)} passages", flush=True
            )
        compute = partial(measure_infilling, model, tokenizer, texts, method, recipe.batch_size)
        figures = results.compute_once({"way": method, **key}, compute)
        results.add_task(f"infilling, {method}", recipe.text, {"way": method, **settings}, figures)
    print(f"results    {results.write()}")


def trained_methods(recipe: InfillingRecipe) -> list[str]:
    """Return the methods that the model was trained for."""
    if auto_class_of(recipe.model, recipe.trust_remote_code) != "AutoModelForCausalLM":
        return ["once", "iterative"]
    return ["left", "denoise", "denoise_free"] if recorded(recipe.model, "denoisers") else ["left"]


if __name__ == "__main__":
    sys.exit(main())

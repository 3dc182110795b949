"""
Measure a model on text, minimal pairs, labelled records or prompts, and add the figures to its card.

    python training/evaluate_model.py --model runs/decoder --text held_out.jsonl.gz --minimal_pairs blimp.jsonl.gz
    python training/evaluate_model.py --model runs/decoder --test_file test.jsonl --train_file train.jsonl \\
        --template "Review: {text}\\nSentiment: {label}" --examples 4
    python training/evaluate_model.py --model runs/classifier --test_file sst2.jsonl --hub_dataset stanfordnlp/sst2

Takes any model folder, ours or native, a name on the Hub, or an adapter. Each figure has its 95 % interval and the
number of records. Figures on a --hub_dataset are also written to `.eval_results/`, which the Hub shows beside the
model. The model's folder and card get the figures, beside earlier ones of other data; with an --output_dir that folder
alone is written. With the same --output_dir the same command resumes a stopped evaluation.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from pathlib import Path

from hf_tfm import InputError
from hf_tfm.artifacts.card import add_evaluation
from hf_tfm.artifacts.open import LANGUAGE_MODELS, auto_class_of, fingerprint, open_model
from hf_tfm.artifacts.record import RECORD_FILE
from hf_tfm.evaluate.measure_model import LANGUAGE_MODEL_MEASUREMENTS, EvaluationRecipe, measure_by_head
from hf_tfm.evaluate.result_store import open_results
from hf_tfm.tasks.likelihood import LanguageModel
from hf_tfm.train.recipe import one_line_errors, parse_recipe

import torch


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    recipe, _ = parse_recipe(argv, EvaluationRecipe, None, __doc__)
    measurements = {name: m for name, m in LANGUAGE_MODEL_MEASUREMENTS.items() if getattr(recipe, name)}
    if not measurements:
        raise InputError(f"nothing to measure: give one of --{', --'.join(LANGUAGE_MODEL_MEASUREMENTS)}")
    auto_class = auto_class_of(recipe.model, recipe.trust_remote_code)
    is_language_model = auto_class in LANGUAGE_MODELS
    if not is_language_model and [*measurements] != ["test_file"]:
        raise InputError(f"{recipe.model} is no language model: it can be measured on a --test_file alone")
    if is_language_model and recipe.test_file and recipe.template is None:
        raise InputError("a language model labels by prompt: write one as --template")

    model, tokenizer = open_model(recipe.model, auto_class, recipe.base_model, recipe.trust_remote_code)
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    identity = {"sha256": fingerprint(model, tokenizer), "bf16": recipe.bf16}
    results = open_results("evaluation", recipe.model, recipe.output_dir, **identity)
    print(f"model      {results.name}, {type(model).__name__}, {model.num_parameters():,} parameters", flush=True)
    if is_language_model:
        lm = LanguageModel(model, tokenizer, auto_class == LANGUAGE_MODELS[0], recipe.batch_tokens, recipe.bf16)
        for measure in measurements.values():
            measure(lm, recipe, results)
    else:
        measure_by_head(model, tokenizer, auto_class, recipe, results)

    path, folder = results.write(), Path(recipe.model)
    print(f"results    {path}")
    if not (recipe.output_dir is None if recipe.card is None else recipe.card) or not folder.is_dir():
        folder = path.parent
    elif (folder / RECORD_FILE).is_file() and folder.resolve() != path.parent.resolve():
        results.write(folder)
    for written in add_evaluation(folder, path):
        print(f"written    {written}")


if __name__ == "__main__":
    sys.exit(main())

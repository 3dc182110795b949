"""
Measure what a switch is worth: train a grid of recipes with several seeds, and compare the results.

    python training/ablate.py training/recipes/ablations/positions.yaml
    python training/ablate.py training/recipes/ablations/heads.yaml --cores 2 --log training/LOG.md
    python training/ablate.py training/recipes/ablations/norms.yaml --override '{"max_steps": 10}' --output_dir runs/try

Every run is one of `pretrain_clm.py` or `pretrain_mlm.py` in its own process and folder. Stop it with Ctrl-C, or kill
it, at any time: the same command resumes the runs from their checkpoints and skips finished ones. It writes `result.md`
(an entry for a log of experiments, with a table), `result.png` and `result.json`.
"""

from hf_tfm_command import check_data


if __name__ == "__main__":
    check_data(__file__)

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pretrain_clm
import pretrain_mlm
from hf_tfm import InputError, TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.apps.ablation.grid import check_cells, expand
from hf_tfm.apps.ablation.measures import MeasureOptions, check_measures, measure_runs
from hf_tfm.apps.ablation.report import check_metric, choose_metric, log_entry, put_into_log, write_results
from hf_tfm.apps.ablation.runner import Runner, choose_cores, write_recipes
from hf_tfm.artifacts.record import public_command
from hf_tfm.evaluate.result_store import ResultStore
from hf_tfm.train.recipe import one_line_errors, parse_recipe, read_mapping

import torch


SCRIPTS = {
    "pretrain_clm": (pretrain_clm.CausalRecipe, TfmDecoderConfig, "decoder"),
    "pretrain_mlm": (pretrain_mlm.MaskedRecipe, TfmEncoderConfig, "encoder"),
}


@dataclass
class AblationRecipe:
    """A grid; mappings are JSON on the command line."""

    title: str = field(metadata={"help": "The question, in words."})
    base: str = field(metadata={"help": "Fields that the recipes of all cells share."})
    grid: str = field(metadata={"help": "{axis: {label: {field: value}}}; every combination of labels is a cell."})
    output_dir: str = field(metadata={"help": "Folder for all runs and the results."})
    script: str = field(default="pretrain_clm", metadata={"help": "pretrain_clm or pretrain_mlm."})
    override: str = field(default="{}", metadata={"help": 'Fields that override all others: {"max_steps": 10}.'})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the runs of every cell."})
    cores: int | None = field(default=None, metadata={"help": "Cores to use; by default all that are available."})
    threads: int = field(default=1, metadata={"help": "Threads per run; cores / threads runs are parallel."})
    metric: str | None = field(default=None, metadata={"help": "Metric to compare by: bits_per_byte, loss, …"})
    measure: list[str] = field(default_factory=list, metadata={"help": "More measures: length pseudo probe decoding."})
    measure_bytes: int = field(default=120_000, metadata={"help": "Bytes of validation text for these measures."})
    lengths: list[int] = field(default_factory=list, metadata={"help": "Context lengths, in tokens, for `length`."})
    context: int = field(default=256, metadata={"help": "Tokens in the cache for `decoding`."})
    probe: list[str] = field(default_factory=list, metadata={"help": "Training and test file for `probe`."})
    notes: str = field(default="", metadata={"help": "Notes for readers of the log entry."})
    log: str | None = field(default=None, metadata={"help": "Log of experiments to insert the entry into."})


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, _ = parse_recipe(argv, AblationRecipe, None, __doc__)
    if recipe.script not in SCRIPTS:
        raise InputError(f"script {recipe.script!r}: choose {' or '.join(SCRIPTS)}")
    base, grid, override = (read_mapping(getattr(recipe, name), name) for name in ("base", "grid", "override"))
    cells = expand(base, grid, override)
    recipe_class, config_class, style = SCRIPTS[recipe.script]
    check_cells(cells, recipe_class, config_class)
    cores = choose_cores(recipe.cores, recipe.threads)
    options = MeasureOptions.from_recipe(recipe, {**base, **override})
    check_measures(recipe.measure, options, recipe.script)
    check_metric(recipe.metric)

    output = Path(recipe.output_dir)
    runs = write_recipes(cells, recipe.seeds, output, style)
    jobs = cores // recipe.threads
    num_finished = sum(run.finished for run in runs)
    print(f"grid       {len(cells)} cells × {len(recipe.seeds)} seeds, {num_finished} runs are finished")
    print(f"at a time  {jobs} runs of {recipe.threads} thread{'s' * (recipe.threads > 1)}", flush=True)
    script = Path(__file__).with_name(f"{recipe.script}.py")
    runner = Runner(script, jobs, recipe.threads, report=partial(print, flush=True))
    runner(runs)
    if runner.stopped:
        print("stopped; the same command resumes the runs")
        return 0
    if not any(run.finished for run in runs):
        raise InputError(f"all runs failed, the first one with: {next(iter(runner.failed.values()))}")

    torch.set_num_threads(cores)
    figures = measure_runs(runs, recipe.measure, options, ResultStore(output, {"title": recipe.title}))
    metric = choose_metric(figures, recipe.metric)
    entry = log_entry(recipe.title, public_command(sys.argv), figures, metric, runs, recipe.notes)
    write_results(output, entry, figures, metric, runs, recipe.title)
    if recipe.log:
        put_into_log(entry, Path(recipe.log))
    print(f"\n{entry}\nresult     {output / 'result.md'}, result.png, result.json")
    for name, reason in runner.failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())

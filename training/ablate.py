"""
Measure what a switch is worth: train a grid of recipes with several seeds, and compare the results.

    python training/ablate.py training/recipes/ablations/positions.yaml
    python training/ablate.py training/recipes/ablations/heads.yaml --cores 2 --log training/LOG.md
    python training/ablate.py training/recipes/ablations/norms.yaml --override '{"max_steps": 10}' --output_dir runs/try

Every run is one of `pretrain_clm.py` or `pretrain_mlm.py` in its own process and folder. Stop it with Ctrl-C, or kill
it, at any time: the same command resumes the runs from their checkpoints and skips finished ones. It writes `result.md`
(an entry for a log of experiments, with a table), `result.png` and `result.json`.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pretrain_clm
import pretrain_mlm
from hf_tfm import InputError, TfmDecoderConfig, TfmEncoderConfig
from hf_tfm.apps.ablation.grid import check_cells, expand
from hf_tfm.apps.ablation.measures import MODEL_MEASURES, RUN_MEASURES, MeasureOptions, check_measures
from hf_tfm.apps.ablation.report import (
    HEADINGS,
    Figures,
    as_json,
    choose_metric,
    draw,
    figures_of,
    log_entry,
    put_into_log,
)
from hf_tfm.apps.ablation.runner import Run, Runner, write_recipes
from hf_tfm.artifacts.record import public_command, read_record
from hf_tfm.core.errors import explain
from hf_tfm.evaluate.result_store import ResultStore
from hf_tfm.train.pretrain_recipe import PretrainingArguments
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
    check_cells(cells, partial(check, recipe_class=recipe_class, config_class=config_class))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = available if recipe.cores is None else recipe.cores
    if cores < 1:
        raise InputError(f"cores {cores}: must be at least 1")
    if not 1 <= recipe.threads <= cores:
        raise InputError(f"threads {recipe.threads}: a run may have 1 to {cores} (--cores)")
    shared = {**base, **override}
    text = shared.get("validation_data", [])
    options = MeasureOptions(
        [text] if isinstance(text, str) else text,
        shared.get("text_field", "text"),
        bytes=recipe.measure_bytes,
        lengths=recipe.lengths,
        context=recipe.context,
        probe=tuple(recipe.probe) if len(recipe.probe) == 2 else None,
    )
    check_measures(recipe.measure, options, recipe.script)
    if recipe.metric is not None and recipe.metric not in HEADINGS:
        raise InputError(f"metric {recipe.metric!r} is unknown; choose of {', '.join(HEADINGS)}")

    output = Path(recipe.output_dir)
    runs = write_recipes(cells, recipe.seeds, output, style)
    jobs = cores // recipe.threads
    num_finished = sum(run.finished for run in runs)
    print(f"grid       {len(cells)} cells × {len(recipe.seeds)} seeds, {num_finished} runs are finished")
    print(f"at a time  {jobs} runs of {recipe.threads} thread{'s' * (recipe.threads > 1)}", flush=True)
    runner = Runner(
        Path(__file__).with_name(f"{recipe.script}.py"), jobs, recipe.threads, report=partial(print, flush=True)
    )
    runner(runs)
    if runner.stopped:
        print("stopped; the same command resumes the runs")
        return 0
    if not any(run.finished for run in runs):
        raise InputError(f"all runs failed, the first one with: {next(iter(runner.failed.values()))}")

    torch.set_num_threads(cores)
    figures = measure(runs, recipe, options, ResultStore(output, {"title": recipe.title}))
    metric = choose_metric(figures, recipe.metric)
    entry = log_entry(recipe.title, public_command(sys.argv), figures, metric, runs, recipe.notes)
    (output / "result.md").write_text(entry, encoding="utf-8")
    (output / "result.json").write_text(json.dumps(as_json(figures), indent=1) + "\n", encoding="utf-8")
    draw(figures, metric, runs, recipe.title, output / "result.png")
    if recipe.log:
        put_into_log(entry, Path(recipe.log))
    print(f"\n{entry}\nresult     {output / 'result.md'}, result.png, result.json")
    for name, reason in runner.failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if runner.failed else 0


def check(argv: list[str], recipe_class: type, config_class: type) -> None:
    """Raise `InputError` for arguments that a script would refuse, fields of a new model included."""
    recipe, _ = parse_recipe(argv, recipe_class, PretrainingArguments)
    if not Path(recipe.model).exists():
        name, _, size = recipe.model.partition("/")
        with explain(f"model {recipe.model}", "{reason}", ValueError):
            config_class.preset(name, size or None, **json.loads(recipe.model_overrides))


def measure(runs: list[Run], recipe: AblationRecipe, options: MeasureOptions, store: ResultStore) -> Figures:
    """Return the figures by cell and seed; measurements of an earlier start are read from the store."""
    figures: Figures = {}
    finished = [run for run in runs if run.finished]
    shared = {"options": vars(options)}
    for run in sorted(finished, key=lambda run: runs.index(run) % (len(runs) // len(recipe.seeds))):
        run_figures = figures_of(run)
        for name in set(recipe.measure) & RUN_MEASURES.keys():
            part = {**shared, "measure": name, "run": str(run.folder), "started": read_record(run.folder)["started"]}
            run_figures |= store.compute_once(part, partial(RUN_MEASURES[name], run.folder, options))
        figures.setdefault(run.cell.name, {})[run.seed] = run_figures
    models = {run.cell.name: run.folder for run in finished if run.seed == recipe.seeds[0]}
    for name in set(recipe.measure) & MODEL_MEASURES.keys():
        part = {**shared, "measure": name, "runs": sorted(map(str, models.values()))}
        for cell, model_figures in store.compute_once(part, partial(MODEL_MEASURES[name], models, options)).items():
            figures[cell][recipe.seeds[0]] |= model_figures
    return figures


if __name__ == "__main__":
    sys.exit(main())

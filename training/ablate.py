"""
Ask what a switch is worth: train a grid of recipes with several seeds, and put what came out side by side.

    python training/ablate.py training/recipes/ablations/positions.yaml
    python training/ablate.py training/recipes/ablations/heads.yaml --cores 2 --log training/LOG.md
    python training/ablate.py training/recipes/ablations/norms.yaml --override '{"max_steps": 10}' --output_dir runs/try

Every run is one of `pretrain_clm.py` or `pretrain_mlm.py` in a process and a folder of its own. Stop it with Ctrl-C, or
kill it, at any time: the same command goes on from the runs' checkpoints, and what is finished is not run again. At the
end stand a table, `result.md` (an entry for a log of experiments), `result.png` and `result.json`.
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
from hf_tfm.apps.ablation.ablation import Run, Runner, check_cells, expand, write_recipes
from hf_tfm.apps.ablation.measures import OF_A_RUN, SIDE_BY_SIDE, Asked, check_measures
from hf_tfm.apps.ablation.report import HEADINGS, as_json, choose_metric, draw, figures_of, log_entry, put_into_log
from hf_tfm.artifacts.record import public_command, read_record
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

    title: str = field(metadata={"help": "the question, in words"})
    base: str = field(metadata={"help": "fields that the recipes of all cells share"})
    grid: str = field(metadata={"help": "{axis: {label: {field: value}}}; every combination of labels is a cell"})
    output_dir: str = field(metadata={"help": "of all runs and of the results"})
    script: str = field(default="pretrain_clm", metadata={"help": "pretrain_clm or pretrain_mlm"})
    override: str = field(default="{}", metadata={"help": 'fields that win over all others: {"max_steps": 10}'})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of the runs of every cell"})
    cores: int | None = field(default=None, metadata={"help": "to use; by default all that this process may"})
    threads: int = field(default=1, metadata={"help": "of a run; as many run side by side as fit on the cores"})
    metric: str | None = field(default=None, metadata={"help": "what to compare by: bits_per_byte, loss, …"})
    measure: list[str] = field(default_factory=list, metadata={"help": "more: length, pseudo, probe, decoding"})
    measure_bytes: int = field(default=120_000, metadata={"help": "of validation text for these"})
    lengths: list[int] = field(default_factory=list, metadata={"help": "tokens of context for `length`"})
    context: int = field(default=256, metadata={"help": "tokens in the cache for `decoding`"})
    probe: list[str] = field(default_factory=list, metadata={"help": "two files of text and label for `probe`"})
    notes: str = field(default="", metadata={"help": "what a reader of the entry should know"})
    log: str | None = field(default=None, metadata={"help": "put the entry into this file too, in front of others"})


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    recipe, _ = parse_recipe(argv, AblationRecipe, None, __doc__)
    if recipe.script not in SCRIPTS:
        raise InputError(f"script {recipe.script!r}: choose {' or '.join(SCRIPTS)}")
    base, grid, override = (read_mapping(getattr(recipe, name), name) for name in ("base", "grid", "override"))
    cells = expand(base, grid, override)
    arguments, config_class, style = SCRIPTS[recipe.script]
    check_cells(cells, partial(check, arguments=arguments, config_class=config_class))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = available if recipe.cores is None else recipe.cores
    if cores < 1:
        raise InputError(f"cores {cores}: must be at least 1")
    if not 1 <= recipe.threads <= cores:
        raise InputError(f"threads {recipe.threads}: a run may have 1 to {cores}, which --cores gives")
    shared = {**base, **override}
    text = shared.get("validation_data", [])
    asked = Asked(
        [text] if isinstance(text, str) else text,
        shared.get("text_field", "text"),
        bytes=recipe.measure_bytes,
        lengths=recipe.lengths,
        context=recipe.context,
        probe=tuple(recipe.probe) if len(recipe.probe) == 2 else None,
    )
    check_measures(recipe.measure, asked, recipe.script)
    if recipe.metric is not None and recipe.metric not in HEADINGS:
        raise InputError(f"metric {recipe.metric!r} is unknown; choose of {', '.join(HEADINGS)}")

    output = Path(recipe.output_dir)
    runs = write_recipes(cells, recipe.seeds, output, style)
    waiting = [run for run in runs if not run.finished]
    jobs = cores // recipe.threads
    print(f"grid       {len(cells)} cells × {len(recipe.seeds)} seeds, {len(runs) - len(waiting)} runs are finished")
    print(f"at a time  {jobs} runs of {recipe.threads} thread{'s' * (recipe.threads > 1)}", flush=True)
    runner = Runner(
        Path(__file__).with_name(f"{recipe.script}.py"), jobs, recipe.threads, say=partial(print, flush=True)
    )
    runner(runs)
    if runner.stopped:
        print("stopped; the same command goes on from there")
        return 0
    if not any(run.finished for run in runs):
        raise InputError(f"no run ended well; the first one said: {next(iter(runner.failed.values()))}")

    torch.set_num_threads(cores)
    figures = measured(runs, recipe, asked, ResultStore(output, {"title": recipe.title}))
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


def check(argv: list[str], arguments: type, config_class: type) -> None:
    """Raises `InputError` for what a script would not take, switches of a new model included."""
    script, _ = parse_recipe(argv, arguments, PretrainingArguments)
    if not Path(script.model).exists():
        lookalike, _, size = script.model.partition("/")
        try:
            config_class.preset(lookalike, size or None, **json.loads(script.model_overrides))
        except ValueError as error:
            raise InputError(f"model {script.model}: {' '.join(str(error).split())}") from None


def measured(runs: list[Run], recipe: AblationRecipe, asked: Asked, results: ResultStore) -> dict:
    """Figures by cell and seed; what was measured before is read."""
    figures: dict[str, dict[int, dict[str, float]]] = {}
    finished = [run for run in runs if run.finished]
    part = {"asked": vars(asked)}
    for run in sorted(finished, key=lambda run: runs.index(run) % (len(runs) // len(recipe.seeds))):
        found = figures_of(run)
        for name in set(recipe.measure) & OF_A_RUN.keys():
            of_run = {**part, "measure": name, "run": str(run.folder), "started": read_record(run.folder)["started"]}
            found |= results.compute_once(of_run, partial(OF_A_RUN[name], run.folder, asked))
        figures.setdefault(run.cell.name, {})[run.seed] = found
    first = {run.cell.name: run.folder for run in finished if run.seed == recipe.seeds[0]}
    for name in set(recipe.measure) & SIDE_BY_SIDE.keys():
        together = {**part, "measure": name, "runs": sorted(map(str, first.values()))}
        for cell, found in results.compute_once(together, partial(SIDE_BY_SIDE[name], first, asked)).items():
            figures[cell][recipe.seeds[0]] |= found
    return figures


if __name__ == "__main__":
    sys.exit(main())

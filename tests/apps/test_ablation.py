"""Ablations: cells of a grid, running and stopping, measures, and the report."""

import fcntl
import itertools
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from hf_tfm import InputError
from hf_tfm.apps.ablation import measures, report
from hf_tfm.apps.ablation.grid import Cell, check_cells, expand
from hf_tfm.apps.ablation.measures import MeasureOptions
from hf_tfm.apps.ablation.runner import Run, Runner, training_speed
from hf_tfm.artifacts.open import open_model
from hf_tfm.train.recipe import parse_recipe, read_mapping


TRAINING = Path(__file__).parents[2] / "training"
import ablate
import pretrain_clm


TEXTS = [f"The {a} asked the {b} for {n} stories, and the {b} told {n} of them." for n in range(2, 22)
         for a, b in (("miller", "river"), ("widow", "well"))]  # fmt: skip
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture
def grid(tmp_path) -> dict:
    """Return a grid of two cells and two seeds that runs in seconds, without measures."""
    for name, texts in (("train", TEXTS), ("held_out", TEXTS[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base = {
        "data": [str(tmp_path / "train.jsonl")],
        "validation_data": [str(tmp_path / "held_out.jsonl")],
        "tokenizer": {"kind": "bpe", "vocab_size": 320, "num_spare_tokens": 0},
        "model": "nano",
        "model_overrides": {**SMALL, "max_position_embeddings": 128},
        "block_length": 32,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_steps": 2,
        "eval_steps": 2,
        "logging_steps": 1,
        "cache_dir": str(tmp_path / "cache"),
        "bf16": False,
        "compile": "off",
    }
    kinds = {"RoPE": {}, "none": {"model_overrides": {"position_embedding_type": "none"}}}
    return {
        "title": "Positions",
        "base": base,
        "grid": {"positions": kinds},
        "seeds": [0, 1],
        "output_dir": str(tmp_path / "out"),
    }


def start(grid: dict, tmp_path: Path, *more: str) -> int:
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(yaml.safe_dump(grid, sort_keys=False))
    return ablate.main([str(recipe), "--cores", "1", *more])  # runs in one process cannot be parallel


def in_this_process(self: Runner, run: Run, lock: int) -> int:
    """Do the work of `Runner._spawn` without a new process, which takes seconds to import torch."""
    argv = [str(run.recipe), "--seed", str(run.seed), "--output_dir", str(run.folder)]
    if run.cell.embeddings_from is not None:
        argv += ["--model", str(run.initial_model)]
    code = pretrain_clm.main(argv)
    run.log.write_text("" if code == 0 else "error: it went wrong\n")
    return 123_000_000


@pytest.fixture
def spawned(monkeypatch, quick_runs) -> list[str]:
    """Run in this process; return the names of the started runs."""
    names = []

    def spawn(self, run, lock):
        names.append(run.name)
        return in_this_process(self, run, lock)

    monkeypatch.setattr(Runner, "_spawn", spawn)
    return names


def test_cells_are_all_combinations_and_overrides_are_merged():
    base = {"max_steps": 5, "model_overrides": {"hidden_size": 32, "qk_norm": True}}
    grid = {
        "kind": {"a": {}, "b": {"model_overrides": {"qk_norm": False}, "max_steps": 6}},
        "rate": {"1": {"learning_rate": 0.1}, "2": None},
    }
    cells = expand(base, grid, {"model_overrides": {"hidden_size": 16}})
    assert [cell.name for cell in cells] == ["a, 1", "a, 2", "b, 1", "b, 2"]
    assert cells[2].fields == {
        "max_steps": 6,
        "learning_rate": 0.1,
        "model_overrides": {"hidden_size": 16, "qk_norm": False},
    }
    assert "learning_rate" not in cells[3].fields and base["model_overrides"]["hidden_size"] == 32
    assert len({cell.folder for cell in cells}) == 4
    assert cells[0].folder == expand(base, grid, {"model_overrides": {"hidden_size": 16}})[0].folder
    assert cells[0].folder != expand(base, grid, {"max_steps": 7})[0].folder


MISTAKES = {
    "unknown switch": ({"model_overrides": {"qk_nrm": True}}, "cell 'bad': model nano: unknown field 'qk_nrm'"),
    "unknown field": ({"max_stepz": 5}, "cell 'bad': unknown field 'max_stepz'; did you mean max_steps?"),
    "contradiction": (
        {"model_overrides": {"num_key_value_heads": 3}},
        "cell 'bad': model nano: num_attention_heads (2)",
    ),
    "kind": ({"max_steps": "many"}, "cell 'bad': argument --max_steps"),
    "tokenizer": ({"tokenizer": {"kind": "bpe", "size": 5}}, "cell 'bad': tokenizer: unknown 'size'"),
    "no mapping": ({"model_overrides": ["qk_norm"]}, "model_overrides must be"),
    "embeddings": ({"embeddings_from": "nobody"}, "embeddings_from 'nobody' is no earlier cell"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_a_cell_in_one_line_before_anything_runs(name, grid, tmp_path, capsys, spawned):
    changes, message = MISTAKES[name]
    grid["grid"]["positions"]["bad"] = changes
    assert start(grid, tmp_path) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not spawned and not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--measure", "beauty"], "measure 'beauty' is unknown; choose of length, pseudo, probe, decoding"),
        (["--measure", "length"], "needs --lengths"),
        (["--measure", "probe"], "needs --probe"),
        (["--threads", "9", "--cores", "2"], "threads 9: a run may have 1 to 2"),
        (["--script", "pretrain"], "choose pretrain_clm or pretrain_mlm"),
        (["--grid", "{"], "grid is not JSON"),
        (["--grid", "{}"], "grid: is empty"),
        (["--grid", '{"positions": ["RoPE"]}'], "axis 'positions' has no labels"),
        (["--grid", '{"positions": {"RoPE": 5}}'], "'RoPE' of axis 'positions' must be"),
        (["--override", "[]"], "override: must be a mapping"),
        (["--grid", '{"a": {"x": {}, "x, y": {}}, "b": {"y, z": {}, "z": {}}}'], "two cells are called 'x, y, z'"),
        (["--grid", '{"seed": {"1": {"seed": 1}, "2": {"seed": 2}}}'], "seed cannot be set in a recipe"),
        (["--metric", "bits_per_bite"], "metric 'bits_per_bite' is unknown; choose of bits_per_byte"),
        (["--measure", "pseudo"], "measure 'pseudo' is not for models of pretrain_clm"),
        (["--measure", "length", "--lengths", "0"], "at least 1"),
        (["--measure", "probe", "--probe", "no1", "no2"], "no1: no such file"),
    ],
)
def test_mistakes_in_the_grid_in_one_line(more, message, grid, tmp_path, capsys, spawned):
    assert start(grid, tmp_path, *more) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not spawned and not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["{}", '{"validation_data": "other.jsonl", "text_field": "body"}'])
def test_measures_read_the_validation_text_of_the_runs(override, grid, tmp_path, monkeypatch, spawned):
    """A single file needs no brackets, as in the recipes of the scripts."""
    seen = []

    def check_measures(names, options, script):
        seen.append(options)
        raise InputError("seen")

    monkeypatch.setattr(ablate, "check_measures", check_measures)
    grid["base"]["validation_data"] = "held_out.jsonl"
    assert start(grid, tmp_path, "--override", override) == 2
    expected = (["held_out.jsonl"], "text") if override == "{}" else (["other.jsonl"], "body")
    assert (seen[0].text, seen[0].text_field) == expected


def test_a_grid_from_beginning_to_end(grid, tmp_path, capsys, spawned):
    more = ["--measure", "length", "--lengths", "16", "64", "--log", str(tmp_path / "LOG.md")]
    (tmp_path / "LOG.md").write_text("# Log\n\nNewest first.\n\n## Before\n\nOld.\n")
    assert start(grid, tmp_path, *more) == 0
    assert spawned == ["RoPE, seed 0", "none, seed 0", "RoPE, seed 1", "none, seed 1"]
    out = tmp_path / "out"
    figures = json.loads((out / "result.json").read_text())
    records = {path.parent: json.loads(path.read_text()) for path in out.glob("runs/*/*/run_record.json")}
    assert len(records) == 4 and not list(out.glob("runs/*/*/checkpoint-*"))
    bits = [run["bits_per_byte"] for run in figures["RoPE"].values()]
    assert sorted(bits) == sorted(
        record["results"]["bits_per_byte"] for folder, record in records.items() if "rope" in str(folder)
    )
    differences = [figures["none"][seed]["bits_per_byte"] - figures["RoPE"][seed]["bits_per_byte"] for seed in "01"]
    entry = (out / "result.md").read_text()
    line = next(line for line in entry.splitlines() if line.startswith("| none"))
    assert f"{statistics.mean(differences):+.3f} ± {statistics.stdev(differences):.3f}" in line and "| 123 |" in line
    assert f"{statistics.mean(bits):.3f} ± {statistics.stdev(bits):.3f}" in entry
    assert (
        "| bits per byte at length | 16 | 64 |" in entry and "4 of 4 runs, seeds 0, 1, 2 steps of 128 tokens" in entry
    )
    assert figures["RoPE"]["0"]["tokens_per_second"] > 0 and figures["RoPE"]["0"]["length 64"] > 0
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")
    log = (tmp_path / "LOG.md").read_text()
    assert log.index("Newest first") < log.index(entry) < log.index("## Before")

    # Finished cells are not run or measured again, and are in the log once; a changed cell is run.
    del spawned[:]
    before = (out / "parts.jsonl").read_text()
    assert start(grid, tmp_path, *more) == 0
    assert not spawned and (out / "parts.jsonl").read_text() == before
    assert (tmp_path / "LOG.md").read_text().count(f" · {grid['title']}\n") == 1
    grid["grid"]["positions"]["none"]["max_steps"] = 3
    assert start(grid, tmp_path) == 0
    assert spawned == ["none, seed 0", "none, seed 1"]
    assert "2 or 3 steps" in capsys.readouterr().out


def test_other_runs_continue_after_a_failed_one(grid, tmp_path, capsys, spawned):
    grid["grid"]["positions"]["too long"] = {"block_length": 256}  # longer than max_position_embeddings
    assert start(grid, tmp_path, "--seeds", "3") == 1
    shown = capsys.readouterr()
    assert "error: too long, seed 3: error: it went wrong" in shown.err
    assert "2 of 3 runs" in shown.out and "| too long" not in shown.out


def test_a_cell_starts_with_embeddings_of_another_cell(grid, tmp_path, spawned):
    frozen = {"optimizer": "adamw", "embedding_learning_rate": 1e-12}
    grid["base"] = {**grid["base"], "optimizer": "adamw", "learning_rate": 0.01, "max_steps": 4}
    grid["base"]["model_overrides"]["tie_word_embeddings"] = False
    grid["grid"] = {"embeddings": {"trained": {}, "frozen": frozen, "taken": {**frozen, "embeddings_from": "trained"}}}
    grid["seeds"] = [0]
    assert start(grid, tmp_path) == 0
    assert spawned == ["trained, seed 0", "frozen, seed 0", "taken, seed 0"]
    models = {}
    for folder in (tmp_path / "out" / "runs").iterdir():
        models[folder.name.split("-")[0]] = open_model(str(folder / "seed-0"))[0]
    embeddings = {name: model.get_input_embeddings().weight for name, model in models.items()}
    torch.testing.assert_close(embeddings["taken"], embeddings["trained"], atol=1e-8, rtol=0)
    begun = embeddings["frozen"].std().item()
    assert begun == pytest.approx(0.02, rel=0.05) and (embeddings["trained"] - embeddings["frozen"]).std() > 0.003
    for name in ("lm_head.weight", "model.layers.0.self_attn.q_proj.weight"):
        one, other = (models[kind].get_parameter(name) for kind in ("taken", "trained"))
        assert not torch.allclose(one, other, atol=1e-3)


STUB = """
import json, os, pathlib, signal, sys, time
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder = pathlib.Path(arguments["--output_dir"])
mode = pathlib.Path(sys.argv[1]).read_text().strip()
folder.mkdir(parents=True, exist_ok=True)
if mode == "fails":
    print("progress\\rerror: the last line")
    sys.exit(2)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(folder / "started").write_text(os.environ["OMP_NUM_THREADS"])
while mode == "waits" and not stopped:
    time.sleep(0.02)
if stopped:
    (folder / "saved").touch()
    sys.exit(0)
ballast = bytearray(50_000_000)
(folder / "run_record.json").write_text(json.dumps({"results": {"loss": 1.5}}))
"""


@pytest.fixture
def stub(tmp_path):
    """Return a runner of a stub script, a function that makes its runs, and the reported lines."""
    (tmp_path / "script.py").write_text(STUB)

    def make(*modes: str) -> list[Run]:
        runs = []
        for number, mode in enumerate(modes):
            run = Run(Cell(f"{mode} {number}", {}), 7, tmp_path / f"cell-{number}" / "seed-7")
            run.folder.parent.mkdir(exist_ok=True)
            run.recipe.write_text(mode)
            runs.append(run)
        return runs

    lines: list[str] = []
    return Runner(tmp_path / "script.py", jobs=2, threads=3, report=lines.append), make, lines


def test_runs_in_processes(stub):
    runner, make, lines = stub
    runs = make("ends", "fails", "ends")
    runner(runs)
    assert [run.finished for run in runs] == [True, False, True]
    assert runner.failed == {"fails 1, seed 7": "error: the last line"}
    assert sorted(lines)[0] == "ends 0, seed 7: loss 1.5" and len(lines) == 3
    assert (runs[0].folder / "started").read_text() == "3"
    assert 50e6 < runs[0].facts()["peak_bytes"] < 64e9 and runs[0].facts()["tokens_per_second"] is None
    runner(runs[:1])
    assert len(lines) == 3


def test_a_signal_is_passed_on_and_no_run_starts(stub):
    runner, make, lines = stub
    runs = make("waits", "waits", "ends")

    def stop() -> None:
        while not all((run.folder / "started").exists() for run in runs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    runner(runs)
    thread.join()
    assert runner.stopped and not runner.failed and not lines
    assert all((run.folder / "saved").exists() for run in runs[:2]) and not runs[2].folder.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_of_a_killed_runner_is_awaited(stub):
    runner, make, lines = stub
    [run] = make("waits")
    with open(run.folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = threading.Thread(target=runner._spawn, args=(run, lock.fileno()), daemon=True)
        child.start()
        while not (run.folder / "started").exists():
            time.sleep(0.02)
    # Its runner is gone and the run continues; another runner must not start it again.
    run.recipe.write_text("ends")
    second = threading.Thread(target=runner._run, args=(run,), daemon=True)
    (run.folder / "started").unlink()
    second.start()
    time.sleep(0.3)
    assert not (run.folder / "started").exists()
    next(iter(runner._children)).terminate()
    child.join()
    second.join()
    assert (run.folder / "started").exists() and run.finished and lines == ["waits 0, seed 7: loss 1.5"]


def test_training_speed_ignores_interruptions(tmp_path):
    lines = [{"num_input_tokens_seen": 100 * n, "train_runtime": 0.5 * n + (60 if n > 3 else 0)} for n in range(1, 8)]
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "checkpoint_complete.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*lines, {"eval_loss": 1.0, "step": 7}]}))
    assert training_speed(tmp_path) == pytest.approx(200)
    assert training_speed(folder) is None


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, model in {
        "many": tiny.build("TfmDecoderForCausalLM", num_key_value_heads=4),
        "one": tiny.build("TfmDecoderForCausalLM", num_key_value_heads=1),
        "masked": tiny.build("TfmEncoderForMaskedLM"),
        "pairs": tiny.build("TfmEncoderForPreTraining"),
    }.items():
        model.save_pretrained(root / name)
        tiny.build_tokenizer().save_pretrained(root / name)
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return {path.stem: path for path in root.iterdir()}


def test_cache_size_and_generation_speed(models, monkeypatch):
    monkeypatch.setattr(measures, "_NEW_TOKENS", 4)
    clock = itertools.accumulate(itertools.count())  # differences of consecutive readings grow
    monkeypatch.setattr(measures.time, "perf_counter", lambda: next(clock))
    figures = measures.decoding({name: models[name] for name in ("many", "one")}, MeasureOptions([], context=20))
    # Keys and values of two layers, heads of 8, 4 bytes per number.
    assert {name: several["cache_bytes_per_token"] for name, several in figures.items()} == {
        "many": 2 * 2 * 4 * 8 * 4,
        "one": 2 * 2 * 1 * 8 * 4,
    }
    tokens, seconds = 8 * 4, 2  # without the first token, which belongs to the prompt
    assert all(several["written_tokens_per_second"] == tokens / seconds for several in figures.values())


def test_bits_per_byte_by_context_length(models):
    options = MeasureOptions([str(models["text"])], bytes=300, lengths=[8, 32, 4096])
    figures = measures.by_length(models["many"], options)
    assert list(figures) == ["length 8", "length 32"] and figures["length 8"] != figures["length 32"]
    assert sum(len(text) for _, text in measures._documents(options, 300)) == 300


@pytest.mark.parametrize("name", ["masked", "pairs"])
def test_pseudo_bits_of_any_masked_lm(models, name):
    figure = measures.pseudo(models[name], MeasureOptions([str(models["text"])], bytes=800))["pseudo_bits_per_byte"]
    assert 1 < figure < 40


def test_a_linear_probe(models, tmp_path):
    records = [{"text": text, "label": "river" if "river" in text else "well"} for text in TEXTS]
    paths = (tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    for path, several in zip(paths, (records[:24], records[24:])):
        path.write_text("".join(json.dumps(record) + "\n" for record in several))
    options = MeasureOptions([], probe=tuple(map(str, paths)))
    assert measures.probe(models["masked"], options)["probe_accuracy"] > 0.9  # one word decides
    for record in records[:24]:
        record["label"] = "well" if record["label"] == "river" else "river"
    paths[0].write_text("".join(json.dumps(record) + "\n" for record in records[:24]))
    assert measures.probe(models["masked"], options)["probe_accuracy"] < 0.1


def test_the_table():
    figures = {
        "first": {0: {"bits_per_byte": 2.0, "parameters": 10.0}, 1: {"bits_per_byte": 2.2, "parameters": 10.0}},
        "second": {0: {"bits_per_byte": 1.9, "parameters": 1200.0}, 1: {"bits_per_byte": 2.2, "parameters": 1200.0}},
        "third": {0: {"bits_per_byte": math.nan, "parameters": 10.0}},
    }
    assert report.choose_metric(figures, None) == "bits_per_byte"
    with pytest.raises(InputError, match="'loss' was not measured for every run; choose of bits_per_byte, parameters"):
        report.choose_metric(figures, "loss")
    assert report.table(figures, "bits_per_byte").splitlines() == [
        "| | bits per byte | against first | parameters |",
        "| --- | --- | --- | --- |",
        "| first | 2.100 ± 0.141 | – | 10 |",
        "| second | 2.050 ± 0.212 | -0.050 ± 0.071 | 1,200 |",
        "| third | nan | +nan | 10 |",
    ]
    assert report.table({"a|b": figures["third"]}, "bits_per_byte").splitlines()[2] == r"| a\|b | nan | 10 |"


@pytest.mark.parametrize(
    "text, right",
    [
        (None, "## E\n\nx\n"),
        ("# Log\n", "# Log\n\n## E\n\nx\n"),
        ("# Log\n\n## A\n", "# Log\n\n## E\n\nx\n\n## A\n"),
        ("## A\n", "## E\n\nx\n\n## A\n"),
        (f"# Log\n\n{report.INDEX}\n## A\n", f"# Log\n\n{report.INDEX}{report.index_row('E')}\n## E\n\nx\n\n## A\n"),
    ],
)
def test_an_entry_is_inserted_before_the_others_once(tmp_path, text, right):
    path = tmp_path / "LOG.md"
    if text is not None:
        path.write_text(text)
    for _ in range(2):
        report.put_into_log("## E\n\nx\n", path)
        assert path.read_text() == right


@pytest.mark.parametrize("path", sorted((TRAINING / "recipes/ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_valid(path):
    recipe, _ = parse_recipe([str(path)], ablate.AblationRecipe, None)
    cells = expand(*(read_mapping(getattr(recipe, name), name) for name in ("base", "grid", "override")))
    recipe_class, config_class, _ = ablate.SCRIPTS[recipe.script]
    check_cells(cells, recipe_class, config_class)
    probe = tuple(recipe.probe) or None
    measures.check_measures(recipe.measure, MeasureOptions([], lengths=recipe.lengths, probe=probe), recipe.script)
    assert recipe.output_dir == f"runs/ablations/{path.stem}" and len(cells) >= 3
    for file in (*cells[0].fields["data"], *cells[0].fields["validation_data"], *recipe.probe):
        assert (TRAINING.parent / file).is_file()


@pytest.mark.slow
def test_a_killed_grid_can_be_resumed(grid, tmp_path):
    """After SIGKILL to the grid's process its run ends by itself, and the same command uses it."""
    import subprocess

    grid["seeds"] = [0]
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [sys.executable, str(TRAINING / "ablate.py"), str(recipe), "--cores", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/runs/*/seed-0.log")):
        time.sleep(0.1)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs" in done.stdout
    assert sum(path.read_text().count("\nsteps      ") for path in tmp_path.glob("out/runs/*/seed-0.log")) == 2

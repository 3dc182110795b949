"""
Pretrain to a loss: the time to the final loss of a tuned opponent.

    python training/benchmarks/bench_time_to_loss.py TRAIN VALIDATION --kind causal
    python training/benchmarks/bench_time_to_loss.py TRAIN VALIDATION --kind masked --seeds 1
    python training/benchmarks/bench_time_to_loss.py TRAIN VALIDATION --kind causal --long
    python training/benchmarks/bench_time_to_loss.py TRAIN VALIDATION --kind causal --own_shape

Opponents are transformers' models of equal size with fused AdamW, on rows cut from the joined text. Their learning rate
is swept by factors of two until the best one is not at the edge, then their schedule; the best settings are run with
`--seeds` seeds. This project trains with its own recipe (Muon, packing, windows; for masked tokens also its masking
rates, and next tokens first), in the shape of a native family, or with --own_shape in one that no family has. It gets
fewer and fewer steps, until the mean over the seeds no longer reaches the opponent's. Both sides have the same
tokenizer, tokens per step and held-out rows, bf16 autocast (fp32 where the CPU has no bf16), no dropout, and gradients
clipped at 1. With --long both have twice the rows per step where that is better, opponents at √2 times the rate.

Seconds are steps times the median of steps that take turns, so that other load on the machine affects both alike, plus
the compiler's time where compiling pays. Our run is in a process that keeps freed memory, as in the scripts; the
opponent's is in one that does and one that does not, and `_same_memory` is the ratio to the former. Every run is stored
in `results/time_to_loss_runs.jsonl` and reused while its code and settings are the same, so the same command resumes a
stopped benchmark. Runs are compiled, which changes a loss by rounding only.
"""

import argparse
import hashlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hf_tfm
from hf_tfm.artifacts.record import public_command
from hf_tfm.core.limits import has_fast_bf16
from hf_tfm.core.statistics import to_bits_per_byte
from hf_tfm.cpu.attention import enable_blockwise_attention
from hf_tfm.cpu.compile import compile_blocks
from hf_tfm.data.batches import IGNORED
from hf_tfm.data.objectives import CausalFirst, Masked, RateSchedule, causal
from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.sources import read_documents
from hf_tfm.data.step_batches import LengthSchedule, StepBatches
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.data.tokens import TokenStore, boundary_ids
from hf_tfm.train.initialization import zero_init_output_projections
from hf_tfm.train.optim import build_optimizer
from hf_tfm.train.schedule import build_scheduler
from side_by_side import (
    ALL_RESULTS,
    MEMORY_KEPT,
    SHAPES,
    benchmark_parser,
    causal_configs,
    first_calls,
    in_two_processes,
    interleaved,
    masked_configs,
    spread,
    write_result,
)

import numpy as np
import torch
import torch._inductor.config
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer


HELD_OUT_TOKENS = 32768
RUNS = ALL_RESULTS / "time_to_loss_runs.jsonl"
PEERS = {"causal": ("llama", "gpt2"), "masked": ("modernbert",)}
STEPS = {"causal": 400, "masked": 600}
ROWS = {"causal": (8, 256), "masked": (32, 128)}
# This project's recipe, and the share of the opponent's steps to try it with first.
RECIPES = {
    "causal": {
        "lengths": "0:128,0.5:256",
        "window": 16,
        "config": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    },
    "masked": {"window": 3, "causal_first": 0.2, "lr": 0.015, "masking_rates": [0.4, 0.15]},
}
GUESSES = {"causal": 0.34, "masked": 0.33}
# At ten times the tokens a larger batch with a larger rate pays; the opponents get one, too.
LONG_RECIPES = {
    "causal": {**RECIPES["causal"], "rows": 16, "optimizer": "normuon", "lr": 0.014, "embedding_lr": 0.012},
}
# Switches that no native family has.
OWN_SHAPE = {"attention_gate": True, "value_residual": True}
LONG_GUESSES = {"causal": 0.59}
FIRST_RATES = {"causal": (5e-4, 1e-3, 2e-3), "masked": (5e-4, 1e-3, 2e-3)}


class Text:
    """Tokenizer, training tokens, and the held-out batches that every model is measured on."""

    def __init__(self, train: str, validation: str, kind: str, vocab_size: int, cache: Path):
        self.kind, (self.rows, self.length) = kind, ROWS[kind]
        folder = cache / f"tokenizer-{kind}-{vocab_size}"
        if not folder.exists():
            style = {"causal": "decoder", "masked": "encoder"}[kind]
            train_tokenizer(read_documents(train), vocab_size=vocab_size, style=style).save_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.frame = None if kind == "causal" else (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        reading = dict(wrap=kind == "causal", cache_dir=cache)
        self.store = TokenStore.build([train], self.tokenizer, **reading)
        held_out = TokenStore.build([validation], self.tokenizer, **reading)
        boundaries = boundary_ids(self.tokenizer)
        self.bytes_per_token = held_out.num_bytes / int((~np.isin(held_out.tokens, boundaries)).sum())
        count = HELD_OUT_TOKENS // self.length
        rows = self.joined_rows(held_out, np.linspace(0, self.row_count(held_out) - 1, count).astype(int))
        objective = causal_rows if kind == "causal" else Masked(self.tokenizer, 0.15, seed=1)
        inputs = objective({**rows, "rows": np.arange(count)})
        inputs["labels"] = inputs["labels"].masked_fill(torch.isin(inputs["labels"], torch.tensor(boundaries)), IGNORED)
        self.held_out = [
            {name: inputs[name][i : i + 16] for name in ("input_ids", "labels")} for i in range(0, count, 16)
        ]

    def digest(self) -> str:
        """Return a hash of the training and held-out tokens."""
        held_out = b"".join(batch["input_ids"].numpy().tobytes() for batch in self.held_out)
        return hashlib.sha256(held_out + np.asarray(self.store.tokens).tobytes()).hexdigest()[:12]

    def row_count(self, store: TokenStore) -> int:
        return len(store.tokens) // (self.length - 2 * (self.frame is not None))

    def joined_rows(self, store: TokenStore, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Return rows cut from the joined text as in example scripts, for an encoder between cls and sep."""
        width = self.length - 2 * (self.frame is not None)
        rows = np.stack([store.tokens[i * width : (i + 1) * width] for i in numbers]).astype(np.int64)
        if self.frame is not None:
            rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), self.frame))
        positions = np.broadcast_to(np.arange(self.length), rows.shape)
        return {"input_ids": rows, "position_ids": positions, "sequence_ids": np.ones_like(rows), "rows": numbers}

    def shuffled_rows(self, seed: int) -> Callable[[np.ndarray], dict]:
        """Return a function of row numbers that gives the training rows in a random order."""
        order = np.random.default_rng(seed).permutation(self.row_count(self.store))
        return lambda numbers: {**self.joined_rows(self.store, order[numbers % len(order)]), "rows": numbers}


class Contestant:
    """
    A model with its optimizer, schedule and batches; `step()` trains for a step.

    Attributes:
        phases: numbers of the steps at which the shape of the batches changes, and of the end.
    """

    def __init__(self, text: Text, name: str, shape: str, steps: int, seed: int, way: str = "eager", **settings):
        self.text, self.name, self.number = text, name, 0
        self.phases = [0, steps]
        kind, vocab = text.kind, len(text.tokenizer)
        configs = {"causal": causal_configs, "masked": masked_configs}[kind](SHAPES[shape], vocab, text.length)
        auto = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}[kind]
        torch.manual_seed(seed)
        config = configs[name].to_dict() | settings.pop("config", {})
        if "window" in settings:  # local attention in all layers but the last
            config["sliding_window"] = settings.pop("window")
            config["layer_types"] = ["sliding_attention"] * (config["num_hidden_layers"] - 1) + ["full_attention"]
        config = type(configs[name]).from_dict(config)
        self.model = auto.from_config(config).train()
        if kind == "causal":
            self.model.config.use_cache = False  # as transformers' Trainer has it
        (self._ours if name == "hf_tfm" else self._theirs)(steps, seed, way, **settings)

    def _ours(self, steps: int, seed: int, way: str, lengths: str = "", causal_first: float = 0.0, **settings) -> None:
        text, settings = self.text, {"schedule": "wsd", **settings}
        rows = settings.get("rows", text.rows)
        zero_init_output_projections(self.model)
        enable_blockwise_attention(self.model)
        if way == "compiled":
            compile_blocks(self.model)
        names = ("lr", "embedding_lr", "momentum")
        rates = {n: settings[n] for n in names if n in settings}
        self.optimizer = build_optimizer(self.model, settings.get("optimizer", "muon"), **rates)
        self.scheduler = build_scheduler(self.optimizer, settings["schedule"], steps)
        objective = causal
        if text.kind == "masked":
            rate = RateSchedule(settings.get("masking_rates", [0.3, 0.15]), rows * steps)
            objective = Masked(text.tokenizer, rate, seed=seed, compact=True)
            objective = CausalFirst(objective, rows * round(causal_first * steps))
            self.phases.append(round(causal_first * steps))
        pad = text.tokenizer.pad_token_id
        blocks = PackedBlocks(text.store, text.length, seed=seed, pad_token_id=pad, piece_ids=text.frame)
        schedule = None
        if lengths:
            phases = [(float(a), int(b)) for a, b in (part.split(":") for part in lengths.split(","))]
            schedule = LengthSchedule(phases, text.length)
            self.phases += [math.ceil(share * steps) for share, _ in phases]
        self.phases = sorted(set(self.phases))
        self.batches = StepBatches(blocks.rows, rows, steps, schedule=schedule, transform=objective)
        self.extra = {"skip_logits": True}

    def _theirs(
        self, steps: int, seed: int, way: str, schedule: str = "cosine", optimizer="adamw", rows: int = 0, **rate
    ) -> None:
        text = self.text
        if way == "compiled":
            self.model.compile()
        self.optimizer = build_optimizer(self.model, optimizer, **rate)
        self.scheduler = build_scheduler(self.optimizer, schedule, steps)
        objective = Masked(text.tokenizer, 0.15, seed=seed) if text.kind == "masked" else causal_rows
        self.batches = StepBatches(text.shuffled_rows(seed), rows or text.rows, steps, transform=objective)
        self.extra = {}

    def step(self) -> None:
        batch = self.batches[self.number % len(self.batches)]
        if self.name != "hf_tfm":
            batch = {name: batch[name] for name in ("input_ids", "labels")}
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            loss = self.model(**batch, **self.extra).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.number += 1

    @torch.no_grad()
    def measure(self) -> float:
        """Return held-out bits per byte, or nats per masked token."""
        self.model.eval()
        nats, count = 0.0, 0
        for batch in self.text.held_out:
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
                loss = self.model(**batch).loss
            labels = batch["labels"][:, 1:] if self.text.kind == "causal" else batch["labels"]
            predicted = int((labels != -100).sum())
            nats, count = nats + float(loss) * predicted, count + predicted
        self.model.train()
        if self.text.kind == "masked":
            return nats / count
        return to_bits_per_byte(nats / count, self.text.bytes_per_token)


def causal_rows(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.ascontiguousarray(batch["input_ids"]))
    return {"input_ids": ids, "labels": ids}


def code_hash(name: str) -> str:
    """Return a hash of the code that decides a run's final loss."""
    if name != "hf_tfm":
        return f"torch {torch.__version__}, transformers {transformers.__version__}"
    folder = Path(hf_tfm.__file__).parent
    files = [file for package in ("models", "cpu", "data", "train") for file in sorted((folder / package).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def build(
    names: list[str], args: argparse.Namespace, settings: dict[str, dict], steps: int
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Return a step of each model, eager and compiled, in each phase, and the number of such steps in a run."""
    torch._inductor.config.force_disable_caches = True  # or earlier runs would pay for compiling
    text = Text(args.train, args.validation, args.kind, args.vocab, args.cache)
    functions, counts = {}, {}
    for name, way in itertools.product(names, ("eager", "compiled")):
        contestant = Contestant(text, name, args.shape, steps, 0, way=way, **settings[name])
        for start, end in itertools.pairwise(contestant.phases):

            def step(contestant=contestant, start=start, end=end):
                if not start <= contestant.number < end:
                    contestant.number = start
                contestant.step()

            functions[f"{name} {way} from {start}"], counts[f"{name} {way} from {start}"] = step, end - start
    return functions, counts


class Bench:
    def __init__(self, text: Text, args: argparse.Namespace):
        self.text, self.args, self.digest = text, args, text.digest()
        RUNS.parent.mkdir(exist_ok=True)
        lines = RUNS.read_text().splitlines() if RUNS.exists() else []
        self.known = {json.dumps(run["key"], sort_keys=True): run for run in map(json.loads, lines)}

    def run(self, name: str, steps: int, seed: int, **settings) -> float:
        """Return the final loss of a run, from disk if it was made before."""
        same = {"kind": self.text.kind, "text": self.digest, "shape": self.args.shape, "vocab": self.args.vocab}
        if not has_fast_bf16():
            same["precision"] = "fp32"
        key = {**same, "model": name, "steps": steps, "seed": seed, "code": code_hash(name), **settings}
        found = self.known.get(json.dumps(key, sort_keys=True))
        if found is None:
            contestant = Contestant(self.text, name, self.args.shape, steps, seed, way="compiled", **settings)
            started = time.perf_counter()
            for _ in range(steps):
                contestant.step()
            seconds = round(time.perf_counter() - started, 1)
            found = {"key": key, "loss": contestant.measure(), "seconds": seconds, "threads": torch.get_num_threads()}
            with RUNS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.known[json.dumps(key, sort_keys=True)] = found
        shown = ", ".join(f"{k} {v}" for k, v in settings.items())
        print(
            f"  {name:10} {steps:5} steps  seed {seed}  {found['loss']:.4f}  {found['seconds']:.0f} s  {shown}",
            flush=True,
        )
        return found["loss"]

    def tuned_peer(self, name: str, steps: int) -> tuple[float, dict]:
        """Return an opponent's best loss with seed 0, and its settings; the best rate is inside the sweep."""
        rates = list(FIRST_RATES[self.text.kind])
        losses = {rate: self.run(name, steps, 0, lr=rate) for rate in rates}
        while (best := min(losses, key=losses.get)) in (min(losses), max(losses)):
            rate = best / 2 if best == min(losses) else best * 2
            losses[rate] = self.run(name, steps, 0, lr=rate)
        other = self.run(name, steps, 0, lr=best, schedule="wsd")
        settings = {"lr": best, "schedule": "wsd"} if other < losses[best] else {"lr": best}
        return min(other, losses[best]), settings

    def fewest_steps(self, goal: float, steps: int, seeds: int) -> tuple[int, float]:
        """Return the fewest steps, in steps of 8 %, whose mean loss over the seeds reaches the goal, and that mean."""
        recipe = self.args.recipe

        def reached(count: int) -> tuple[bool, float]:
            losses = []
            for seed in range(seeds):
                losses.append(self.run("hf_tfm", count, seed, **recipe))
                if seed == 0 and losses[0] > goal * 1.004:  # other seeds cannot make up for that
                    return False, losses[0]
            return statistics.mean(losses) <= goal, statistics.mean(losses)

        def count_at(notch: int) -> int:
            return max(1, round(steps * 1.08**-notch))

        notch = math.ceil(-math.log(self.args.guess) / math.log(1.08))
        done, loss = reached(count_at(notch))
        while not done:
            notch -= 1
            if count_at(notch) > 2 * steps:
                raise SystemExit(f"twice the opponent's {steps} steps do not reach its loss of {goal:.4f}")
            done, loss = reached(count_at(notch))
            if done:
                return count_at(notch), loss
        while done:
            best = count_at(notch), loss
            if best[0] == 1:
                break
            notch += 1
            done, loss = reached(count_at(notch))
        return best

    def compare(self) -> None:
        kind, args = self.text.kind, self.args
        steps = STEPS[kind] * (10 if args.long else 1)
        seeds = 1 if args.long else args.seeds
        peers = {name: self.tuned_peer(name, STEPS[kind]) for name in PEERS[kind]}
        name = min(peers, key=lambda n: peers[n][0])
        settings = peers[name][1]
        if args.long:  # more steps need a smaller rate
            losses = {
                r: self.run(name, steps, 0, **{**settings, "lr": r}) for r in (settings["lr"], settings["lr"] / 2)
            }
            while (best := min(losses, key=losses.get)) == min(losses):
                losses[best / 2] = self.run(name, steps, 0, **{**settings, "lr": best / 2})
            settings = {**settings, "lr": best}
            larger = {**settings, "rows": 2 * self.text.rows, "lr": float(f"{best * math.sqrt(2):.2g}")}
            if self.run(name, steps // 2, 0, **larger) < losses[best]:
                steps, settings = steps // 2, larger
        goals = [self.run(name, steps, seed, **settings) for seed in range(seeds)]
        goal = statistics.mean(goals)
        print(f"goal: {name} {goal:.4f}")
        ours, loss = self.fewest_steps(goal, steps, seeds)
        recipe = args.recipe
        with in_two_processes(build, [name], args, {"hf_tfm": recipe, name: settings}, ours) as (functions, counts):
            first = first_calls(functions)
            seconds = {step: spread(samples) for step, samples in interleaved(functions, args.repeats).items()}

        def wall(who: str, count: int, mark: str = "") -> tuple[float, str]:
            totals = []
            for way in ("eager", "compiled"):
                phases = [phase for phase in counts if phase.startswith(f"{who} {way} ")]
                total = sum(counts[phase] * seconds[phase + mark]["median"] for phase in phases) / ours * count
                totals.append((total + sum(first[phase + mark] for phase in phases) * (way == "compiled"), way))
            return min(totals)

        (theirs, their_way), (mine, my_way) = wall(name, steps), wall("hf_tfm", ours)
        kept, _ = wall(name, steps, MEMORY_KEPT)
        label = f"{kind}_time_to_loss" + "_long" * args.long + "_own_shape" * args.own_shape
        print(f"{name:10} {steps} steps, {their_way}: {theirs:.0f} s to {goal:.4f}")
        print(f"{'hf_tfm':10} {ours} steps, {my_way}: {mine:.0f} s to {loss:.4f}; {steps / ours:.2f} times fewer steps")
        ratios = {label: theirs / mine, f"{label}_same_memory": kept / mine}
        print(", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
        if not args.dry_run:
            write_result(
                label,
                ratios,
                public_command(["training/benchmarks/bench_time_to_loss.py", *sys.argv[1:]]),
                opponent={"model": name, "settings": settings, "others": {n: p[0] for n, p in peers.items()}},
                settings={
                    "shape": args.shape,
                    "vocab": args.vocab,
                    "tokens_per_step": settings.get("rows", self.text.rows) * self.text.length,
                    "seeds": seeds,
                    "recipe": recipe,
                    "train": Path(args.train).name,
                    "text_digest": self.digest,
                },
                steps={name: steps, "hf_tfm": ours},
                loss={name: goals, "hf_tfm": loss},
                wall_clock_seconds={name: theirs, name + MEMORY_KEPT: kept, "hf_tfm": mine},
                way={name: their_way, "hf_tfm": my_way},
                step_seconds=seconds,
                first_step_seconds=first,
            )


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, shape="xs", repeats=12)
    parser.add_argument("train", help="text to train on: a file, folder or glob")
    parser.add_argument("validation", help="held-out text")
    parser.add_argument("--kind", choices=("causal", "masked"), default="causal")
    parser.add_argument("--long", action="store_true", help="ten times the steps, one seed")
    parser.add_argument(
        "--own_shape", action="store_true", help="with attention gates and value residuals, which no native family has"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the final runs")
    parser.add_argument("--recipe", help="our settings as JSON: lr, embedding_lr, momentum, lengths, window, config, …")
    parser.add_argument("--guess", type=float, help="share of the opponent's steps to try first")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "hf_tfm" / "benchmarks")
    parser.add_argument("--only_run", metavar="JSON", help="make one run only: model, steps, seed and settings")
    args = parser.parse_args(argv)
    recipes, guesses = (LONG_RECIPES, LONG_GUESSES) if args.long else (RECIPES, GUESSES)
    args.recipe = dict(recipes.get(args.kind, RECIPES[args.kind]) if args.recipe is None else json.loads(args.recipe))
    if args.own_shape:
        args.recipe["config"] = {**args.recipe.get("config", {}), **OWN_SHAPE}
    args.guess = args.guess or guesses.get(args.kind, GUESSES[args.kind])
    torch.set_num_threads(args.threads)
    bench = Bench(Text(args.train, args.validation, args.kind, args.vocab, args.cache), args)
    if args.only_run:
        run = json.loads(args.only_run)
        bench.run(run.pop("model"), run.pop("steps"), run.pop("seed", 0), **run)
    else:
        bench.compare()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""
Runs an export beside the model it was made from, and writes down how the two compare.

An export is called done when what will run it (transformers, ONNX Runtime, llama.cpp) has read it again and gave the
source's outputs. What was measured stays in the folder: largest difference of the outputs, how many tokens of greedy
continuations are the same, size, speed of both.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..artifacts.compare import Weights, outputs_of
from ..artifacts.record import RECORD_FILE, read_record
from ..core.errors import InputError


# Beside `export.json`, which transformers writes for its own exports.
REPORT_FILE = "export_check.json"

Rows = list[list[int]]

# What models are compared on where the folder has a tokenizer; the longest first, to be timed.
TEXTS = (
    "The old house stood at the end of the lane, and nobody had lived in it for 37 years. Children said that they'd "
    "heard somebody singing there at night; their parents said it was the wind. One evening in autumn a girl",
    "Water boils at 100 degrees. Why does it boil sooner on a mountain? Because",
    "Once upon a time",
)
_ROW_LENGTHS = (48, 20, 5)
_NEW_TOKENS = 24


class Side(Protocol):
    """A model in the program that runs it."""

    runtime: str

    def outputs(self, rows: Rows) -> list[Weights]:
        """Logits (last states, where there is no head) of each row, without what padding added."""

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The likeliest tokens that follow, one after another; an end of text does not end it."""


class TorchSide:
    """A model in transformers. It computes rows one by one: what others are held to shall not depend on padding."""

    def __init__(self, model: PreTrainedModel, runtime: str | None = None):
        self.model = model.eval()
        self.runtime = runtime or f"transformers, {type(model).__name__}"

    def outputs(self, rows: Rows) -> list[Weights]:
        name, config = type(self.model).__name__, self.model.config
        return [as_rows(outputs_of(self.model, **batch_of([row], name, config)), [row])[0] for row in rows]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig()  # or its penalties and stop tokens would be filled in
        try:
            settings = GenerationConfig(max_new_tokens=count, do_sample=False)
            return self.model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        finally:
            self.model.generation_config = own


@dataclasses.dataclass(frozen=True)
class Check:
    """
    One export in one runtime beside its source in transformers.

    Args:
        max_difference: Largest difference between two outputs.
        relative_difference: Norm of all differences by the norm of all outputs.
        same_choice: Share of predictions whose likeliest token or label is the same; None where there is no head.
        greedy_tokens: New tokens asked for, over all prompts; None where the model does not generate.
        greedy_same: Of these, the ones before the first that differs from the source's.
        tokens_per_second: Of greedy continuation, else of one forward pass; batch size 1.
        threads: That each of the two could use.
    """

    runtime: str
    max_difference: float
    relative_difference: float
    same_choice: float | None
    greedy_tokens: int | None
    greedy_same: int | None
    tokens_per_second: float
    source_tokens_per_second: float
    threads: int


@dataclasses.dataclass(frozen=True)
class Report:
    """
    What stands in `export_check.json`: sizes are those of the weights' files, in bytes.

    Args:
        unreadable_before_5: Of a native family, why transformers before version 5 cannot build the model; empty where
            it can.
    """

    format: str
    weights: str
    source_class: str
    num_parameters: int
    source_bytes: int
    export_bytes: int
    checks: tuple[Check, ...]
    unreadable_before_5: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    def __str__(self) -> str:
        megabytes = f"{self.export_bytes / 1e6:,.1f} MB, source {self.source_bytes / 1e6:,.1f} MB"
        lines = [
            f"{self.format} ({self.weights}) of {self.source_class}, {self.num_parameters:,} parameters: {megabytes}"
        ]
        for check in self.checks:
            parts = [f"outputs within {check.max_difference:.1e} (relative {check.relative_difference:.1e})"]
            if check.same_choice is not None:
                parts.append(f"same first choice {check.same_choice:.1%}")
            if check.greedy_tokens is not None:
                parts.append(f"same greedy tokens {check.greedy_same} of {check.greedy_tokens}")
            speeds = f"{check.tokens_per_second:,.0f} tokens/s, source {check.source_tokens_per_second:,.0f}"
            lines.append(f"  {check.runtime}: {', '.join(parts)}; {speeds} ({check.threads} threads)")
        lines += [f"  transformers before 5 cannot build this model: {reason}" for reason in self.unreadable_before_5]
        return "\n".join(lines)


def compare(source: PreTrainedModel, export: Side, rows: Rows, relative: float | None = None) -> Check:
    """
    Runs both on the same rows.

    Args:
        relative: How large the norm of the differences may be, by that of the outputs: 0.1 for rounded weights, where a
            wrong tensor or position gives a multiple of that. By default only sums may round differently: no output by
            more than 1e-4 of the largest (of 1 where all are smaller).

    Raises:
        InputError: when they differ by more.
    """
    reference = TorchSide(source)
    expected, found = reference.outputs(rows), export.outputs(rows)
    if lost := expected[0].keys() - found[0].keys():
        raise InputError(f"{export.runtime} gives no {', '.join(lost)}: nothing was written; please report this")
    pairs = [(a[name].float(), b[name].float()) for a, b in zip(expected, found, strict=True) for name in a]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    size = max(1.0, *(a.abs().max().item() for a, _ in pairs))
    distance, norm = (
        sum(value.square().sum().item() for value in side) ** 0.5 for side in zip(*((a - b, a) for a, b in pairs))
    )
    ratio = distance / max(norm, 1e-12)
    if not (difference <= 1e-4 * size if relative is None else ratio <= relative):  # a NaN is a difference too
        raise InputError(
            f"{export.runtime} gives other outputs than {type(source).__name__}, by {difference:.1e} at most and "
            f"{ratio:.1e} of their norm: nothing was written; please report this model"
        )
    headless = "last_hidden_state" in expected[0]
    choices = [] if headless else [(a.argmax(-1) == b.argmax(-1)).float().flatten() for a, b in pairs]
    greedy_tokens = greedy_same = None
    if type(source).__name__.endswith("ForCausalLM"):
        count = min(_NEW_TOKENS, source.config.max_position_embeddings - max(map(len, rows)))
        continued = [(reference.greedy(row, count), export.greedy(row, count)) for row in rows]
        greedy_tokens, greedy_same = count * len(rows), sum(_same_beginning(*pair) for pair in continued)
        speeds = [_speed(partial(side.greedy, rows[0], count), count) for side in (reference, export)]
    else:
        speeds = [_speed(partial(side.outputs, rows[:1]), len(rows[0])) for side in (reference, export)]
    return Check(
        runtime=export.runtime,
        max_difference=difference,
        relative_difference=ratio,
        same_choice=torch.cat(choices).mean().item() if choices else None,
        greedy_tokens=greedy_tokens,
        greedy_same=greedy_same,
        tokens_per_second=round(speeds[1], 1),
        source_tokens_per_second=round(speeds[0], 1),
        threads=torch.get_num_threads(),
    )


def report_on(
    kind: str,
    weights: str,
    model: PreTrainedModel,
    source: str | os.PathLike,
    folder: Path,
    *checks: Check,
    unreadable_before_5: tuple[str, ...] = (),
) -> Report:
    """The report of an export of `model` from the folder `source` in `folder`, written there."""
    report = Report(
        format=kind,
        weights=weights.removeprefix("torch."),
        source_class=type(model).__name__,
        num_parameters=model.num_parameters(),
        source_bytes=size_of_weights(Path(source)),
        export_bytes=size_of_weights(folder),
        checks=checks,
        unreadable_before_5=unreadable_before_5,
    )
    report.save(folder)
    return report


def write_usage(folder: Path, title: str, source: Path, report: Report, code: str, library: str) -> None:
    """A card for an export whose outputs are not the source's to the last digit: how it is run, and how it compares."""
    from huggingface_hub import ModelCardData

    licence = read_record(source).get("license") if (source / RECORD_FILE).is_file() else None
    metadata = ModelCardData(license=licence, library_name=library, tags=["hf_tfm", report.format])
    (folder / "README.md").write_text(
        f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n## How to run it\n\n```python\n{code}```\n\n"
        f"## Beside its source\n\n```text\n{report}\n```\n",
        encoding="utf-8",
    )
    for file in source.iterdir():
        if file.is_file() and file.name.upper().startswith(("LICENSE", "NOTICE")):
            shutil.copyfile(file, folder / file.name)


def rows_for(config: PreTrainedConfig, folder: Path) -> Rows:
    """Tokens to compare on, the longest row first: of `TEXTS`, or random ones where `folder` has no tokenizer."""
    room = config.max_position_embeddings
    lengths = [max(2, min(length, room // 2)) for length in _ROW_LENGTHS]
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [ids[:length] for ids, length in zip(tokenizer(list(TEXTS))["input_ids"], lengths)]
        if all(max(row, default=config.vocab_size) < config.vocab_size for row in rows):
            return rows
    generator = torch.Generator().manual_seed(0)
    # Native classifiers look for the last token that is no padding.
    ordinary = [token for token in range(config.vocab_size) if token != config.pad_token_id]
    drawn = [torch.randint(len(ordinary), (length,), generator=generator) for length in lengths]
    return [[ordinary[place] for place in places] for places in drawn]


def batch_of(rows: Rows, class_name: str, config: PreTrainedConfig) -> Weights:
    """
    Rows as one batch, padded as their kind of model is (decoders on the left): `input_ids`, `attention_mask`, and
    `token_type_ids` where the model has segments, (batch, length) or (batch, 2, length) for multiple choice.
    """
    options = [(row, row[::-1]) if "MultipleChoice" in class_name else (row,) for row in rows]
    length, pad = max(map(len, rows)), config.pad_token_id or 0
    left = "CausalLM" in class_name or "Decoder" in class_name

    def padded(fill: int, values: Callable[[list[int]], list[int]]) -> torch.Tensor:
        def one(row: list[int]) -> list[int]:
            rest = [fill] * (length - len(row))
            return rest + values(row) if left else values(row) + rest

        batch = torch.tensor([[one(option) for option in several] for several in options])
        return batch if "MultipleChoice" in class_name else batch[:, 0]

    inputs = {"input_ids": padded(pad, list), "attention_mask": padded(0, lambda row: [1] * len(row))}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = padded(0, lambda row: [int(2 * i >= len(row)) for i in range(len(row))])
        if config.type_vocab_size == 1:
            inputs["token_type_ids"].zero_()
    return inputs


def as_rows(outputs: Weights, rows: Rows, left: bool = False) -> list[Weights]:
    """The outputs of a batch row by row, without those at padding."""
    length, found = max(map(len, rows)), []
    for i, row in enumerate(rows):
        inside = slice(length - len(row), None) if left else slice(len(row))
        by_token = {
            name for name, value in outputs.items() if value.ndim == 3 or name in ("start_logits", "end_logits")
        }
        found.append({name: value[i, inside] if name in by_token else value[i] for name, value in outputs.items()})
    return found


def size_of_weights(folder: Path) -> int:
    """Bytes of the files in a folder that hold weights."""
    kinds = {".safetensors", ".bin", ".gguf", ".onnx", ".data"}
    files = [file for file in folder.iterdir() if file.suffix in kinds and file.name != "training_args.bin"]
    return sum(file.stat().st_size for file in files)


def _same_beginning(first: list[int], second: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _speed(run: Callable[[], Any], tokens: int) -> float:
    """Tokens per second, the best of three after one that warms up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds[1:])

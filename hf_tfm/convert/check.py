"""
Checks an export against its source and reports how the two compare.

An export is complete when its runtime (transformers, ONNX Runtime, llama.cpp) has read it and reproduced the source's
outputs. The report in the folder has the largest difference of outputs, the number of equal greedy tokens, sizes and
speeds.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..artifacts.compare import Weights, outputs_of
from ..artifacts.record import RECORD_FILE, read_record
from ..core.errors import InputError


# Not `export.json`, which transformers writes for its own exports.
REPORT_FILE = "export_check.json"

Rows = list[list[int]]

# Texts for the comparison if the folder has a tokenizer. The first and longest is also timed.
TEXTS = (
    "The old house stood at the end of the lane, and nobody had lived in it for 37 years. Children said that they'd "
    "heard somebody singing there at night; their parents said it was the wind. One evening in autumn a girl",
    "Water boils at 100 degrees. Why does it boil sooner on a mountain? Because",
    "Once upon a time",
)
_CARD = """\
---
{{ card_data }}
---

# {{ title }}

## How to run it

```python
{{ code }}
```

## Comparison with its source

```text
{{ report }}
```
"""
_ROW_LENGTHS = (48, 20, 5)
_NEW_TOKENS = 24


class Runner(Protocol):
    """A model in its runtime."""

    runtime: str

    def outputs(self, rows: Rows) -> list[Weights]:
        """Return the logits (hidden states without a head) of each row, without those of padding."""

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Return `count` tokens of greedy decoding, which end-of-text tokens do not stop."""


class TorchRunner:
    """A model in transformers, which runs rows one by one, so that the reference does not depend on padding."""

    def __init__(self, model: PreTrainedModel, runtime: str | None = None):
        self.model = model.eval()
        self.runtime = runtime or f"transformers, {type(model).__name__}"

    def outputs(self, rows: Rows) -> list[Weights]:
        name, config = type(self.model).__name__, self.model.config
        return [split_by_row(outputs_of(self.model, **pad_rows([row], name, config)), [row])[0] for row in rows]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        generation_config = self.model.generation_config
        self.model.generation_config = GenerationConfig()  # without penalties and stop tokens
        try:
            settings = GenerationConfig(max_new_tokens=count, do_sample=False)
            return self.model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        finally:
            self.model.generation_config = generation_config


@dataclasses.dataclass(frozen=True)
class Check:
    """
    Comparison of an export in one runtime with its source in transformers.

    Attributes:
        max_difference: largest difference between two outputs.
        relative_difference: norm of all differences divided by the norm of all outputs.
        same_choice: share of predictions with the same most likely token or label; None without a head.
        greedy_tokens: number of generated tokens over all prompts; None if the model does not generate.
        greedy_same: number of these before the first that differs from the source's.
        tokens_per_second: speed of greedy decoding, else of one forward pass, at batch size 1.
        threads: number of threads of each runtime.
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
    Content of `export_check.json`. Sizes are those of the files of weights, in bytes.

    Attributes:
        unreadable_before_5: reasons why transformers before version 5 cannot build a native model; empty if it can.
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
        """Write the report into a folder."""
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


def check_export(source: PreTrainedModel, export: Runner, rows: Rows, relative: float | None = None) -> Check:
    """
    Run source and export on the same rows and compare them.

    Args:
        relative: limit of the norm of differences relative to that of the outputs: 0.1 for rounded weights, a small
            part of what a wrong tensor or position causes. By default no output may differ by
            more than 1e-4 of the largest output (of 1 if all are smaller).

    Raises:
        InputError: the difference exceeds the limit.
    """
    reference = TorchRunner(source)
    expected, actual = reference.outputs(rows), export.outputs(rows)
    if missing := expected[0].keys() - actual[0].keys():
        raise InputError(f"{export.runtime} gives no {', '.join(missing)}: nothing was written; please report this")
    pairs = [(a[name].float(), b[name].float()) for a, b in zip(expected, actual, strict=True) for name in a]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    size = max(1.0, *(a.abs().max().item() for a, _ in pairs))
    distance = sum((a - b).square().sum().item() for a, b in pairs) ** 0.5
    ratio = distance / max(sum(a.square().sum().item() for a, _ in pairs) ** 0.5, 1e-12)
    if not (difference <= 1e-4 * size if relative is None else ratio <= relative):  # false for NaN too
        raise InputError(
            f"{export.runtime} gives other outputs than {type(source).__name__}, by {difference:.1e} at most and "
            f"{ratio:.1e} of their norm: nothing was written; please report this model"
        )
    has_head = "last_hidden_state" not in expected[0]
    choices = [(a.argmax(-1) == b.argmax(-1)).float().flatten() for a, b in pairs] if has_head else []
    greedy_tokens = greedy_same = None
    if type(source).__name__.endswith("ForCausalLM"):
        count = min(_NEW_TOKENS, source.config.max_position_embeddings - max(map(len, rows)))
        texts = [(reference.greedy(row, count), export.greedy(row, count)) for row in rows]
        greedy_tokens, greedy_same = count * len(rows), sum(_common_prefix(*pair) for pair in texts)
        speeds = [_speed(partial(runner.greedy, rows[0], count), count) for runner in (reference, export)]
    else:
        speeds = [_speed(partial(runner.outputs, rows[:1]), len(rows[0])) for runner in (reference, export)]
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


def write_report(
    kind: str,
    weights: str,
    model: PreTrainedModel,
    source: str | os.PathLike,
    folder: Path,
    *checks: Check,
    unreadable_before_5: tuple[str, ...] = (),
) -> Report:
    """Write and return the report of an export of `model` from the folder `source` to `folder`."""
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


def write_export_card(folder: Path, title: str, source: Path, report: Report, code: str, library: str) -> None:
    """Write a card for an export with other outputs than the source's: code to run it, and the comparison."""
    licence = read_record(source).get("license") if (source / RECORD_FILE).is_file() else None
    metadata = ModelCardData(license=licence, library_name=library, tags=["hf_tfm", report.format])
    card = ModelCard.from_template(metadata, template_str=_CARD, title=title, code=code.strip(), report=report)
    card.save(folder / "README.md")
    for file in source.iterdir():
        if file.is_file() and file.name.upper().startswith(("LICENSE", "NOTICE")):
            shutil.copyfile(file, folder / file.name)


def comparison_rows(config: PreTrainedConfig, folder: Path) -> Rows:
    """Return rows of tokens, the longest first: those of `TEXTS`, or random ones if `folder` has no tokenizer."""
    context = config.max_position_embeddings
    lengths = [max(2, min(length, context // 2)) for length in _ROW_LENGTHS]
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [ids[:length] for ids, length in zip(tokenizer(list(TEXTS))["input_ids"], lengths)]
        if all(max(row, default=config.vocab_size) < config.vocab_size for row in rows):
            return rows
    generator = torch.Generator().manual_seed(0)
    # Native classifiers read the last token that is not padding.
    ordinary = [token for token in range(config.vocab_size) if token != config.pad_token_id]
    drawn = [torch.randint(len(ordinary), (length,), generator=generator) for length in lengths]
    return [[ordinary[index] for index in indices] for indices in drawn]


def pad_rows(rows: Rows, class_name: str, config: PreTrainedConfig) -> Weights:
    """
    Return rows as one padded batch, padded on the left for decoders.

    It contains `input_ids`, `attention_mask` and, if the model has segments, `token_type_ids`: `(batch, length)`, for
    multiple choice `(batch, 2, length)`.
    """
    options = [(row, row[::-1]) if "MultipleChoice" in class_name else (row,) for row in rows]
    length, pad = max(map(len, rows)), config.pad_token_id or 0
    left = "CausalLM" in class_name or "Decoder" in class_name

    def padded(fill: int, values: Callable[[list[int]], list[int]]) -> torch.Tensor:
        def pad_row(row: list[int]) -> list[int]:
            padding = [fill] * (length - len(row))
            return padding + values(row) if left else values(row) + padding

        batch = torch.tensor([[pad_row(option) for option in row_options] for row_options in options])
        return batch if "MultipleChoice" in class_name else batch[:, 0]

    inputs = {"input_ids": padded(pad, list), "attention_mask": padded(0, lambda row: [1] * len(row))}
    if getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = padded(0, lambda row: [int(2 * i >= len(row)) for i in range(len(row))])
        if config.type_vocab_size == 1:
            inputs["token_type_ids"].zero_()
    return inputs


def split_by_row(outputs: Weights, rows: Rows, left: bool = False) -> list[Weights]:
    """Return the outputs of a padded batch row by row, without those of padding."""
    length, outputs_by_row = max(map(len, rows)), []
    for i, row in enumerate(rows):
        inside = slice(length - len(row), None) if left else slice(len(row))
        by_token = {
            name for name, value in outputs.items() if value.ndim == 3 or name in ("start_logits", "end_logits")
        }
        outputs_by_row.append(
            {name: value[i, inside] if name in by_token else value[i] for name, value in outputs.items()}
        )
    return outputs_by_row


def size_of_weights(folder: Path) -> int:
    """Return the bytes of the files of weights in a folder."""
    kinds = {".safetensors", ".bin", ".gguf", ".onnx", ".data"}
    files = [file for file in folder.iterdir() if file.suffix in kinds and file.name != "training_args.bin"]
    return sum(file.stat().st_size for file in files)


def require_packages(to: str, *names: str) -> None:
    """Raise `InputError` if a package that an export format needs is not installed."""
    for name in names:
        if not importlib.util.find_spec(name):
            raise InputError(f"--to {to} needs the package {name}: pip install 'hf-tfm[export]'")


def _common_prefix(first: list[int], second: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _speed(run: Callable[[], Any], tokens: int) -> float:
    """Return tokens per second, the best of three runs after a warm-up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds[1:])

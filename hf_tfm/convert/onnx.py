"""
Exports any model of this package as ONNX with transformers' exporter, for ONNX Runtime and programs based on it.

The graph has dynamic batch size and length and takes the padding mask. That of a causal LM takes a cache of keys and
values (of length 0 at first) and returns the extended one, so that one graph reads the prompt and generates.
"""

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..artifacts.compare import Weights, outputs_of
from ..core.atomic_files import atomic_directory, require_empty
from ..core.errors import InputError, explain
from ..core.quiet import quiet
from ..models.modeling_tfm_compat import CACHE_NAME
from .check import (
    Report,
    Rows,
    check_export,
    comparison_rows,
    pad_rows,
    require_packages,
    split_by_row,
    write_export_card,
    write_report,
)
from .native import copy_other_files, load_tfm


_USAGE = """\
from transformers import AutoTokenizer
from transformers.exporters import ExportedModel

tokenizer = AutoTokenizer.from_pretrained(".")
model = ExportedModel.from_pretrained(".", trust_remote_code=True)  # the configuration class is remote code
inputs = tokenizer(["A text.", "And a longer one."], padding=True, return_tensors="pt"{segments})
print(model(**inputs){output})
"""
_USAGE_OF_CAUSAL_LM = """\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
tokens = tokenizer("Once upon a time")["input_ids"]
inputs, outputs = session.get_inputs(), session.get_outputs()
caches = [each.name for each in inputs if each.name.endswith((".keys", ".values"))]
grown = [each.name for each in outputs if each.name.endswith((".keys", ".values"))]  # in the same order
cache, new = {{name: np.zeros((1, {heads}, 0, {head_dim}), np.float32) for name in caches}}, tokens
for _ in range(40):
    mask = np.ones((1, len(tokens)), np.int64)
    feed = {{"input_ids": np.array([new]), "attention_mask": mask{segments}, **cache}}
    logits, *states = session.run(["logits", *grown], feed)
    new, cache = [int(logits[0, -1].argmax())], dict(zip(caches, states))
    tokens += new
print(tokenizer.decode(tokens))
"""


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Return the kinds of rotary positions of all layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [fields for fields in parameters.values() if isinstance(fields, dict)] or [parameters]
    return {fields.get("rope_type", "default") for fields in by_layer}


def export_onnx(source: str | os.PathLike, target: str | os.PathLike) -> Report:
    """
    Write a folder with `model.onnx`, its weights in 32 bits, configuration, tokenizer, card and report.

    ONNX Runtime reads it again and must reproduce the source's outputs for a padded batch of sizes unlike the traced.

    Raises:
        InputError: a package is missing, the model cannot be traced, or outputs differ; nothing is written.
    """
    require_packages("onnx", "onnx", "onnxscript", "onnxruntime")
    if not importlib.util.find_spec("transformers.exporters"):
        raise InputError("--to onnx needs the exporter of transformers 5.23 or newer: pip install -U transformers")
    require_empty(target)
    source = Path(source)
    model = load_tfm(source).float().eval()
    if getattr(model.config, "add_cross_attention", False):
        raise InputError(
            "add_cross_attention=True: the ONNX export supports decoders and encoders, not both in one model"
        )
    if types := _rope_types(model.config) & {"dynamic", "longrope"}:
        raise InputError(
            f"rope_type {min(types)}: its frequencies depend on the length of the text, and an ONNX model has those of "
            "one length; export to another format, or give the model another rope_type (linear, yarn)"
        )
    with atomic_directory(target) as folder:
        with _quiet(), explain(f"{source}: transformers' ONNX exporter"):
            from transformers.exporters import OnnxConfig, OnnxExporter

            exported = OnnxExporter().export(model, _example(model), OnnxConfig(dynamic=True))
        exported.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        copy_other_files(source, folder)
        runner = OnnxRunner(folder, type(model).__name__, model.config)
        report = write_report(
            "onnx", "float32", model, source, folder, check_export(model, runner, comparison_rows(model.config, source))
        )
        write_export_card(folder, Path(target).name, source, report, _usage(model), "onnxruntime")
    return report


class OnnxRunner:
    """An exported folder in ONNX Runtime, which runs all rows in one padded batch."""

    def __init__(self, folder: Path, class_name: str, config: PreTrainedConfig):
        import onnxruntime
        from transformers.exporters import ExportedModel

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.exported = ExportedModel.from_pretrained(folder, session_options=options)
        self.class_name, self.config = class_name, config
        self.has_cache = class_name.endswith("ForCausalLM")
        self.runtime = f"onnxruntime {onnxruntime.__version__}"

    def outputs(self, rows: Rows) -> list[Weights]:
        inputs = pad_rows(rows, self.class_name, self.config)
        if self.has_cache:
            inputs[CACHE_NAME] = empty_cache(self.config, len(rows))
        return split_by_row(outputs_of(self.exported, **inputs), rows, left="Decoder" in self.class_name)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens, new, cache = list(prompt), list(prompt), empty_cache(self.config, 1)
        for _ in range(count):
            inputs = pad_rows([tokens], self.class_name, self.config)
            inputs |= {name: value[:, -len(new) :] for name, value in inputs.items() if name != "attention_mask"}
            outputs = self.exported(**inputs, **{CACHE_NAME: cache})
            new, cache = [outputs.logits[0, -1].argmax().item()], outputs[CACHE_NAME]
            tokens += new
        return tokens[len(prompt) :]


def empty_cache(config: PreTrainedConfig, batch: int, length: int = 0) -> DynamicCache:
    """
    Return a cache of zeros, `(batch, key-value heads, length, head width)` in each layer.

    Layers with a window cache all tokens too, and the mask hides those beyond it. Shorter caches would need further
    inputs and outputs of the graph.
    """
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        zeros = torch.zeros(batch, config.num_key_value_heads, length, config.head_dim)
        cache.update(zeros, zeros.clone(), layer)
    return cache


def _example(model: PreTrainedModel) -> dict[str, Any]:
    """Return inputs to trace with; the exporter keeps sizes dynamic that differ from each other and from 1."""
    rows = [[1, 2, 3, 4, 5], [6, 7, 8]]
    inputs: dict[str, Any] = pad_rows(rows, type(model).__name__, model.config)
    if not type(model).__name__.endswith("ForCausalLM"):
        return inputs
    past = torch.ones(len(rows), 7, dtype=torch.long)
    cache = empty_cache(model.config, len(rows), past.shape[1])
    mask = torch.cat([past, inputs["attention_mask"]], dim=1)
    return {**inputs, "attention_mask": mask, CACHE_NAME: cache, "use_cache": True}


def _usage(model: PreTrainedModel) -> str:
    config, name = model.config, type(model).__name__
    if name.endswith("ForCausalLM"):
        segments = ', "token_type_ids": np.zeros((1, len(new)), np.int64)' if config.type_vocab_size else ""
        shape = dict(heads=config.num_key_value_heads, head_dim=config.head_dim)
        return _USAGE_OF_CAUSAL_LM.format(segments=segments, **shape)
    segments = ", return_token_type_ids=True" if config.type_vocab_size else ""
    return _USAGE.format(segments=segments, output=".last_hidden_state" if name.endswith("Model") else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress and its remarks on versions and on operators that the model does not have."""
    logger = logging.getLogger("torch")
    level = logger.level
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

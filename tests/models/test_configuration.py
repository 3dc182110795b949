"""Presets build models and survive saving; a mistake is a one-line error that names its fields."""

import json
import re

import pytest
import torch
from tiny import DECODER_SHAPES, ENCODER_SHAPES, decoder_config, encoder_config
from transformers import AutoConfig, AutoModel, BertConfig, GPT2Config, LlamaConfig, ModernBertConfig, Qwen3Config

from hf_tfm import SIZES, TfmConfig, TfmDecoderConfig, TfmEncoderConfig


pytestmark = pytest.mark.quick


FAMILIES = [TfmDecoderConfig, TfmEncoderConfig]
EVERY_PRESET = [
    (config_class, name, size)
    for config_class in FAMILIES
    for name, size in [
        *[(name, None) for name in [*SIZES, *config_class.lookalikes]],
        *[(name, size) for name in config_class.lookalikes for size in SIZES],
    ]
]


@pytest.mark.parametrize("config_class, name, size", EVERY_PRESET)
def test_every_preset_builds_a_model(config_class, name, size):
    config = config_class.preset(name, size=size)
    if size is not None:
        assert {field: getattr(config, field) for field in SIZES[size]} == SIZES[size]
    config.num_hidden_layers = 2  # more layers take longer and show no more
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert len(model.layers) == 2
    assert model.embed_tokens.weight.shape == (config.vocab_size, config.hidden_size)


@pytest.mark.parametrize(
    "config_class, name, native, other_names",
    [
        (TfmDecoderConfig, "gpt2", GPT2Config(), dict(hidden_size="n_embd", num_hidden_layers="n_layer")),
        (TfmEncoderConfig, "bert", BertConfig(), dict(norm_eps="layer_norm_eps")),
        (TfmEncoderConfig, "modernbert", ModernBertConfig(), dict(norm_eps="norm_eps", layer_types="layer_types")),
    ],
)
def test_lookalikes_have_the_published_sizes(config_class, name, native, other_names):
    config = config_class.preset(name)
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    for field in {*fields, *other_names}:
        assert getattr(config, field) == getattr(native, other_names.get(field, field)), field


def test_default_shapes_are_those_they_export_to():
    qwen3, decoder = Qwen3Config(), TfmDecoderConfig()
    assert (decoder.hidden_act, decoder.attention_bias, decoder.norm_eps) == (
        qwen3.hidden_act,
        qwen3.attention_bias,
        qwen3.rms_norm_eps,
    )
    assert decoder.qk_norm and decoder.gated_mlp and decoder.norm_type == "rmsnorm"
    assert not LlamaConfig().mlp_bias and not decoder.mlp_bias
    modernbert, encoder = ModernBertConfig(), TfmEncoderConfig()
    assert (encoder.norm_eps, encoder.norm_bias, encoder.decoder_bias) == (
        modernbert.norm_eps,
        modernbert.norm_bias,
        modernbert.decoder_bias,
    )


@pytest.mark.parametrize("config_class", FAMILIES)
def test_presets_do_not_share_state(config_class):
    for name, switches in config_class.lookalikes.items():
        unchanged = json.dumps(switches)
        config = config_class.preset(name)
        if config.rope_parameters:
            config.rope_parameters["rope_theta"] = 1.0
        config.layer_types.append("full_attention")
        assert json.dumps(switches) == unchanged, name


@pytest.mark.parametrize(
    "config",
    [
        *[decoder_config(shape) for shape in DECODER_SHAPES],
        *[encoder_config(shape) for shape in ENCODER_SHAPES],
        decoder_config(num_labels=3, eos_token_id=[2, 3], dtype="bfloat16", is_decoder=True, add_cross_attention=True),
        encoder_config(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, problem_type="regression"),
        decoder_config(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}),
        *[config_class.preset(name) for config_class, name, size in EVERY_PRESET if size is None],
    ],
    ids=lambda config: config.model_type,
)
def test_save_and_load_are_inverse(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    # A second generation may not drift.
    loaded.save_pretrained(tmp_path / "again")
    names = ("config.json", "configuration_tfm.py")
    assert all((tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_auto_map_names_the_files_of_the_folder():
    """Entries from the Hub name a repository; a saved copy would load code from there."""
    for config_class in FAMILIES:
        expected = config_class().auto_map
        from_hub = {auto: f"someone/model--{reference}" for auto, reference in expected.items()}
        assert config_class(auto_map=from_hub).auto_map == expected


def test_derived_widths():
    config = TfmDecoderConfig(hidden_size=512, num_attention_heads=8)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (64, 8, 1408)
    assert TfmDecoderConfig(hidden_size=512, gated_mlp=False).intermediate_size == 2048
    assert TfmDecoderConfig(sliding_window=8, num_hidden_layers=2).layer_types == ["sliding_attention"] * 2
    assert TfmDecoderConfig(rope_theta=5e5).rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
    assert TfmDecoderConfig(position_embedding_type="learned").rope_parameters is None


def documented(config_class) -> dict[str, str]:
    """Fields of a configuration's docstring, with the text of their types and defaults."""
    return dict(re.findall(r"^        (\w+) \((`.*?)\):", config_class.__doc__, re.MULTILINE))


@pytest.mark.parametrize("config_class, other", [(TfmDecoderConfig, "decoder"), (TfmEncoderConfig, "encoder")])
def test_the_docstrings_list_every_field_with_its_default(config_class, other):
    shared, special = documented(TfmConfig), documented(config_class)
    own_fields = {field for each in (TfmConfig, config_class) for field in vars(each).get("__annotations__", {})}
    assert shared.keys() | special.keys() == own_fields - {"lookalikes"}
    for field, text in {**shared, **special}.items():
        default = getattr(config_class, field)
        if default is None:
            assert text.endswith("*optional*"), field
        else:
            written = re.search(rf"{other} `?([^`,]+)", text) or re.search(r"defaults to `?([^`,]+)", text)
            assert eval(written[1]) == default, field


MISTAKES = {
    "heads that do not divide": (dict(hidden_size=30), ["hidden_size", "30", "num_attention_heads", "head_dim"]),
    "key/value heads": (dict(num_key_value_heads=3), ["num_attention_heads", "num_key_value_heads", "3"]),
    "more key/value heads": (dict(num_key_value_heads=16), ["num_attention_heads", "num_key_value_heads", "16"]),
    "activation": (dict(hidden_act="swish2"), ["hidden_act", "swish2", "silu"]),
    "norm type": (dict(norm_type="batchnorm"), ["norm_type", "batchnorm", "rmsnorm"]),
    "rmsnorm with bias": (dict(norm_type="rmsnorm", norm_bias=True), ["norm_bias", "norm_type"]),
    "no epsilon": (dict(norm_eps=0.0), ["norm_eps"]),
    "odd head": (dict(position_embedding_type="rope", head_dim=7), ["position_embedding_type", "head_dim", "7"]),
    "odd width": (
        dict(position_embedding_type="sinusoidal", hidden_size=33, head_dim=8),
        ["position_embedding_type", "hidden_size", "33"],
    ),
    "rope type": (dict(rope_parameters={"rope_type": "spiral"}), ["rope_type", "spiral", "yarn"]),
    "rope factor": (dict(rope_parameters={"rope_type": "linear"}), ["rope_parameters", "linear", "factor"]),
    "rope for some layers": (
        dict(
            layer_types=["full_attention", "sliding_attention"] * 4,
            sliding_window=4,
            rope_parameters={"full_attention": {"rope_theta": 1e4}},
        ),
        ["rope_parameters", "sliding_attention", "layer_types"],
    ),
    "layers without window": (dict(layer_types=["sliding_attention"] * 8), ["sliding_window", "layer_types"]),
    "empty window": (dict(sliding_window=0), ["sliding_window", "0"]),
    "too few layer types": (dict(layer_types=["full_attention"] * 7), ["num_hidden_layers", "8", "layer_types", "7"]),
    "unknown layer type": (dict(layer_types=["chunked_attention"] * 8), ["layer_types", "chunked_attention"]),
    "dropout above": (dict(hidden_dropout=1.0), ["hidden_dropout", "1.0"]),
    "dropout below": (dict(attention_dropout=-0.1), ["attention_dropout", "-0.1"]),
    "padding token": (dict(pad_token_id=8192), ["pad_token_id", "8192", "vocab_size"]),
    "one of the end tokens": (dict(eos_token_id=[1, 9000]), ["eos_token_id", "9000", "vocab_size"]),
    "segments": (dict(type_vocab_size=-1), ["type_vocab_size", "-1"]),
    "type of a field": (dict(hidden_size="wide"), ["hidden_size", "int", "wide"]),
    "problem type": (dict(problem_type="regresion"), ["problem_type", "regresion", "regression"]),
    "problem type for one label": (
        dict(problem_type="single_label_classification", num_labels=1),
        ["problem_type", "num_labels"],
    ),
    **{
        f"zero {field}": ({field: 0}, [field, "0"])
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
    },
}


@pytest.mark.parametrize("config_class", FAMILIES)
@pytest.mark.parametrize("fields, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_names_its_fields(config_class, fields, words):
    with pytest.raises(ValueError) as error:
        config_class(**fields)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "config_class, fields, words",
    [
        (TfmDecoderConfig, dict(final_logit_softcapping=0.0), ["final_logit_softcapping"]),
        (TfmDecoderConfig, dict(sliding_window=1), ["sliding_window", "at least 2"]),
        (TfmEncoderConfig, dict(head_act="swish2"), ["head_act", "swish2", "gelu"]),
        (TfmEncoderConfig, dict(classifier_pooling="max"), ["classifier_pooling", "max", "mean"]),
        (TfmEncoderConfig, dict(mask_token_id=-1), ["mask_token_id", "-1"]),
    ],
)
def test_mistakes_of_one_family(config_class, fields, words):
    with pytest.raises(ValueError) as error:
        config_class(**fields)
    assert [word for word in words if word not in str(error.value)] == [] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, fields, words",
    [
        (("gpt3",), {}, ["gpt3", "gpt2", "nano"]),
        (("gpt2", "huge"), {}, ["huge", "nano", "large"]),
        (("nano", "tiny"), {}, ["nano", "tiny"]),
        (("nano",), dict(hiden_size=64), ["hiden_size", "hidden_size"]),
    ],
)
def test_mistakes_in_a_preset(arguments, fields, words):
    with pytest.raises(ValueError) as error:
        TfmDecoderConfig.preset(*arguments, **fields)
    assert [word for word in words if word not in str(error.value)] == [] and "\n" not in str(error.value)


def test_a_preset_accepts_arguments_of_transformers():
    config = TfmEncoderConfig.preset(
        "nano", num_labels=5, rope_theta=3e4, output_hidden_states=True, dtype="bfloat16", attn_implementation="eager"
    )
    assert config.num_labels == 5 and config.rope_parameters["rope_theta"] == 3e4
    assert config.output_hidden_states and config.dtype == torch.bfloat16 and config._attn_implementation == "eager"


def test_later_mistakes_are_reported_at_saving(tmp_path):
    config = TfmDecoderConfig()
    config.num_attention_heads = 7
    with pytest.raises(Exception, match=r"num_attention_heads \(7\)"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()

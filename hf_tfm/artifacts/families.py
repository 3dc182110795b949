"""
The six native families as tables: names of weights, fields of configurations, and what a family cannot do.

Theirs stand on the left, ours on the right. `convert.py` reads each table from left to right to bring a checkpoint in
and from right to left to give one out, so an export is the inverse of an import and cannot drift from it.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..core.errors import InputError, explain
from ..models import modeling_tfm_decoder, modeling_tfm_encoder
from ..models.configuration_tfm import TfmConfig, TfmDecoderConfig, TfmEncoderConfig


Table = dict[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class OlderFields:
    """
    The fields from which transformers before version 5 reads what version 5 has under other names.

    Args:
        values: The fields. A field is None where none of its values would be right: the older versions then stop with
            an error when they build the model, instead of computing something else.
        obstacles: One sentence for each such field, for the person who exports.
    """

    values: dict[str, Any]
    obstacles: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """
    One native architecture as two tables.

    Args:
        title: As people write it, for messages.
        classes: As its classes begin.
        side: `decoder` or `encoder`.
        fields: (their field, ours) with the same value. Two of ours may share one of theirs.
        always: Our fields that this family has no say in, and the value that describes it; a function of our
            configuration where the value is derived from others.
        only: Their fields of which our block can do one value.
        body: Their modules and ours in the base model; a tuple of ours is one fused matrix of theirs, in this order.
        heads: The same for each head, outside of the base model. A head that is not named does not exist there.
        conv1d: Last names of modules that keep their matrices transposed.
        duplicates: Their tensors that repeat another.
        to_ours, to_theirs: The fields that need arithmetic, from one configuration to values for the other.
        older_fields: What an exported `config.json` holds beside their fields, for transformers before version 5.
    """

    title: str
    classes: str
    side: str
    fields: tuple[tuple[str, str], ...]
    always: dict[str, Any]
    only: dict[str, Any]
    body: Table
    heads: dict[str, Table]
    to_ours: Callable[[Any], dict]
    to_theirs: Callable[[Any], dict]
    conv1d: tuple[str, ...] = ()
    duplicates: dict[str, str] = dataclasses.field(default_factory=dict)
    older_fields: Callable[[Any], OlderFields] = lambda config: OlderFields({})

    def class_name(self, head: str) -> str:
        if (self.title, head) == ("GPT-2", "CausalLM"):
            return "GPT2LMHeadModel"
        return f"{self.classes}Model" if head == "Model" else f"{self.classes}For{head}"

    def native_class(self, head: str) -> type[PreTrainedModel]:
        return getattr(transformers, self.class_name(head))

    def config_class(self) -> type[PreTrainedConfig]:
        return getattr(transformers, f"{self.classes}Config")

    def our_class(self, head: str) -> type[PreTrainedModel]:
        module = modeling_tfm_decoder if self.side == "decoder" else modeling_tfm_encoder
        return getattr(module, f"Tfm{self.side.title()}{head if head == 'Model' else 'For' + head}")

    def head_of(self, class_name: str) -> str | None:
        """The head of one of their classes by name; None if there is no counterpart."""
        return next((head for head in self.heads if self.class_name(head) == class_name), None)


def _same(names: str) -> tuple[tuple[str, str], ...]:
    """Fields that are called the same on both sides."""
    return tuple((name, name) for name in names.split())


def _flat_rope(config: TfmConfig) -> dict:
    """One set of RoPE parameters for all layers, as the decoders have it."""
    parameters = config.rope_parameters
    if nested := config.nested_rope_parameter_keys(parameters):
        sets = [parameters[name] for name in nested]
        if any(other != sets[0] for other in sets):
            raise InputError(
                "rope_parameters differ between layer types: a decoder family has one set for all layers; "
                "of the native families only ModernBERT has two"
            )
        parameters = sets[0]
    return _whole_heads(parameters)


def _whole_heads(parameters: dict) -> dict:
    """A copy of RoPE parameters, if they rotate whole heads, as every family here does."""
    if (factor := parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"rope_parameters.partial_rotary_factor={factor}: only 1.0, whole heads, can be converted")
    return copy.deepcopy(dict(parameters))


# RoPE types that transformers had before version 5.
_OLDER_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def _older_rope_scaling(config: Any, layer_type: str | None = None) -> dict:
    """One set of RoPE parameters as version 4 has it beside the base, which has a field of its own there."""
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    if parameters["rope_type"] == "default":
        return {"rope_scaling": None}
    scaling = {name: value for name, value in parameters.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if parameters["rope_type"] != "longrope":
        return {"rope_scaling": scaling}
    # Version 4 keeps this length outside, and then derives the attention factor from it even where `factor` is given.
    scaling["attention_factor"] = float(ROPE_INIT_FUNCTIONS["longrope"](config, None, layer_type=layer_type)[1])
    length = parameters["original_max_position_embeddings"]
    return {"rope_scaling": scaling, "original_max_position_embeddings": length}


def _older_rope_obstacle(rope_type: str) -> str:
    return f"rope_parameters.rope_type={rope_type!r} is not known there"


def _older_decoder_fields(config: Any) -> OlderFields:
    parameters = config.rope_parameters
    if parameters["rope_type"] not in _OLDER_ROPE_TYPES:
        obstacle = _older_rope_obstacle(parameters["rope_type"])
        return OlderFields({"rope_theta": None, "rope_scaling": None}, (obstacle,))
    return OlderFields({"rope_theta": parameters["rope_theta"], **_older_rope_scaling(config)})


def _older_modernbert_fields(config: Any) -> OlderFields:
    full, sliding = (config.rope_parameters[name] for name in ("full_attention", "sliding_attention"))
    used = [config.rope_parameters[name] for name in sorted(set(config.layer_types))]
    values: dict[str, Any] = {"global_rope_theta": full["rope_theta"], "local_rope_theta": sliding["rope_theta"]}
    obstacles = []
    unknown = [each["rope_type"] for each in used if each["rope_type"] not in _OLDER_ROPE_TYPES]
    if unknown or len({repr(sorted({**each, "rope_theta": None}.items())) for each in used}) > 1:
        values |= {"global_rope_theta": None, "local_rope_theta": None, "rope_scaling": None}
        several = "rope_parameters scale full and sliding layers differently: there is one scaling for both there"
        obstacles.append(_older_rope_obstacle(unknown[0]) if unknown else several)
    else:
        values |= _older_rope_scaling(config, config.layer_types[0])
    values["global_attn_every_n_layers"] = next(
        (n for n in range(1, len(config.layer_types) + 1) if config.layer_types == _one_full_layer_in(n, config)), None
    )
    if values["global_attn_every_n_layers"] is None:
        obstacles.append("layer_types: full attention is in the first layer and every so many layers after it there")
    return OlderFields(values, tuple(obstacles))


def _one_full_layer_in(count: int, config: Any) -> list[str]:
    return ["sliding_attention" if i % count else "full_attention" for i in range(config.num_hidden_layers)]


def _layers(config: Any) -> dict:
    """Layer types, and the window where a layer slides."""
    window = {"sliding_window": config.sliding_window} if "sliding_attention" in config.layer_types else {}
    return {"layer_types": list(config.layer_types), **window}


def _qwen3_layers(config: TfmDecoderConfig) -> dict:
    # Tools that do not read `layer_types` take the layers from `max_window_layers` on as sliding ones.
    sliding = [i for i, name in enumerate(config.layer_types) if name == "sliding_attention"]
    return {
        "layer_types": list(config.layer_types),
        "use_sliding_window": bool(sliding),
        "sliding_window": config.sliding_window,
        "max_window_layers": sliding[0] if sliding else config.num_hidden_layers,
    }


def _mistral_layers(config: TfmDecoderConfig) -> dict:
    if len(set(config.layer_types)) > 1:
        raise InputError("layer_types mixes full and sliding attention: Mistral has one kind in all layers; try qwen3")
    return {"sliding_window": config.sliding_window}


def _modernbert_to_ours(config: Any) -> dict:
    rope = {name: _whole_heads(parameters) for name, parameters in config.rope_parameters.items()}
    return {**_layers(config), "rope_parameters": rope}


def _modernbert_to_theirs(config: TfmEncoderConfig) -> dict:
    rope = config.rope_parameters
    nested = config.nested_rope_parameter_keys(rope)
    layer_types = ("full_attention", "sliding_attention")
    # Both sets must be there, whichever kinds of layers there are.
    rope = {name: _whole_heads(rope.get(name, rope[nested[0]]) if nested else rope) for name in layer_types}
    window = {} if config.sliding_window is None else {"local_attention": 2 * config.sliding_window}
    return {"layer_types": list(config.layer_types), "rope_parameters": rope, **window}


def _bert_to_ours(config: Any) -> dict:
    dropout = config.classifier_dropout
    return {"classifier_dropout": config.hidden_dropout_prob if dropout is None else dropout}


def _bert_to_theirs(config: TfmEncoderConfig) -> dict:
    same = config.classifier_dropout == config.hidden_dropout
    return {"classifier_dropout": None if same else config.classifier_dropout}


_EVERY = _same(
    "vocab_size initializer_range tie_word_embeddings pad_token_id bos_token_id eos_token_id "
    "id2label label2id problem_type"
)
_SIZES = _same("hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings")
_ENCODER_TOKENS = _same("cls_token_id sep_token_id mask_token_id")
_ALL_FULL = {"sliding_window": None, "layer_types": lambda config: ["full_attention"] * config.num_hidden_layers}
_MULTI_HEAD = {
    "num_key_value_heads": lambda config: config.num_attention_heads,
    "head_dim": lambda config: config.hidden_size // config.num_attention_heads,
}
_OURS_ALONE = dict(attention_gate=False, value_residual=False)
_LAYERNORM = dict(norm_type="layernorm", qk_norm=False, scale_embeddings=False, **_OURS_ALONE, **_MULTI_HEAD)
_BIASES = dict(norm_bias=True, attention_bias=True, mlp_bias=True)

_QKV = tuple(f"layers.{{i}}.self_attn.{name}_proj" for name in "qkv")
_LLAMA_FIELDS = (
    *_EVERY,
    *_SIZES,
    *_same("num_key_value_heads head_dim hidden_act attention_dropout use_cache"),
    ("rms_norm_eps", "norm_eps"),
)
_LLAMA_ALWAYS = dict(
    norm_type="rmsnorm",
    norm_position="pre",
    norm_bias=False,
    **_OURS_ALONE,
    embedding_norm=False,
    gated_mlp=True,
    position_embedding_type="rope",
    type_vocab_size=0,
    hidden_dropout=0.0,
    embedding_dropout=0.0,
    final_logit_softcapping=None,
    add_cross_attention=False,
    scale_embeddings=False,
)
_LLAMA_BODY: Table = {
    name: name
    for name in (
        "embed_tokens",
        "layers.{i}.input_layernorm",
        *_QKV,
        "layers.{i}.self_attn.o_proj",
        "layers.{i}.post_attention_layernorm",
        "layers.{i}.mlp.gate_proj",
        "layers.{i}.mlp.up_proj",
        "layers.{i}.mlp.down_proj",
        "norm",
    )
}
_LLAMA_HEADS: dict[str, Table] = {
    "Model": {},
    "CausalLM": {"lm_head": "lm_head"},
    "SequenceClassification": {"score": "score"},
    "TokenClassification": {"score": "score"},
    "QuestionAnswering": {"qa_outputs": "qa_outputs"},
}
_BERT_PREDICTIONS: Table = {
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "decoder",
}
_MODERNBERT_HEAD: Table = {"head.dense": "head.dense", "head.norm": "head.norm"}

FAMILIES = {
    "gpt2": Family(
        title="GPT-2",
        classes="GPT2",
        side="decoder",
        fields=(
            *_EVERY,
            *_same("use_cache add_cross_attention"),
            ("n_positions", "max_position_embeddings"),
            ("n_embd", "hidden_size"),
            ("n_layer", "num_hidden_layers"),
            ("n_head", "num_attention_heads"),
            ("activation_function", "hidden_act"),
            ("layer_norm_epsilon", "norm_eps"),
            ("resid_pdrop", "hidden_dropout"),
            ("embd_pdrop", "embedding_dropout"),
            ("attn_pdrop", "attention_dropout"),
        ),
        always=dict(
            norm_position="pre",
            embedding_norm=False,
            gated_mlp=False,
            position_embedding_type="learned",
            type_vocab_size=0,
            final_logit_softcapping=None,
            **_LAYERNORM,
            **_BIASES,
            **_ALL_FULL,
        ),
        only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        to_ours=lambda config: {"intermediate_size": config.n_inner or 4 * config.n_embd},
        to_theirs=lambda config: {
            "n_inner": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size
        },
        body={
            "wte": "embed_tokens",
            "wpe": "embed_positions",
            "h.{i}.ln_1": "layers.{i}.input_layernorm",
            "h.{i}.attn.c_attn": _QKV,
            "h.{i}.attn.c_proj": "layers.{i}.self_attn.o_proj",
            "h.{i}.ln_cross_attn": "layers.{i}.cross_attn_layernorm",
            "h.{i}.crossattention.q_attn": "layers.{i}.cross_attn.q_proj",
            "h.{i}.crossattention.c_attn": ("layers.{i}.cross_attn.k_proj", "layers.{i}.cross_attn.v_proj"),
            "h.{i}.crossattention.c_proj": "layers.{i}.cross_attn.o_proj",
            "h.{i}.ln_2": "layers.{i}.post_attention_layernorm",
            "h.{i}.mlp.c_fc": "layers.{i}.mlp.up_proj",
            "h.{i}.mlp.c_proj": "layers.{i}.mlp.down_proj",
            "ln_f": "norm",
        },
        heads={**_LLAMA_HEADS, "TokenClassification": {"classifier": "score"}},
        conv1d=("c_attn", "q_attn", "c_proj", "c_fc"),
    ),
    "llama": Family(
        title="Llama",
        classes="Llama",
        side="decoder",
        fields=(*_LLAMA_FIELDS, *_same("attention_bias mlp_bias")),
        always=dict(qk_norm=False, **_LLAMA_ALWAYS, **_ALL_FULL),
        only={},
        to_ours=lambda config: {"rope_parameters": _whole_heads(config.rope_parameters)},
        to_theirs=lambda config: {"rope_parameters": _flat_rope(config)},
        older_fields=_older_decoder_fields,
        body=_LLAMA_BODY,
        heads=_LLAMA_HEADS,
    ),
    "qwen3": Family(
        title="Qwen3",
        classes="Qwen3",
        side="decoder",
        fields=(*_LLAMA_FIELDS, *_same("attention_bias")),
        always=dict(qk_norm=True, mlp_bias=False, **_LLAMA_ALWAYS),
        only={},
        to_ours=lambda config: {"rope_parameters": _whole_heads(config.rope_parameters), **_layers(config)},
        to_theirs=lambda config: {"rope_parameters": _flat_rope(config), **_qwen3_layers(config)},
        older_fields=_older_decoder_fields,
        body={
            **_LLAMA_BODY,
            "layers.{i}.self_attn.q_norm": "layers.{i}.self_attn.q_norm",
            "layers.{i}.self_attn.k_norm": "layers.{i}.self_attn.k_norm",
        },
        heads=_LLAMA_HEADS,
    ),
    "mistral": Family(
        title="Mistral",
        classes="Mistral",
        side="decoder",
        fields=_LLAMA_FIELDS,
        always=dict(qk_norm=False, attention_bias=False, mlp_bias=False, **_LLAMA_ALWAYS),
        only={"layer_types": None},
        to_ours=lambda config: {
            "rope_parameters": _whole_heads(config.rope_parameters),
            "sliding_window": config.sliding_window,
        },
        to_theirs=lambda config: {"rope_parameters": _flat_rope(config), **_mistral_layers(config)},
        older_fields=_older_decoder_fields,
        body=_LLAMA_BODY,
        heads=_LLAMA_HEADS,
    ),
    "bert": Family(
        title="BERT",
        classes="Bert",
        side="encoder",
        fields=(
            *_EVERY,
            *_SIZES,
            *_ENCODER_TOKENS,
            *_same("type_vocab_size hidden_act"),
            ("hidden_act", "head_act"),
            ("layer_norm_eps", "norm_eps"),
            ("hidden_dropout_prob", "hidden_dropout"),
            ("hidden_dropout_prob", "embedding_dropout"),
            ("attention_probs_dropout_prob", "attention_dropout"),
        ),
        always=dict(
            norm_position="post",
            embedding_norm=True,
            gated_mlp=False,
            position_embedding_type="learned",
            use_pooler=True,
            head_bias=True,
            decoder_bias=True,
            **_LAYERNORM,
            **_BIASES,
            **_ALL_FULL,
        ),
        only={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
        to_ours=_bert_to_ours,
        to_theirs=_bert_to_theirs,
        body={
            "embeddings.word_embeddings": "embed_tokens",
            "embeddings.position_embeddings": "embed_positions",
            "embeddings.token_type_embeddings": "embed_token_types",
            "embeddings.LayerNorm": "embed_norm",
            "encoder.layer.{i}.attention.self.query": "layers.{i}.self_attn.q_proj",
            "encoder.layer.{i}.attention.self.key": "layers.{i}.self_attn.k_proj",
            "encoder.layer.{i}.attention.self.value": "layers.{i}.self_attn.v_proj",
            "encoder.layer.{i}.attention.output.dense": "layers.{i}.self_attn.o_proj",
            "encoder.layer.{i}.attention.output.LayerNorm": "layers.{i}.input_layernorm",
            "encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.up_proj",
            "encoder.layer.{i}.output.dense": "layers.{i}.mlp.down_proj",
            "encoder.layer.{i}.output.LayerNorm": "layers.{i}.post_attention_layernorm",
            "pooler.dense": "pooler.dense",
        },
        heads={
            "Model": {},
            "MaskedLM": _BERT_PREDICTIONS,
            "PreTraining": {**_BERT_PREDICTIONS, "cls.seq_relationship": "seq_relationship"},
            "NextSentencePrediction": {"cls.seq_relationship": "seq_relationship"},
            "SequenceClassification": {"classifier": "classifier"},
            "TokenClassification": {"classifier": "classifier"},
            "MultipleChoice": {"classifier": "classifier"},
            "QuestionAnswering": {"qa_outputs": "qa_outputs"},
        },
        duplicates={"cls.predictions.bias": "cls.predictions.decoder.bias"},
    ),
    "modernbert": Family(
        title="ModernBERT",
        classes="ModernBert",
        side="encoder",
        fields=(
            *_EVERY,
            *_SIZES,
            *_ENCODER_TOKENS,
            *_same("norm_eps norm_bias attention_bias mlp_bias decoder_bias classifier_pooling"),
            *_same("embedding_dropout classifier_dropout"),
            ("hidden_activation", "hidden_act"),
            ("classifier_activation", "head_act"),
            ("classifier_bias", "head_bias"),
        ),
        always=dict(
            norm_position="pre",
            embedding_norm=True,
            gated_mlp=True,
            position_embedding_type="rope",
            type_vocab_size=0,
            use_pooler=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            **_LAYERNORM,
        ),
        # Its dropouts sit inside the feed-forward layer, and on the probabilities as well as after the attention.
        only={"mlp_dropout": 0.0, "attention_dropout": 0.0},
        to_ours=_modernbert_to_ours,
        to_theirs=_modernbert_to_theirs,
        older_fields=_older_modernbert_fields,
        body={
            "embeddings.tok_embeddings": "embed_tokens",
            "embeddings.norm": "embed_norm",
            "layers.{i}.attn_norm": "layers.{i}.input_layernorm",
            "layers.{i}.attn.Wqkv": _QKV,
            "layers.{i}.attn.Wo": "layers.{i}.self_attn.o_proj",
            "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
            "layers.{i}.mlp.Wi": ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"),
            "layers.{i}.mlp.Wo": "layers.{i}.mlp.down_proj",
            "final_norm": "norm",
        },
        heads={
            "Model": {},
            "MaskedLM": {**_MODERNBERT_HEAD, "decoder": "decoder"},
            "SequenceClassification": {**_MODERNBERT_HEAD, "classifier": "classifier"},
            "TokenClassification": {**_MODERNBERT_HEAD, "classifier": "classifier"},
            "MultipleChoice": {**_MODERNBERT_HEAD, "classifier": "classifier"},
            "QuestionAnswering": {**_MODERNBERT_HEAD, "classifier": "qa_outputs"},
        },
    ),
}


# How messages call what a switch stands for.
_NOUNS = {
    "qk_norm": "QK-norm",
    "attention_gate": "gate on its heads",
    "value_residual": "embeddings in its values",
    "norm_bias": "biases in its norms",
    "attention_bias": "biases in its attention",
    "mlp_bias": "biases in its feed-forward layers",
    "embedding_norm": "norm after the embedding",
    "gated_mlp": "gate in its feed-forward layers",
    "scale_embeddings": "scaling of embeddings",
    "add_cross_attention": "cross-attention",
    "use_pooler": "pooler",
    "head_bias": "bias in its prediction head",
    "decoder_bias": "bias in its output projection",
    "final_logit_softcapping": "softcap on its logits",
    "type_vocab_size": "segment embeddings",
}


def _our_config(native: PreTrainedConfig, family: Family, head: str) -> TfmConfig:
    for field, only in family.only.items():
        if (value := getattr(native, field, only)) != only:
            raise InputError(f"{field}={value!r} of this {family.title}: the Tfm block can only do {only!r}")
    if head == "QuestionAnswering" and family.side == "encoder" and native.num_labels != 2:
        raise InputError(f"num_labels={native.num_labels}: a question answering head has 2, start and end")
    values = {field: value for field, value in family.always.items() if not callable(value)}
    values |= {ours: getattr(native, theirs, None) for theirs, ours in family.fields}
    values |= family.to_ours(native)
    if family.side == "decoder":
        dropout = getattr(native, "classifier_dropout", None)
        values["classifier_dropout"] = _decoder_classifier_dropout(head) if dropout is None else dropout
    with explain(family.title):
        # What is not set there keeps our default, which is None wherever that means something.
        return family.our_class(head).config_class(
            **{field: value for field, value in values.items() if value is not None}
        )


def native_config(config: TfmConfig, family: Family, head: str) -> PreTrainedConfig:
    for field, required in family.always.items():
        if field == "use_pooler" and required and head in ("Model", "MaskedLM"):
            continue  # the only BERTs that can be without
        required = required(config) if callable(required) else required
        if (value := getattr(config, field)) != required:
            raise InputError(_obstacle(family, field, value, required))
    config_class = family.config_class()
    declared = {field.name for field in dataclasses.fields(config_class)}
    values: dict[str, Any] = {}
    for theirs, ours in family.fields:
        value = getattr(config, ours)
        if values.setdefault(theirs, value) != value:
            raise InputError(f"{ours}={value!r}: {family.title} has one {theirs} for all, here {values[theirs]!r}")
    values |= family.to_theirs(config)
    dropout = config.classifier_dropout
    if family.side == "decoder" and dropout != _decoder_classifier_dropout(head):
        values["classifier_dropout"] = dropout
    if head == "QuestionAnswering" and config.num_labels != 2:
        values["id2label"] = values["label2id"] = None
    with explain(family.title):
        return config_class(**{name: value for name, value in values.items() if value is not None or name in declared})


def _decoder_classifier_dropout(head: str) -> float:
    """What the native decoders do where the configuration has no `classifier_dropout`."""
    return 0.1 if head == "TokenClassification" else 0.0


def _obstacle(family: Family, field: str, value: Any, required: Any) -> str:
    if field in _NOUNS:
        has = "always has" if required else "has no"
        return f"{field}={value!r}: {family.title} {has} {_NOUNS[field]}"
    hint = "; it acts in training only: set it so in config.json to export" if field.endswith("dropout") else ""
    return f"{field}={value!r}: {family.title} has {field}={required!r}{hint}"

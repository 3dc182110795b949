"""
Six native families as tables: names of weights, fields of configurations, and fixed values.

Names of the native family are on the left, names of this package on the right. Import reads a table from left to right,
export from right to left, so export is the inverse of import by construction.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.errors import InputError
from ..models import modeling_tfm_decoder, modeling_tfm_encoder
from .older_fields import OlderFields, older_decoder_fields, older_modernbert_fields


Table = dict[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Family:
    """
    One native architecture as two tables.

    Args:
        title: name in messages.
        classes: prefix of its class names.
        side: `decoder` or `encoder`.
        fields: pairs (native field, our field) of equal value. Two of our fields may share a native one.
        always: our fields that are fixed in this family, with their values or functions of our configuration.
        only: native fields of which our block supports a single value.
        body: native modules and ours in the base model. A tuple of ours is one fused native matrix, in this order.
        heads: the same for each head outside the base model. The family has no other heads.
        conv1d: last names of native modules whose matrices are transposed.
        duplicates: native tensors that repeat another.
        to_ours, to_theirs: compute the remaining fields of one configuration from the other.
        older_fields: computes fields of an exported `config.json` for transformers before version 5.
    """

    title: str
    classes: str
    side: str
    fields: tuple[tuple[str, str], ...]
    always: dict[str, Any]
    only: dict[str, Any]
    body: Table
    heads: dict[str, Table]
    to_ours: Callable[[Any], dict[str, Any]]
    to_theirs: Callable[[Any], dict[str, Any]]
    conv1d: tuple[str, ...] = ()
    duplicates: dict[str, str] = dataclasses.field(default_factory=dict)
    older_fields: Callable[[Any], OlderFields] = lambda config: OlderFields({})

    def class_name(self, head: str) -> str:
        """Return the name of the native class with a head."""
        if (self.title, head) == ("GPT-2", "CausalLM"):
            return "GPT2LMHeadModel"
        return f"{self.classes}Model" if head == "Model" else f"{self.classes}For{head}"

    def native_class(self, head: str) -> type[PreTrainedModel]:
        """Return the native class with a head."""
        native_class: type[PreTrainedModel] = getattr(transformers, self.class_name(head))
        return native_class

    def config_class(self) -> type[PreTrainedConfig]:
        """Return the native configuration class."""
        config_class: type[PreTrainedConfig] = getattr(transformers, f"{self.classes}Config")
        return config_class

    def our_class(self, head: str) -> type[PreTrainedModel]:
        """Return this package's class with a head."""
        module = modeling_tfm_decoder if self.side == "decoder" else modeling_tfm_encoder
        name = f"Tfm{self.side.title()}{head if head == 'Model' else 'For' + head}"
        our_class: type[PreTrainedModel] = getattr(module, name)
        return our_class

    def head_of(self, class_name: str) -> str | None:
        """Return the head of a native class by the class's name; None if this package has no counterpart."""
        return next((head for head in self.heads if self.class_name(head) == class_name), None)


def _same(names: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of fields with the same name on both sides."""
    return tuple((name, name) for name in names.split())


def _flat_rope(config: Any) -> dict[str, Any]:
    """Return the one set of RoPE parameters that a decoder family has for all layers."""
    parameters = config.rope_parameters
    if nested := config.nested_rope_parameter_keys(parameters):
        sets = [parameters[name] for name in nested]
        if any(other != sets[0] for other in sets):
            raise InputError(
                "rope_parameters differ between layer types: a decoder family has one set for all layers; "
                "only ModernBERT has two sets"
            )
        parameters = sets[0]
    return _whole_heads(parameters)


def _whole_heads(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of RoPE parameters; raise `InputError` if they rotate parts of heads, which no family supports."""
    if (factor := parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError(f"rope_parameters.partial_rotary_factor={factor}: only 1.0 (whole heads) can be converted")
    return copy.deepcopy(dict(parameters))


def _layers(config: Any) -> dict[str, Any]:
    """Return layer types and, if there are sliding layers, their window."""
    window = {"sliding_window": config.sliding_window} if "sliding_attention" in config.layer_types else {}
    return {"layer_types": list(config.layer_types), **window}


def _qwen3_layers(config: Any) -> dict[str, Any]:
    # Tools that do not read `layer_types` treat the layers from `max_window_layers` on as sliding.
    sliding = [i for i, name in enumerate(config.layer_types) if name == "sliding_attention"]
    return {
        "layer_types": list(config.layer_types),
        "use_sliding_window": bool(sliding),
        "sliding_window": config.sliding_window,
        "max_window_layers": sliding[0] if sliding else config.num_hidden_layers,
    }


def _mistral_layers(config: Any) -> dict[str, Any]:
    if len(set(config.layer_types)) > 1:
        raise InputError("layer_types mixes full and sliding attention, but Mistral has only one kind; try qwen3")
    return {"sliding_window": config.sliding_window}


def _modernbert_to_ours(config: Any) -> dict[str, Any]:
    rope = {name: _whole_heads(parameters) for name, parameters in config.rope_parameters.items()}
    return {**_layers(config), "rope_parameters": rope}


def _modernbert_to_theirs(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    nested = config.nested_rope_parameter_keys(rope)
    layer_types = ("full_attention", "sliding_attention")
    # ModernBERT requires both sets, even if all layers are of one type.
    rope = {name: _whole_heads(rope.get(name, rope[nested[0]]) if nested else rope) for name in layer_types}
    window = {} if config.sliding_window is None else {"local_attention": 2 * config.sliding_window}
    return {"layer_types": list(config.layer_types), "rope_parameters": rope, **window}


def _bert_to_ours(config: Any) -> dict[str, Any]:
    dropout = config.classifier_dropout
    return {"classifier_dropout": config.hidden_dropout_prob if dropout is None else dropout}


def _bert_to_theirs(config: Any) -> dict[str, Any]:
    same = config.classifier_dropout == config.hidden_dropout
    return {"classifier_dropout": None if same else config.classifier_dropout}


_COMMON = _same(
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
_OWN_SWITCHES = dict(attention_gate=False, value_residual=False)
_LAYERNORM = dict(norm_type="layernorm", qk_norm=False, scale_embeddings=False, **_OWN_SWITCHES, **_MULTI_HEAD)
_BIASES = dict(norm_bias=True, attention_bias=True, mlp_bias=True)

_QKV = tuple(f"layers.{{i}}.self_attn.{name}_proj" for name in "qkv")
_LLAMA_FIELDS = (
    *_COMMON,
    *_SIZES,
    *_same("num_key_value_heads head_dim hidden_act attention_dropout use_cache"),
    ("rms_norm_eps", "norm_eps"),
)
_LLAMA_ALWAYS = dict(
    norm_type="rmsnorm",
    norm_position="pre",
    norm_bias=False,
    **_OWN_SWITCHES,
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
            *_COMMON,
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
        older_fields=older_decoder_fields,
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
        older_fields=older_decoder_fields,
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
        older_fields=older_decoder_fields,
        body=_LLAMA_BODY,
        heads=_LLAMA_HEADS,
    ),
    "bert": Family(
        title="BERT",
        classes="Bert",
        side="encoder",
        fields=(
            *_COMMON,
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
            *_COMMON,
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
        # ModernBERT applies these inside the feed-forward layer, and to attention probabilities and outputs alike.
        only={"mlp_dropout": 0.0, "attention_dropout": 0.0},
        to_ours=_modernbert_to_ours,
        to_theirs=_modernbert_to_theirs,
        older_fields=older_modernbert_fields,
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

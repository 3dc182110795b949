"""Configurations of the two models: one set of switches for the block, then what only the decoder or encoder has.

Most switches are there because one of the native families (GPT-2, Llama, Qwen3, Mistral, BERT, ModernBERT) or the 2017
Transformer needs them, the others because models train better with them. The defaults are Qwen3's shape (decoder) and
ModernBERT's (encoder), so that models trained with them go to those native classes without loss.
"""

import copy
import difflib
from functools import wraps
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters


# Activations without weights of their own: those with some (prelu, xielu) would start from uninitialised memory.
ACTIVATIONS = sorted(set(ACT2FN) - {"prelu", "xielu"})

# Depth and width; the feed-forward width follows from `gated_mlp`, and heads are 64 wide, which fast kernels like.
SIZES = {
    "nano": dict(num_hidden_layers=4, hidden_size=128, num_attention_heads=2),
    "tiny": dict(num_hidden_layers=6, hidden_size=256, num_attention_heads=4),
    "small": dict(num_hidden_layers=8, hidden_size=512, num_attention_heads=8),
    "base": dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12),
    "large": dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16),
}

# What transformers takes beside the fields and keeps under other names.
_CONVERTED_FIELDS = ("rope_theta", "partial_rotary_factor", "attn_implementation")

# Switches shared by everything after the 2017 Transformer and before RMSNorm and RoPE.
_LAYERNORM = dict(norm_type="layernorm", norm_bias=True, qk_norm=False, attention_bias=True, mlp_bias=True)

_VASWANI = dict(
    _LAYERNORM,
    norm_position="post",
    norm_eps=1e-5,
    position_embedding_type="sinusoidal",
    scale_embeddings=True,
    gated_mlp=False,
    hidden_act="relu",
    hidden_dropout=0.1,
    embedding_dropout=0.1,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    num_hidden_layers=6,
    hidden_size=512,
    num_attention_heads=8,
)


def _one_line_errors(config_class: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Raise mistakes as one-line ValueErrors: `strict` wraps them into two lines of an exception that is none."""
    init = config_class.__init__

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except (StrictDataclassClassValidationError, StrictDataclassFieldValidationError) as error:
            raise ValueError(str(error.__cause__)) from None

    config_class.__init__ = __init__
    return config_class


@strict
class TfmConfig(PreTrainedConfig):
    r"""
    The switches that the decoder and the encoder share. Use [`TfmDecoderConfig`] or [`TfmEncoderConfig`].

    Args:
        vocab_size (`int`): Tokens in the vocabulary.
        hidden_size (`int`): Width of the residual stream.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layer. By default 8/3 of `hidden_size` rounded up to 64 when gated (Shazeer 2020,
            https://huggingface.co/papers/2002.05202), else 4 times `hidden_size`.
        num_hidden_layers (`int`): Blocks.
        num_attention_heads (`int`): Query heads.
        num_key_value_heads (`int`, *optional*):
            Key and value heads: as many as query heads (multi-head, the default), fewer (grouped-query, Ainslie et al.
            2023, https://huggingface.co/papers/2305.13245) or one (multi-query, Shazeer 2019,
            https://huggingface.co/papers/1911.02150).

                    heads 4, key/value heads 4     heads 4, key/value heads 2     heads 4, key/value heads 1
                          q q q q                        q q q q                        q q q q
                          | | | |                        \ / \ /                        \ | | /
                          k k k k                         k   k                            k
        head_dim (`int`, *optional*): Width of a head, `hidden_size / num_attention_heads` by default.
        hidden_act (`str`): Activation of the feed-forward layer: `silu`, `gelu`, `gelu_new`, `relu`, `relu2`, …
        gated_mlp (`bool`): `down(act(gate(x)) * up(x))` (SwiGLU, GeGLU) instead of `down(act(up(x)))`.
        mlp_bias (`bool`): Biases in the feed-forward layer.
        attention_bias (`bool`): Biases in the query, key, value and output projections.
        qk_norm (`bool`):
            Normalise queries and keys per head before the positions are applied (Dehghani et al. 2023,
            https://huggingface.co/papers/2302.05442).
        attention_gate (`bool`):
            Multiply what each head gives by `2 * sigmoid(w @ x)` of the states `x` that the layer reads, so that a head
            can leave a token alone (Qiu et al. 2025, https://huggingface.co/papers/2505.06708). No native family here
            has it.
        value_residual (`bool`):
            Add values made of the embeddings, by one matrix for all layers, to those of each layer, times a number that
            it learns, so that a token's own meaning stays at hand (after Zhou et al. 2024,
            https://huggingface.co/papers/2410.17897, who add the first layer's). No native family here has it.
        norm_type (`str`):
            `rmsnorm` (Zhang & Sennrich 2019, https://huggingface.co/papers/1910.07467) or `layernorm`.
        norm_position (`str`):
            `pre`: each sublayer reads a normalised copy and a last norm ends the stack; `post`: each sum is normalised,
            as in 2017 (Xiong et al. 2020 compare them, https://huggingface.co/papers/2002.04745).
        norm_bias (`bool`): Biases in layer norms.
        norm_eps (`float`): Added to the variance in every norm.
        embedding_norm (`bool`):
            Normalise the embeddings. With `norm_position="pre"` it takes the place of the first attention norm.
        position_embedding_type (`str`):
            `rope` (Su et al. 2021, https://huggingface.co/papers/2104.09864), `learned`, `sinusoidal` (Vaswani et al.
            2017, https://huggingface.co/papers/1706.03762) or `none`.
        max_position_embeddings (`int`): Longest sequence the model is meant for, in tokens.
        rope_parameters (`dict`, *optional*):
            All of transformers' RoPE parameters (`rope_theta`, `rope_type`, …), one dict for all layers or one for each
            of the layer types: `{"full_attention": {...}, "sliding_attention": {...}}`.
        layer_types (`list[str]`, *optional*):
            `full_attention` or `sliding_attention` for each layer. By default all sliding if there is a
            `sliding_window`, else all full.
        sliding_window (`int`, *optional*):
            Decoder: tokens that a sliding layer sees, itself included, so two or more. Encoder: tokens that it sees on
            each side. Without a sliding layer it has no effect.
        type_vocab_size (`int`): Number of segment embeddings (`token_type_ids`), 0 for none.
        scale_embeddings (`bool`): Multiply the token embeddings by the root of `hidden_size`, as in 2017.
        hidden_dropout (`float`): Dropout after each sublayer.
        attention_dropout (`float`): Dropout of attention probabilities.
        embedding_dropout (`float`): Dropout after the embeddings.
        classifier_dropout (`float`): Dropout before a classification head.
        initializer_range (`float`):
            Standard deviation of the weights at the start; projections back into the residual stream have it divided
            by the root of twice the number of layers (Radford et al. 2019).
        tie_word_embeddings (`bool`): One matrix for the token embeddings and the output projection.

    Raises:
        ValueError: when the switches contradict one another; the message names the fields.
    """

    # Filled by the two families: look-alike name -> switches. `layer_types` there is a pattern that repeats with depth.
    lookalikes: ClassVar[dict[str, dict]] = {}

    vocab_size: int = 8192
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    mlp_bias: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    attention_gate: bool = False
    value_residual: bool = False
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_bias: bool = False
    norm_eps: float = 1e-6
    embedding_norm: bool = False
    position_embedding_type: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    max_position_embeddings: int = 2048
    rope_parameters: RopeParameters | dict | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    type_vocab_size: int = 0
    scale_embeddings: bool = False
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    # As in the base class, which does not check it: a misspelt one would train with another loss.
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        # Left to `validate_architecture` when it does not divide: derived values must not hide the mistake.
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = (
                64 * -(-8 * self.hidden_size // (3 * 64)) if self.gated_mlp else 4 * self.hidden_size
            )
        if self.layer_types is None:
            layer_type = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [layer_type] * self.num_hidden_layers
        self.base_model_tp_plan = _tensor_parallel_plan(self)
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        if self.position_embedding_type == "rope":
            return super().convert_rope_params_to_dict(**kwargs)
        self.rope_parameters = None
        return kwargs

    def validate_architecture(self) -> None:
        """Cross-field checks; each message names the fields and what would mend them."""
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "intermediate_size", "max_position_embeddings")  # fmt: skip
        for field in sizes:
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        if self.type_vocab_size < 0:
            raise ValueError(f"type_vocab_size must be 0 (no segments) or more, not {self.type_vocab_size}")
        for field in ("hidden_dropout", "attention_dropout", "embedding_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 0 and below 1, not {getattr(self, field)}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps must be above 0, not {self.norm_eps}")
        if self.head_dim is None:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}): change one of them or set head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if self.norm_bias and self.norm_type == "rmsnorm":
            raise ValueError("norm_bias=True needs norm_type='layernorm': an RMSNorm has no bias")
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"position_embedding_type='rope' needs an even head_dim, not {self.head_dim}")
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"position_embedding_type='sinusoidal' needs an even hidden_size, not {self.hidden_size}")

    def validate_token_ids(self) -> None:
        """Special tokens must be in the vocabulary; transformers only warns."""
        for name, value in vars(self).items():
            if name.endswith("_token_id") and value is not None:
                outside = [i for i in (value if isinstance(value, list) else [value]) if not 0 <= i < self.vocab_size]
                if outside:
                    raise ValueError(f"{name} {outside[0]} is not in the vocabulary: vocab_size is {self.vocab_size}")

    def validate_rope(self) -> None:
        """Every layer needs parameters of a known RoPE type."""
        if not self.rope_parameters:
            return
        parameters = {"all layers": self.rope_parameters}
        if nested := self.nested_rope_parameter_keys(self.rope_parameters):
            parameters = {layer_type: self.rope_parameters.get(layer_type) for layer_type in set(self.layer_types)}
        for layer_type, values in parameters.items():
            if not values:
                raise ValueError(f"rope_parameters has {', '.join(nested)} but lacks {layer_type} of layer_types")
            if values["rope_type"] not in (known := ["default", *ROPE_INIT_FUNCTIONS]):
                raise ValueError(f"rope_type {values['rope_type']!r} is unknown; choose one of {', '.join(known)}")
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    def validate_layer_type(self) -> None:
        """One known type for each layer; sliding layers need a window. A window that no layer uses has no effect."""
        unknown = sorted(set(self.layer_types) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(f"layer_types knows 'full_attention' and 'sliding_attention', not {unknown[0]!r}")
        super().validate_layer_type()
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types has sliding_attention layers but sliding_window is not set")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, not {self.sliding_window}")

    @classmethod
    def preset(cls, name: str, size: str | None = None, **overrides: Any) -> "TfmConfig":
        """
        A configuration by name.

        Args:
            name: a size (`nano`, `tiny`, `small`, `base`, `large`) of the default shape, or a look-alike (decoder:
                `vaswani2017`, `gpt2`, `llama`, `qwen3`, `mistral`; encoder: `vaswani2017`, `bert`, `modernbert`) at the
                size of the smallest published model of that family.
            size: with a look-alike, one of the sizes instead of the published one.
            overrides: any fields, which win over the preset's.

        Raises:
            ValueError: when the name, the size or a field is unknown, or the switches contradict one another.

        Example: `TfmDecoderConfig.preset("gpt2", size="tiny", vocab_size=8192)`.
        """
        if name not in cls.lookalikes and name not in SIZES:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join([*SIZES, *cls.lookalikes])}")
        if size is not None and size not in SIZES:
            raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
        for field in overrides:
            # A configuration takes any field, for files written by other versions; what is typed here is meant.
            if not hasattr(cls, field) and field not in _CONVERTED_FIELDS:
                similar = difflib.get_close_matches(field, cls.__dataclass_fields__, n=1)
                raise ValueError(f"unknown field {field!r}" + (f": did you mean {similar[0]!r}?" if similar else ""))
        if name in SIZES:
            if size is not None:
                raise ValueError(f"preset {name!r} is a size already; size={size!r} goes with a look-alike")
            fields = {**SIZES[name], **cls._size_defaults(name)}
        else:
            fields = copy.deepcopy(cls.lookalikes[name])
            if size is not None:
                # What depends on the published size goes; the switches stay.
                for field in ("intermediate_size", "num_key_value_heads", "head_dim"):
                    fields.pop(field, None)
                fields.update(SIZES[size])
        if (pattern := fields.get("layer_types")) is not None:
            depth = overrides.get("num_hidden_layers", fields["num_hidden_layers"])
            fields["layer_types"] = [pattern[i % len(pattern)] for i in range(depth)]
        return cls(**{**fields, **overrides})

    @classmethod
    def _size_defaults(cls, size: str) -> dict:
        return {}


@_one_line_errors
@strict
class TfmDecoderConfig(TfmConfig):
    r"""
    Configuration of the causal LM. The default is the shape of Qwen3 (RMSNorm, RoPE, QK-norm, SwiGLU, no biases);
    presets group queries, too. See [`TfmConfig`] for the switches of the block.

    Args:
        final_logit_softcapping (`float`, *optional*):
            Squash the logits smoothly into ± this value (Gemma 2, https://huggingface.co/papers/2408.00118).
        use_cache (`bool`): Return the key/value cache.
        is_decoder, add_cross_attention (`bool`):
            Cross-attention to an encoder's states in every block, as transformers' `EncoderDecoderModel` asks for.
    """

    model_type = "tfm_decoder"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }
    lookalikes = {
        "vaswani2017": _VASWANI,
        "gpt2": dict(
            _LAYERNORM,
            norm_eps=1e-5,
            position_embedding_type="learned",
            gated_mlp=False,
            hidden_act="gelu_new",
            hidden_dropout=0.1,
            embedding_dropout=0.1,
            attention_dropout=0.1,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            num_hidden_layers=12,
            hidden_size=768,
            num_attention_heads=12,
        ),
        # Llama 3.2 1B, Qwen3 0.6B, Mistral 7B
        "llama": dict(
            qk_norm=False,
            norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            max_position_embeddings=8192,
            num_hidden_layers=16,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        "qwen3": dict(
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            max_position_embeddings=40960,
            num_hidden_layers=28,
            hidden_size=1024,
            intermediate_size=3072,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
        "mistral": dict(
            qk_norm=False,
            norm_eps=1e-5,
            sliding_window=4096,
            tie_word_embeddings=False,
            max_position_embeddings=32768,
            num_hidden_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
    }

    qk_norm: bool = True
    final_logit_softcapping: float | int | None = None
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    auto_map: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Always this package's own names: the entries must hold in whatever folder the model is saved to.
        self.auto_map = {
            "AutoConfig": "configuration_tfm.TfmDecoderConfig",
            "AutoModel": "modeling_tfm_decoder.TfmDecoderModel",
            "AutoModelForCausalLM": "modeling_tfm_decoder.TfmDecoderForCausalLM",
            "AutoModelForMaskedLM": "modeling_tfm_decoder.TfmDecoderForMaskedLM",
            "AutoModelForSequenceClassification": "modeling_tfm_decoder.TfmDecoderForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_tfm_decoder.TfmDecoderForTokenClassification",
            "AutoModelForQuestionAnswering": "modeling_tfm_decoder.TfmDecoderForQuestionAnswering",
        }
        super().__post_init__(**kwargs)

    def validate_layer_type(self) -> None:
        """As for all, and a window that caches can hold."""
        super().validate_layer_type()
        if self.sliding_window == 1:
            raise ValueError("sliding_window must be at least 2: for one token transformers' caches keep all others")

    def validate_logits(self) -> None:
        """A cap of 0 would divide by it."""
        if self.final_logit_softcapping is not None and self.final_logit_softcapping <= 0:
            raise ValueError(f"final_logit_softcapping must be above 0 or None, not {self.final_logit_softcapping}")

    @classmethod
    def _size_defaults(cls, size: str) -> dict:
        # Grouped queries: two query heads to a key/value head, three or four once the cache is worth saving.
        heads = SIZES[size]["num_attention_heads"]
        return {"num_key_value_heads": 4 if heads >= 12 else heads // 2}


@_one_line_errors
@strict
class TfmEncoderConfig(TfmConfig):
    r"""
    Configuration of the encoder. The default is the shape of ModernBERT (LayerNorm without bias, RoPE, GeGLU, embedding
    norm, a dense prediction head). See [`TfmConfig`] for the switches of the block.

    Args:
        use_pooler (`bool`):
            BERT's pooler: a dense tanh layer over the first token, which the sentence heads read. Without it they read
            the pooled states through the prediction head, as ModernBERT's do.
        classifier_pooling (`str`):
            Without a pooler: `cls` (first token) or `mean` (over the tokens that are not padding).
        head_act (`str`, *optional*): Activation of the prediction head, `hidden_act` by default.
        head_bias (`bool`): Bias of the prediction head's dense layer.
        decoder_bias (`bool`): Bias of the projection to the vocabulary.
        cls_token_id, sep_token_id, mask_token_id (`int`, *optional*): Special tokens of the tokenizer.
    """

    model_type = "tfm_encoder"
    lookalikes = {
        "vaswani2017": _VASWANI,
        "bert": dict(
            _LAYERNORM,
            norm_position="post",
            norm_eps=1e-12,
            embedding_norm=True,
            position_embedding_type="learned",
            type_vocab_size=2,
            gated_mlp=False,
            use_pooler=True,
            head_bias=True,
            hidden_dropout=0.1,
            attention_dropout=0.1,
            embedding_dropout=0.1,
            classifier_dropout=0.1,
            max_position_embeddings=512,
            num_hidden_layers=12,
            hidden_size=768,
            num_attention_heads=12,
        ),
        "modernbert": dict(
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            sliding_window=64,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            max_position_embeddings=8192,
            num_hidden_layers=22,
            hidden_size=768,
            intermediate_size=1152,
            num_attention_heads=12,
        ),
    }

    hidden_act: str = "gelu"
    norm_type: Literal["rmsnorm", "layernorm"] = "layernorm"
    norm_eps: float = 1e-5
    embedding_norm: bool = True
    use_pooler: bool = False
    classifier_pooling: Literal["cls", "mean"] = "mean"
    head_act: str | None = None
    head_bias: bool = False
    decoder_bias: bool = True
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    auto_map: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_act is None:
            self.head_act = self.hidden_act
        heads = (
            "PreTraining",
            "MaskedLM",
            "NextSentencePrediction",
            "SequenceClassification",
            "TokenClassification",
            "QuestionAnswering",
            "MultipleChoice",
        )
        self.auto_map = {
            "AutoConfig": "configuration_tfm.TfmEncoderConfig",
            "AutoModel": "modeling_tfm_encoder.TfmEncoderModel",
            **{f"AutoModelFor{head}": f"modeling_tfm_encoder.TfmEncoderFor{head}" for head in heads},
        }
        super().__post_init__(**kwargs)

    def validate_head(self) -> None:
        """The prediction head's activation must exist."""
        if self.head_act not in ACTIVATIONS:
            raise ValueError(f"head_act {self.head_act!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def _tensor_parallel_plan(config: TfmConfig) -> dict[str, str]:
    """Which weights are split over devices, for the modules that this configuration has."""
    plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    if config.gated_mlp:
        plan["layers.*.mlp.gate_proj"] = "colwise"
    if config.attention_gate:
        plan["layers.*.self_attn.head_gate"] = "colwise"
    if config.value_residual:
        plan["embed_values"] = "colwise"
    if config.qk_norm:
        plan["layers.*.self_attn.q_norm"] = "replicated_with_grad_allreduce"
        plan["layers.*.self_attn.k_norm"] = "replicated_with_grad_allreduce"
    return plan


__all__ = ["SIZES", "TfmConfig", "TfmDecoderConfig", "TfmEncoderConfig"]

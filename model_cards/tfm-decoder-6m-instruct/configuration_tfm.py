"""
Configurations of both models: fields of the Transformer block, then of the decoder or encoder.

Most fields exist because a native family (GPT-2, Llama, Qwen3, Mistral, BERT, ModernBERT) or the Transformer of 2017
needs them, the others because models train better with them. The defaults are the architectures of Qwen3 (decoder) and
ModernBERT (encoder), so that models trained with them convert to those native classes without loss.
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


# Activations without weights: those with weights (prelu, xielu) would start from uninitialised memory.
ACTIVATIONS = sorted(set(ACT2FN) - {"prelu", "xielu"})

# Depth and width. The feed-forward width follows from `gated_mlp`; heads are 64 wide, which suits fast kernels.
SIZES = {
    "nano": dict(num_hidden_layers=4, hidden_size=128, num_attention_heads=2),
    "tiny": dict(num_hidden_layers=6, hidden_size=256, num_attention_heads=4),
    "small": dict(num_hidden_layers=8, hidden_size=512, num_attention_heads=8),
    "base": dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12),
    "large": dict(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16),
}

# Arguments that transformers accepts beside the fields and stores under other names.
_CONVERTED_FIELDS = ("rope_theta", "partial_rotary_factor", "attn_implementation")

# Fields shared by the architectures from the Transformer of 2017 until RMSNorm and RoPE.
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
    """Raise validation errors as one-line `ValueError`: `strict` wraps them into exceptions of two lines."""
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
    Fields shared by the decoder and the encoder. Use [`TfmDecoderConfig`] or [`TfmEncoderConfig`].

    Args:
        vocab_size (`int`, defaults to 8192): Number of tokens in the vocabulary.
        hidden_size (`int`, defaults to 512): Width of the residual stream.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layer. Defaults to 8/3 of `hidden_size`, rounded up to a multiple of 64, if gated
            (Shazeer 2020, https://huggingface.co/papers/2002.05202), else to 4 times `hidden_size`.
        num_hidden_layers (`int`, defaults to 8): Number of blocks.
        num_attention_heads (`int`, defaults to 8): Number of query heads.
        num_key_value_heads (`int`, *optional*):
            Number of key and value heads. Defaults to `num_attention_heads` (multi-head attention); fewer are
            grouped-query (Ainslie et al. 2023, https://huggingface.co/papers/2305.13245), one is multi-query attention
            (Shazeer 2019, https://huggingface.co/papers/1911.02150).

                      multi-head (4)              grouped-query (2)             multi-query (1)
                         q q q q                       q q q q                       q q q q
                         | | | |                       \ / \ /                       \ | | /
                         k k k k                        k   k                           k
        head_dim (`int`, *optional*): Width of a head. Defaults to `hidden_size / num_attention_heads`.
        hidden_act (`str`, defaults to `"silu"`, encoder `"gelu"`): Activation of the feed-forward layer.
        gated_mlp (`bool`, defaults to `True`): `down(act(gate(x)) * up(x))` (SwiGLU, GeGLU), else `down(act(up(x)))`.
        mlp_bias (`bool`, defaults to `False`): Biases in the feed-forward layer.
        attention_bias (`bool`, defaults to `False`): Biases in the query, key, value and output projections.
        qk_norm (`bool`, defaults to `False`, decoder `True`):
            Normalise queries and keys per head before positions are applied (Dehghani et al. 2023,
            https://huggingface.co/papers/2302.05442).
        attention_gate (`bool`, defaults to `False`):
            Multiply the output of each head by `2 * sigmoid(w @ x)`, where `x` is the input of the layer, so that a
            head can ignore a token (Qiu et al. 2025, https://huggingface.co/papers/2505.06708). No native family
            supported here has it.
        value_residual (`bool`, defaults to `False`):
            Add values computed from the embeddings, by one matrix for all layers, to those of each layer, times a
            learned number per layer (after Zhou et al. 2024, https://huggingface.co/papers/2410.17897, who add the
            values of the first layer). No native family supported here has it.
        norm_type (`str`, defaults to `"rmsnorm"`, encoder `"layernorm"`):
            `rmsnorm` (Zhang & Sennrich 2019, https://huggingface.co/papers/1910.07467) or `layernorm` (Ba et al. 2016,
            https://huggingface.co/papers/1607.06450).
        norm_position (`str`, defaults to `"pre"`):
            `pre`: each sublayer receives a normalised copy, and a final norm follows the last block. `post`: each sum
            is normalised, as in 2017. Xiong et al. 2020 compare both (https://huggingface.co/papers/2002.04745).
        norm_bias (`bool`, defaults to `False`): Biases in layer norms.
        norm_eps (`float`, defaults to 1e-06, encoder 1e-05): Added to the variance in every norm.
        embedding_norm (`bool`, defaults to `False`, encoder `True`):
            Normalise the embeddings. With `norm_position="pre"` this replaces the first attention norm.
        position_embedding_type (`str`, defaults to `"rope"`):
            `rope` (Su et al. 2021, https://huggingface.co/papers/2104.09864), `learned`, `sinusoidal` (Vaswani et al.
            2017, https://huggingface.co/papers/1706.03762) or `none`.
        max_position_embeddings (`int`, defaults to 2048): Longest sequence the model is intended for, in tokens.
        rope_parameters (`dict`, *optional*):
            transformers' RoPE parameters (`rope_theta`, `rope_type`, …): one dict for all layers, or one for each layer
            type, `{"full_attention": {...}, "sliding_attention": {...}}`. Defaults to plain RoPE with a base of 10,000.
        layer_types (`list[str]`, *optional*):
            `full_attention` or `sliding_attention` for each layer. Defaults to sliding layers if there is a
            `sliding_window`, else to full ones.
        sliding_window (`int`, *optional*):
            Decoder: number of tokens a sliding layer sees, the token itself included, at least 2. Encoder: number of
            tokens it sees on each side. Without sliding layers it has no effect.
        type_vocab_size (`int`, defaults to 0): Number of segment embeddings (`token_type_ids`), 0 for none.
        scale_embeddings (`bool`, defaults to `False`): Multiply token embeddings by `sqrt(hidden_size)`, as in 2017.
        hidden_dropout (`float`, defaults to 0.0): Dropout after each sublayer.
        attention_dropout (`float`, defaults to 0.0): Dropout of attention probabilities.
        embedding_dropout (`float`, defaults to 0.0): Dropout after the embeddings.
        classifier_dropout (`float`, defaults to 0.0): Dropout before a classification head.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial weights; projections into the residual stream have it divided by
            `sqrt(2 * num_hidden_layers)` (GPT-2, Radford et al. 2019).
        tie_word_embeddings (`bool`, defaults to `True`): Share the token embeddings with the output projection.
        pad_token_id (`int`, *optional*): Padding token, whose embedding is zero and is not trained.
        bos_token_id (`int`, *optional*): Token that begins a text.
        eos_token_id (`int` or `list[int]`, *optional*): Token or tokens that end a text; generation stops there.
        problem_type (`str`, *optional*):
            Loss of a sequence classification head: `regression`, `single_label_classification` or
            `multi_label_classification`. Defaults to the kind that fits `num_labels` and the first labels.

    Raises:
        ValueError: fields contradict one another; the message names them.
    """

    # Fields of each look-alike by name, set by the subclasses. `layer_types` is a pattern that repeats with depth.
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
    # Declared as in the base class, which does not validate it: a misspelt value would train with another loss.
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        # If it does not divide, `validate_architecture` reports it: a derived value would hide the mistake.
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
        """Check fields against one another; each message names the fields and a remedy."""
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
        """Check that special tokens are in the vocabulary; transformers only warns."""
        for name, value in vars(self).items():
            if name.endswith("_token_id") and value is not None:
                outside = [i for i in (value if isinstance(value, list) else [value]) if not 0 <= i < self.vocab_size]
                if outside:
                    raise ValueError(f"{name} {outside[0]} is not in the vocabulary: vocab_size is {self.vocab_size}")

    def validate_rope(self) -> None:
        """Check that each layer type has parameters of a known RoPE type."""
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
        """Check that each layer has a known type, and sliding layers a window."""
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
        Return a configuration by name.

        Args:
            name: a size (`nano`, `tiny`, `small`, `base`, `large`) of the default architecture, or a look-alike
                (decoder: `vaswani2017`, `gpt2`, `llama`, `qwen3`, `mistral`; encoder: `vaswani2017`, `bert`,
                `modernbert`) in the size of the smallest published model of that family.
            size: for a look-alike, one of the sizes instead of the published one.
            overrides: any fields; they take precedence over the preset.

        Raises:
            ValueError: the name, the size or a field is unknown, or fields contradict one another.

        Example: `TfmDecoderConfig.preset("gpt2", size="tiny", vocab_size=8192)`.
        """
        if name not in cls.lookalikes and name not in SIZES:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join([*SIZES, *cls.lookalikes])}")
        if size is not None and size not in SIZES:
            raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
        for field in overrides:
            # Configurations accept unknown fields, for files of other versions; here an unknown field is a mistake.
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
                # Drop the fields that depend on the published size.
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
    Configuration of the causal LM; [`TfmConfig`] documents the fields of the block.

    The default is the architecture of Qwen3: RMSNorm, RoPE, QK-norm, SwiGLU, no biases. Presets have grouped-query
    attention as well.

    Args:
        final_logit_softcapping (`float`, *optional*):
            Squash the logits smoothly into ± this value (Gemma 2, https://huggingface.co/papers/2408.00118).
        use_cache (`bool`, defaults to `True`): Return the key/value cache.
        is_decoder (`bool`, defaults to `False`): Set by `EncoderDecoderModel` together with `add_cross_attention`.
        add_cross_attention (`bool`, defaults to `False`): Cross-attention to an encoder's states in every block.
        auto_map (`dict`, *optional*): Classes that the Auto classes of transformers load; set by the configuration.
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
        # Always the names of this package's files: the entries must be right in any folder the model is saved to.
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
        """Check the window too: transformers' caches need one of at least two tokens."""
        super().validate_layer_type()
        if self.sliding_window == 1:
            raise ValueError("sliding_window must be at least 2: for one token transformers' caches keep all others")

    def validate_logits(self) -> None:
        """Check the logit cap, which is a divisor."""
        if self.final_logit_softcapping is not None and self.final_logit_softcapping <= 0:
            raise ValueError(f"final_logit_softcapping must be above 0 or None, not {self.final_logit_softcapping}")

    @classmethod
    def _size_defaults(cls, size: str) -> dict:
        # Grouped-query attention: two query heads to a key/value head, three or four in the larger sizes.
        heads = SIZES[size]["num_attention_heads"]
        return {"num_key_value_heads": 4 if heads >= 12 else heads // 2}


@_one_line_errors
@strict
class TfmEncoderConfig(TfmConfig):
    r"""
    Configuration of the encoder; [`TfmConfig`] documents the fields of the block.

    The default is the architecture of ModernBERT: LayerNorm without bias, RoPE, GeGLU, embedding norm, dense prediction
    head.

    Args:
        use_pooler (`bool`, defaults to `False`):
            BERT's pooler, a dense tanh layer over the first token, is the input of sentence heads. Without it they
            apply the prediction head to the pooled states, as in ModernBERT.
        classifier_pooling (`str`, defaults to `"mean"`):
            Pooling without a pooler: `cls` (first token) or `mean` (all tokens without padding).
        head_act (`str`, *optional*): Activation of the prediction head. Defaults to `hidden_act`.
        head_bias (`bool`, defaults to `False`): Bias of the prediction head's dense layer.
        decoder_bias (`bool`, defaults to `True`): Bias of the projection to the vocabulary.
        cls_token_id (`int`, *optional*): Token that begins a text.
        sep_token_id (`int`, *optional*): Token that ends a text and each segment.
        mask_token_id (`int`, *optional*): Token that stands for a masked token.
        auto_map (`dict`, *optional*): Classes that the Auto classes of transformers load; set by the configuration.
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
        """Check that the prediction head's activation exists."""
        if self.head_act not in ACTIVATIONS:
            raise ValueError(f"head_act {self.head_act!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


def _tensor_parallel_plan(config: TfmConfig) -> dict[str, str]:
    """Return how weights are split over devices, for the modules of this configuration."""
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

"""Fields in exported configurations for transformers before version 5, which does not know those of version 5."""

import dataclasses
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# RoPE types that transformers had before version 5.
_OLDER_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclasses.dataclass(frozen=True)
class OlderFields:
    """
    Fields of a configuration that only transformers before version 5 reads.

    Attributes:
        values: the fields. A field is None if the older versions have no value for the model; they then raise an error
            when they build the model, instead of computing something else.
        obstacles: a sentence for each field that is None.
    """

    values: dict[str, Any]
    obstacles: tuple[str, ...] = ()


def _older_rope_scaling(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """Return RoPE parameters in the form of version 4, in which the base is a separate field."""
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    if parameters["rope_type"] == "default":
        return {"rope_scaling": None}
    scaling = {name: value for name, value in parameters.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if parameters["rope_type"] != "longrope":
        return {"rope_scaling": scaling}
    # Version 4 has a separate field for this length and derives the attention factor from it even if `factor` is set.
    scaling["attention_factor"] = float(ROPE_INIT_FUNCTIONS["longrope"](config, None, layer_type=layer_type)[1])
    length = parameters["original_max_position_embeddings"]
    return {"rope_scaling": scaling, "original_max_position_embeddings": length}


def _older_rope_obstacle(rope_type: str) -> str:
    return f"rope_parameters.rope_type={rope_type!r} does not exist there"


def older_decoder_fields(config: Any) -> OlderFields:
    """Return the older fields of a Llama, Qwen3 or Mistral configuration."""
    parameters = config.rope_parameters
    if parameters["rope_type"] not in _OLDER_ROPE_TYPES:
        obstacle = _older_rope_obstacle(parameters["rope_type"])
        return OlderFields({"rope_theta": None, "rope_scaling": None}, (obstacle,))
    return OlderFields({"rope_theta": parameters["rope_theta"], **_older_rope_scaling(config)})


def older_modernbert_fields(config: Any) -> OlderFields:
    """Return the older fields of a ModernBERT configuration."""
    full, sliding = (config.rope_parameters[name] for name in ("full_attention", "sliding_attention"))
    used = [config.rope_parameters[name] for name in sorted(set(config.layer_types))]
    values: dict[str, Any] = {"global_rope_theta": full["rope_theta"], "local_rope_theta": sliding["rope_theta"]}
    obstacles = []
    unknown = [parameters["rope_type"] for parameters in used if parameters["rope_type"] not in _OLDER_ROPE_TYPES]
    if unknown or len({repr(sorted({**parameters, "rope_theta": None}.items())) for parameters in used}) > 1:
        values |= {"global_rope_theta": None, "local_rope_theta": None, "rope_scaling": None}
        different = "rope_parameters scale full and sliding layers differently, but there is one scaling for both there"
        obstacles.append(_older_rope_obstacle(unknown[0]) if unknown else different)
    else:
        values |= _older_rope_scaling(config, config.layer_types[0])
    values["global_attn_every_n_layers"] = next(
        (n for n in range(1, len(config.layer_types) + 1) if config.layer_types == _one_full_layer_in(n, config)), None
    )
    if values["global_attn_every_n_layers"] is None:
        obstacles.append("layer_types: full attention must be in the first and then in every n-th layer there")
    return OlderFields(values, tuple(obstacles))


def _one_full_layer_in(count: int, config: Any) -> list[str]:
    return ["sliding_attention" if i % count else "full_attention" for i in range(config.num_hidden_layers)]

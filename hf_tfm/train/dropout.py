"""Dropout of any architecture: the fields of its configuration that drop what layers and embeddings put out."""

from transformers import PreTrainedConfig


# Dropout on attention weights is left out: with it attention leaves its fast kernels (on a CPU it has only slow ones),
# while dropout after layers and embeddings costs next to nothing. So is dropout of heads, and of whole layers.
DROPOUT_FIELDS = (
    "dropout", "dropout_p", "emb_pdrop", "embd_pdrop", "embed_dropout", "embedding_dropout", "hidden_dropout",
    "hidden_dropout_prob", "mlp_dropout", "resid_dropout", "resid_pdrop", "residual_dropout",
)  # fmt: skip


def dropout_fields(config: PreTrainedConfig) -> dict[str, float]:
    """Return the fields of a configuration that drop outputs of layers and embeddings, with their values."""
    return {name: getattr(config, name) for name in DROPOUT_FIELDS if hasattr(config, name)}

"""Token stores with documents of given lengths."""

import numpy as np

from hf_tfm.data.tokens import TokenStore


DISTRIBUTIONS = {
    "web": lambda rng, n: rng.lognormal(6, 1.2, n),
    "stories": lambda rng, n: rng.normal(225, 60, n),
    "books": lambda rng, n: rng.lognormal(10, 1, n // 100),
    "sentences": lambda rng, n: rng.gamma(2, 12, n),
    "just over half a block": lambda rng, n: rng.integers(129, 160, n),
}


def make_store(lengths, folder=None) -> TokenStore:
    """Returns a store in which token i has id i, with 3 to 5 bytes per token."""
    lengths = np.asarray(lengths, np.int64)
    rng = np.random.default_rng(len(lengths))
    return TokenStore(
        tokens=np.arange(lengths.sum(), dtype=np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        byte_counts=lengths * rng.integers(3, 6, len(lengths)),
        folder=folder,
    )


def sample(name: str, n: int, seed: int = 0) -> np.ndarray:
    return np.maximum(DISTRIBUTIONS[name](np.random.default_rng(seed), n), 3).astype(np.int64)

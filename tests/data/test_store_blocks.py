"""The order of blocks: a random permutation that is evaluated for some numbers alone."""

import numpy as np
import pytest

from hf_tfm.data.store_blocks import permute


pytestmark = pytest.mark.quick


def test_permute_is_a_permutation_that_scatters():
    for size in (1, 2, 3, 7, 64, 65, 1000, 4097):
        numbers = np.arange(size)
        for seed in range(3):
            image = permute(numbers, size, (seed,))
            assert np.array_equal(np.sort(image), numbers)
    # Each place is as likely as any other, whatever the number: chi squared per degree of freedom.
    size, trials = 50, 4000
    counts = np.zeros((size, size))
    for seed in range(trials):
        counts[np.arange(size), permute(np.arange(size), size, (seed, 1))] += 1
    expected = trials / size
    assert 0.85 < ((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2 < 1.15
    image = permute(np.arange(5000), 5000, (0,))
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.05
    assert len(set(np.diff(image).tolist())) > 3000
    assert permute(np.array([10**12]), 10**12 + 7, (0,))[0] < 10**12 + 7

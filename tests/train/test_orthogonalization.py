"""Muon's orthogonalization: how close it comes, and that it stays bounded."""

import math

import pytest
import torch

from hf_tfm.train.orthogonalization import POLAR_COEFFICIENTS, orthogonalize


pytestmark = pytest.mark.quick


def random_with_spectrum(rows, columns, smallest):
    """A matrix with singular values from 1 down to `smallest`, evenly spaced on a logarithmic scale."""
    u = torch.linalg.qr(torch.randn(rows, rows)).Q
    v = torch.linalg.qr(torch.randn(columns, rows)).Q
    return u @ torch.diag(torch.logspace(0, math.log10(smallest), rows)) @ v.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 32), (32, 40), (64, 176), (176, 64), (16, 256), (1, 8)])
def test_orthogonalize_gives_the_polar_factor(shape, dtype):
    rows, columns = sorted(shape)
    matrix = random_with_spectrum(rows, columns, smallest=0.2) if rows > 1 else torch.randn(shape)
    matrix = matrix.reshape(shape) if shape == (rows, columns) else matrix.mT
    result = orthogonalize(matrix[None], dtype)[0].float()
    error = 0.23 + (0.01 if dtype == torch.float32 else 0.03)  # of the polynomials, and rounding
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.matrix_norm(result - u @ vh) / torch.linalg.matrix_norm(u @ vh) < error
    assert (torch.linalg.svdvals(result) - 1).abs().max() < error


@pytest.mark.parametrize("shape", [(48, 48), (48, 128), (128, 48)])
def test_orthogonalize_stays_bounded_on_every_spectrum(shape):
    """bf16 rounding must not blow up directions with almost no gradient; an all-zero gradient gives no update."""
    matrices = [random_with_spectrum(48, max(shape), smallest).reshape(48, -1) for smallest in (1e-2, 1e-3, 1e-6)]
    matrices = [m.mT if shape[0] > shape[1] else m for m in matrices]
    matrices += [
        matrices[0] * 1e-10,
        matrices[0] * 1e4,
        torch.randn(shape),
        torch.randn(shape[0], 1) @ torch.randn(1, shape[1]),
    ]
    result = orthogonalize(torch.stack(matrices), torch.bfloat16).float()
    assert torch.linalg.svdvals(result).max() < 1.25
    assert orthogonalize(torch.zeros(1, *shape), torch.bfloat16).abs().max() == 0


@pytest.mark.parametrize("shape", [(24, 24), (24, 64)])
def test_orthogonalize_of_a_batch_equals_one_by_one(shape):
    batch = torch.randn(3, *shape)
    single = torch.cat([orthogonalize(matrix[None], dtype=torch.float32) for matrix in batch])
    torch.testing.assert_close(orthogonalize(batch, dtype=torch.float32), single)


def test_coefficients_keep_their_promise():
    """Both polynomials together map [0.05, 1] to within 23 % of 1, as the comment at the table says."""
    smallest, error = 0.05, 0.23
    x = torch.logspace(math.log10(smallest), 0, 20_000, dtype=torch.float64)
    for a, b, c in POLAR_COEFFICIENTS:
        x = a * x + b * x**3 + c * x**5
    assert 0.95 * error < x.max() - 1 < error and 0.95 * error < 1 - x.min() < error

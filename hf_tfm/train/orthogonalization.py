"""Orthogonalize batches of matrices with two matrix polynomials: the core of Muon's update."""

import torch
from torch import Tensor

from ..core.limits import cpu_has_fast_bf16


# Minimax quintics (Polar Express, https://arxiv.org/abs/2505.16932): x -> ax + bx^3 + cx^5. Both, applied one after the
# other, take singular values in [0.05, 1] to within 23 % of 1. The second is fitted up to 3 % above the range that the
# first one yields, because bf16 rounding pushes values above it, where the polynomial explodes.
POLAR_COEFFICIENTS = ((6.75238, -18.35097, 13.26326), (2.49785, -1.7584, 0.39191))


def orthogonalization_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware multiplies bf16 matrices faster than fp32 ones, else fp32."""
    return torch.bfloat16 if device.type != "cpu" or cpu_has_fast_bf16() else torch.float32


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """
    Return the nearest semi-orthogonal matrices: U Vᵀ for each U S Vᵀ, with singular values only roughly 1.

    `POLAR_COEFFICIENTS` says how roughly. Singular values too small for that are raised by one common factor; zero
    stays zero.

    Args:
        matrices: (batch, rows, columns).
        dtype: the dtype of the products; `orthogonalization_dtype` by default.

    Returns:
        (batch, rows, columns) in `dtype`.
    """
    x = matrices.to(dtype or orthogonalization_dtype(matrices.device))
    is_tall = x.shape[-2] > x.shape[-1]  # then Xᵀ X is the small product, and polynomials in it stand right of X
    is_oblong = max(x.shape[-2:]) > 1.5 * min(x.shape[-2:])

    # The iteration needs singular values up to 1. |X| brings numbers of any size into range; a power of two is exact in
    # bf16. The fourth root of |(XXᵀ)²| then bounds the largest singular value much closer, which saves a step.
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32).clamp_min(1e-30)
    x = x * torch.exp2(-norm.log2().ceil()).to(x.dtype)
    gram = x.mT @ x if is_tall else x @ x.mT
    square = gram @ gram
    bound = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    scale = 0.99 * bound**-0.25
    a, b, c = (k * scale**power for k, power in zip(POLAR_COEFFICIENTS[0], (1, 3, 5), strict=True))
    first = _polynomial(gram, square, a.to(x.dtype), b.to(x.dtype), c.to(x.dtype))
    if is_oblong:
        # XXᵀ is small: both polynomials are multiplied with each other first, and then once with X.
        gram = first @ gram @ first
        second = _polynomial(gram, gram @ gram, *POLAR_COEFFICIENTS[1])
        return x @ (second @ first) if is_tall else (second @ first) @ x
    x = x @ first if is_tall else first @ x
    gram = x.mT @ x if is_tall else x @ x.mT
    second = _polynomial(gram, gram @ gram, *POLAR_COEFFICIENTS[1])
    return x @ second if is_tall else second @ x


def _polynomial(gram: Tensor, square: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return a + b G + c G² for a Gram matrix G and its square; tensors are one coefficient a matrix."""
    polynomial = (b * gram).add_(c * square)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a.squeeze(-1) if isinstance(a, Tensor) else a)
    return polynomial

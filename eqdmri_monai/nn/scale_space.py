"""Gaussian filters over p-space, and derivatives of fields that they blur: the plainest filters that turn with a field.

Everything counts in Gaussian widths, so that a derivative at 5 mm is as large as one at 2.5 mm of a field half as wide.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor

TRUNCATE = 4.0  # standard deviations, as in scipy


def kernel(sigma: float, order: int) -> Tensor:
    """Return the taps of a Gaussian of `sigma` voxels, or of its first or second derivative times sigma or sigma².

    They are for correlation. Sums are exact on polynomials of the order's degree: 1, x and x² / 2 give 1.
    """
    reach = max(1, math.ceil(TRUNCATE * sigma))
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    g = torch.exp(-0.5 * (x / sigma) ** 2)
    g = g / g.sum()
    if order == 0:
        return g
    if order == 1:
        return sigma * g * x / (g * x * x).sum()
    g = g * (x * x - (g * x * x).sum())
    return sigma**2 * 2 * g / (g * x * x).sum()


@lru_cache(maxsize=256)
def along_axis(size: int, sigma: float, order: int, border: bool) -> Tensor:
    """Return what a filter does along an axis of `size` voxels, (size, size): a product with it beats a convolution.

    Beyond the array its border goes on, or else there is 0.
    """
    taps = kernel(sigma, order)
    reach = len(taps) // 2
    rows = torch.arange(size)[:, None].expand(-1, len(taps))
    columns = rows + torch.arange(-reach, reach + 1)
    inside = (columns >= 0) & (columns < size)
    values = taps.expand(size, -1) * (1.0 if border else inside)
    return torch.zeros(size, size, dtype=torch.float64).index_put_(
        (rows, columns.clamp(0, size - 1)), values, accumulate=True
    )


def filtered(x: Tensor, sigma: Sequence[float], order: Sequence[int], *, border: bool) -> Tensor:
    """Filter maps (..., X, Y, Z) by a derivative of a Gaussian of sigma voxels along each axis."""
    for axis, s, o in zip((-3, -2, -1), sigma, order, strict=True):
        x = (x.movedim(axis, -1) @ along_axis(x.shape[axis], s, o, border).to(x).T).movedim(-1, axis)
    return x


def blur(x: Tensor, sigma: Sequence[float]) -> Tensor:
    """Blur maps (B, C, X, Y, Z), 0 beyond the array, by a Gaussian of sigma voxels along each axis."""
    return filtered(x, sigma, (0, 0, 0), border=False)


def blur_within(x: Tensor, weight: Tensor, sigma: Sequence[float]) -> Tensor:
    """Return the mean of maps over a Gaussian neighbourhood, voxels counting by their weight (B, 1, X, Y, Z)."""
    return blur(x * weight, sigma) / blur(weight, sigma).clamp(min=1e-3)


def gradient(x: Tensor, sigma: Sequence[float]) -> Tensor:
    """Return first derivatives (B, C, 3, X, Y, Z) at a scale; beyond the array its border goes on."""
    return torch.stack([filtered(x, sigma, order, border=True) for order in ((1, 0, 0), (0, 1, 0), (0, 0, 1))], dim=2)


def hessian(x: Tensor, sigma: Sequence[float]) -> Tensor:
    """Return second derivatives (B, C, 6, X, Y, Z) at a scale, xx xy xz yy yz zz; beyond the array as `gradient`."""
    pairs = combinations_with_replacement(range(3), 2)
    orders = [[int(a == c) + int(b == c) for c in range(3)] for a, b in pairs]
    return torch.stack([filtered(x, sigma, order, border=True) for order in orders], dim=2)

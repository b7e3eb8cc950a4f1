"""Exact rotations of voxel grids, for tests."""

import itertools

import torch
from e3nn import o3
from torch import Tensor


def cube_rotations() -> list[Tensor]:
    """Return the 24 rotations that map the voxel grid onto itself, each (3, 3)."""
    signed = (
        torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    )
    return [R for R in signed if torch.linalg.det(R) > 0]


def turn_grid(x: Tensor, R: Tensor) -> Tensor:
    """Turn the last three axes of an array: the value at p moves to R p."""
    source = R.abs().argmax(dim=1)
    lead = x.ndim - 3
    turned = x.permute(*range(lead), *(lead + int(a) for a in source))
    return turned.flip([lead + i for i in range(3) if R[i, source[i]] < 0])


def turn_features(x: Tensor, R: Tensor, irreps: o3.Irreps) -> Tensor:
    """Turn a feature map (B, irreps.dim, ..., X, Y, Z): its grid and its components."""
    return torch.einsum("ij,bj...->bi...", irreps.D_from_matrix(R), turn_grid(x, R))


def scheme(directions: int, *lengths: float) -> Tensor:
    """Return b0 and random directions on each shell (q-lengths), shape (Q, 3)."""
    parts = [torch.zeros(1, 3)]
    for length in lengths:
        v = torch.randn(directions, 3)
        parts.append(length * v / v.norm(dim=1, keepdim=True))
    return torch.cat(parts)

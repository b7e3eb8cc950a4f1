"""The symmetries that hold exactly on a voxel grid: its 24 rotations, and how they act on arrays and feature maps.

For each of them, ``network(turn_grid(image, R), q @ R.T)`` of an equivariant network is
``turn_features(network(image, q), R, irreps)``, q along the voxel axes and irreps the type of the output.
"""

import itertools

import torch
from e3nn import o3
from torch import Tensor


def cube_rotations() -> list[Tensor]:
    """Return the 24 rotations that map the voxel grid onto itself, each (3, 3), float64; the first is the identity."""
    signed = (
        torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    )
    return [R for R in signed if torch.linalg.det(R) > 0]


def quarter_turns() -> list[Tensor]:
    """Return the quarter turns about x, y and z, each (3, 3), float64; all `cube_rotations` are products of these."""
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    return [about_z.roll((shift, shift), (0, 1)) for shift in (1, 2, 0)]


def turn_grid(x: Tensor, R: Tensor) -> Tensor:
    """Turn the last three axes of an array by one of the `cube_rotations`: the value at p moves to R p."""
    source = R.abs().argmax(dim=1).tolist()
    lead = x.ndim - 3
    turned = x.permute(*range(lead), *(lead + axis for axis in source))
    return turned.flip([lead + i for i in range(3) if R[i, source[i]] < 0])


def turn_features(x: Tensor, R: Tensor, irreps: o3.Irreps | str) -> Tensor:
    """Turn a feature map (B, irreps.dim, ..., X, Y, Z): its grid and its components."""
    return torch.einsum("ij,bj...->bi...", o3.Irreps(irreps).D_from_matrix(R).to(x), turn_grid(x, R))


def random_scheme(directions: int, *q_lengths: float) -> Tensor:
    """Return q-vectors to try a symmetry on: b0, then random directions on a shell of each length, shape (Q, 3)."""
    parts = [torch.zeros(1, 3)]
    for length in q_lengths:
        v = torch.randn(directions, 3)
        parts.append(length * v / v.norm(dim=1, keepdim=True))
    return torch.cat(parts)

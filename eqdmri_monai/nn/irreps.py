"""Types of feature maps: e3nn's irreps, parsed once where a layer is made, with even labels only."""

from collections.abc import Sequence

from e3nn import o3
from torch import Tensor


def parse_irreps(irreps: o3.Irreps | str, name: str) -> o3.Irreps:
    """Parse irreps and refuse odd parity: this project uses even labels for all of SO(3).

    Parameters
    ----------
    irreps : o3.Irreps
        Or a string such as "7x0e+4x1e".
    name : str
        Of the argument, for the message.

    Raises
    ------
    ValueError
        When a label is odd.
    """
    irreps = o3.Irreps(irreps)
    if any(ir.p != 1 for _, ir in irreps):
        raise ValueError(f"{name} must have even labels only (0e, 1e, 2e: rotations without mirrors), got {irreps}")
    return irreps


def parse_sorted_irreps(irreps: o3.Irreps | str, name: str) -> o3.Irreps:
    """Parse irreps as `parse_irreps` does, and refuse a type in which a scalar follows an l > 0."""
    irreps = parse_irreps(irreps, name)
    if irreps.ls != sorted(irreps.ls):
        raise ValueError(f"{name} must be sorted by degree, got {irreps}")
    return irreps


def parse_irreps_list(irreps: Sequence[o3.Irreps | str], name: str) -> list[o3.Irreps]:
    """Parse one type for each layer; a type that is in no list is refused."""
    if isinstance(irreps, (str, o3.Irreps)):
        raise ValueError(f'{name} must be a list of one type for each layer, such as ["{irreps}"], got {irreps} alone')
    return [parse_irreps(each, name) for each in irreps]


def scalar_bias(bias: Tensor, irreps: o3.Irreps) -> Tensor:
    """Place one bias for each scalar on the components of a type, shape (irreps.dim,); the rest is zero."""
    full, start = bias.new_zeros(irreps.dim), 0
    for (mul, ir), where in zip(irreps, irreps.slices(), strict=True):
        if ir.l == 0:
            full[where] = bias[start : start + mul]
            start += mul
    return full

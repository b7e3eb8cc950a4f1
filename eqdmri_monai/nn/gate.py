"""Gated nonlinearity: scalars pass a SiLU, every other copy is multiplied by the sigmoid of a scalar of its own."""

from collections.abc import Callable
from functools import cache

import torch
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor, nn

from eqdmri_monai.nn.irreps import parse_sorted_irreps


@cache
def unit_moment(function: Callable[[Tensor], Tensor]) -> normalize2mom:
    """Return a function scaled to keep the second moment of unit-normal input (e3nn draws a million numbers for it)."""
    return normalize2mom(function)


class Gate(nn.Module):
    r"""Equivariant nonlinearity :math:`s \mapsto \mathrm{silu}(s)`, :math:`(g, v) \mapsto \mathrm{sigmoid}(g) \, v`.

    Both functions are scaled by e3nn to keep the second moment of unit-normal input.

    Parameters
    ----------
    irreps_out : o3.Irreps
        Scalars first, then every l > 0.

    Attributes
    ----------
    irreps_in : o3.Irreps
        Scalars, then one gate for each l > 0 copy, then these copies.

    Raises
    ------
    ValueError
        When the irreps are not sorted by degree, or have odd labels.

    Source
    ------
    Weiler et al. 2018, section 3.4; Müller et al., section 4.2 and B.2. The channels-first twin of `e3nn.nn.Gate`.
    """

    def __init__(self, irreps_out: o3.Irreps | str):
        super().__init__()
        self.irreps_out = parse_sorted_irreps(irreps_out, "irreps_out")
        vectors = [(mul, ir) for mul, ir in self.irreps_out if ir.l > 0]
        self.num_scalars = self.irreps_out.count("0e")
        self.num_gates = sum(mul for mul, _ in vectors)
        self.irreps_in = o3.Irreps([(self.num_scalars + self.num_gates, "0e"), *vectors]).simplify()
        self.blocks = [(mul, ir.dim) for mul, ir in vectors]
        self.widths = [mul * dim for mul, dim in self.blocks]
        self.silu, self.sigmoid = unit_moment(nn.functional.silu), unit_moment(torch.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        scalars, gates, vectors = x.split(
            [self.num_scalars, self.num_gates, x.shape[1] - self.num_scalars - self.num_gates], 1
        )
        parts, gates = [self.silu(scalars)], self.sigmoid(gates)
        for (mul, dim), gate, block in zip(
            self.blocks, gates.split([mul for mul, _ in self.blocks], 1), vectors.split(self.widths, 1), strict=True
        ):
            parts.append((gate[:, :, None] * block.unflatten(1, (mul, dim))).flatten(1, 2))
        return torch.cat(parts, dim=1) if self.num_gates else parts[0]

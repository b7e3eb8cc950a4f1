"""Nonlinearities other than the gate, and all of them by name."""

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn.channels_first import ChannelsFirst
from eqdmri_monai.nn.gate import Gate, unit_moment
from eqdmri_monai.nn.irreps import parse_sorted_irreps


class NormNonlinearity(nn.Module):
    r"""Change the length of every l > 0 copy, :math:`v \mapsto f(|v| + b) \, v / |v|`; scalars pass a SiLU.

    f is the SiLU with a learned b for each copy; with `squash`, :math:`f(x) = x^2 / (1 + x^2)` and no b.

    Parameters
    ----------
    irreps_out : o3.Irreps
        Of input and output alike; scalars first.
    squash : bool

    Raises
    ------
    ValueError
        When the irreps are not sorted by degree, or have odd labels.

    Source
    ------
    Müller et al., B.2; Worrall et al. 2017 and, with `squash`, Sabour et al. 2017, eq. 1. Made of
    `e3nn.nn.NormActivation`.
    """

    def __init__(self, irreps_out: o3.Irreps | str, *, squash: bool = False):
        super().__init__()
        self.irreps_in = self.irreps_out = parse_sorted_irreps(irreps_out, "irreps_out")
        self.num_scalars = self.irreps_out.count("0e")
        self.silu = unit_moment(nn.functional.silu)
        rest = o3.Irreps([(mul, ir) for mul, ir in self.irreps_out if ir.l > 0])
        function = _squashed if squash else torch.nn.functional.silu
        self.lengths = ChannelsFirst(e3nn_nn.NormActivation(rest, function, bias=not squash)) if rest else None

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        scalars = self.silu(x[:, : self.num_scalars])
        return torch.cat([scalars, self.lengths(x[:, self.num_scalars :])], 1) if self.lengths is not None else scalars


class TensorProductNonlinearity(nn.Module):
    r"""Add learned products of the features with themselves, :math:`x \mapsto (x + W (x \otimes x)) / \sqrt{2}`.

    Parameters
    ----------
    irreps_out : o3.Irreps
        Of input and output alike; scalars first.

    Raises
    ------
    ValueError
        When the irreps are not sorted by degree, or have odd labels.

    Source
    ------
    Müller et al., B.2; Kondor 2018, whose products alone would lose the sign of what is odd. Made of
    `e3nn.o3.TensorSquare`.
    """

    def __init__(self, irreps_out: o3.Irreps | str):
        super().__init__()
        self.irreps_in = self.irreps_out = parse_sorted_irreps(irreps_out, "irreps_out").simplify()
        self.square = ChannelsFirst(o3.TensorSquare(self.irreps_in, self.irreps_out))

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        return 0.5**0.5 * (x + self.square(x))


def nonlinear_layer(name: str, irreps_out: o3.Irreps | str) -> nn.Module:
    """Return the nonlinearity called "gate", "norm", "squash" or "tensor product", for an output type.

    Its ``irreps_in`` is what the layer before it must give.

    Raises
    ------
    ValueError
        When the name is unknown, or the type is not sorted by degree or has odd labels.
    """
    if name == "gate":
        return Gate(irreps_out)
    if name in ("norm", "squash"):
        return NormNonlinearity(irreps_out, squash=name == "squash")
    if name == "tensor product":
        return TensorProductNonlinearity(irreps_out)
    raise ValueError(f'nonlinearity must be "gate", "norm", "squash" or "tensor product", got {name!r}')


def _squashed(length: Tensor) -> Tensor:
    return length.square() / (1 + length.square())

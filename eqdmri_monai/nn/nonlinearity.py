"""Nonlinearities other than the gate, and the layers of e3nn that work on feature maps with channels first."""

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn.gate import Gate, unit_moment
from eqdmri_monai.nn.p_conv import check_irreps


class ChannelsFirst(nn.Module):
    """Apply a module of e3nn, which takes components on the last axis, to feature maps (B, irreps.dim, ...).

    With `e3nn.nn.BatchNorm` and `e3nn.nn.Dropout` this is batch or instance normalisation that keeps equivariance, and
    dropout of whole copies of an irrep.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's values, channels first."""
        return self.module(x.movedim(1, -1)).movedim(-1, 1)


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
        self.irreps_in = self.irreps_out = _scalars_first(irreps_out)
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
        self.irreps_in = self.irreps_out = _scalars_first(irreps_out).simplify()
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
    irreps_out = check_irreps(irreps_out, "irreps_out")
    if name == "gate":
        return Gate(irreps_out)
    if name in ("norm", "squash"):
        return NormNonlinearity(irreps_out, squash=name == "squash")
    if name == "tensor product":
        return TensorProductNonlinearity(irreps_out)
    raise ValueError(f'nonlinearity must be "gate", "norm", "squash" or "tensor product", got {name!r}')


def norm_layer(name: str, irreps: o3.Irreps | str) -> nn.Module:
    """Return the normalisation called "batch" or "instance": e3nn's, by the mean square of each copy of an irrep.

    Raises
    ------
    ValueError
        When the name is unknown.
    """
    if name not in ("batch", "instance"):
        raise ValueError(f'normalization must be "batch", "instance" or none, got {name!r}')
    return ChannelsFirst(e3nn_nn.BatchNorm(irreps, instance=name == "instance", normalization="component"))


def _squashed(length: Tensor) -> Tensor:
    return length.square() / (1 + length.square())


def _scalars_first(irreps: o3.Irreps | str) -> o3.Irreps:
    irreps = check_irreps(irreps, "irreps_out")
    degrees = [ir.l for _, ir in irreps]
    if degrees != sorted(degrees):
        raise ValueError(f"irreps_out of a nonlinearity must be sorted by degree, got {irreps}")
    return irreps

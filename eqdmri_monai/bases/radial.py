"""Radial functions of a length: cosine and Gaussian bumps, alone or followed by a small fully connected network."""

import math

import torch
from e3nn.nn import FullyConnectedNet
from torch import Tensor, nn


class Cosine(nn.Module):
    r"""Bumps :math:`\cos^2(\frac{\pi}{2} (x - \mu_k) / s)` within one step s of their centre, 0 elsewhere.

    Parameters
    ----------
    num : int
        Number of functions, their centres evenly spaced from 0 to `end`; a single one has centre 0 and s = `end`.
    end : float
        The last centre.
    learned : bool
        Train the centres and the step.
    names : pair of str
        What messages call `num` and `end`: the arguments of a layer that makes its own basis.

    Raises
    ------
    ValueError
        When num < 1 or end is not positive.

    Source
    ------
    Müller et al., eq. 38, with γ = 1/s.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False, names: tuple[str, str] = ("num", "end")):
        super().__init__()
        _set_bumps(self, num, end, 1.0, learned=learned, names=names)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        z = (x[..., None] - self.centers) / self.width
        return torch.cos(0.5 * math.pi * z).square() * (z.abs() <= 1)


class Gaussian(nn.Module):
    r"""Bumps :math:`\exp(-(x - \mu_k)^2 / 2 \sigma^2)`.

    Parameters
    ----------
    num : int
        Number of functions, their centres evenly spaced from 0 to `end`; a single one has its centre at 0.
    end : float
        The last centre.
    learned : bool
        Train the centres and σ.
    names : pair of str
        As in `Cosine`.

    Raises
    ------
    ValueError
        When num < 1 or end is not positive.

    Source
    ------
    Müller et al., eq. 37. The paper leaves σ open; 0.8/√2 of the step between centres is what the authors' code takes.
    A single function counts `end` as its step.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False, names: tuple[str, str] = ("num", "end")):
        super().__init__()
        _set_bumps(self, num, end, 0.8 / math.sqrt(2), learned=learned, names=names)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return torch.exp(-0.5 * ((x[..., None] - self.centers) / self.width) ** 2)


def _set_bumps(module: nn.Module, num: int, end: float, steps: float, *, learned: bool, names: tuple[str, str]) -> None:
    """Give a module its `num`, `centers` (num,) and `width` (in steps): parameters, or numbers no state dict holds."""
    if num < 1:
        raise ValueError(f"{names[0]} must ask for at least 1 function, got {num}")
    if not end > 0:
        raise ValueError(f"{names[1]}, the centre of the last radial function, must be positive, got {end}")
    module.num, width = num, steps * end / max(num - 1, 1)
    for name, value in {"centers": torch.linspace(0, end, num), "width": torch.tensor(width)}.items():
        if learned:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value, persistent=False)


class RadialNetwork(nn.Module):
    """Fully connected layers without biases on top of a radial basis.

    Parameters
    ----------
    basis : Module
        `Cosine` or `Gaussian`.
    widths : sequence of int
        Neurons of each layer; the last one is the number of radial functions.

    Raises
    ------
    ValueError
        When there is no layer, or one without neurons.

    Source
    ------
    Müller et al., eq. 39, and section 4.2 for the widths, with e3nn's variance-preserving `FullyConnectedNet` and SiLU.
    Without biases, lengths beyond the reach of the basis keep the value 0.
    """

    def __init__(self, basis: nn.Module, widths: tuple[int, ...] = (50, 50, 50)):
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be one or more positive numbers of neurons, got {tuple(widths)}")
        self.basis = basis
        self.layers = FullyConnectedNet([basis.num, *widths], torch.nn.functional.silu)
        self.num = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return self.layers(self.basis(x))


def radial_basis(
    name: str, num: int, end: float, *, learned: bool = False, names: tuple[str, str, str] = ("name", "num", "end")
) -> nn.Module:
    """Return the radial basis that the paper's Table 2 calls `name`.

    Parameters
    ----------
    name : str
        "cosine", "Gaussian", or either with "+fc" for a `RadialNetwork` on top. Its three layers have the paper's 50
        neurons, so that a name says all: it gives 50 functions whatever `num` is. For others, make one yourself.
    num : int
        Number of bumps.
    end : float
        Centre of the last bump.
    learned : bool
        Train the bumps' centres and width.
    names : three str
        What messages call `name`, `num` and `end`: the arguments of a layer that makes its own basis.

    Raises
    ------
    ValueError
        When the name is unknown, num < 1 or end is not positive.

    Source
    ------
    Müller et al., section 4.2.
    """
    bumps = {"cosine": Cosine, "Gaussian": Gaussian}
    kind, plus, network = name.partition("+") if isinstance(name, str) else (name, "", "")
    if kind not in bumps or (plus and network != "fc"):
        raise ValueError(f"{names[0]}: a radial basis must be cosine, cosine+fc, Gaussian or Gaussian+fc, got {name!r}")
    basis = bumps[kind](num, end, learned=learned, names=names[1:])
    return RadialNetwork(basis) if network else basis

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
        Number of functions; the centres are evenly spaced.
    end : float
        The last centre; the first is 0 (where num is 1, the only one).
    learned : bool
        Train the centres and the step.

    Source
    ------
    Müller et al., eq. 38, with γ = 1/s.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False):
        super().__init__()
        _set_bumps(self, num, end, end / max(num - 1, 1), learned=learned)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        z = (x[..., None] - self.centers) / self.width
        return torch.cos(0.5 * math.pi * z).square() * (z.abs() <= 1)


class Gaussian(nn.Module):
    r"""Bumps :math:`\exp(-(x - \mu_k)^2 / 2 \sigma^2)`.

    Parameters
    ----------
    num : int
        Number of functions; the centres are evenly spaced.
    end : float
        The last centre; the first is 0 (where num is 1, the only one).
    learned : bool
        Train the centres and σ.

    Source
    ------
    Müller et al., eq. 37; σ is 0.8/√2 of the spacing, as in their experiments.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False):
        super().__init__()
        _set_bumps(self, num, end, 0.8 / math.sqrt(2) * end / max(num - 1, 1), learned=learned)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return torch.exp(-0.5 * ((x[..., None] - self.centers) / self.width) ** 2)


def _set_bumps(module: nn.Module, num: int, end: float, width: float, *, learned: bool) -> None:
    """Give a module its `num`, `centers` (num,) and `width`: parameters, or numbers that no state dict holds."""
    module.num = num
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

    Source
    ------
    Müller et al., eq. 39 and 4.2, with e3nn's variance-preserving `FullyConnectedNet` and SiLU. Without biases, lengths
    beyond the reach of the basis keep the value 0.
    """

    def __init__(self, basis: nn.Module, widths: tuple[int, ...] = (50, 50, 50)):
        super().__init__()
        self.basis = basis
        self.layers = FullyConnectedNet([basis.num, *widths], torch.nn.functional.silu)
        self.num = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return self.layers(self.basis(x))


def radial_basis(name: str, num: int, end: float, *, learned: bool = False) -> nn.Module:
    """Return the radial basis that the paper's Table 2 calls `name`.

    Parameters
    ----------
    name : str
        "cosine", "Gaussian", or either with "+fc" for a fully connected network on top.
    num : int
        Number of bumps; with "+fc" the number of radial functions is 50.
    end : float
        Centre of the last bump.
    learned : bool
        Train the bumps' centres and width.

    Raises
    ------
    ValueError
        When the name is unknown, num < 1 or end is not positive.
    """
    bumps = {"cosine": Cosine, "Gaussian": Gaussian}
    kind, plus, network = name.partition("+")
    if kind not in bumps or (plus and network != "fc"):
        raise ValueError(f"radial basis must be cosine, cosine+fc, Gaussian or Gaussian+fc, got {name!r}")
    if num < 1:
        raise ValueError(f"a radial basis needs at least 1 function (num_radial...), got {num}")
    if end <= 0:
        raise ValueError(
            f"the last centre of a radial basis (q_max, or the kernel's radius) must be positive, got {end}"
        )
    basis = bumps[kind](num, end, learned=learned)
    return RadialNetwork(basis) if network else basis

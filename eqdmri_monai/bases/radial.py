"""Radial functions of a length: cosine and Gaussian bumps, alone or followed by a small fully connected network."""

import math
from dataclasses import dataclass

import torch
from e3nn.nn import FullyConnectedNet
from torch import Tensor, nn

# Mean square of the outputs of an untrained `RadialNetwork` over that of its inputs (mean of 200 seeds).
NETWORK_POWER = 0.65


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

    Raises
    ------
    ValueError
        When num < 1 or end is not positive.

    Source
    ------
    Müller et al., eq. 38, with γ = 1/s.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False):
        super().__init__()
        _set_bumps(self, num, end, 1.0, learned=learned)

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

    Raises
    ------
    ValueError
        When num < 1 or end is not positive.

    Source
    ------
    Müller et al., eq. 37. The paper leaves σ open; 0.8/√2 of the step between centres is what the authors' code takes.
    A single function counts `end` as its step.
    """

    def __init__(self, num: int, end: float, *, learned: bool = False):
        super().__init__()
        _set_bumps(self, num, end, 0.8 / math.sqrt(2), learned=learned)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return torch.exp(-0.5 * ((x[..., None] - self.centers) / self.width) ** 2)


def _set_bumps(module: nn.Module, num: int, end: float, steps: float, *, learned: bool) -> None:
    """Give a module its `num`, `centers` (num,) and `width` (in steps): parameters, or numbers no state dict holds."""
    if num < 1 or not end > 0:
        raise ValueError(f"radial functions must be 1 or more, their last centre positive, got num={num} and end={end}")
    module.num, width = num, steps * end / max(num - 1, 1)
    for name, value in {"centers": torch.linspace(0, end, num), "width": torch.tensor(width)}.items():
        if learned:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value, persistent=False)


class RadialNetwork(nn.Module):
    """Fully connected layers without biases on top of bumps.

    Parameters
    ----------
    bumps : Module
        `Cosine` or `Gaussian`.
    widths : sequence of int
        Neurons of each layer; the last one is the number of radial functions.

    Source
    ------
    Müller et al., eq. 39, and section 4.2 for the widths, with e3nn's variance-preserving `FullyConnectedNet` and SiLU.
    Without biases, lengths beyond the reach of the bumps keep the value 0.
    """

    def __init__(self, bumps: nn.Module, widths: tuple[int, ...] = (50, 50, 50)):
        super().__init__()
        self.bumps = bumps
        self.layers = FullyConnectedNet([bumps.num, *widths], torch.nn.functional.silu)
        self.num = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at lengths x, shape (..., num)."""
        return self.layers(self.bumps(x))


BUMPS = {"cosine": Cosine, "Gaussian": Gaussian}


@dataclass(frozen=True)
class Radial:
    """The radial functions of a layer, or of all layers of a network.

    Functions of q-lengths are plain Gaussians whatever `p` is, as in the paper: a scheme has few q-lengths (b0 and its
    shells), and on no more lengths than Gaussians their coefficients alone already make every function.

    Parameters
    ----------
    p : str
        Functions of |Δp| by the paper's names: "cosine", "Gaussian", or either with "+fc" for a `RadialNetwork` on top,
        which gives 50 functions whatever `num_p` is.
    num_p : int
        Bumps over |Δp|, centred from 0 to the kernel's radius.
    num_q : int
        Gaussians over |q_in| and |q_out|, centred from 0 to `q_max`.
    num_q_out : int
        Gaussians over |q_out|; `num_q` if left out.
    num_reduction : int
        Gaussians over |q| in a late q-reduction.
    q_max : float
        sqrt(b / 1000) of the strongest weighting that a layer is made for.
    learned : bool
        Train the centres and widths of all of them.

    Raises
    ------
    ValueError
        When `p` is unknown, a number is below 1, or `q_max` is not positive.

    Source
    ------
    Müller et al., eq. 14-17 and section 4.2.
    """

    p: str = "cosine+fc"
    num_p: int = 3
    num_q: int = 3
    num_q_out: int | None = None
    num_reduction: int = 3
    q_max: float = 1.75
    learned: bool = False

    def __post_init__(self):
        if self.p not in [name + network for name in BUMPS for network in ("", "+fc")]:
            raise ValueError(f"radial p must be cosine, cosine+fc, Gaussian or Gaussian+fc, got {self.p!r}")
        for name in ("num_p", "num_q", "num_q_out", "num_reduction"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must ask for at least 1 radial function, got {number}")
        if not self.q_max > 0:
            raise ValueError(f"q_max, the centre of the last function of q-length, must be positive, got {self.q_max}")

    def over_p(self, radius: float) -> nn.Module:
        """Return new functions of |Δp| for a kernel of this radius."""
        kind, _, network = self.p.partition("+")
        bumps = BUMPS[kind](self.num_p, radius, learned=self.learned)
        return RadialNetwork(bumps) if network else bumps

    def over_q_in(self) -> Gaussian:
        """Return new functions of |q_in|."""
        return Gaussian(self.num_q, self.q_max, learned=self.learned)

    def over_q_out(self) -> Gaussian:
        """Return new functions of |q_out|."""
        return Gaussian(self.num_q if self.num_q_out is None else self.num_q_out, self.q_max, learned=self.learned)

    def over_reduction(self) -> Gaussian:
        """Return new functions of |q| for a late q-reduction."""
        return Gaussian(self.num_reduction, self.q_max, learned=self.learned)


def untrained_power(radial: nn.Module, x: Tensor) -> Tensor:
    """Return functions (N, k) of lengths x (N,) with the mean square, over initial weights, of radial functions."""
    if not isinstance(radial, RadialNetwork):
        return radial(x)
    return radial.bumps(x) * (NETWORK_POWER * radial.num / radial.bumps.num) ** 0.5

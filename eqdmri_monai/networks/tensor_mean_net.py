"""Diffusion tensors from few directions: means over what is alike around, with weights that were learned."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import log, sqrt

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import pad

from eqdmri_monai.nn.receptive_field import ReceptiveField
from eqdmri_monai.nn.scale_space import TRUNCATE, blur_within
from eqdmri_monai.tensors import TIMES, deviator, fit_tensor, fractional_anisotropy, mean_diffusivity, shrunk

REACH = 2  # voxels to each side, ...
FARTHEST = sqrt(5)  # ... and in all
NEAR, FAR = 1.0, 2.5  # voxels, of Gaussians: what a voxel is like, and how noisy its surroundings are
LARGEST = 6.0  # µm²/ms; a tensor of a larger norm than any tissue's or fluid's is shrunk to it
LIMIT = 6.0  # of the logarithm of a weight


class TensorMeanNet(nn.Module):
    """The tensor that fits the signal, averaged with those around that are alike: non-local means with learned weights.

    How much a neighbour counts is told by a network of a few hundred weights from numbers of the pair that do not turn:
    how unlike their tensors, b0s and surroundings are, in units of the noise around, and whether the neighbour lies
    along or across the fibres. The isotropic and the anisotropic part have weights of their own. A second small network
    scales both parts of the mean, whose anisotropy is else too small where unlike tensors meet, or too large where
    there is noise. So the network is equivariant under rigid motions of the grid whatever its weights, takes any
    scheme that determines a tensor, and begins as a mean over a ball. It counts in voxels, which should be cubic.

    Parameters
    ----------
    hidden : int
        Width of the network of pairs.

    Attributes
    ----------
    irreps_out : o3.Irreps
        What the six components are made of.

    Source
    ------
    Non-local means: Buades et al. 2005, doi:10.1109/CVPR.2005.38. Learned weights, and by tensors, are ours.
    """

    irreps_out = o3.Irreps("1x0e+1x2e")
    receptive_field = ReceptiveField(3 * (REACH + 1 + TRUNCATE * (NEAR + FAR),))

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.of_voxel = nn.Linear(len(Voxels.NUMBERS), hidden)
        self.of_pair = nn.Linear(len(Voxels.PAIR) + len(Voxels.NUMBERS), hidden, bias=False)
        self.weights = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2))
        self.amounts = nn.Sequential(nn.Linear(len(Voxels.NUMBERS) + 3, 24), nn.SiLU(), nn.Linear(24, 2))
        nn.init.zeros_(self.weights[-1].weight)
        nn.init.constant_(self.weights[-1].bias, -2.0)  # 57 voxels, each e⁻² of the one in the middle
        for parameter in self.amounts[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Logarithm of the signal over one number for the whole scan, as `LogSignald` gives it; 0 outside the brain.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, 6, X, Y, Z)
            xx xy xz yy yz zz along the voxel axes, µm²/ms; 0 outside the brain.

        Raises
        ------
        ValueError
            When the q-vectors do not determine a tensor.
        """
        with torch.no_grad():  # nothing before the pairs is learned
            tensor, log_s0 = fit_tensor(image, q[0] if q.ndim == 3 else q)
            voxels = Voxels.of(shrunk(tensor, LARGEST), log_s0, image.any(dim=1))
        mean, mass = self.mean(voxels)
        scales = self.amounts(torch.cat([voxels.numbers, anisotropy(mean.detach())[:, None] / 0.3 - 1, mass.log()], 1))
        isotropic, anisotropic = parts(mean)
        mean = isotropic * torch.exp(0.1 * scales[:, :1]) + anisotropic * torch.exp(scales[:, 1:])
        out = torch.zeros_like(tensor)
        out.movedim(1, -1)[voxels.inside] = (mean / mean.new_tensor(TIMES).sqrt()).to(out)
        return out

    @torch.no_grad()
    def lengthen(self, factor: float) -> None:
        """Multiply the anisotropic part of all that it gives, to make up for what a mean of unlike tensors loses."""
        self.amounts[-1].bias[1] += log(factor)

    def mean(self, voxels: "Voxels") -> tuple[Tensor, Tensor]:
        """Return weighted means of tensors (N, 6), and sums of the weights of both parts (N, 2), 1 for one voxel."""
        own, tensors = self.of_voxel(voxels.numbers), parts(voxels.tensor)
        totals, mass = list(tensors), own.new_ones(len(own), 2)
        for offset in OFFSETS:
            there, brain = voxels.neighbours(offset)
            weights = self.weights(own + self.of_pair(voxels.compared(there, offset)))
            weights = brain[:, None] * torch.exp(LIMIT * torch.tanh(weights / LIMIT))
            for k, part in enumerate(tensors):
                totals[k] = totals[k] + weights[:, k : k + 1] * part[there]
            mass = mass + weights
        return totals[0] / mass[:, :1] + totals[1] / mass[:, 1:], mass


OFFSETS = [o for o in product(range(-REACH, REACH + 1), repeat=3) if 0 < sum(k * k for k in o) <= FARTHEST**2 + 1e-6]


@dataclass
class Voxels:
    """The voxels of the brain in a row, with what is known of each; tensors so that their product is a dot product.

    Six components times the roots of how often they stand in the matrix: norms are Frobenius'.
    """

    inside: Tensor  # (B, X, Y, Z)
    tensor: Tensor  # (N, 6)
    smooth: Tensor  # (N, 6), over a neighbourhood
    log_s0: Tensor  # (N,)
    smooth_log_s0: Tensor
    noise: Tensor  # (N,), root mean square of how far tensors around are from smooth ones
    noise_log_s0: Tensor
    likeness: Tensor  # (N,), how far noise is like that of neighbours: 0 for a voxel's own

    NUMBERS = (
        "anisotropy", "diffusivity", "noise", "noise of log S0", "distance from smooth", "anisotropy over noise",
        "likeness of noise",
    )  # fmt: skip
    PAIR = (
        "distance", "tensors", "smooth tensors", "alignment", "log S0", "smooth log S0", "fibre here along offset",
        "fibre there along offset", "diffusivity", "smooth log S0, absolute",
    )  # fmt: skip

    @classmethod
    def of(cls, tensor: Tensor, log_s0: Tensor, inside: Tensor) -> "Voxels":
        """Return the voxels of tensors (B, 6, X, Y, Z), log S0 (B, X, Y, Z) where they are inside (B, X, Y, Z)."""
        brain = inside[:, None].to(tensor)
        roots = tensor.new_tensor(TIMES).sqrt()[:, None, None, None]
        x = torch.cat([tensor * roots, log_s0[:, None]], dim=1) * brain
        smooth = blur_within(x, brain, 3 * [NEAR])
        rest = x - smooth
        rimmed, sizes = pad(rest, 6 * (1,)), rest.shape[2:]
        around = (
            sum(rimmed[(..., *window(o, sizes, 1))] for o in OFFSETS if o.count(0) == 2 and max(map(abs, o)) == 1) / 6
        )
        square = torch.cat(
            [(part * rest)[:, :6].sum(1, keepdim=True) for part in (rest, around)] + [rest[:, 6:] ** 2], 1
        )
        square = blur_within(square, brain, 3 * [FAR])
        x, smooth, square = (part.movedim(1, -1)[inside] for part in (x, smooth, square))
        noise, noise_log_s0 = (square[:, k] + least for k, least in ((0, 1e-3), (2, 1e-4)))
        return cls(
            inside,
            x[:, :6],
            smooth[:, :6],
            x[:, 6],
            smooth[:, 6],
            noise.sqrt(),
            noise_log_s0.sqrt(),
            square[:, 1] / noise,
        )

    @cached_property
    def anisotropic(self) -> tuple[Tensor, Tensor]:
        """Return the anisotropic parts of smooth tensors (N, 6), and their norms (N,)."""
        part = parts(self.smooth)[1]
        return part, part.norm(dim=1)

    @cached_property
    def numbers(self) -> Tensor:
        """Return what is known of each voxel and does not turn (N, 6), around 0 and of size 1."""
        length = self.anisotropic[1]
        distance = (self.tensor - self.smooth).norm(dim=1).clamp(max=2.0)
        return torch.stack(
            [
                anisotropy(self.smooth) / 0.3 - 1, (mean_diffusivity(self.smooth) - 1).clamp(-1, 2),
                2 * self.noise.log() + 3, 2 * self.noise_log_s0.log() + 4, distance - 0.5,
                (length / self.noise).clamp(max=8) / 4 - 1, 4 * self.likeness,
            ], dim=1,
        )  # fmt: skip

    @cached_property
    def places(self) -> Tensor:
        """Return where each voxel stands in the row (B, X, Y, Z), -1 outside, with a rim of the reach."""
        places = torch.full(self.inside.shape, -1, device=self.inside.device)
        places[self.inside] = torch.arange(len(self.tensor), device=places.device)
        return pad(places, 6 * (REACH,), value=-1)

    def neighbours(self, offset: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Return where each voxel's neighbour stands in the row (N,), and if there is one; else any number."""
        there = self.places[(..., *window(offset, self.inside.shape[1:], REACH))][self.inside]
        return there.clamp(min=0), there >= 0

    @torch.no_grad()
    def compared(self, there: Tensor, offset: tuple[int, int, int]) -> Tensor:
        """Return what is known of pairs and of the neighbours, and does not turn (N, 16)."""
        o = self.tensor.new_tensor(offset)
        along = torch.stack([o[0] * o[0], o[0] * o[1], o[0] * o[2], o[1] * o[1], o[1] * o[2], o[2] * o[2]])
        along = along / o.square().sum() * o.new_tensor(TIMES).sqrt()
        part, length = self.anisotropic
        fibre = (part @ along) / (length + 0.05)
        smooth = self.smooth - self.smooth[there]
        log_s0 = (self.smooth_log_s0 - self.smooth_log_s0[there]).abs()
        pair = torch.stack(
            [
                o.norm().expand(len(there)) - 2,
                ((self.tensor - self.tensor[there]).norm(dim=1) / self.noise).clamp(max=4) - 1.5,
                (smooth.norm(dim=1) / self.noise).clamp(max=4) - 1,
                (part * part[there]).sum(1) / ((length + 0.02) * (length[there] + 0.02)),
                ((self.log_s0 - self.log_s0[there]).abs() / self.noise_log_s0).clamp(max=4) - 1.5,
                (log_s0 / self.noise_log_s0).clamp(max=4) - 1, fibre, fibre[there],
                mean_diffusivity(smooth).abs().clamp(max=2), log_s0.clamp(max=1),
            ], dim=1,
        )  # fmt: skip
        return torch.cat([pair, self.numbers[there]], dim=1)


def window(offset: tuple[int, int, int], sizes: torch.Size, rim: int) -> tuple[slice, ...]:
    """Return where the neighbours of all voxels lie in an array with a rim."""
    return tuple(slice(rim + o, rim + o + n) for o, n in zip(offset, sizes, strict=True))


def anisotropy(x: Tensor) -> Tensor:
    """Fractional anisotropy (N,) of tensors (N, 6) as in `Voxels`."""
    return fractional_anisotropy(x / x.new_tensor(TIMES).sqrt())


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the isotropic and the anisotropic part of tensors (N, 6) as in `Voxels`."""
    anisotropic = deviator(x)
    return x - anisotropic, anisotropic

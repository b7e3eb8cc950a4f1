"""Functions on q-shells as spherical harmonics, their convolution on the sphere and on the rotations, their power.

A function on the sphere is f(x) = Σ f_lm Y_lm(x), one on the rotations h(R) = Σ h_lmn D_lmn(R): of each degree l the
former is one copy of the irrep, the latter 2l + 1. Feature maps are (B, irreps.dim, ...), copies of a degree together.
"""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import degree_slice, harmonics
from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.gradients import QSampling
from eqdmri_monai.nn.linear import Linear

RANK_TOLERANCE = 1e-2  # of a shell's harmonics, relative to their largest singular value; below, noise is blown up


def degrees(lmax: int, *, even: bool) -> list[int]:
    """Degrees up to lmax; of functions with f(-x) = f(x) the even ones alone."""
    return list(range(0, lmax + 1, 2 if even else 1))


class ShellHarmonics(nn.Module):
    r"""Fit each q-shell with spherical harmonics, and add up shells by radial functions of their q-length.

    .. math:: f_{u l m} = \sum_s w_s R_u(|q_s|) \, c_{s l m}, \quad
        c_s = (Y^T Y + 4 \pi \lambda L)^{-1} Y^T S, \quad L_{ll} = l^2 (l + 1)^2

    Directions turned by R give coefficients turned by D(R): the penalty knows degrees only. b0 is a shell of its own
    that has degree 0 only. w averages the shells of b > 50, as in `QLengthPool`. Nothing is learned here, unless
    `radial` is.

    Parameters
    ----------
    lmax : int
        Largest degree.
    even : bool
        Even degrees alone, for signals with S(q) = S(-q), as diffusion has.
    radial : Radial
        Its `num_q`, `q_max` and `learned` count.
    penalty : float
        λ, of the Laplace-Beltrami penalty on roughness.

    Raises
    ------
    ValueError
        When lmax or the penalty is negative.

    Source
    ------
    Descoteaux et al. 2007, doi:10.1002/mrm.21277, with their λ = 0.006 for harmonics normalised to 1 (ours to 4π).
    """

    def __init__(
        self,
        lmax: int = 2,
        *,
        even: bool = True,
        radial: Radial = Radial(),
        penalty: float = 0.006,
    ):
        super().__init__()
        if lmax < 0 or penalty < 0:
            raise ValueError(f"lmax and penalty must not be negative, got {lmax} and {penalty}")
        self.degrees, self.penalty = degrees(lmax, even=even), penalty
        self.radial = radial.over_q_in()
        self.irreps_out = o3.Irreps([(self.radial.num, (l, 1)) for l in self.degrees])

    def matrix(self, q: Tensor) -> Tensor:
        """Return what maps the volumes at q (Q, 3) to coefficients, shape (irreps_out.dim, Q).

        Raises
        ------
        ValueError
            When a shell has too few directions for lmax.
        """
        sampling = QSampling.of(q)
        shares = sampling.weights() * torch.bincount(sampling.shell)[sampling.shell]  # of a whole shell
        rows = [q.new_zeros(self.radial.num, 2 * l + 1, len(q)) for l in self.degrees]
        for s, length in enumerate(sampling.length):
            members = sampling.shell == s
            radial = shares[members][0] * self.radial(length.to(q))
            fits = self._fit(sampling.q[members], self.degrees if length > 0 else [0], length)
            for row, fit in zip(rows, fits, strict=False):
                row[..., members] = radial[:, None, None] * fit
        return torch.cat([row.flatten(0, 1) for row in rows])

    def _fit(self, q: Tensor, degrees: list[int], length: Tensor) -> list[Tensor]:
        """Return the least-squares coefficients of each degree, (2l + 1, Q), of values at vectors q of one length."""
        sh = harmonics(degrees[-1], q)
        Y = torch.cat([sh[:, degree_slice(l)] for l in degrees], 1).double()
        values = torch.linalg.svdvals(Y)
        if len(Y) < Y.shape[1] or values[-1] < RANK_TOLERANCE * values[0]:
            raise ValueError(
                f"{len(Y)} directions at b = {1000 * float(length) ** 2:.0f} s/mm² are too few, or too much alike, for "
                f"harmonics up to degree {degrees[-1]} ({Y.shape[1]} numbers); use a lower lmax"
            )
        rough = torch.cat([Y.new_full((2 * l + 1,), float((l * (l + 1)) ** 2)) for l in degrees])
        fit = torch.linalg.solve(Y.T @ Y + 4 * math.pi * self.penalty * rough.diag(), Y.T).to(q)
        return list(fit.split([2 * l + 1 for l in degrees]))

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, Q, X, Y, Z)
        q : Tensor, shape (Q, 3)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
        """
        with torch.autocast(x.device.type, enabled=False):
            matrix = self.matrix(q)
        return torch.einsum("oq,bq...->bo...", matrix.to(x.dtype), x)


class SphereConv(nn.Module):
    r"""Convolution of functions on the sphere or on the rotations, with a learned function for each pair of channels.

    On the sphere alone the filter is zonal, :math:`h_{lm} = g_l f_{lm}`. To the rotations it is any function on the
    sphere, :math:`h(R) = \int f(x) g(R^{-1} x) dx`, so that :math:`h_{lmn} = g_{ln} f_{lm}`; from rotations to
    rotations :math:`h_{lmn} = \sum_k f_{lmk} g_{lkn}`. All of them mix copies of a degree and are one `Linear`.

    Parameters
    ----------
    channels_in, channels_out : int
    lmax : int
    even : bool
        Even degrees alone.
    rotations_in, rotations_out : bool
        Whether input and output are functions on the rotations, or on the sphere.
    gates : int
        Further scalars in the output, such as a `Gate` takes.

    Raises
    ------
    ValueError
        When a number of channels is below 1, or the input alone is on the rotations.

    Source
    ------
    Cohen et al. 2018 (spherical CNNs) and Esteves et al. 2018 (zonal filters); eq. 20 to 23 of the review after them.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        lmax: int,
        *,
        even: bool = True,
        rotations_in: bool = False,
        rotations_out: bool = False,
        gates: int = 0,
    ):
        super().__init__()
        if min(channels_in, channels_out) < 1:
            raise ValueError(f"channels must be 1 or more, got {channels_in} and {channels_out}")
        if rotations_in and not rotations_out:
            raise ValueError("a function on the rotations gives one on the rotations; set rotations_out")
        irreps_in, irreps_out = (
            [(channels * (2 * l + 1 if rotations else 1), (l, 1)) for l in degrees(lmax, even=even)]
            for channels, rotations in ((channels_in, rotations_in), (channels_out, rotations_out))
        )
        self.irreps_in = o3.Irreps(irreps_in)
        self.irreps_out = o3.Irreps([(irreps_out[0][0] + gates, "0e"), *irreps_out[1:]])
        self.linear = Linear(self.irreps_in, self.irreps_out)
        self.bias = nn.Parameter(torch.zeros(irreps_out[0][0] + gates))

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        y = self.linear(x)
        scalars = y[:, : len(self.bias)] + self.bias.view(-1, *[1] * (x.ndim - 2))
        return torch.cat([scalars, y[:, len(self.bias) :]], 1)


class SpherePower(nn.Module):
    r"""Put the powers :math:`p_l = \langle h_{lmn}^2 \rangle_{mn}` of functions on the rotations before the functions.

    Powers, one for each function and degree l > 0, do not turn. Without them a network whose gates see degree 0 alone
    is linear in all other degrees of a voxel: it would not see anisotropy.

    Parameters
    ----------
    channels : int
    lmax : int
    even : bool
        Even degrees alone.

    Source
    ------
    Kazhdan et al. 2003 (rotation invariant spherical harmonic representation): the energy of each degree.
    """

    def __init__(self, channels: int, lmax: int, *, even: bool = True):
        super().__init__()
        self.channels = channels
        self.widths = [channels * (2 * l + 1) ** 2 for l in degrees(lmax, even=even)]
        self.irreps_in = o3.Irreps([(channels * (2 * l + 1), (l, 1)) for l in degrees(lmax, even=even)])
        powers = channels * (len(self.widths) - 1)
        self.irreps_out = o3.Irreps([(powers + channels, "0e"), *self.irreps_in[1:]])

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        blocks = x.split(self.widths, 1)[1:]
        return torch.cat([*(block.unflatten(1, (self.channels, -1)).square().mean(2) for block in blocks), x], 1)

"""Coarser and finer grids over p-space: a Gaussian before voxels are thinned out, a cubic spline to fill them in again.

The coarse grid lies symmetrically about the centre of the array, whether an axis has an odd or an even number of
voxels, and all axes are treated alike, so quarter turns commute exactly; at other angles the layers are as equivariant
as voxels allow. Components of a feature map are treated alike too, so that any irreps pass unchanged.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from eqdmri_monai.nn.receptive_field import ReceptiveField

# Where weights without end are taken to end: what lies beyond changes a value by less than 1e-5 of the largest.
LOW_PASS_TAIL = 5  # standard deviations
SPLINE_TAIL = 8  # coarse voxels; with each the weights fall by 3.7


def coarse_positions(size: int, factor: int) -> Tensor:
    """Return where the voxels of a coarse axis lie, in voxels of the fine one.

    They are `factor` apart, symmetric about the centre, and as few as cover the axis: with factor 2, the voxels 0, 2, …
    size - 1 of an odd axis and the half-way points 0.5, 2.5, … size - 1.5 of an even one. The affine of the coarse grid
    has `factor` times the columns of the fine one's, and its origin at the first position.

    Parameters
    ----------
    size : int
        Voxels of the fine axis.
    factor : int

    Returns
    -------
    Tensor, shape (ceil(size / factor),), float64

    Raises
    ------
    ValueError
        When fewer than two voxels would be left.
    """
    if size <= factor:
        raise ValueError(f"an axis of {size} voxels is too short for factor {factor}; choose one less than {size}")
    count = -(-size // factor)
    return (size - 1) / 2 + factor * (torch.arange(count, dtype=torch.float64) - (count - 1) / 2)


class Downsample(nn.Module):
    r"""Low-pass and thin out: :math:`y(p) = \sum_{p'} G(p - p') \, x(p') / \sum_{p'} G(p - p')`, p on the coarse grid.

    G is a Gaussian, the one filter that is both separable and the same in all directions. Its variance is
    (factor² - 1) / 3 square voxels: 1 for factor 2, as in the binomial pyramid, and such that two steps of factor 2
    are one of factor 4. The sums run over the voxels of the array, so that constants stay constant up to the
    edge.

    Measured, away from the edge, as parts of the largest value: quarter turns commute to 1e-15. Random turns of fields
    of 0.01, 0.05, 0.1 and 0.2 cycles per voxel, with factor 2: to 4e-10, 1e-8, 9e-8 and 3e-6.

    Parameters
    ----------
    factor : int or three ints
        Along all axes, or along each: (2, 2, 1) for voxels that are twice as long in z.

    Raises
    ------
    ValueError
        When a factor is no whole number of 1 or more.

    Source
    ------
    Müller et al., section 6, leave equivariant pooling over p-space open. Variance: Burt and Adelson 1983,
    doi:10.1109/TCOM.1983.1095851.
    """

    def __init__(self, factor: int | Sequence[int] = 2):
        super().__init__()
        self.factor = _three_factors(factor)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        tail = [LOW_PASS_TAIL * _variance(f) ** 0.5 for f in self.factor]
        return ReceptiveField.of_resampling(tail, [Fraction(f) for f in self.factor])

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps.dim, ..., X, Y, Z)

        Returns
        -------
        Tensor, shape (B, irreps.dim, ..., ceil(X / factor), ceil(Y / factor), ceil(Z / factor))
            At `coarse_positions`.

        Raises
        ------
        ValueError
            When an axis has no more voxels than its factor.
        """
        for axis, factor in zip((-3, -2, -1), self.factor, strict=True):
            if factor > 1:
                x = _along(axis, _low_pass(x.shape[axis], factor), x)
        return x


class Upsample(nn.Module):
    """Fill in voxels again: along each axis, the natural cubic spline through the coarse values.

    Coarse values of a constant or linear field give that field exactly, edges included. What was blurred stays so: of a
    wave of ν cycles per voxel, exp(-2π² σ² ν²) is left after `Downsample` (σ² is the Gaussian's variance), whatever its
    direction.

    Measured as for `Downsample`, in cycles per fine voxel: quarter turns 1e-15, random turns 6e-7, 3e-4, 5e-3 and 0.18.

    Parameters
    ----------
    factor : int or three ints
        As in `Downsample`.

    Raises
    ------
    ValueError
        When a factor is no whole number of 1 or more.
    """

    def __init__(self, factor: int | Sequence[int] = 2):
        super().__init__()
        self.factor = _three_factors(factor)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        tail = [SPLINE_TAIL if f > 1 else 0 for f in self.factor]
        return ReceptiveField.of_resampling(tail, [Fraction(1, f) for f in self.factor])

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps.dim, ..., X, Y, Z)
        size : three ints
            Voxels of the fine grid, which `Downsample` would thin out to those of x; factor times those of x if left
            out.

        Returns
        -------
        Tensor, shape (B, irreps.dim, ..., *size)

        Raises
        ------
        ValueError
            When `Downsample` makes another size of `size` than x has.
        """
        size = [n * f for n, f in zip(x.shape[-3:], self.factor, strict=True)] if size is None else list(size)
        coarse = [-(-n // f) for n, f in zip(size, self.factor, strict=True)]
        if coarse != list(x.shape[-3:]):
            raise ValueError(
                f"size {tuple(size)} thins out to {tuple(coarse)} voxels but x has {tuple(x.shape[-3:])}; give the "
                "size that Downsample was given"
            )
        for axis, n, factor in zip((-3, -2, -1), size, self.factor, strict=True):
            if factor > 1:
                x = _along(axis, _spline(n, factor), x)
        return x


def _three_factors(factor: int | Sequence[int]) -> tuple[int, int, int]:
    factors = tuple(factor) if isinstance(factor, Sequence) else (factor,) * 3
    if len(factors) != 3 or not all(isinstance(f, int) and f >= 1 for f in factors):
        raise ValueError(f"factor must be one or three whole numbers of 1 or more, got {factor}")
    return factors


def _along(axis: int, matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply one axis of x with a matrix (new size, old size)."""
    return (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)


def _low_pass(size: int, factor: int) -> Tensor:
    """Gaussian weights of a fine axis at coarse positions, rows of sum 1, shape (coarse, fine)."""
    distance = torch.arange(size) - coarse_positions(size, factor)[:, None]
    weight = torch.exp(-distance.square() / (2 * _variance(factor)))
    return weight / weight.sum(1, keepdim=True)


def _variance(factor: int) -> float:
    """Square voxels of the fine grid."""
    return (factor**2 - 1) / 3


def _spline(size: int, factor: int) -> Tensor:
    """Weights of coarse values in the natural cubic spline at the voxels of a fine axis, shape (fine, coarse).

    Beyond the outermost coarse voxels the end pieces go on.
    """
    positions = coarse_positions(size, factor)
    value = torch.eye(len(positions), dtype=torch.float64)
    bend = torch.zeros_like(value)  # second derivatives, 0 at both ends
    system = (value[:-2] + 4 * value[1:-1] + value[2:])[:, 1:-1] / 6
    bend[1:-1] = torch.linalg.solve(system, value.diff(n=2, dim=0))
    place = (torch.arange(size) - positions[0]) / factor
    left = place.floor().long().clamp(0, len(positions) - 2)
    b = (place - left)[:, None]
    a = 1 - b
    return a * value[left] + b * value[left + 1] + ((a**3 - a) * bend[left] + (b**3 - b) * bend[left + 1]) / 6

"""Convolution of the 3D Steerable CNN: sampled filters of unit norm, combined with weights."""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import coupling, degree_slice, harmonics, triangle
from eqdmri_monai.nn.grid_conv import conv3d, convolve, kernel_lattice
from eqdmri_monai.nn.irreps import parse_irreps, scalar_bias
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.nn.receptive_field import ReceptiveField

SIGMA = 0.6  # voxels; width of a shell (Weiler et al. 2018, 3.5.1)


def band_limits(kernel_size: int) -> tuple[int, ...]:
    """Return the highest degree J on the shells of radius 0, 1, 2, ... voxels: twice the radius.

    A great circle of radius m holds 2πm voxels, which tell degrees below πm apart; 2m leaves a margin. At the centre
    there is no direction at all.
    """
    return tuple(2 * m for m in range(kernel_size // 2 + 1))


def sampled_filters(l_out: int, l_in: int, lattice: Tensor, limits: Sequence[int]) -> Tensor:
    r"""Sample the filters :math:`\exp(-(|x| - m)^2 / 2 σ^2) \, Q^J Y^J(x / |x|)` for all shells m and degrees J.

    Parameters
    ----------
    l_out, l_in : int
    lattice : Tensor, shape (N, 3)
        Offsets in voxels.
    limits : sequence of int
        Highest J of the shells m = 0, 1, ...

    Returns
    -------
    Tensor, shape (B, 2 l_out + 1, 2 l_in + 1, N)
        Each filter has unit norm; those that vanish on the lattice are left out.

    Source
    ------
    Weiler et al. 2018, 3.3.1 and 3.5.1.
    """
    sh, filters = harmonics(l_out + l_in, lattice), []
    for m, limit in enumerate(limits):
        shell = torch.exp(-0.5 * ((lattice.norm(dim=1) - m) / SIGMA) ** 2)
        for J in triangle(l_out, l_in):
            if J <= limit:
                angular = torch.einsum("oji,nj->oin", coupling(J, l_in, l_out).to(sh), sh[:, degree_slice(J)])
                filters.append(angular * shell)
    filters = torch.stack(filters) if filters else lattice.new_zeros(0, 2 * l_out + 1, 2 * l_in + 1, len(lattice))
    norm = filters.flatten(1).norm(dim=1)
    seen = norm > 0  # a lattice that is its centre alone has no directions
    return filters[seen] / norm[seen][:, None, None, None]


class SteerableConv3d(nn.Module):
    r"""Equivariant convolution :math:`κ = \sum_{J m} w^{J m} κ^{J m}` with sampled filters κ.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Types of the feature maps, even labels.
    kernel_size : int
        Voxels along each axis, odd; shells of radius 0 to kernel_size // 2.
    stride : int
        Quarter turns commute where (voxels - 1) is a multiple of it.
    limits : sequence of int
        Highest degree of the filters on each shell; `band_limits` if left out.

    Raises
    ------
    ValueError
        When the irreps have odd labels, the kernel size is even, there is not one limit for each shell, or no filter
        leads to an output irrep.

    Source
    ------
    Weiler et al. 2018, 3.3.1 and 3.5; eq. 10-14.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        *,
        kernel_size: int = 5,
        stride: int = 1,
        limits: Sequence[int] | None = None,
    ):
        super().__init__()
        self.irreps_in = parse_irreps(irreps_in, "irreps_in")
        self.irreps_out = parse_irreps(irreps_out, "irreps_out")
        self.kernel_size, self.stride = kernel_size, stride
        lattice, _ = kernel_lattice(kernel_size, (1.0, 1.0, 1.0))
        limits = band_limits(kernel_size) if limits is None else tuple(limits)
        if len(limits) != kernel_size // 2 + 1:
            raise ValueError(f"limits must have {kernel_size // 2 + 1} entries, one for each shell, got {len(limits)}")
        for l_out in set(self.irreps_out.ls):
            for l_in in set(self.irreps_in.ls):
                filters = sampled_filters(l_out, l_in, lattice, limits)
                self.register_buffer(f"filters_{l_out}_{l_in}", filters, persistent=False)
        self.weights, self.scale = nn.ParameterList(), []
        for mul_o, ir_o in self.irreps_out:
            counts = [len(self.filters(ir_o.l, ir_i.l)) for _, ir_i in self.irreps_in]
            self.weights.extend(
                torch.randn(count, mul_o, mul_i) for count, (mul_i, _) in zip(counts, self.irreps_in, strict=True)
            )
            number = sum(count * mul_i for count, (mul_i, _) in zip(counts, self.irreps_in, strict=True))
            if mul_o and not number:  # these features would be 0 at every voxel
                raise ValueError(
                    f"irreps_out has {mul_o}x{ir_o}, but no filter of kernel_size {kernel_size} with limits {limits} "
                    f"leads there from {self.irreps_in}; leave {ir_o} out or enlarge kernel_size"
                )
            self.scale.append((ir_o.dim / max(number, 1)) ** 0.5)  # keeps the variance of white noise
        self.bias = nn.Parameter(torch.zeros(self.irreps_out.count("0e")))
        self._kernels = KernelCache()

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return ReceptiveField.of_kernel(self.kernel_size, self.stride)

    def filters(self, l_out: int, l_in: int) -> Tensor:
        """Return the sampled filters between two degrees, shape (B, 2 l_out + 1, 2 l_in + 1, N)."""
        return getattr(self, f"filters_{l_out}_{l_in}")

    def grid_kernel(self) -> Tensor:
        """Return the conv3d weight, shape (irreps_out.dim, irreps_in.dim, X, Y, Z)."""
        weights, rows = iter(self.weights), []
        for (_, ir_o), scale in zip(self.irreps_out, self.scale, strict=True):
            blocks = [
                torch.einsum("bvu,boin->vouin", scale * next(weights), self.filters(ir_o.l, ir_i.l)).flatten(2, 3)
                for _, ir_i in self.irreps_in
            ]
            rows.append(torch.cat(blocks, dim=2).flatten(0, 1))
        return torch.cat(rows).unflatten(-1, 3 * (self.kernel_size,))

    def scalar_bias(self) -> Tensor:
        """Return the bias on every output component, shape (irreps_out.dim,); zero but for scalars."""
        return scalar_bias(self.bias, self.irreps_out)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, X, Y, Z)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X', Y', Z')
            At the voxels 0, stride, 2 stride, ...; outside the array the input counts as 0.
        """
        weight, bias = self._kernels(self, (), self._build)
        if self.stride == 1:
            return convolve(x, weight, bias, kernel_size=self.kernel_size)
        return conv3d(x, weight, bias, stride=self.stride)

    def _build(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.bias.device.type, enabled=False):  # bf16 would lose the kernels' symmetry
            return self.grid_kernel(), self.scalar_bias()

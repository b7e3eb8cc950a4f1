"""Convolution over p-space: an ordinary conv3d whose kernel obeys K(R Δp) = D_out(R) K(Δp) D_in(R)ᵀ."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import FilterBasis, Radial, p_space
from eqdmri_monai.nn.filters import Filters
from eqdmri_monai.nn.grid_conv import convolve, kernel_lattice
from eqdmri_monai.nn.irreps import parse_irreps, scalar_bias
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.nn.linear import Linear
from eqdmri_monai.nn.receptive_field import ReceptiveField


class PConv(nn.Module):
    r"""Equivariant convolution :math:`y(p) = \sum_{p'} K(p - p') x(p') + L x(p) + b`.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Types of the feature maps, even labels.
    kernel_size : int
        Voxels along each axis, odd.
    spacing : three floats
        Voxel sizes in mm; only their ratios matter.
    radial : Radial
        Those of |Δp| count.
    basis : FilterBasis
        `p_space`, or a part of it.

    Raises
    ------
    ValueError
        When the irreps have odd labels, the kernel size is even, a spacing is not positive, or the basis depends on q
        or has no filter between the two types.

    Source
    ------
    Müller et al., eq. 2 and 23; Weiler et al. 2018, eq. 10-12.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        *,
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        radial: Radial = Radial(),
        basis: FilterBasis = p_space,
    ):
        super().__init__()
        self.irreps_in = parse_irreps(irreps_in, "irreps_in")
        self.irreps_out = parse_irreps(irreps_out, "irreps_out")
        if basis.over_q:
            raise ValueError(f"basis of a p layer must not depend on q, got {basis.name}; use p_space")
        self.kernel_size = kernel_size
        lattice, radius = kernel_lattice(kernel_size, spacing)
        self.register_buffer("lattice", lattice, persistent=False)
        self.filters = Filters(
            basis, self.irreps_in, self.irreps_out, lattice=lattice, radius=radius, radial=radial,
            noise_gain=2.0,  # the self-connection has the other half
            smooth_share=0.25,  # what gates give is far from white
        )  # fmt: skip
        self.self_connection = Linear(self.irreps_in, self.irreps_out)
        self.bias = nn.Parameter(torch.zeros(self.irreps_out.count("0e")))
        self._kernels = KernelCache()

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return ReceptiveField.of_kernel(self.kernel_size)

    def kernel(self, offset: Tensor) -> Tensor:
        """Evaluate the filter law at any offsets (N, 3) in mm; returns (N, irreps_out.dim, irreps_in.dim)."""
        zero = offset.new_zeros(1, 3)
        return self.filters.kernel(offset, zero, zero)[:, 0, :, 0]

    def grid_kernel(self) -> Tensor:
        """Return the conv3d weight (irreps_out.dim, irreps_in.dim, X, Y, Z), self-connection included."""
        k, zero = self.kernel_size, self.lattice.new_zeros(1)
        weight = self.filters.by_shell(self.lattice, zero, zero)[0, 0, :, :, 0].unflatten(-1, (k, k, k))
        centre = torch.zeros_like(weight)
        centre[:, :, k // 2, k // 2, k // 2] = 0.5**0.5 * self.self_connection.matrix()
        return weight + centre

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
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Outside the array the input counts as 0.

        Raises
        ------
        ValueError
            When x has another shape.
        """
        if x.ndim != 5 or x.shape[1] != self.irreps_in.dim:
            raise ValueError(f"x must be (B, {self.irreps_in.dim}, X, Y, Z), got {tuple(x.shape)}")
        weight, bias = self._kernels(self, (), self._build)
        return convolve(x, weight, bias, kernel_size=self.kernel_size)

    def _build(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.lattice.device.type, enabled=False):  # bf16 would lose the kernels' symmetry
            return self.grid_kernel(), self.scalar_bias()

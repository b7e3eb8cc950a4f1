"""Convolution over p-space: an ordinary conv3d whose kernel obeys K(R Δp) = D_out(R) K(Δp) D_in(R)ᵀ."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import FilterBasis, p_space
from eqdmri_monai.bases.filters import check_paths
from eqdmri_monai.nn.filter_weights import ProductFilters
from eqdmri_monai.nn.fourier_conv import Transform, fourier_conv, is_faster, spectrum, transform
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.nn.linear import Linear


def kernel_lattice(kernel_size: int, spacing: tuple[float, float, float]) -> tuple[Tensor, float]:
    """Return the offsets Δp = p_out - p_in of a kernel's taps, shape (kernel_size³, 3), and the kernel's radius.

    conv3d correlates: tap t reads the input at p_out + t, so its Δp is -t.

    Raises
    ------
    ValueError
        When the kernel size is even or a spacing is not positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that it has a centre, got {kernel_size}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive lengths, got {tuple(spacing)}")
    reach = kernel_size // 2
    taps = torch.arange(-reach, reach + 1, dtype=torch.get_default_dtype())
    lattice = -torch.cartesian_prod(taps, taps, taps) * torch.tensor(spacing, dtype=taps.dtype)
    return lattice, max(reach, 1) * max(spacing)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """Convolve with zeros outside the array, output as large as the input where the stride is 1.

    Few channels make the gradient of the weight slow in the plain memory format (8 to 23 channels, 24³ voxels, one
    core, fp32: 14.7 ms, in channels-last 7.1 ms). What follows a convolution is faster in the plain format.
    """
    if torch.is_grad_enabled():
        x = x.contiguous(memory_format=torch.channels_last_3d)
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    else:
        x = x.contiguous()
    return nn.functional.conv3d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2).contiguous()


@dataclass(frozen=True)
class Convolution:
    """Convolution with one weight, as `conv3d` does it or, where that is faster, `fourier_conv`.

    Parameters
    ----------
    kernel : Tensor
        A weight (O, I, k, k, k) or its `spectrum`.
    transform : Transform or None
        Into Fourier space; None for `conv3d`.
    reach : int
        k // 2.
    """

    kernel: Tensor
    transform: Transform | None
    reach: int

    @classmethod
    def of(cls, weight: Tensor, size: torch.Size, *, shared: bool = False) -> "Convolution":
        """Choose the way for arrays of size X, Y, Z; where many share the weight, its spectrum is computed here."""
        reach = weight.shape[-1] // 2
        if not is_faster(weight, size):
            return cls(weight, None, reach)
        t = transform(*size[:2], weight.shape[-1], weight.dtype, weight.device)
        return cls(spectrum(weight, t) if shared else weight, t, reach)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (N, O, X, Y, Z) of x (N, I, X, Y, Z); outside the array x counts as 0."""
        if self.transform is None:
            return conv3d(x, self.kernel, bias)
        y = fourier_conv(x, self.kernel, self.transform, self.reach)
        return y if bias is None else y.add_(bias[:, None, None, None])


def check_irreps_list(irreps: Sequence[o3.Irreps | str], name: str) -> list[o3.Irreps]:
    """Parse one type for each layer and refuse odd parity, or one type that is in no list."""
    if isinstance(irreps, (str, o3.Irreps)):
        raise ValueError(f'{name} must be a list of one type for each layer, such as ["{irreps}"], got {irreps} alone')
    return [check_irreps(each, name) for each in irreps]


def check_irreps(irreps: o3.Irreps | str, name: str) -> o3.Irreps:
    """Parse irreps and refuse odd parity: this project uses even labels for all of SO(3)."""
    irreps = o3.Irreps(irreps)
    odd = [str(ir) for _, ir in irreps if ir.p != 1]
    if odd:
        raise ValueError(f"{name} must have even labels only (0e, 1e, 2e: rotations without mirrors), got {irreps}")
    return irreps


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
    radial : str
        "cosine", "Gaussian", or either with "+fc".
    num_radial : int
        Number of bumps, centred from 0 to the kernel's radius.
    learn_radial : bool
        Train the bumps' centres and width.
    basis : FilterBasis
        `p_space`, or a part of it.

    Raises
    ------
    ValueError
        When the irreps have odd labels, the kernel size is even, a spacing is not positive, the radial basis is
        unknown or has less than one function, or the filter basis depends on q or has no filter between the two types.

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
        radial: str = "cosine+fc",
        num_radial: int = 3,
        learn_radial: bool = False,
        basis: FilterBasis = p_space,
    ):
        super().__init__()
        self.irreps_in, self.irreps_out = (
            check_irreps(irreps_in, "irreps_in"),
            check_irreps(irreps_out, "irreps_out"),
        )
        if not isinstance(basis, FilterBasis):
            raise ValueError(f"basis must be a FilterBasis such as p_space, got {basis!r}")
        if basis.over_q:
            raise ValueError(f"basis of a p layer must not depend on q, got {basis.name}; use p_space")
        check_paths([basis], self.irreps_in, self.irreps_out)
        self.kernel_size = kernel_size
        lattice, radius = kernel_lattice(kernel_size, spacing)
        self.register_buffer("lattice", lattice, persistent=False)
        self.filters = ProductFilters(
            basis, self.irreps_in, self.irreps_out, lmax_q=0, lattice=lattice, radius=radius, radial_p=radial,
            num_radial_p=num_radial, learn_radial=learn_radial,
            noise_gain=2.0,  # the self-connection has the other half
            smooth_share=0.25,  # what gates give is far from white
        )  # fmt: skip
        self.self_connection = Linear(self.irreps_in, self.irreps_out)
        self.bias = nn.Parameter(torch.zeros(self.irreps_out.count("0e")))
        self._kernels = KernelCache()

    def kernel(self, offset: Tensor) -> Tensor:
        """Evaluate the filter law at any offsets (N, 3) in mm; returns (N, irreps_out.dim, irreps_in.dim)."""
        return self._filters(offset, on_lattice=False).movedim(-1, 0)

    def grid_kernel(self) -> Tensor:
        """Return the conv3d weight (irreps_out.dim, irreps_in.dim, X, Y, Z), self-connection included."""
        k = self.kernel_size
        weight = self._filters(self.lattice, on_lattice=True).unflatten(-1, (k, k, k))
        centre = torch.zeros_like(weight)
        centre[:, :, k // 2, k // 2, k // 2] = 0.5**0.5 * self.self_connection.matrix()
        return weight + centre

    def scalar_bias(self) -> Tensor:
        """Return the bias on every output component, shape (irreps_out.dim,); zero but for scalars."""
        return spread_bias(self.bias, self.irreps_out)

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
        return Convolution.of(weight, x.shape[2:])(x, bias)

    def _build(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.lattice.device.type, enabled=False):  # bf16 would lose the kernels' symmetry
            return self.grid_kernel(), self.scalar_bias()

    def _filters(self, offset: Tensor, *, on_lattice: bool) -> Tensor:
        zero = offset.new_zeros(1)
        return self.filters(offset, zero, zero, on_lattice=on_lattice)[0, 0, :, :, 0]  # [o, i, n]


def spread_bias(bias: Tensor, irreps: o3.Irreps) -> Tensor:
    """Place one bias for each scalar on the components of a type, shape (irreps.dim,)."""
    full, start = bias.new_zeros(irreps.dim), 0
    for (mul, ir), where in zip(irreps, irreps.slices(), strict=True):
        if ir.l == 0:
            full[where] = bias[start : start + mul]
            start += mul
    return full

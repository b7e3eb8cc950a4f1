"""Convolution over p-space and q-space together, computed by a sum over q first and convolutions over p second.

With separable bases (see `q_plan`) the sum over q_in is a multiplication with fixed numbers, and what is left is a
convolution over voxels whose batch is q_out. Its kernel depends on the shells, never on a direction.

The set of q-vectors is closed under q -> -q by default (S(q) = S(-q), and files store either sign). A map then has a
part that is even in q and one that is odd, and y(±q_out) = even ± odd come from the same convolutions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.filters import FilterBasis, max_lq, tp1
from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.nn.filters import Filters
from eqdmri_monai.nn.grid_conv import conv3d, convolve, kernel_lattice, shared_kernel
from eqdmri_monai.nn.irreps import parse_irreps, scalar_bias
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.nn.linear import Linear
from eqdmri_monai.nn.q_plan import OutputPart, QPlan, first_shell
from eqdmri_monai.nn.receptive_field import ReceptiveField


@dataclass(frozen=True)
class Prepared:
    """What `PQConv` computes once for all q_out.

    Lists run over the parts of the output and, within, over the shells of q_out.

    Parameters
    ----------
    plan : QPlan
    x : list of Tensor, each (B, irreps_in.dim, Q_in, X, Y, Z)
        The part of the input that is even in q and, where there is one, the odd part.
    kernels : list of list of Tensor
        What the mixes of a part are convolved with; empty where it has none.
    shared : list of list of Tensor, each (B, n, irreps_out.dim, X · Y · Z)
        The maps that a part of the plan shares between q_out; empty where it has none.
    self_matrix : Tensor, shape (irreps_out.dim, irreps_in.dim)
    bias : Tensor, shape (irreps_out.dim,)
    """

    plan: QPlan
    x: list[Tensor]
    kernels: list[list[Tensor]]
    shared: list[list[Tensor]]
    self_matrix: Tensor
    bias: Tensor

    def tensors(self) -> list[Tensor]:
        """List all that depends on the input or on weights."""
        return [self.self_matrix, self.bias, *self.x, *chain(*self.kernels), *chain(*self.shared)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Prepared":
        """Return the same with other `tensors`, in their order."""
        new = iter(tensors)
        return replace(
            self,
            self_matrix=next(new),
            bias=next(new),
            x=[next(new) for _ in self.x],
            kernels=[[next(new) for _ in shells] for shells in self.kernels],
            shared=[[next(new) for _ in shells] for shells in self.shared],
        )


class PQConv(nn.Module):
    r"""Equivariant convolution :math:`y(p, q) = \sum_{q'} w_{q'} \sum_{p'} K(p - p', q, q') x(p', q') + L x(p, q) + b`.

    The weights w average each shell, then the shells of b > 50, so that the result does not depend on the number of
    directions. With `antipodal` the sum also runs over -q', and the output has values at q and at -q.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Types of the feature maps, even labels.
    bases : sequence of FilterBasis and DifferenceBasis
        Their filters are summed.
    kernel_size : int
        Voxels along each axis, odd.
    spacing : three floats
        Voxel sizes in any unit; only their ratios matter.
    radial : Radial
    antipodal : bool
        Close the set of q-vectors under q -> -q.

    Raises
    ------
    ValueError
        When the irreps have odd labels, the list of bases is empty, one of them has no filter between the two types,
        the kernel size is even, or a spacing is not positive.

    Source
    ------
    Müller et al., eq. 8, 26 and 45-48.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        *,
        bases: Sequence[FilterBasis] = (tp1,),
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        radial: Radial = Radial(),
        antipodal: bool = True,
    ):
        super().__init__()
        self.irreps_in = parse_irreps(irreps_in, "irreps_in")
        self.irreps_out = parse_irreps(irreps_out, "irreps_out")
        if not bases:
            raise ValueError("bases must name at least one filter basis, got an empty list")
        self.kernel_size, self.antipodal, self.num_bases = kernel_size, antipodal, len(bases)
        self.separable = all(basis.separable for basis in bases)
        self.lmax_q = max_lq([basis for basis in bases if basis.separable], self.irreps_in, self.irreps_out)
        lattice, radius = kernel_lattice(kernel_size, spacing)
        self.register_buffer("lattice", lattice, persistent=False)
        self.filters = nn.ModuleList(
            Filters(
                basis, self.irreps_in, self.irreps_out, lattice=lattice, radius=radius, radial=radial,
                lmax_q=self.lmax_q,
                noise_gain=4.0 * len(bases),  # b0 and shells each give 1, the self-connection as much as both
                smooth_share=0.1,
            )
            for basis in bases
        )  # fmt: skip
        self.self_connections = nn.ModuleList(Linear(self.irreps_in, self.irreps_out) for _ in bases)
        self.bias = nn.Parameter(torch.zeros(self.irreps_out.count("0e")))
        self._kernels = KernelCache()

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return ReceptiveField.of_kernel(self.kernel_size)

    def kernel(self, offset: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """Evaluate the filter law at any points.

        Parameters
        ----------
        offset : Tensor, shape (N, 3)
            Δp = p_out - p_in, in the unit of `spacing`.
        q_out : Tensor, shape (Q_out, 3)
        q_in : Tensor, shape (Q_in, 3)

        Returns
        -------
        Tensor, shape (N, Q_out, irreps_out.dim, Q_in, irreps_in.dim)
            Without quadrature weights and self-connection.
        """
        return sum(filters.kernel(offset, q_out, q_in) for filters in self.filters)

    def grid_kernel(self, q_in: Tensor, q_out: Tensor | None = None, *, closed: bool = False) -> Tensor:
        """Return the layer as the weight of one plain convolution from all volumes to all volumes.

        Parameters
        ----------
        q_in, q_out : Tensor, shape (Q_in, 3), (Q_out, 3)
            As in `forward`.
        closed : bool
            Whether the input is given at every q and then at every -q, where the layer is antipodal.

        Returns
        -------
        Tensor, shape (Q_out, irreps_out.dim, Q_in, irreps_in.dim, X, Y, Z)
            Quadrature weights and self-connection included. 2 Q_out where the layer is antipodal; 2 Q_in with `closed`.

        Source
        ------
        Müller et al., eq. 45-48 and B.4.
        """
        plan = self.plan(q_in, q_out, input_parts=1 + self.antipodal)
        q_in, q_out, weight, same = plan.sampling_in.q, plan.sampling_out.q, plan.weight, plan.parts[0].same
        if self.antipodal:
            even, odd = (0.5 * part.same for part in plan.parts)
            same = torch.cat([torch.cat([even + odd, even - odd], 1), torch.cat([even - odd, even + odd], 1)])
            q_in, q_out, weight = torch.cat([q_in, -q_in]), torch.cat([q_out, -q_out]), torch.cat([weight, weight]) / 2
        kernel = self.kernel(self.lattice, q_out, q_in) * weight[:, None]  # [n, q, o, r, i]
        kernel[len(kernel) // 2] += same[:, None, :, None] * self.self_matrix()[:, None]
        if self.antipodal and not closed:
            kernel = kernel.unflatten(3, (2, -1)).sum(3)
        return kernel.movedim(0, -1).unflatten(-1, 3 * (self.kernel_size,))

    def plan(self, q_in: Tensor, q_out: Tensor | None = None, *, input_parts: int = 1) -> QPlan:
        """Return the fixed numbers for q-vectors (Q_in, 3) and (Q_out, 3); without q_out, it is q_in."""
        q_out = q_out if q_out is None else q_out.to(self.lattice)
        return QPlan.between(
            q_in.to(self.lattice), q_out, lmax_q=self.lmax_q, antipodal=self.antipodal, input_parts=input_parts
        )

    def shell_kernels(self, plan: QPlan) -> Tensor:
        """Return what mixed volumes are convolved with, by separable bases, from shell to shell.

        Shape (S_out, S_in, irreps_out.dim, irreps_in.dim, (lmax_q + 1)², X, Y, Z).
        """
        s, t, m = len(plan.sampling_out.length), len(plan.sampling_in.length), (self.lmax_q + 1) ** 2
        with torch.autocast(self.lattice.device.type, enabled=False):  # bf16 would lose the kernels' symmetry
            kernels = [
                filters.by_shell(self.lattice, plan.sampling_out.length, plan.sampling_in.length)
                for filters in self.filters
                if filters.basis.separable
            ]
        if not kernels:
            kernels = [self.lattice.new_zeros(s, t, self.irreps_out.dim, self.irreps_in.dim, m, len(self.lattice))]
        return sum(kernels).unflatten(-1, 3 * (self.kernel_size,))

    def self_matrix(self) -> Tensor:
        """Return the self-connection, shape (irreps_out.dim, irreps_in.dim)."""
        return (0.5 / self.num_bases) ** 0.5 * sum(c.matrix() for c in self.self_connections)

    def scalar_bias(self) -> Tensor:
        """Return the bias on every output component, shape (irreps_out.dim,); zero but for scalars."""
        return scalar_bias(self.bias, self.irreps_out)

    def forward(self, x: Tensor, q_in: Tensor, q_out: Tensor | None = None, *, chunk: int = 8) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, Q_in, X, Y, Z)
            With `antipodal`, either this (the same value at q and -q) or 2 Q_in maps: at every q, then at every -q.
        q_in : Tensor, shape (Q_in, 3)
        q_out : Tensor, shape (Q_out, 3)
            Where to evaluate the output; q_in if left out.
        chunk : int
            Number of q_out that are computed at a time.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, Q_out, X, Y, Z)
            2 Q_out maps with `antipodal`.

        Raises
        ------
        ValueError
            When x has neither one map for each q_in nor, with `antipodal`, two.
        """
        prepared = self.prepare(x, q_in, q_out)
        indices = list(prepared.plan.chunks(chunk))
        parts = [self.convolve(prepared, index) for index in indices]
        order = torch.cat(indices).argsort()
        return torch.cat([torch.cat(signs, dim=2)[:, :, order] for signs in zip(*parts, strict=True)], dim=2)

    def prepare(self, x: Tensor, q_in: Tensor, q_out: Tensor | None = None) -> Prepared:
        """Do what is common to all q_out, for `convolve` to be called on a few of them at a time."""
        x, size = self._split(x, len(q_in)), x.shape[3:]
        keys = (q_in, torch.tensor(len(x)), *([] if q_out is None else [q_out]))
        plan, shell_kernels, mix_kernels = self._kernels(self, keys, lambda: self._build(q_in, q_out, len(x)))
        kernels = [[shared_kernel(weight, size) for weight in shells] for shells in mix_kernels]
        shared = [self._convolve_shared(x[0], plan, kernel) for kernel in shell_kernels]
        shared = [[maps[:, part.shared] for maps in shared] if part.shared else [] for part in plan.parts]
        return Prepared(plan, x, kernels, shared, self.self_matrix(), self.scalar_bias())

    def convolve(self, prepared: Prepared, index: Tensor) -> tuple[Tensor, ...]:
        """Compute the output at a few q_out of one shell.

        Parameters
        ----------
        prepared : Prepared
        index : Tensor, shape (n,)
            One of ``prepared.plan.chunks``.

        Returns
        -------
        tuple of Tensor, each (B, irreps_out.dim, n, X, Y, Z)
            At q_out; with `antipodal`, also at -q_out.
        """
        parts = [self._convolve_part(prepared, k, index) for k in range(len(prepared.plan.parts))]
        if self.antipodal:
            even, odd = parts
            parts = [even, even] if odd is None else [even + odd, even.sub_(odd)]
        if self.separable:
            return tuple(parts)
        q_out = prepared.plan.sampling_out.q[index]
        return tuple(y + self._convolve_dense(prepared, sign * q_out) for sign, y in zip((1, -1), parts, strict=False))

    def _split(self, x: Tensor, count: int) -> list[Tensor]:
        """Return the parts of a map that are even and odd in q; the even one alone where it is given at +q alone."""
        if x.ndim != 6 or x.shape[1] != self.irreps_in.dim:
            raise ValueError(f"x must be (B, {self.irreps_in.dim}, Q, X, Y, Z), got {tuple(x.shape)}")
        if x.shape[2] == count:
            return [x]
        if not self.antipodal or x.shape[2] != 2 * count:
            raise ValueError(f"x has {x.shape[2]} maps over q but there are {count} q-vectors")
        plus, minus = x.split(count, dim=2)
        return [0.5 * (plus + minus), 0.5 * (plus - minus)]

    def _build(self, q_in: Tensor, q_out: Tensor | None, input_parts: int) -> tuple[QPlan, Tensor, list[list[Tensor]]]:
        """Return what depends on q-vectors and weights alone: the plan, and what is convolved with."""
        plan = self.plan(q_in, q_out, input_parts=input_parts)
        kernels = self.shell_kernels(plan)
        return plan, kernels, [self._mix_kernels(plan, kernels, part) for part in plan.parts]

    def _mix_kernels(self, plan: QPlan, kernels: Tensor, part: OutputPart) -> list[Tensor]:
        """What a part's mixes are convolved with, for each shell of q_out (dim_out, dim_in · channels, X, Y, Z)."""
        weighted = kernels[:, first_shell(plan.sampling_in) :]
        channels = [  # [s, o, i, t, m, x, y, z]
            weighted[:, :, :, :, mix.components].permute(0, 2, 3, 1, 4, 5, 6, 7).flatten(2, 4) for mix in part.mixes
        ]
        return list(torch.cat(channels, dim=2)) if channels else []

    def _convolve_shared(self, x: Tensor, plan: QPlan, kernel: Tensor) -> Tensor:
        """Convolve what all q_out of a shell share: (B, n, dim_out, X · Y · Z), n for each m of `OutputPart.shared`."""
        onehot = nn.functional.one_hot(plan.sampling_in.shell, len(plan.sampling_in.length)).to(plan.weight)
        means = torch.einsum("rt,birxyz->bitxyz", plan.weight[:, None] * onehot, x)
        weight = kernel[:, :, :, 0].permute(1, 2, 0, 3, 4, 5).flatten(1, 2)
        shared = [convolve(means.flatten(1, 2), weight, kernel_size=self.kernel_size)[:, None]]
        if self.lmax_q and first_shell(plan.sampling_in):
            weight = kernel[0, :, :, 1:].permute(2, 0, 1, 3, 4, 5).flatten(0, 1)
            b0 = convolve(means[:, :, 0], weight, kernel_size=self.kernel_size)
            shared.append(b0.unflatten(1, (-1, self.irreps_out.dim)))
        return torch.cat(shared, dim=1).flatten(3)

    def _convolve_part(self, prepared: Prepared, k: int, index: Tensor) -> Tensor | None:
        """Compute one part of the output (B, dim_out, n, X, Y, Z), or None where nothing contributes."""
        plan, x, n, size = prepared.plan, prepared.x, len(index), prepared.x[0].shape[3:]
        part, shell, bias = plan.parts[k], int(plan.sampling_out.shell[index[0]]), prepared.bias if k == 0 else None
        y = None  # [b, q, o x y z]
        if part.mixes:
            h = [torch.einsum("qmr,birxyz->bqimxyz", mix.numbers[index], x[mix.part]) for mix in part.mixes]
            h = torch.cat([each.flatten(2, 3) for each in h], dim=2) if len(h) > 1 else h[0].flatten(2, 3)
            y = convolve(h.flatten(0, 1), prepared.kernels[k][shell], bias, kernel_size=self.kernel_size)
            y = y.unflatten(0, (-1, n)).flatten(2)
        elif bias is not None:
            y = bias[:, None].expand(-1, size.numel()).reshape(1, 1, -1).repeat(len(x[0]), n, 1)
        if part.shared:
            shared = prepared.shared[k][shell].flatten(2)
            y = _add_product(y, part.towards[index].expand(len(shared), -1, -1), shared)
        if part.same is not None:
            own = torch.einsum("qr,birxyz->bqixyz", part.same[index], x[k]).flatten(0, 1).flatten(2)
            y = None if y is None else y.unflatten(2, (self.irreps_out.dim, -1)).flatten(0, 1)
            y = _add_product(y, prepared.self_matrix.to(own).expand(len(own), -1, -1), own)
            y = y.unflatten(0, (-1, n)).flatten(2)
        return None if y is None else y.unflatten(2, (self.irreps_out.dim, *size)).transpose(1, 2)

    def _convolve_dense(self, prepared: Prepared, q_out: Tensor) -> Tensor:
        """Convolve with the bases that are not separable, from all volumes at once; (B, dim_out, n, X, Y, Z)."""
        q_in, weight, filters = prepared.plan.sampling_in.q, prepared.plan.weight, self.filters
        with torch.autocast(self.lattice.device.type, enabled=False):
            kernels = [  # [n, q, o, r, i], of q_in and, in a closed set, of -q_in
                weight[:, None]
                * sum(f.kernel(self.lattice, q_out, sign * q_in) for f in filters if not f.basis.separable)
                for sign in ((1, -1) if self.antipodal else (1,))
            ]
            if self.antipodal:  # meet the even and the odd part
                kernels = [0.5 * (kernels[0] + kernels[1]), 0.5 * (kernels[0] - kernels[1])]
            kernels = [k.permute(1, 2, 4, 3, 0).flatten(0, 1).flatten(1, 2) for k in kernels[: len(prepared.x)]]
        x = torch.cat([part.flatten(1, 2) for part in prepared.x], dim=1)
        kernel = torch.cat(kernels, dim=1).unflatten(-1, 3 * (self.kernel_size,))
        return conv3d(x, kernel).unflatten(1, (len(q_out), -1)).transpose(1, 2)


def _add_product(y: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return y + a @ b for stacks of matrices, in one pass over memory and in the place of y."""
    return torch.bmm(a, b) if y is None else y.baddbmm_(a.to(y.dtype), b.to(y.dtype))

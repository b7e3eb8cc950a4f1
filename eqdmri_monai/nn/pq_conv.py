"""Convolution over p-space and q-space together, computed by mixing over q first and convolving over p second.

For product bases the filter is a harmonic of Δp times a harmonic of q_out - q_in, and radial functions see only
lengths. So the sum over q_in within a shell is a multiplication with fixed numbers, one per (q_out, l_q, m_q), and
what is left is a convolution over voxels whose batch is q_out. Its kernel depends on the shells, never on a direction.
Two parts depend on q_out through a factor alone and are convolved once for all: l_q = 0, and everything from b0.

The set of q-vectors is closed under q -> -q by default (S(q) = S(-q), and files store either sign). A map then has a
part that is even in q and one that is odd, and y(±q_out) = E ± O come from the same convolutions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import harmonics
from eqdmri_monai.bases.filters import FilterBasis, max_lq, tp1
from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.nn.filters import Filters
from eqdmri_monai.nn.grid_conv import Convolution, conv3d, kernel_lattice
from eqdmri_monai.nn.irreps import parse_irreps, scalar_bias
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.nn.linear import Linear
from eqdmri_monai.nn.q_mixing import QMixing
from eqdmri_monai.nn.receptive_field import ReceptiveField


@dataclass(frozen=True)
class Part:
    """How the part of the output that is even or odd in q is computed (all of it where the set is not closed).

    Parameters
    ----------
    mixes : list of (int, Tensor of shape (Q_out, channels, Q_in))
        Which field is mixed over q, and with which numbers.
    weights : list of Tensor, each (irreps_out.dim, irreps_in.dim · channels, X, Y, Z)
        What the mixed fields are convolved with, for each shell of q_out; None where there is no mix.
    towards : Tensor, shape (Q_out, S)
        What the maps shared by all q_out are multiplied with.
    which : list of int
        Which of the shared maps.
    own : int or None
        Which field meets the self-connection.
    same : Tensor, shape (Q_out, Q_in)
        Where q_out is q_in.
    bias : bool
        Whether the bias belongs to this part.
    """

    mixes: list[tuple[int, Tensor]]
    weights: list[Tensor | None]
    towards: Tensor
    which: list[int]
    own: int | None
    same: Tensor
    bias: bool


@dataclass(frozen=True)
class Prepared:
    """What `PQConv` computes once for all q_out.

    Parameters
    ----------
    fields : tuple of Tensor, each (B, irreps_in.dim, Q_in, X, Y, Z)
        The part of the map that is even in q and, where there is one, the odd part.
    mixing : QMixing
    parts : list of Part
    convolutions : list of list of Convolution
        With the weight of each part and each shell of q_out; None where there is none.
    shared : list of Tensor, each (B, S, irreps_out.dim, X, Y, Z)
        For each shell of q_out: the sum over q_in of l_q = 0; then b0 alone for each (l_q, m_q), l_q > 0.
    self_matrix : Tensor, shape (irreps_out.dim, irreps_in.dim)
    bias : Tensor, shape (irreps_out.dim,)
    """

    fields: tuple[Tensor, ...]
    mixing: QMixing
    parts: list[Part]
    convolutions: list[list[Convolution | None]]
    shared: list[Tensor]
    self_matrix: Tensor
    bias: Tensor

    def tensors(self) -> list[Tensor]:
        """List all that depends on the input or on weights."""
        kernels = [c.kernel for part in self.convolutions for c in part if c is not None]
        return [self.self_matrix, self.bias, *self.fields, *self.shared, *kernels]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Prepared":
        """Return the same with other `tensors`, in their order."""
        new = iter(tensors)
        return replace(
            self,
            self_matrix=next(new),
            bias=next(new),
            fields=tuple(next(new) for _ in self.fields),
            shared=[next(new) for _ in self.shared],
            convolutions=[[c and replace(c, kernel=next(new)) for c in part] for part in self.convolutions],
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

    def grid_kernel(self, mixing: QMixing) -> Tensor:
        """Return the p-kernels between shells, shape (S_out, S_in, dim_out, dim_in, (lmax_q + 1)², X, Y, Z)."""
        with torch.autocast(self.lattice.device.type, enabled=False):  # bf16 would lose the kernels' symmetry
            s, t = mixing.sampling_out.length, mixing.sampling_in.length
            separable = [filters.by_shell(self.lattice, s, t) for filters in self.filters if filters.basis.separable]
            size = len(s), len(t), self.irreps_out.dim, self.irreps_in.dim, (self.lmax_q + 1) ** 2, len(self.lattice)
            kernel = sum(separable) if separable else self.lattice.new_zeros(size)
        return kernel.unflatten(-1, 3 * (self.kernel_size,))

    def mixing(self, q_in: Tensor, q_out: Tensor | None = None) -> QMixing:
        """Return the fixed numbers for q-vectors (Q_in, 3) and (Q_out, 3); without q_out, it is q_in."""
        q_out = q_out if q_out is None else q_out.to(self.lattice)
        return QMixing.between(q_in.to(self.lattice), q_out, lmax_q=self.lmax_q, antipodal=self.antipodal)

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
        """
        prepared = self.prepare(x, q_in, q_out)
        indices = list(prepared.mixing.chunks(chunk))
        parts = [self.convolve(prepared, index) for index in indices]
        order = torch.cat(indices).argsort()
        return torch.cat([torch.cat(signs, dim=2)[:, :, order] for signs in zip(*parts, strict=True)], dim=2)

    def prepare(self, x: Tensor, q_in: Tensor, q_out: Tensor | None = None) -> Prepared:
        """Do what is common to all q_out, for `convolve` to be called on a few of them at a time."""
        fields = self.split(x, len(q_in))
        keys = (q_in, torch.tensor(len(fields)), *([] if q_out is None else [q_out]))
        mixing, kernels, parts = self._kernels(self, keys, lambda: self._build(q_in, q_out, len(fields)))
        convolutions = [
            [w if w is None else Convolution.of(w, x.shape[3:], shared=True) for w in part.weights] for part in parts
        ]
        shared = [self._shared(fields[0], mixing, kernel) for kernel in kernels]
        return Prepared(fields, mixing, parts, convolutions, shared, self.self_matrix(), self.scalar_bias())

    def _build(self, q_in: Tensor, q_out: Tensor | None, num_fields: int) -> tuple[QMixing, Tensor, list[Part]]:
        mixing = self.mixing(q_in, q_out)
        kernels = self.grid_kernel(mixing)
        return mixing, kernels, self._parts(mixing, kernels, num_fields)

    def _parts(self, mixing: QMixing, kernels: Tensor, num_fields: int) -> list[Part]:
        every = range(1, self.lmax_q + 1)
        if not self.antipodal:
            return [self._make_part(mixing, kernels, [(0, mixing.minus, every)], own=0, even=True)]
        even_l, odd_l = every[1::2], every[::2]
        for_even = 0.5 * (mixing.minus + mixing.plus)  # meets the even part of the map; parity (-1)^l in q_out
        even, odd, own = [(0, for_even, even_l)], [(0, for_even, odd_l)], None
        if num_fields == 2:
            for_odd, own = 0.5 * (mixing.minus - mixing.plus), 1  # parity -(-1)^l
            even.append((1, for_odd, odd_l))
            odd.append((1, for_odd, even_l))
        return [
            self._make_part(mixing, kernels, even, own=0, even=True),
            self._make_part(mixing, kernels, odd, own=own, even=False),
        ]

    def _make_part(self, mixing: QMixing, kernels: Tensor, terms: list, *, own: int | None, even: bool) -> Part:
        """Put together a `Part`; `terms` lists (field, harmonics, which l_q), the field that is even in q first."""
        degrees = [[m for l in ls for m in range(l**2, (l + 1) ** 2)] for _, _, ls in terms]
        mixes, weights = [], []
        for (field, sh, _), ms in zip(terms, degrees, strict=True):
            if ms:
                mix = torch.einsum("qrm,rt->qtmr", sh[:, :, ms], mixing.weight_by_shell)
                mixes.append((field, mix.flatten(1, 2)))
                weight = kernels[:, mixing.first :, :, :, ms].permute(0, 2, 3, 1, 4, 5, 6, 7)  # [s, o, i, t, m, ...]
                weights.append(weight.flatten(2, 4))
        shared = [0] * even + (degrees[0] if self.lmax_q and mixing.first else [])
        weight = torch.cat(weights, dim=2) if weights else [None] * len(kernels)
        return Part(
            mixes, list(weight), harmonics(self.lmax_q, mixing.sampling_out.q)[:, shared], shared, own,
            mixing.same if even else mixing.opposite, even,
        )  # fmt: skip

    def split(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """Return a map's parts that are even and odd in q (only the even one where it is given at +q alone).

        Raises
        ------
        ValueError
            When x has neither one map for each q nor, with `antipodal`, two.
        """
        if x.ndim != 6 or x.shape[1] != self.irreps_in.dim:
            raise ValueError(f"x must be (B, {self.irreps_in.dim}, Q, X, Y, Z), got {tuple(x.shape)}")
        if x.shape[2] == count:
            return (x,)
        if not self.antipodal or x.shape[2] != 2 * count:
            raise ValueError(f"x has {x.shape[2]} maps over q but there are {count} q-vectors")
        plus, minus = x.split(count, dim=2)
        return (0.5 * (plus + minus), 0.5 * (plus - minus))

    def convolve(self, prepared: Prepared, index: Tensor) -> tuple[Tensor, ...]:
        """Compute the output at a few q_out of one shell.

        Parameters
        ----------
        prepared : Prepared
        index : Tensor, shape (n,)
            One of ``prepared.mixing.chunks``.

        Returns
        -------
        tuple of Tensor, each (B, irreps_out.dim, n, X, Y, Z)
            At q_out; with `antipodal`, also at -q_out.
        """
        if all(filters.basis.separable for filters in self.filters):
            return self._convolve_products(prepared, index)
        products, q_out = self._convolve_products(prepared, index), prepared.mixing.sampling_out.q[index]
        return tuple(
            y + self._convolve_dense(prepared, sign * q_out) for sign, y in zip((1, -1), products, strict=False)
        )

    def _convolve_dense(self, prepared: Prepared, q_out: Tensor) -> Tensor:
        """Convolve with the bases that do not factor, from all volumes at once; (B, dim_out, n, X, Y, Z)."""
        q_in, weight = prepared.mixing.sampling_in.q, prepared.mixing.weight
        with torch.autocast(self.lattice.device.type, enabled=False):
            if self.antipodal:
                ways = [self._dense(self.lattice, q_out, sign * q_in) for sign in (1, -1)]
                kernels = [0.5 * (ways[0] + ways[1]), 0.5 * (ways[0] - ways[1])]  # meet the even and the odd part
            else:
                kernels = [self._dense(self.lattice, q_out, q_in)]
            kernels = [
                (weight[:, None] * k).permute(1, 2, 4, 3, 0).unflatten(-1, 3 * (self.kernel_size,)) for k in kernels
            ]  # [q, o, i, r, x, y, z]
        fields = prepared.fields
        x = torch.cat([f.flatten(1, 2) for f in fields], dim=1)
        kernel = torch.cat([k.flatten(0, 1).flatten(1, 2) for k in kernels[: len(fields)]], dim=1)
        return conv3d(x, kernel).unflatten(1, (len(q_out), -1)).transpose(1, 2)

    def _convolve_products(self, prepared: Prepared, index: Tensor) -> tuple[Tensor, ...]:
        """Convolve with the product bases, self-connection and bias; returns what `convolve` does."""
        parts = [self._convolve_part(prepared, k, index) for k in range(len(prepared.parts))]
        if not self.antipodal:
            return tuple(parts)
        e, o = parts
        return (e, e) if o is None else (e + o, e.sub_(o))

    def _convolve_part(self, prepared: Prepared, k: int, index: Tensor) -> Tensor | None:
        """Compute one part of the output (B, dim_out, n, X, Y, Z), or None where nothing contributes."""
        mixing, fields, n = prepared.mixing, prepared.fields, len(index)
        shell = int(mixing.sampling_out.shell[index[0]])
        part, shared = prepared.parts[k], prepared.shared[shell]
        size = fields[0].shape[3:]
        y = None  # [b, q, o x y z]
        if part.mixes:
            h = [torch.einsum("qmr,birxyz->bqimxyz", mix[index], fields[f]).flatten(2, 3) for f, mix in part.mixes]
            h = h[0] if len(h) == 1 else torch.cat(h, dim=2)
            y = (
                prepared.convolutions[k][shell](h.flatten(0, 1), prepared.bias if part.bias else None)
                .unflatten(0, (-1, n))
                .flatten(2)
            )
        elif part.bias:
            y = prepared.bias[:, None].expand(-1, size.numel()).reshape(1, 1, -1).repeat(len(shared), n, 1)
        if part.which:
            maps = shared if shared.shape[1] == len(part.which) else shared[:, part.which]
            y = _add_product(y, part.towards[index].expand(len(shared), -1, -1), maps.flatten(2))
        if part.own is not None:
            field = fields[part.own]
            x = torch.einsum("qr,birxyz->bqixyz", part.same[index], field).flatten(0, 1).flatten(2)
            y = None if y is None else y.unflatten(2, (self.irreps_out.dim, -1)).flatten(0, 1)
            y = _add_product(y, prepared.self_matrix.to(x).expand(len(x), -1, -1), x).unflatten(0, (-1, n)).flatten(2)
        return None if y is None else y.unflatten(2, (self.irreps_out.dim, *size)).transpose(1, 2)

    def _shared(self, x: Tensor, mixing: QMixing, kernel: Tensor) -> Tensor:
        """Convolve what all q_out of a shell have in common; see `Prepared`."""
        onehot = nn.functional.one_hot(mixing.sampling_in.shell, len(mixing.sampling_in.length)).to(mixing.weight)
        means = torch.einsum("rt,birxyz->bitxyz", mixing.weight[:, None] * onehot, x)
        weight = kernel[:, :, :, 0].permute(1, 2, 0, 3, 4, 5).flatten(1, 2)
        out = [Convolution.of(weight, x.shape[3:])(means.flatten(1, 2))[:, None]]
        if self.lmax_q and mixing.first == 1:
            weight = kernel[0, :, :, 1:].permute(2, 0, 1, 3, 4, 5).flatten(0, 1)
            b0 = Convolution.of(weight, x.shape[3:])(means[:, :, 0])
            out.append(b0.unflatten(1, (-1, self.irreps_out.dim)))
        return torch.cat(out, dim=1)

    def plain_weight(self, q_in: Tensor, q_out: Tensor | None = None, *, closed: bool = False) -> Tensor:
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
            Quadrature weights and self-connection included, the bias left out. 2 Q_out where the layer is antipodal;
            2 Q_in with `closed`.

        Source
        ------
        Müller et al., eq. 45-48 and B.4.
        """
        mixing = self.mixing(q_in, q_out)
        q_in, q_out = mixing.sampling_in.q, mixing.sampling_out.q
        same, weight = mixing.same, mixing.weight
        if self.antipodal:  # `same` meets a map's even part and gives an even one, `opposite` the odd one
            even, odd = 0.5 * mixing.same, 0.5 * mixing.opposite
            same = torch.cat([torch.cat([even + odd, even - odd], 1), torch.cat([even - odd, even + odd], 1)])
            q_in, q_out, weight = (
                torch.cat(pair) for pair in ((q_in, -q_in), (q_out, -q_out), (weight / 2, weight / 2))
            )
        kernel = self.kernel(self.lattice, q_out, q_in) * weight[:, None]  # [n, q, o, r, i]
        kernel[len(kernel) // 2] += same[:, None, :, None] * self.self_matrix()[:, None]
        if self.antipodal and not closed:
            kernel = kernel.unflatten(3, (2, -1)).sum(3)
        return kernel.movedim(0, -1).unflatten(-1, 3 * (self.kernel_size,))

    def self_matrix(self) -> Tensor:
        """Return the self-connection, shape (irreps_out.dim, irreps_in.dim)."""
        return (0.5 / self.num_bases) ** 0.5 * sum(c.matrix() for c in self.self_connections)

    def scalar_bias(self) -> Tensor:
        """Return the bias on every output component, shape (irreps_out.dim,); zero but for scalars."""
        return scalar_bias(self.bias, self.irreps_out)

    def _dense(self, offset: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """Kernels of the bases that are not separable, shape (N, Q_out, dim_out, Q_in, dim_in)."""
        return sum(f.kernel(offset, q_out, q_in) for f in self.filters if not f.basis.separable)


def _add_product(y: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return y + a @ b for stacks of matrices, in one pass over memory and in the place of y."""
    return torch.bmm(a, b) if y is None else y.baddbmm_(a.to(y.dtype), b.to(y.dtype))

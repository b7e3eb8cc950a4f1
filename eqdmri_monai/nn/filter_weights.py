"""Learned filters of one basis between two types: coefficients times radial functions times angular functions."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import degree_slice, harmonics
from eqdmri_monai.bases.filters import DifferenceBasis, FilterBasis, angular_tensor, filter_coupling
from eqdmri_monai.bases.radial import Gaussian, RadialNetwork, radial_basis

# Mean square of the outputs of an untrained `RadialNetwork` over that of its inputs (mean of 200 seeds).
NETWORK_POWER = 0.65


class RadialWeights(nn.Module):
    r"""Learned coefficients times radial functions, :math:`\sum_k W_k R_p(|Δp|) R_q(|q_{out}|) R_q(|q_{in}|)`.

    One tensor for each pair of an output and an input irrep, holding all paths between them. Functions over q-lengths
    are plain Gaussians whatever `radial_p` is, as in the paper: a scheme has few q-lengths (b0 and its shells), and on
    no more lengths than Gaussians their coefficients alone already make every function.

    Parameters
    ----------
    basis : FilterBasis or DifferenceBasis
    irreps_in, irreps_out : o3.Irreps
    radius : float
        Length of the longest offset along an axis; the last radial centre.
    radial_p : str
        See `radial_basis`; "+fc" gives 50 functions over |Δp|.
    num_radial_p, num_radial_q_out, num_radial_q_in : int
        Number of bumps.
    q_max : float
        Centre of the last radial function of q-length.
    learn_radial : bool
        Train the centres and widths of all radial functions.

    Raises
    ------
    ValueError
        When `radial_p` is unknown, a number is below 1, or radius or `q_max` is not positive.

    Source
    ------
    Müller et al., eq. 14-17 and 47, and section 4.2.
    """

    def __init__(
        self,
        basis: FilterBasis | DifferenceBasis,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        radius: float,
        radial_p: str,
        num_radial_p: int,
        num_radial_q_out: int = 1,
        num_radial_q_in: int = 1,
        q_max: float = 1.0,
        learn_radial: bool = False,
    ):
        super().__init__()
        over_p, over_q = basis.over_p, basis.over_q
        names_p = "radial_p (in p layers radial)", "num_radial_p (in p layers num_radial)", "radius"
        self.radial_p = (
            radial_basis(radial_p, num_radial_p, radius, learned=learn_radial, names=names_p) if over_p else None
        )
        self.radial_q_out, self.radial_q_in = (
            Gaussian(num, q_max, learned=learn_radial, names=(name, "q_max")) if over_q else None
            for name, num in (("num_radial_q_out", num_radial_q_out), ("num_radial_q_in", num_radial_q_in))
        )
        num = [r.num if r is not None else 1 for r in (self.radial_p, self.radial_q_out, self.radial_q_in)]
        self.weights = nn.ParameterList(
            torch.randn(len(basis.paths(ir_o.l, ir_i.l)), *num, mul_o, mul_i)
            for mul_o, ir_o in irreps_out
            for mul_i, ir_i in irreps_in
        )

    def forward(self, length_p: Tensor, length_out: Tensor, length_in: Tensor) -> list[Tensor]:
        """
        Parameters
        ----------
        length_p, length_out, length_in : Tensor, shape (N,), (S,), (T,)

        Returns
        -------
        list of Tensor, each (S, T, copies out, copies in, paths, N)
            Input irreps run fastest.
        """
        lengths = (length_p, length_out, length_in)
        radials = (self.radial_p, self.radial_q_out, self.radial_q_in)
        r_p, r_out, r_in = (r(x) if r else x.new_ones(len(x), 1) for r, x in zip(radials, lengths, strict=True))
        mixed = [torch.einsum("fkabvu,sa,tb->stvufk", weight, r_out, r_in) for weight in self.weights]
        return [torch.einsum("stvufk,nk->stvufn", weight, r_p) for weight in mixed]

    def bumps(self, length_p: Tensor) -> Tensor:
        """Functions (N, k) with the same sum of squares, on average over initial weights, as those over |Δp|."""
        if self.radial_p is None:
            return length_p.new_ones(len(length_p), 1)
        if not isinstance(self.radial_p, RadialNetwork):
            return self.radial_p(length_p)
        basis = self.radial_p.basis
        return basis(length_p) * (NETWORK_POWER * self.radial_p.num / basis.num) ** 0.5


class ProductFilters(nn.Module):
    r"""Filters of a product basis, :math:`K = R \cdot CG \, Y(Δp) Y(q_{out} - q_{in})`, the harmonics over q left open.

    Parameters
    ----------
    basis : FilterBasis
    irreps_in, irreps_out : o3.Irreps
    lmax_q : int
        Sets the size of the open axis, (lmax_q + 1)².
    lattice : Tensor, shape (N, 3)
        The offsets of a kernel, for which angular parts are kept and weights are scaled.
    noise_gain : float
        How much the sum over q amplifies the variance of white noise; weights are scaled down by it.
    smooth_share : float
        Share of the input's power that is constant over a kernel, for the same scaling: 0 is white noise, 1 a constant.
    **radial
        See `RadialWeights`.

    Source
    ------
    Müller et al., eq. 23, 24, 26 and 47.
    """

    def __init__(
        self,
        basis: FilterBasis,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        lmax_q: int,
        lattice: Tensor,
        noise_gain: float,
        smooth_share: float,
        **radial,
    ):
        super().__init__()
        self.basis, self.irreps_in, self.irreps_out, self.lmax_q = basis, irreps_in, irreps_out, lmax_q
        self.learned = RadialWeights(basis, irreps_in, irreps_out, **radial)
        for (l_out, l_in), value in self._angular(lattice).items():
            self.register_buffer(f"angular_{l_out}_{l_in}", value, persistent=False)
        self.scale = self._scales(lattice, noise_gain, smooth_share)

    def forward(self, lattice: Tensor, length_out: Tensor, length_in: Tensor, *, on_lattice: bool) -> Tensor:
        """
        Parameters
        ----------
        lattice : Tensor, shape (N, 3)
            Offsets; with `on_lattice`, those given to the constructor.
        length_out, length_in : Tensor, shape (S_out,), (S_in,)
            q-lengths of the shells.

        Returns
        -------
        Tensor, shape (S_out, S_in, irreps_out.dim, irreps_in.dim, (lmax_q + 1)², N)
        """
        angular = None if on_lattice else self._angular(lattice)
        learned = iter(self.learned(lattice.norm(dim=-1), length_out, length_in))
        rows = []
        for (_, ir_o), scale in zip(self.irreps_out, self.scale, strict=True):
            blocks = []
            for _, ir_i in self.irreps_in:
                fixed = getattr(self, f"angular_{ir_o.l}_{ir_i.l}") if on_lattice else angular[ir_o.l, ir_i.l]
                block = torch.einsum("stvufn,foimn->stvouimn", scale * next(learned), fixed)
                blocks.append(block.flatten(4, 5).flatten(2, 3))
            rows.append(torch.cat(blocks, dim=3))
        return torch.cat(rows, dim=2)

    def _angular(self, lattice: Tensor) -> dict[tuple[int, int], Tensor]:
        pairs = {(a, b) for a in self.irreps_out.ls for b in self.irreps_in.ls}
        return {pair: angular_tensor(self.basis, *pair, lattice, self.lmax_q) for pair in sorted(pairs)}

    def _scales(self, lattice: Tensor, noise_gain: float, smooth_share: float) -> list[float]:
        """One factor for each output irrep, so that the variance of features stays near 1.

        Weights are unit normal and scaled in the forward pass, so that a learning rate means the same at any width.
        """
        bumps, scales = self.learned.bumps(lattice.norm(dim=-1)), []
        for _, ir_o in self.irreps_out:
            energy = 0.0
            for mul_i, ir_i in self.irreps_in:
                fixed = getattr(self, f"angular_{ir_o.l}_{ir_i.l}")  # [f, o, i, m, n]
                white = torch.einsum("foimn,nk->o", fixed.square(), bumps.square()).mean().item()
                smooth = torch.einsum("foimn,nk->foimk", fixed, bumps).square().sum((0, 2, 3, 4)).mean().item()
                energy += mul_i * ((1 - smooth_share) * white + smooth_share * smooth)
            scales.append((noise_gain * energy) ** -0.5 if energy > 0 else 0.0)
        return scales


class DifferenceFilters(nn.Module):
    r"""Filters of the pq-difference basis, :math:`K = R \cdot CG \, Y(Δp / r - (q_{out} - q_{in}) / q_{max})`.

    They do not factor into a part over p and a part over q.

    Parameters
    ----------
    basis : DifferenceBasis
    irreps_in, irreps_out : o3.Irreps
    lattice : Tensor, shape (N, 3)
        The offsets of a kernel, for which weights are scaled.
    radius, q_max : float
        Units of Δp and q in the difference: the kernel's radius and the longest q-length that the layer is made for.
    noise_gain, smooth_share : float
        As in `ProductFilters`.
    **radial
        See `RadialWeights`.

    Source
    ------
    Müller et al., eq. 20, 25 and 47; the units are ours, the paper names none.
    """

    def __init__(
        self,
        basis: DifferenceBasis,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        lattice: Tensor,
        radius: float,
        q_max: float,
        noise_gain: float,
        smooth_share: float,
        **radial,
    ):
        super().__init__()
        self.basis, self.irreps_in, self.irreps_out = basis, irreps_in, irreps_out
        self.radius, self.q_max = radius, q_max
        self.learned = RadialWeights(basis, irreps_in, irreps_out, radius=radius, q_max=q_max, **radial)
        bumps, self.scale = self.learned.bumps(lattice.norm(dim=-1)), []
        white, smooth = bumps.square().sum().item(), bumps.sum(0).square().sum().item()
        for _, ir_o in irreps_out:  # a path of unit-variance harmonics has unit variance; only l_filter = 0 is smooth
            degrees = [l for mul_i, ir_i in irreps_in for l, _, _ in mul_i * basis.paths(ir_o.l, ir_i.l)]
            energy = (1 - smooth_share) * len(degrees) * white + smooth_share * degrees.count(0) * smooth
            self.scale.append((noise_gain * energy) ** -0.5 if energy > 0 else 0.0)

    def forward(self, offset: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """
        Parameters
        ----------
        offset, q_out, q_in : Tensor, shape (N, 3), (Q_out, 3), (Q_in, 3)

        Returns
        -------
        Tensor, shape (N, Q_out, irreps_out.dim, Q_in, irreps_in.dim)
        """
        lmax = max(a + b for a in self.irreps_out.ls for b in self.irreps_in.ls)
        difference = offset[:, None, None] / self.radius - (q_out[:, None] - q_in) / self.q_max
        sh = harmonics(lmax, difference)  # [n, q, r, m]
        learned = iter(self.learned(offset.norm(dim=-1), q_out.norm(dim=-1), q_in.norm(dim=-1)))
        rows = []
        for (_, ir_o), scale in zip(self.irreps_out, self.scale, strict=True):
            blocks = []
            for _, ir_i in self.irreps_in:
                weight = scale * next(learned)  # [q, r, v, u, f, n]
                block = 0.0
                for f, (l, _, _) in enumerate(self.basis.paths(ir_o.l, ir_i.l)):
                    fixed = torch.einsum(
                        "ofi,nqrf->nqroi", filter_coupling(l, ir_i.l, ir_o.l).to(sh), sh[..., degree_slice(l)]
                    )
                    block = block + torch.einsum("qrvun,nqroi->nqvorui", weight[..., f, :], fixed)
                blocks.append(block.flatten(5, 6).flatten(2, 3))
            rows.append(torch.cat(blocks, dim=4))
        return torch.cat(rows, dim=2)

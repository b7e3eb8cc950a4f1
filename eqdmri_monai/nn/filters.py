"""The learned filters of one basis between two types: coefficients times radial functions times angular functions."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.filters import DifferenceBasis, FilterBasis
from eqdmri_monai.bases.radial import Radial, untrained_power


class Filters(nn.Module):
    r"""Filters :math:`K = \sum_k W_k R_p(|Δp|) R_q(|q_{out}|) R_q(|q_{in}|) \cdot A`, A the angular part of a basis.

    Parameters
    ----------
    basis : FilterBasis or DifferenceBasis
    irreps_in, irreps_out : o3.Irreps
    lattice : Tensor, shape (N, 3)
        The offsets of a kernel, for which angular parts are kept and weights are scaled.
    radius : float
        Length of the longest of them along an axis.
    radial : Radial
    lmax_q : int
        Of the layer; sets the size of the open axis in `by_shell`, (lmax_q + 1)².
    noise_gain : float
        How much the sum over q amplifies the variance of white noise; weights are scaled down by it.
    smooth_share : float
        Share of the input's power that is constant over a kernel, for the same scaling: 0 is white noise, 1 a constant.

    Attributes
    ----------
    weights : ParameterList
        Coefficients (paths, R_p, R_q_out, R_q_in, copies out, copies in) from each input to each output irrep, input
        irreps running fastest.
    scale : list of float
        What the coefficients to each output irrep are multiplied with.

    Raises
    ------
    ValueError
        When the basis has no filter between the two types.

    Source
    ------
    Müller et al., eq. 14-17 and 47.
    """

    def __init__(
        self,
        basis: FilterBasis | DifferenceBasis,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        lattice: Tensor,
        radius: float,
        radial: Radial,
        lmax_q: int = 0,
        noise_gain: float,
        smooth_share: float,
    ):
        super().__init__()
        self.pairs = sorted({(ir_o.l, ir_i.l) for _, ir_o in irreps_out for _, ir_i in irreps_in})
        if not any(basis.paths(*pair) for pair in self.pairs):
            raise ValueError(
                f"basis {basis.name} has no filter from {irreps_in} to {irreps_out}; raise its lmax or list more "
                "products"
            )
        self.basis, self.irreps_in, self.irreps_out = basis, irreps_in, irreps_out
        self.radius, self.q_max = radius, radial.q_max
        self.radial_p = radial.over_p(radius) if basis.over_p else None
        self.radial_q_out = radial.over_q_out() if basis.over_q else None
        self.radial_q_in = radial.over_q_in() if basis.over_q else None
        num = [1 if r is None else r.num for r in (self.radial_p, self.radial_q_out, self.radial_q_in)]
        self.weights = nn.ParameterList(
            torch.randn(len(basis.paths(ir_o.l, ir_i.l)), *num, mul_o, mul_i)
            for mul_o, ir_o in irreps_out
            for mul_i, ir_i in irreps_in
        )
        if basis.separable:
            for l_out, l_in in self.pairs:
                angular = basis.angular_p(l_out, l_in, lattice, lmax_q)
                self.register_buffer(f"angular_{l_out}_{l_in}", angular, persistent=False)
        self.scale = self._scales(lattice, noise_gain, smooth_share)

    def kernel(self, offset: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """Evaluate the filters at any points.

        Parameters
        ----------
        offset, q_out, q_in : Tensor, shape (N, 3), (Q_out, 3), (Q_in, 3)

        Returns
        -------
        Tensor, shape (N, Q_out, irreps_out.dim, Q_in, irreps_in.dim)
        """
        coefficients = iter(self._coefficients(offset.norm(dim=-1), q_out.norm(dim=-1), q_in.norm(dim=-1)))
        sh = self.basis.harmonics(self.pairs, offset, q_out[:, None] - q_in, radius=self.radius, q_max=self.q_max)
        rows = []
        for (mul_o, ir_o), scale in zip(self.irreps_out, self.scale, strict=True):
            blocks = []
            for mul_i, ir_i in self.irreps_in:
                weight = scale * next(coefficients)  # [q, r, v, u, f, n]
                parts = [
                    torch.einsum("qrvun,nqroi->nqvorui", weight[..., f, :], angular)
                    for f, angular in enumerate(self.basis.angular(ir_o.l, ir_i.l, sh))
                ]
                size = len(offset), len(q_out), mul_o, ir_o.dim, len(q_in), mul_i, ir_i.dim
                block = sum(parts[1:], parts[0]) if parts else offset.new_zeros(size)
                blocks.append(block.flatten(5, 6).flatten(2, 3))
            rows.append(torch.cat(blocks, dim=4))
        return torch.cat(rows, dim=2)

    def by_shell(self, lattice: Tensor, length_out: Tensor, length_in: Tensor) -> Tensor:
        """Evaluate the filters of a separable basis, with the harmonics of q_out - q_in left open.

        Parameters
        ----------
        lattice : Tensor, shape (N, 3)
            The one given to the constructor.
        length_out, length_in : Tensor, shape (S_out,), (S_in,)
            q-lengths of the shells.

        Returns
        -------
        Tensor, shape (S_out, S_in, irreps_out.dim, irreps_in.dim, (lmax_q + 1)², N)
        """
        coefficients = iter(self._coefficients(lattice.norm(dim=-1), length_out, length_in))
        rows = []
        for (_, ir_o), scale in zip(self.irreps_out, self.scale, strict=True):
            blocks = []
            for _, ir_i in self.irreps_in:
                angular = getattr(self, f"angular_{ir_o.l}_{ir_i.l}")
                block = torch.einsum("stvufn,foimn->stvouimn", scale * next(coefficients), angular)
                blocks.append(block.flatten(4, 5).flatten(2, 3))
            rows.append(torch.cat(blocks, dim=3))
        return torch.cat(rows, dim=2)

    def _coefficients(self, length_p: Tensor, length_out: Tensor, length_in: Tensor) -> list[Tensor]:
        """Multiply `weights` with radial functions of lengths; each (S_out, S_in, copies out, copies in, paths, N)."""
        lengths, radials = (length_p, length_out, length_in), (self.radial_p, self.radial_q_out, self.radial_q_in)
        r_p, r_out, r_in = (r(x) if r else x.new_ones(len(x), 1) for r, x in zip(radials, lengths, strict=True))
        mixed = [torch.einsum("fkabvu,sa,tb->stvufk", weight, r_out, r_in) for weight in self.weights]
        return [torch.einsum("stvufk,nk->stvufn", weight, r_p) for weight in mixed]

    def _scales(self, lattice: Tensor, noise_gain: float, smooth_share: float) -> list[float]:
        """One factor for each output irrep, so that the variance of features stays near 1.

        Weights are unit normal and scaled in the forward pass, so that a learning rate means the same at any width.
        """
        length = lattice.norm(dim=-1)
        radial = length.new_ones(len(length), 1) if self.radial_p is None else untrained_power(self.radial_p, length)
        scales = []
        for _, ir_o in self.irreps_out:
            energy = 0.0
            for mul_i, ir_i in self.irreps_in:
                white, constant = self.basis.gain(ir_o.l, ir_i.l, lattice, radial)
                energy += mul_i * ((1 - smooth_share) * white + smooth_share * constant)
            scales.append((noise_gain * energy) ** -0.5 if energy > 0 else 0.0)
        return scales

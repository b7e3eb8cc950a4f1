"""Learned filters of one basis between two types: coefficients times radial functions times angular functions."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.filters import FilterBasis, angular_tensor
from eqdmri_monai.bases.radial import RadialNetwork, radial_basis

# Mean square of the outputs of an untrained `RadialNetwork` over that of its inputs (mean of 200 seeds).
NETWORK_POWER = 0.65


class FilterWeights(nn.Module):
    r"""Filters :math:`K = \sum W R(|Δp|) R(|q_{out}|) R(|q_{in}|) CG \, Y(Δp)`, with the harmonics over q left open.

    Parameters
    ----------
    basis : FilterBasis
    irreps_in, irreps_out : o3.Irreps
    lmax_q : int
        Sets the size of the open axis, (lmax_q + 1)².
    lattice : Tensor, shape (N, 3)
        The offsets of a kernel, for which angular parts are kept and weights are scaled.
    radius : float
        Length of the longest offset along an axis; the last radial centre.
    radial_p : str
        See `radial_basis`.
    num_radial_p, num_radial_q_out, num_radial_q_in : int
        Number of radial functions.
    q_max : float
        Centre of the last radial function of q-length.
    noise_gain : float
        How much the sum over q amplifies the variance of white noise; weights are scaled down by it.
    smooth_share : float
        Share of the input's power that is constant over a kernel, for the same scaling: 0 is white noise, 1 a constant.

    Source
    ------
    Müller et al., eq. 47.
    """

    def __init__(
        self,
        basis: FilterBasis,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        lmax_q: int,
        lattice: Tensor,
        radius: float,
        radial_p: str,
        num_radial_p: int,
        num_radial_q_out: int = 1,
        num_radial_q_in: int = 1,
        q_max: float = 1.0,
        noise_gain: float,
        smooth_share: float,
    ):
        super().__init__()
        self.basis, self.irreps_in, self.irreps_out, self.lmax_q = basis, irreps_in, irreps_out, lmax_q
        self.radial_p = radial_basis(radial_p, num_radial_p, radius) if basis.over_p else None
        self.radial_q_out = radial_basis("Gaussian", num_radial_q_out, q_max) if basis.over_q else None
        self.radial_q_in = radial_basis("Gaussian", num_radial_q_in, q_max) if basis.over_q else None
        num = [r.num if r is not None else 1 for r in (self.radial_p, self.radial_q_out, self.radial_q_in)]
        self.weights = nn.ParameterList(
            torch.randn(len(basis.paths(ir_o.l, ir_i.l)), *num, mul_o, mul_i)
            for mul_o, ir_o in irreps_out
            for mul_i, ir_i in irreps_in
        )
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
        radial = (
            self.radial_p(lattice.norm(dim=-1)) if self.basis.over_p else lattice.new_ones(len(lattice), 1)
        )  # [n, k]
        ones = [length.new_ones(len(length), 1) for length in (length_out, length_in)]
        r_out, r_in = (self.radial_q_out(length_out), self.radial_q_in(length_in)) if self.basis.over_q else ones
        size = (len(length_out), len(length_in))
        rows, weights, scales = [], iter(self.weights), iter(self.scale)
        for mul_o, ir_o in self.irreps_out:
            blocks = []
            for mul_i, ir_i in self.irreps_in:
                fixed = getattr(self, f"angular_{ir_o.l}_{ir_i.l}") if on_lattice else angular[ir_o.l, ir_i.l]
                weight = torch.einsum("fkabvu,sa,tb->stvufk", next(weights), r_out, r_in)  # s, t: shells out, in
                weight = torch.einsum("stvufk,nk->stvufn", next(scales) * weight, radial)
                block = torch.einsum("stvufn,foimn->stvouimn", weight, fixed)
                blocks.append(block.reshape(*size, mul_o * ir_o.dim, mul_i * ir_i.dim, *block.shape[-2:]))
            rows.append(torch.cat(blocks, dim=3))
        return torch.cat(rows, dim=2)

    def _angular(self, lattice: Tensor) -> dict[tuple[int, int], Tensor]:
        pairs = {(a, b) for a in self.irreps_out.ls for b in self.irreps_in.ls}
        return {pair: angular_tensor(self.basis, *pair, lattice, self.lmax_q) for pair in sorted(pairs)}

    def _scales(self, lattice: Tensor, noise_gain: float, smooth_share: float) -> list[float]:
        """One factor for each block of weights, so that the variance of features stays near 1.

        Weights are unit normal and scaled in the forward pass, so that a learning rate means the same at any width.
        """
        bumps = lattice.new_ones(len(lattice), 1)
        share = 1.0
        if self.basis.over_p:
            network = self.radial_p if isinstance(self.radial_p, RadialNetwork) else None
            bumps = (network.basis if network else self.radial_p)(lattice.norm(dim=-1))  # [n, k]
            share = NETWORK_POWER * network.num / network.basis.num if network else 1.0
        scales = []
        for _, ir_o in self.irreps_out:
            energy = 0.0
            for mul_i, ir_i in self.irreps_in:
                fixed = getattr(self, f"angular_{ir_o.l}_{ir_i.l}")  # [f, o, i, m, n]
                white = torch.einsum("foimn,nk->o", fixed.square(), bumps.square()).mean().item()
                smooth = torch.einsum("foimn,nk->foimk", fixed, bumps).square().sum((0, 2, 3, 4)).mean().item()
                energy += mul_i * share * ((1 - smooth_share) * white + smooth_share * smooth)
            scales += [(noise_gain * energy) ** -0.5 if energy > 0 else 0.0] * len(self.irreps_in)
        return scales

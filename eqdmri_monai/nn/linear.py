"""Equivariant linear map between types: mixes copies of the same degree, the same at every point."""

import torch
from e3nn import o3
from torch import Tensor, nn


class Linear(nn.Module):
    r"""Mix the copies of each irrep: :math:`y_{v m} = \sum_u W_{v u} x_{u m}`, for equal degrees only.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Output degrees that the input lacks stay 0.

    Source
    ------
    Schur's lemma; the self-connection of Müller et al.'s layers.
    """

    def __init__(self, irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str):
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        slices_in, slices_out = self.irreps_in.slices(), self.irreps_out.slices()
        self.blocks = [
            (slices_out[a], slices_in[b], ir.dim, (self.irreps_in.count(ir)) ** -0.5)
            for a, (_, ir) in enumerate(self.irreps_out)
            for b, (_, other) in enumerate(self.irreps_in)
            if ir == other
        ]
        self.weights = nn.ParameterList(
            torch.randn((out.stop - out.start) // d, (inn.stop - inn.start) // d) for out, inn, d, _ in self.blocks
        )

    def matrix(self) -> Tensor:
        """Return the map as a dense matrix, shape (irreps_out.dim, irreps_in.dim)."""
        like = next(self.parameters(), torch.zeros(()))
        dense = like.new_zeros(self.irreps_out.dim, self.irreps_in.dim)
        for (out, inn, d, scale), weight in zip(self.blocks, self.weights, strict=True):
            dense[out, inn] = scale * torch.kron(weight, torch.eye(d, dtype=weight.dtype, device=weight.device))
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        return torch.einsum("oi,bi...->bo...", self.matrix().to(x.dtype), x)

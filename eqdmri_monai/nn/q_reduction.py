"""Removing q-space: a sum over q-vectors with weights that depend on their lengths only, or a plain mean."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.gradients import QSampling


class QLengthPool(nn.Module):
    r"""Late q-reduction :math:`y_c(p) = \sum_q w_q \sum_k W_{ck} R_k(|q|) \, x_c(p, q)`.

    w averages each shell, then the shells of b > 50. Coefficients see only lengths, so any irreps pass unchanged.

    Parameters
    ----------
    irreps : o3.Irreps
        Of input and output alike; one set of coefficients for each copy of an irrep.
    radial : Radial
        Its `num_reduction`, `q_max` and `learned` count.

    Source
    ------
    Müller et al., section 4.2, "late".
    """

    def __init__(self, irreps: o3.Irreps | str, *, radial: Radial = Radial()):
        super().__init__()
        self.irreps_in = self.irreps_out = o3.Irreps(irreps)
        self.radial = radial.over_reduction()
        self.weight = nn.Parameter(torch.randn(self.radial.num, self.irreps_in.num_irreps))
        repeats = torch.tensor([ir.dim for mul, ir in self.irreps_in for _ in range(mul)])
        self.register_buffer("repeats", repeats, persistent=False)

    def coefficients(self, sampling: QSampling) -> Tensor:
        """Return what every volume of every component is multiplied with, shape (irreps.dim, Q)."""
        by_shell = (self.radial(sampling.length) @ self.weight).repeat_interleave(self.repeats, dim=1)  # [s, i]
        return by_shell[sampling.shell].T * sampling.weights()

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps.dim, Q, X, Y, Z)
            Or 2 Q maps, at every q and then at every -q: their mean is taken.
        q : Tensor, shape (Q, 3)

        Returns
        -------
        Tensor, shape (B, irreps.dim, X, Y, Z)
        """
        return pool(x, self.coefficients(QSampling.of(q.to(self.weight))))


class QMean(nn.Module):
    r"""Late q-reduction by the plain mean, :math:`y(p) = \frac{1}{Q} \sum_q x(p, q)`: no coefficients to learn.

    Source
    ------
    Ours, to compare `QLengthPool` with; Müller et al., section 4.2, weight by q-length.
    """

    def coefficients(self, sampling: QSampling) -> Tensor:
        """Return what every volume is multiplied with, shape (1, Q)."""
        return torch.full_like(sampling.q[None, :, 0], 1 / len(sampling.q))

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """Return the mean (B, irreps.dim, X, Y, Z) of a map as in `QLengthPool`."""
        return pool(x, self.coefficients(QSampling.of(q.to(x))))


def pool(x: Tensor, coefficients: Tensor) -> Tensor:
    """Sum (B, dim, Q or 2 Q, X, Y, Z) over q with coefficients (dim or 1, Q)."""
    coefficients = coefficients.expand(x.shape[1], -1)
    if x.shape[2] == 2 * coefficients.shape[1]:
        coefficients = 0.5 * torch.cat([coefficients, coefficients], dim=1)
    return torch.einsum("iq,biqxyz->bixyz", coefficients, x)

"""The fixed numbers with which a layer mixes volumes: quadrature weights and harmonics of q_out - q_in."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqdmri_monai.bases.angular import ZERO_OFFSET, harmonics
from eqdmri_monai.gradients import QSampling

# White noise keeps its variance at this number of directions; the mean over a shell is scaled by its square root.
REFERENCE_DIRECTIONS = 30


@dataclass(frozen=True)
class QMixing:
    """The fixed numbers of one layer for one pair of q-samplings.

    Parameters
    ----------
    sampling_out, sampling_in : QSampling
    weight : Tensor, shape (Q_in,)
        Quadrature weights.
    minus, plus : Tensor, shape (Q_out, Q_in, (lmax_q + 1)²)
        Harmonics of q_out - q_in and of q_out + q_in (None where the set is not closed).
    same : Tensor, shape (Q_out, Q_in)
        Which q_in is q_out, or, in a closed set, -q_out, for the even part of a map; rows sum to 1, or are 0 where
        none is.
    opposite : Tensor, shape (Q_out, Q_in)
        For the odd part: negative where q_in is -q_out.
    """

    sampling_out: QSampling
    sampling_in: QSampling
    weight: Tensor
    minus: Tensor
    plus: Tensor | None
    same: Tensor
    opposite: Tensor

    @classmethod
    def between(cls, q_in: Tensor, q_out: Tensor | None, *, lmax_q: int, antipodal: bool) -> "QMixing":
        """Compute the numbers for q-vectors (Q_in, 3) and (Q_out, 3); without q_out, it is q_in."""
        sampling_in = QSampling.of(q_in)
        sampling_out = sampling_in if q_out is None else QSampling.of(q_out)
        difference, total = (sampling_out.q[:, None] + sign * sampling_in.q for sign in (-1, 1))
        weight = sampling_in.weights()
        weight = torch.where(sampling_in.length[sampling_in.shell] > 0, weight * REFERENCE_DIRECTIONS**0.5, weight)
        same, mirrored = ((d.norm(dim=-1) < ZERO_OFFSET).to(weight) for d in (difference, total))
        if q_out is None:  # a direction that was measured twice is two points
            same = opposite = torch.eye(len(weight)).to(weight)
        elif antipodal:
            count = (same + mirrored).sum(1, keepdim=True).clamp(min=1)
            same, opposite = (same + mirrored) / count, (same - mirrored) / count
        else:
            same = opposite = same / same.sum(1, keepdim=True).clamp(min=1)
        return cls(
            sampling_out,
            sampling_in,
            weight,
            harmonics(lmax_q, difference),
            harmonics(lmax_q, total) if antipodal else None,
            same,
            opposite,
        )

    @property
    def first(self) -> int:
        """Index of the first input shell with b > 50: 1 after b0, 0 where there is none."""
        return int(self.sampling_in.length[0] == 0)

    @property
    def weight_by_shell(self) -> Tensor:
        """Quadrature weights spread over the shells with b > 50, shape (Q_in, shells)."""
        onehot = nn.functional.one_hot(self.sampling_in.shell, len(self.sampling_in.length))
        return (self.weight[:, None] * onehot)[:, self.first :]

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield indices of at most `size` q_out each, all of one shell."""
        if size < 1:
            raise ValueError(f"chunk must be at least 1 q-vector, got {size}")
        for s in range(len(self.sampling_out.length)):
            yield from (self.sampling_out.shell == s).nonzero().flatten().split(size)

"""How a layer sums over q-vectors, for one pair of q-samplings: fixed numbers that know neither voxels nor weights.

A filter is a harmonic Y_m(q_out - q_in), m = (l_q, m_q), times a kernel K_m over voxels that depends on the shells of
q_out and q_in alone. So the sum over the q_in of a shell comes first, h_m(q_out) = Σ w Y_m(q_out - q_in) x(q_in), and
the convolution of h_m with K_m second. Two parts need no h of each q_out and are convolved once for all: m = 0, since
Y_0 = 1, and everything from b0, whose harmonic is Y_m(q_out).

In a set that is closed under q -> -q a map is a part that is even in q and a part that is odd. With Y∓ the harmonics of
q_out ∓ q_in, h = ½ Σ w [(Y₋ + Y₊) even + (Y₋ - Y₊) odd]: the first term has the parity (-1)^l_q in q_out, the second
the opposite one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqdmri_monai.bases.angular import ZERO_OFFSET, harmonics
from eqdmri_monai.gradients import QSampling

# White noise keeps its variance at this number of directions; the mean over a shell is scaled by its square root.
REFERENCE_DIRECTIONS = 30


class Mix(NamedTuple):
    """One sum over the q_in of b > 50."""

    part: int  # of the input: 0 even, 1 odd
    components: list[int]  # which m
    numbers: Tensor  # (Q_out, shells of q_in · components, Q_in)


@dataclass(frozen=True)
class OutputPart:
    """How the part of the output that is even or odd in q is computed; all of it where the set is not closed.

    Parameters
    ----------
    mixes : list of Mix
    shared : list of int
        Which m are convolved once for all q_out: 0 from all q_in, others from b0.
    towards : Tensor, shape (Q_out, len(shared))
        What the maps that are shared are multiplied with.
    same : Tensor, shape (Q_out, Q_in)
        What the self-connection takes from this part of the input: see `same_points`. None where there is no such part.
    """

    mixes: list[Mix]
    shared: list[int]
    towards: Tensor
    same: Tensor | None


@dataclass(frozen=True)
class QPlan:
    """All fixed numbers of a layer for one pair of q-samplings.

    Parameters
    ----------
    sampling_out, sampling_in : QSampling
    weight : Tensor, shape (Q_in,)
        Quadrature weights.
    parts : list of OutputPart
        One; in a closed set the even and the odd one.
    """

    sampling_out: QSampling
    sampling_in: QSampling
    weight: Tensor
    parts: list[OutputPart]

    @classmethod
    def between(
        cls, q_in: Tensor, q_out: Tensor | None, *, lmax_q: int, antipodal: bool, input_parts: int = 1
    ) -> "QPlan":
        """Compute the numbers.

        Parameters
        ----------
        q_in : Tensor, shape (Q_in, 3)
        q_out : Tensor, shape (Q_out, 3)
            None where it is q_in.
        lmax_q : int
            Largest l_q of the layer.
        antipodal : bool
            Close the set under q -> -q.
        input_parts : int
            2 where the input has an odd part too.
        """
        sampling_in = QSampling.of(q_in)
        sampling_out = sampling_in if q_out is None else QSampling.of(q_out)
        weight = quadrature(sampling_in)
        if q_out is None:  # a direction that was measured twice is two points
            same = 2 * (torch.eye(len(weight)).to(weight),)
        else:
            same = same_points(sampling_out.q, sampling_in.q, antipodal=antipodal)
        b0 = first_shell(sampling_in) == 1
        by_shell = weight[:, None] * nn.functional.one_hot(sampling_in.shell, len(sampling_in.length))
        by_shell = by_shell[:, first_shell(sampling_in) :]
        minus, plus = (harmonics(lmax_q, sampling_out.q[:, None] - sign * sampling_in.q) for sign in (1, -1))
        towards = harmonics(lmax_q, sampling_out.q)

        def output_part(terms: list[tuple[Tensor, list[int]]], shared: list[int], same: Tensor | None) -> OutputPart:
            mixes = [
                Mix(part, m, torch.einsum("qrm,rt->qtmr", sh[..., m], by_shell).flatten(1, 2))
                for part, (sh, m) in enumerate(terms[:input_parts])
                if m
            ]
            return OutputPart(mixes, shared, towards[:, shared], same)

        if not antipodal:
            every = components(range(1, lmax_q + 1))
            parts = [output_part([(minus, every)], [0, *every] if b0 else [0], same[0])]
        else:
            even, odd = components(range(2, lmax_q + 1, 2)), components(range(1, lmax_q + 1, 2))
            of_even, of_odd = 0.5 * (minus + plus), 0.5 * (minus - plus)
            parts = [
                output_part([(of_even, even), (of_odd, odd)], [0, *even] if b0 else [0], same[0]),
                output_part([(of_even, odd), (of_odd, even)], odd if b0 else [], same[1] if input_parts == 2 else None),
            ]
        return cls(sampling_out, sampling_in, weight, parts)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield indices of at most `size` q_out each, all of one shell."""
        for s in range(len(self.sampling_out.length)):
            yield from (self.sampling_out.shell == s).nonzero().flatten().split(size)


def quadrature(sampling: QSampling) -> Tensor:
    """Return weights of a sum over q, shape (Q,): `QSampling.weights`, such that white noise keeps its variance."""
    weight = sampling.weights()
    return torch.where(sampling.length[sampling.shell] > 0, weight * REFERENCE_DIRECTIONS**0.5, weight)


def first_shell(sampling: QSampling) -> int:
    """Index of the first shell with b > 50: 1 after b0, 0 where there is none."""
    return int(sampling.length[0] == 0)


def components(degrees: range) -> list[int]:
    """Where the components of some degrees lie in what `harmonics` returns."""
    return [m for l in degrees for m in range(l**2, (l + 1) ** 2)]


def same_points(q_out: Tensor, q_in: Tensor, *, antipodal: bool) -> tuple[Tensor, Tensor]:
    """Return which q_in is q_out, shape (Q_out, Q_in), to be multiplied with the even and with the odd part of a map.

    Rows sum to 1, or are 0 where no q_in is. With `antipodal` -q_in counts too, in the odd part with a minus.
    """
    at_plus, at_minus = (
        ((q_out[:, None] - sign * q_in).norm(dim=-1) < ZERO_OFFSET).to(q_in) * (antipodal or sign == 1)
        for sign in (1, -1)
    )
    count = (at_plus + at_minus).sum(1, keepdim=True).clamp(min=1)
    return (at_plus + at_minus) / count, (at_plus - at_minus) / count

"""Filter bases over p-space and q-space, as values: which harmonics of which offset make a filter of degree l_filter.

A filter of degree l_filter is ``R(|Δp|, |q_out|, |q_in|) · (Y_lp(Δp) ⊗ Y_lq(q_out - q_in))_l_filter``. A basis says
which (l_p, l_q) are used for each l_filter, and on which lengths R depends. Several bases in a list are a sum.
"""

from dataclasses import dataclass
from functools import cache

import torch
from e3nn import o3
from torch import Tensor

from eqdmri_monai.bases.angular import coupling, degree_slice, harmonics, triangle


@dataclass(frozen=True)
class FilterBasis:
    """A family of filters whose angular part is a product of harmonics of Δp and of q_out - q_in.

    Parameters
    ----------
    name : str
        The paper's name.
    over_p, over_q : bool
        Whether the filters depend on Δp, and on q_out and q_in.
    reach : int
        For products, how far l_p and l_q may lie from l_filter (the d of TP±d).
    vectors_only : bool
        The small set of products that the paper calls TP-vec.
    """

    name: str
    over_p: bool = True
    over_q: bool = True
    reach: int = 1
    vectors_only: bool = False

    def pairs(self, l_filter: int) -> list[tuple[int, int]]:
        """Return the (l_p, l_q) that are coupled to l_filter."""
        if not self.over_q:
            return [(l_filter, 0)]
        if not self.over_p:
            return [(0, l_filter)]
        if self.vectors_only:
            return {0: [(0, 0)], 1: [(1, 1), (0, 1), (1, 0)], 2: [(2, 2)]}.get(l_filter, [])
        near = range(max(l_filter - self.reach, 0), l_filter + self.reach + 1)
        return [(l_p, l_q) for l_p in near for l_q in near if l_filter in triangle(l_p, l_q)]

    def paths(self, l_out: int, l_in: int) -> list[tuple[int, int, int]]:
        """Return all (l_filter, l_p, l_q) from inputs of degree l_in to outputs of degree l_out (eq. 1 and 22)."""
        return [(l, l_p, l_q) for l in triangle(l_out, l_in) for l_p, l_q in self.pairs(l)]


@dataclass(frozen=True)
class DifferenceBasis:
    """The family of filters whose angular part is the harmonics of Δp - (q_out - q_in).

    Δp counts in units of the kernel's radius, q in units of the longest q.

    Parameters
    ----------
    name : str
        The paper's name.

    Source
    ------
    Müller et al., eq. 20 and 25.
    """

    name: str = "pq-difference"
    over_p = over_q = True

    def paths(self, l_out: int, l_in: int) -> list[tuple[int, None, None]]:
        """Return all (l_filter, None, None) from inputs of degree l_in to outputs of degree l_out (eq. 1)."""
        return [(l, None, None) for l in triangle(l_out, l_in)]


p_space = FilterBasis("p-space", over_q=False)  # Müller et al., eq. 23
q_space = FilterBasis("q-space", over_p=False)  # eq. 24
pq_diff = DifferenceBasis()  # eq. 25
tp_vec = FilterBasis("TP-vec", vectors_only=True)  # eq. 26, section 3.2.5


def tp(reach: int) -> FilterBasis:
    """Return TP±reach: products with l_p and l_q at most `reach` away from l_filter (eq. 26, section 3.2.5)."""
    return FilterBasis(f"TP±{reach}", reach=reach)


tp1 = tp(1)


def filter_coupling(l_filter: int, l_in: int, l_out: int) -> Tensor:
    """Coefficients (m_out, m_filter, m_in) with which a filter of degree l_filter acts on an input (eq. 8)."""
    return coupling(l_filter, l_in, l_out)


@cache
def _path_tensor(l_out: int, l_in: int, l_filter: int, l_p: int, l_q: int) -> Tensor:
    """Return the fixed numbers of one path, shape (m_out, m_in, m_p, m_q): both couplings contracted over m_filter."""
    return torch.einsum("ofi,fpq->oipq", filter_coupling(l_filter, l_in, l_out), coupling(l_p, l_q, l_filter))


def angular_tensor(basis: FilterBasis, l_out: int, l_in: int, offset: Tensor, lmax_q: int) -> Tensor:
    """Angular part of a basis at given offsets, with the harmonics of q_out - q_in left open.

    Parameters
    ----------
    basis : FilterBasis
    l_out, l_in : int
    offset : Tensor, shape (N, 3)
        Δp = p_out - p_in.
    lmax_q : int
        Largest l_q of the layer.

    Returns
    -------
    Tensor, shape (paths, 2 l_out + 1, 2 l_in + 1, (lmax_q + 1)², N)
        To be contracted with ``harmonics(lmax_q, q_out - q_in)``.
    """
    paths = basis.paths(l_out, l_in)
    sh = harmonics(max((l_p for _, l_p, _ in paths), default=0), offset)  # [n, p]
    out = offset.new_zeros(len(paths), 2 * l_out + 1, 2 * l_in + 1, (lmax_q + 1) ** 2, len(offset))
    for k, (l, l_p, l_q) in enumerate(paths):
        fixed = _path_tensor(l_out, l_in, l, l_p, l_q).to(offset)
        out[k, :, :, degree_slice(l_q)] = torch.einsum("oipq,np->oiqn", fixed, sh[:, degree_slice(l_p)])
    return out


def max_lq(bases: list[FilterBasis], irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> int:
    """Largest l_q that a list of bases needs between two types of feature map."""
    return max(
        (l_q for basis in bases for a in irreps_out.ls for b in irreps_in.ls for _, _, l_q in basis.paths(a, b)),
        default=0,
    )

"""Filter bases over p-space and q-space, as values: which filters of degree l_filter there are, and their angular part.

A filter of degree l_filter is ``R(|Δp|, |q_out|, |q_in|) · (Y_lp(Δp) ⊗ Y_lq(q_out - q_in))_l_filter``. A basis says
which (l_p, l_q) are used for each l_filter, and on which lengths R depends. Several bases in a list are a sum.

A basis of another kind is a class with what `FilterBasis` and `DifferenceBasis` have in common: `over_p`, `over_q`,
`separable`, `paths`, `harmonics`, `angular`, `gain`; and `angular_p` where it is separable, that is, where harmonics
of q_out - q_in are a factor. Layers ask for nothing else.
"""

from collections.abc import Iterator, Sequence
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
        The paper's name, or your own.
    over_p, over_q : bool
        Whether the filters depend on Δp, and on q_out and q_in.
    reach : int
        How far l_p and l_q may lie from l_filter (the d of TP±d).
    products : sequence of (l_filter, l_p, l_q)
        Your own list, in place of `reach`.
    lmax : int
        Leave out products with any degree above it.
    l_filters : sequence of (l_out, l_in, list of l_filter)
        Degrees of the filters between two degrees of feature maps, where these are not to be all that equivariance
        allows.

    Raises
    ------
    ValueError
        When the filters depend on neither p nor q, or a product or a degree is impossible.

    Source
    ------
    Müller et al., eq. 21-24, 26 and section 3.2.5; eq. 1 for `l_filters`.
    """

    name: str
    over_p: bool = True
    over_q: bool = True
    reach: int = 1
    products: Sequence[tuple[int, int, int]] | None = None
    lmax: int | None = None
    l_filters: Sequence[tuple[int, int, Sequence[int]]] = ()
    separable = True

    def __post_init__(self):
        if not (self.over_p or self.over_q):
            raise ValueError(f"basis {self.name}: filters must depend on p or on q; set over_p or over_q")
        if self.products is not None:
            object.__setattr__(self, "products", tuple(sorted({tuple(product) for product in self.products})))
            for l, l_p, l_q in self.products:
                if l not in triangle(l_p, l_q) or (l_p and not self.over_p) or (l_q and not self.over_q):
                    raise ValueError(
                        f"basis {self.name}: products hold (l_filter, l_p, l_q) = {(l, l_p, l_q)}, but l_filter must "
                        "lie from |l_p - l_q| to l_p + l_q, and l_p or l_q is 0 without over_p or over_q"
                    )
        object.__setattr__(self, "l_filters", _parse_l_filters(self.name, self.l_filters))

    def pairs(self, l_filter: int) -> list[tuple[int, int]]:
        """Return the (l_p, l_q) that are coupled to l_filter."""
        if self.products is not None:
            pairs = [(l_p, l_q) for l, l_p, l_q in self.products if l == l_filter]
        elif not self.over_q:
            pairs = [(l_filter, 0)]
        elif not self.over_p:
            pairs = [(0, l_filter)]
        else:
            near = range(max(l_filter - self.reach, 0), l_filter + self.reach + 1)
            pairs = [(l_p, l_q) for l_p in near for l_q in near if l_filter in triangle(l_p, l_q)]
        return [pair for pair in pairs if self.lmax is None or max(l_filter, *pair) <= self.lmax]

    def paths(self, l_out: int, l_in: int) -> list[tuple[int, int, int]]:
        """Return all (l_filter, l_p, l_q) from inputs of degree l_in to outputs of degree l_out.

        Source
        ------
        Müller et al., eq. 1 and 22.
        """
        return [(l, l_p, l_q) for l in _degrees(self.l_filters, l_out, l_in) for l_p, l_q in self.pairs(l)]

    def harmonics(
        self, pairs: Sequence[tuple[int, int]], offset: Tensor, difference: Tensor, *, radius: float, q_max: float
    ) -> tuple[Tensor, ...]:
        """Return the harmonics that all paths between some pairs of degrees are made of, for `angular`.

        Parameters
        ----------
        pairs : sequence of (l_out, l_in)
        offset : Tensor, shape (N, 3)
            Δp = p_out - p_in.
        difference : Tensor, shape (Q_out, Q_in, 3)
            q_out - q_in.
        radius, q_max : float
            Of the kernel and the layer; only directions count here.
        """
        paths = [path for pair in pairs for path in self.paths(*pair)]
        sh_p = harmonics(max((l_p for _, l_p, _ in paths), default=0), offset)  # [n, p]
        return sh_p, harmonics(max((l_q for _, _, l_q in paths), default=0), difference)  # [q, r, m]

    def angular(self, l_out: int, l_in: int, sh: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Yield the angular part of each path from `harmonics`, shape (N, Q_out, Q_in, 2 l_out + 1, 2 l_in + 1)."""
        sh_p, sh_q = sh
        for l, l_p, l_q in self.paths(l_out, l_in):
            fixed = _path_tensor(l_out, l_in, l, l_p, l_q).to(sh_p)
            over_p = torch.einsum("oipm,np->noim", fixed, sh_p[:, degree_slice(l_p)])
            yield torch.einsum("noim,qrm->nqroi", over_p, sh_q[..., degree_slice(l_q)])

    def angular_p(self, l_out: int, l_in: int, offset: Tensor, lmax_q: int) -> Tensor:
        """Angular part of all paths, with the harmonics of q_out - q_in left open.

        Parameters
        ----------
        l_out, l_in : int
        offset : Tensor, shape (N, 3)
        lmax_q : int
            Largest l_q of the layer.

        Returns
        -------
        Tensor, shape (paths, 2 l_out + 1, 2 l_in + 1, (lmax_q + 1)², N)
            To be contracted with ``harmonics(lmax_q, q_out - q_in)``.
        """
        paths = self.paths(l_out, l_in)
        sh = harmonics(max((l_p for _, l_p, _ in paths), default=0), offset)  # [n, p]
        out = offset.new_zeros(len(paths), 2 * l_out + 1, 2 * l_in + 1, (lmax_q + 1) ** 2, len(offset))
        for k, (l, l_p, l_q) in enumerate(paths):
            fixed = _path_tensor(l_out, l_in, l, l_p, l_q).to(offset)
            out[k, :, :, degree_slice(l_q)] = torch.einsum("oipq,np->oiqn", fixed, sh[:, degree_slice(l_p)])
        return out

    def gain(self, l_out: int, l_in: int, lattice: Tensor, radial: Tensor) -> tuple[float, float]:
        """Return how much filters with unit-normal weights amplify the variance of white noise, and of a constant.

        Parameters
        ----------
        l_out, l_in : int
        lattice : Tensor, shape (N, 3)
            Offsets of a kernel.
        radial : Tensor, shape (N, k)
            Radial functions there.
        """
        fixed = self.angular_p(l_out, l_in, lattice, max((l_q for _, _, l_q in self.paths(l_out, l_in)), default=0))
        white = torch.einsum("foimn,nk->o", fixed.square(), radial.square()).mean().item()
        constant = torch.einsum("foimn,nk->foimk", fixed, radial).square().sum((0, 2, 3, 4)).mean().item()
        return white, constant


@dataclass(frozen=True)
class DifferenceBasis:
    """The family of filters whose angular part is the harmonics of Δp - (q_out - q_in).

    Δp counts in units of the kernel's radius, q in units of the layer's `q_max`: the paper names none, and in mm and
    sqrt(b / 1000) either could drown the other.

    Parameters
    ----------
    name : str
        The paper's name.
    lmax : int
        Leave out filters of a degree above it.
    l_filters : sequence of (l_out, l_in, list of l_filter)
        As in `FilterBasis`.

    Raises
    ------
    ValueError
        When a degree is impossible.

    Source
    ------
    Müller et al., eq. 20 and 25.
    """

    name: str = "pq-difference"
    lmax: int | None = None
    l_filters: Sequence[tuple[int, int, Sequence[int]]] = ()
    over_p = over_q = True
    separable = False

    def __post_init__(self):
        object.__setattr__(self, "l_filters", _parse_l_filters(self.name, self.l_filters))

    def paths(self, l_out: int, l_in: int) -> list[tuple[int, None, None]]:
        """Return all (l_filter, None, None) from inputs of degree l_in to outputs of degree l_out.

        Source
        ------
        Müller et al., eq. 1.
        """
        degrees = _degrees(self.l_filters, l_out, l_in)
        return [(l, None, None) for l in degrees if self.lmax is None or l <= self.lmax]

    def harmonics(
        self, pairs: Sequence[tuple[int, int]], offset: Tensor, difference: Tensor, *, radius: float, q_max: float
    ) -> tuple[Tensor, ...]:
        """Return the harmonics of Δp / radius - (q_out - q_in) / q_max; see `FilterBasis.harmonics`."""
        lmax = max((l for pair in pairs for l, _, _ in self.paths(*pair)), default=0)
        return (harmonics(lmax, offset[:, None, None] / radius - difference / q_max),)  # [n, q, r, m]

    def angular(self, l_out: int, l_in: int, sh: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Yield the angular part of each path; see `FilterBasis.angular`."""
        for l, _, _ in self.paths(l_out, l_in):
            yield torch.einsum("ofi,nqrf->nqroi", coupling(l, l_in, l_out).to(sh[0]), sh[0][..., degree_slice(l)])

    def gain(self, l_out: int, l_in: int, lattice: Tensor, radial: Tensor) -> tuple[float, float]:
        """See `FilterBasis.gain`; harmonics have unit variance, and a constant meets those of degree 0 alone."""
        degrees = [l for l, _, _ in self.paths(l_out, l_in)]
        white, constant = radial.square().sum().item(), radial.sum(0).square().sum().item()
        return len(degrees) * white, degrees.count(0) * constant


def _parse_l_filters(name: str, l_filters: Sequence) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """Return a basis' own choice of filter degrees as tuples."""
    rows = tuple((l_out, l_in, tuple(ls)) for l_out, l_in, ls in l_filters)
    for l_out, l_in, ls in rows:
        if not set(ls) <= set(triangle(l_out, l_in)):
            raise ValueError(
                f"basis {name}: filters from l_in = {l_in} to l_out = {l_out} have degrees "
                f"{list(triangle(l_out, l_in))}, but l_filters asks for {list(ls)}"
            )
    return rows


def _degrees(l_filters: Sequence[tuple[int, int, tuple[int, ...]]], l_out: int, l_in: int) -> Sequence[int]:
    own = [ls for o, i, ls in l_filters if (o, i) == (l_out, l_in)]
    return sorted(set().union(*own)) if own else triangle(l_out, l_in)


p_space = FilterBasis("p-space", over_q=False)  # Müller et al., eq. 23
q_space = FilterBasis("q-space", over_p=False)  # eq. 24
pq_diff = DifferenceBasis()  # eq. 25
# eq. 26, section 3.2.5
tp_vec = FilterBasis("TP-vec", products=((0, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 2, 2)))


def tp(reach: int) -> FilterBasis:
    """Return TP±reach: products with l_p and l_q at most `reach` away from l_filter (Müller et al., section 3.2.5)."""
    return FilterBasis(f"TP±{reach}", reach=reach)


tp1 = tp(1)


@cache
def _path_tensor(l_out: int, l_in: int, l_filter: int, l_p: int, l_q: int) -> Tensor:
    """Return the fixed numbers of one path, shape (m_out, m_in, m_p, m_q): both couplings contracted over m_filter.

    Source
    ------
    Müller et al., eq. 8 and 21.
    """
    return torch.einsum("ofi,fpq->oipq", coupling(l_filter, l_in, l_out), coupling(l_p, l_q, l_filter))


def max_lq(bases: Sequence[FilterBasis], irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> int:
    """Largest l_q that a list of separable bases needs between two types of feature map."""
    return max(
        (l_q for basis in bases for a in irreps_out.ls for b in irreps_in.ls for _, _, l_q in basis.paths(a, b)),
        default=0,
    )

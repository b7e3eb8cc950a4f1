"""Filter bases over p-space and q-space, as values: which harmonics of which offset make a filter of degree l_filter.

A filter of degree l_filter is ``R(|Δp|, |q_out|, |q_in|) · (Y_lp(Δp) ⊗ Y_lq(q_out - q_in))_l_filter``. A basis says
which (l_p, l_q) are used for each l_filter, and on which lengths R depends. Several bases in a list are a sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

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
        Your own list without repeats, in place of `reach`.
    lmax : int
        Leave out products with any degree above it.
    l_filters : sequence of (l_out, l_in, list of l_filter)
        Degrees of the filters between two degrees of feature maps, where these are not to be all that equivariance
        allows; without repeats.

    Raises
    ------
    ValueError
        When the filters depend on neither p nor q, reach is negative, `products` is empty, or `products` or `l_filters`
        holds an entry that is malformed, impossible, or there twice.

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

    def __post_init__(self):
        if not (self.over_p or self.over_q):
            raise ValueError(f"basis {self.name}: filters must depend on p or on q; set over_p or over_q")
        if self.reach < 0:
            raise ValueError(f"basis {self.name}: reach must be 0 or more, got {self.reach}")
        if self.products is not None:
            self._freeze_products()
        _freeze_l_filters(self)

    def _freeze_products(self) -> None:
        """Check the basis' own products, and make a sorted tuple of them."""
        form = "(l_filter, l_p, l_q)"
        products = sorted(_entries(self, "products", form, lambda l, l_p, l_q: tuple(map(_degree, (l, l_p, l_q)))))
        if not products:
            raise ValueError(f"basis {self.name}: products must list at least one {form}")
        for product in products:
            l, l_p, l_q = product
            if l not in triangle(l_p, l_q):
                raise ValueError(
                    f"basis {self.name}: products must keep |l_p - l_q| <= l_filter <= l_p + l_q, so {form} = "
                    f"{product} is impossible"
                )
            if (l_p and not self.over_p) or (l_q and not self.over_q):
                raise ValueError(
                    f"basis {self.name}: products hold {form} = {product}, which depends on a space that the basis "
                    "leaves out; set over_p and over_q"
                )
        _refuse_repeats(self, "products", form, products)
        object.__setattr__(self, "products", tuple(products))

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
        return [(l, l_p, l_q) for l in _degrees(self, l_out, l_in) for l_p, l_q in self.pairs(l)]


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
        When `l_filters` holds an entry that is malformed, impossible, or there twice.

    Source
    ------
    Müller et al., eq. 20 and 25.
    """

    name: str = "pq-difference"
    lmax: int | None = None
    l_filters: Sequence[tuple[int, int, Sequence[int]]] = ()
    over_p = over_q = True

    def __post_init__(self):
        _freeze_l_filters(self)

    def paths(self, l_out: int, l_in: int) -> list[tuple[int, None, None]]:
        """Return all (l_filter, None, None) from inputs of degree l_in to outputs of degree l_out.

        Source
        ------
        Müller et al., eq. 1.
        """
        return [(l, None, None) for l in _degrees(self, l_out, l_in) if self.lmax is None or l <= self.lmax]


def _freeze_l_filters(basis: FilterBasis | DifferenceBasis) -> None:
    """Check a basis' own choice of filter degrees, and make tuples of it."""
    form = "(l_out, l_in, list of l_filter)"
    rows = _entries(basis, "l_filters", form, lambda o, i, ls: (_degree(o), _degree(i), tuple(map(_degree, ls))))
    for l_out, l_in, degrees in rows:
        for l in degrees:
            if l not in triangle(l_out, l_in):
                raise ValueError(
                    f"basis {basis.name}: l_filters holds l_filter = {l}, which is impossible from l_in = {l_in} to "
                    f"l_out = {l_out}; it must be one of {list(triangle(l_out, l_in))}"
                )
        _refuse_repeats(basis, f"l_filters from l_in = {l_in} to l_out = {l_out}", "l_filter", degrees)
    _refuse_repeats(basis, "l_filters", "(l_out, l_in)", [row[:2] for row in rows])
    object.__setattr__(basis, "l_filters", tuple(rows))


def _entries(
    basis: FilterBasis | DifferenceBasis, argument: str, form: str, parse: Callable[..., tuple]
) -> list[tuple]:
    """Parse each entry of an argument; `form` says what one looks like."""
    given = getattr(basis, argument)
    try:
        return [parse(*entry) for entry in given]
    except (TypeError, ValueError):
        raise ValueError(
            f"basis {basis.name}: {argument} must be a list of {form}, all whole numbers from 0, got {given!r}"
        ) from None


def _degree(l: int) -> int:
    if not isinstance(l, int) or l < 0:
        raise ValueError(f"a degree must be a whole number from 0, got {l!r}")
    return l


def _refuse_repeats(basis: FilterBasis | DifferenceBasis, argument: str, form: str, entries: Sequence) -> None:
    """Refuse to name a filter twice: a second weight for it would add nothing."""
    repeated = [entry for i, entry in enumerate(entries) if entry in entries[:i]]
    if repeated:
        raise ValueError(f"basis {basis.name}: {argument} must name each {form} once, got {repeated[0]} twice")


def _degrees(basis: FilterBasis | DifferenceBasis, l_out: int, l_in: int) -> Sequence[int]:
    own = {(o, i): degrees for o, i, degrees in basis.l_filters}
    return own.get((l_out, l_in), triangle(l_out, l_in))


p_space = FilterBasis("p-space", over_q=False)  # Müller et al., eq. 23
q_space = FilterBasis("q-space", over_p=False)  # eq. 24
pq_diff = DifferenceBasis()  # eq. 25
# eq. 26, section 3.2.5
tp_vec = FilterBasis("TP-vec", products=((0, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 2, 2)))


def tp(reach: int) -> FilterBasis:
    """Return TP±reach: products with l_p and l_q at most `reach` away from l_filter (Müller et al., section 3.2.5)."""
    return FilterBasis(f"TP±{reach}", reach=reach)


tp1 = tp(1)


def filter_coupling(l_filter: int, l_in: int, l_out: int) -> Tensor:
    """Coefficients (m_out, m_filter, m_in) with which a filter of degree l_filter acts on an input.

    Source
    ------
    Müller et al., eq. 8.
    """
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


def max_lq(bases: Sequence[FilterBasis], irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> int:
    """Largest l_q that a list of bases needs between two types of feature map."""
    return max(
        (l_q for basis in bases for a in irreps_out.ls for b in irreps_in.ls for _, _, l_q in basis.paths(a, b)),
        default=0,
    )


def check_paths(bases: Sequence[FilterBasis | DifferenceBasis], irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> None:
    """Refuse a list of bases that is no sum of different filters between two types of feature map.

    Bases whose radial functions see the same lengths share a filter where they share (l_filter, l_p, l_q). With
    l_filter = 0, that of `DifferenceBasis` is the product (0, 0, 0): Y_0 is constant.

    Raises
    ------
    ValueError
        When `bases` is no list of bases or empty, one of them has no filter between the two types, or two share one.
    """
    if isinstance(bases, str) or not isinstance(bases, Sequence):
        raise ValueError(f"bases must be a list of filter bases, got {bases!r}; write [...] around a single one")
    if not bases:
        raise ValueError("bases must name at least one filter basis, got an empty list")
    degrees = sorted({(a, b) for a in irreps_out.ls for b in irreps_in.ls})
    filters = []
    for basis in bases:
        if not isinstance(basis, FilterBasis | DifferenceBasis):
            raise ValueError(
                f"bases must hold FilterBasis or DifferenceBasis objects, got {basis!r}; those of the paper are in "
                "eqdmri_monai.bases"
            )
        paths = {(*pair, l, l_p or 0, l_q or 0) for pair in degrees for l, l_p, l_q in basis.paths(*pair)}
        if not paths:
            raise ValueError(
                f"basis {basis.name} has no filter from {irreps_in} to {irreps_out}; raise its lmax or list more "
                "products"
            )
        filters.append(paths)
    for (basis, paths), (other, others) in combinations(zip(bases, filters, strict=True), 2):
        shared = sorted(paths & others)
        if shared and (basis.over_p, basis.over_q) == (other.over_p, other.over_q):
            l_out, l_in, *path = shared[0]
            raise ValueError(
                f"bases must not repeat a filter, got (l_filter, l_p, l_q) = {tuple(path)} from l_in = {l_in} to "
                f"l_out = {l_out} in both {basis.name} and {other.name}; leave it out of one by products or l_filters"
            )

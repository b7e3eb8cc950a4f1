"""Who is near whom: balls, k nearest, farthest points. Clouds are ragged: masks say which points are no padding.

Distances are asked for in rows, so that memory grows with the number of points and not with its square. Every choice is
by distance alone: points at equal distance are all kept, so that neither the order of points nor a rotation matters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rows = Callable[[slice], Tensor]  # distances (B, rows, N) of some of the M centres to all points
ROWS = 512  # centres at a time


@dataclass(frozen=True)
class Neighbours:
    """Which points are neighbours of which centres.

    Parameters
    ----------
    index : Tensor, shape (B, M, k), int64
        Points, nearest first.
    mask : Tensor, shape (B, M, k), bool
        Which of them are no padding.
    reach : Tensor, shape (B, M)
        Distance at which a further point would begin to count; infinite where there is none.
    """

    index: Tensor
    mask: Tensor
    reach: Tensor


def check_cloud(positions: Tensor, mask: Tensor | None = None, *, points: int = 1) -> Tensor:
    """Refuse positions that are no clouds of points.

    Parameters
    ----------
    positions : Tensor, shape (B, N, d)
    mask : Tensor, shape (B, N), bool
        Which points are no padding; all where left out.
    points : int
        The least that a cloud must have.

    Returns
    -------
    Tensor, shape (B, N), bool
        The mask.

    Raises
    ------
    ValueError
        When positions have another shape, are integers, or are not finite, the mask has another shape, or a cloud has
        too few points.
    """
    if positions.ndim != 3 or not positions.is_floating_point():
        raise ValueError(
            f"positions must be (B, N, d) floating-point numbers, got {tuple(positions.shape)}, {positions.dtype}"
        )
    mask = torch.ones(positions.shape[:2], dtype=torch.bool, device=positions.device) if mask is None else mask
    if mask.shape != positions.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be (B, N) = {tuple(positions.shape[:2])}, bool, got {tuple(mask.shape)}, {mask.dtype}"
        )
    count = mask.sum(1)
    if mask.numel() == 0 or (count < points).any():
        least = int(count.min()) if len(count) else 0
        raise ValueError(f"each cloud must have {points} or more points that the mask keeps, got {least}")
    finite = positions.isfinite().all(-1) | ~mask
    if not finite.all():
        raise ValueError(f"positions must be finite, got {int((~finite).sum())} points that are not")
    return mask


def euclidean(points: Tensor, centres: Tensor | None = None) -> Rows:
    """Return distances of centres (B, M, d), the points themselves where left out, to points (B, N, d)."""
    centres, points = (points if centres is None else centres).detach(), points.detach()

    def rows(part: slice) -> Tensor:
        square = 0.0
        for a, b in zip(centres[:, part].unbind(-1), points.unbind(-1), strict=True):
            square = square + (a[:, :, None] - b[:, None]).square()
        return square.sqrt()

    return rows


def ball(distance: Rows, radius: float, *, mask: Tensor, centres: Tensor, own: bool = False) -> Neighbours:
    """Return all points within a radius.

    Parameters
    ----------
    distance : Rows
        Such as `euclidean` gives.
    radius : float
    mask, centres : Tensor, shape (B, N) and (B, M), bool
        Which points and which centres are no padding.
    own : bool
        Count a point among its own neighbours. Without, centres must be the points themselves.

    Returns
    -------
    Neighbours

    Raises
    ------
    ValueError
        When a centre has none.
    """

    def near(d: Tensor) -> tuple[Tensor, Tensor]:
        return (d <= radius).sum(-1), torch.full_like(d[..., 0], radius)

    found = _search(distance, near, mask, centres, own)
    lonely = centres & ~found.mask.any(-1)
    if lonely.any():
        cloud, point = lonely.nonzero()[0].tolist()
        raise ValueError(f"point {point} of cloud {cloud} has no neighbour within radius {radius:g}; raise it")
    return found


def knn(distance: Rows, k: int, *, mask: Tensor, centres: Tensor, own: bool = False) -> Neighbours:
    """Return the k nearest points, and all that are as near as the last of them.

    Parameters
    ----------
    distance, mask, centres, own
        As in `ball`.
    k : int

    Returns
    -------
    Neighbours

    Raises
    ------
    ValueError
        When a cloud has fewer than k points to choose from.
    """
    least = int(mask.sum(1).min()) - (not own)
    if not 1 <= k <= least:
        raise ValueError(f"k must be from 1 to {least}, the points of the smallest cloud to choose from, got {k}")

    def near(d: Tensor) -> tuple[Tensor, Tensor]:
        last = d.topk(k, largest=False, sorted=True).values[..., -1]
        tie = last * (1 + 1e3 * torch.finfo(d.dtype).eps)
        beyond = d.masked_fill(d <= tie[..., None], torch.inf).amin(-1)
        return (d <= tie[..., None]).sum(-1), beyond

    return _search(distance, near, mask, centres, own)


def everyone(mask: Tensor, centres: Tensor, *, own: bool = True) -> Neighbours:
    """Return all points, mask (B, N), as neighbours of all centres (B, M); see `ball` for `own`."""
    index = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), centres.shape[1], -1)
    valid = mask[:, None] & centres[..., None]
    if not own:
        valid = valid & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return Neighbours(index, valid, torch.full(centres.shape, torch.inf, device=mask.device))


def _search(
    distance: Rows, near: Callable[[Tensor], tuple[Tensor, Tensor]], mask: Tensor, centres: Tensor, own: bool
) -> Neighbours:
    """Search for neighbours; `near` says how many of the nearest points count, and from where further ones would."""
    parts = []
    for start in range(0, centres.shape[1], ROWS):
        d = distance(slice(start, start + ROWS)).masked_fill(~mask[:, None], torch.inf)
        if not own:
            d.diagonal(start, 1, 2).fill_(torch.inf)
        count, reach = near(d)
        count = count * centres[:, start : start + ROWS]
        index = d.topk(max(int(count.max()), 1), largest=False, sorted=True).indices
        parts.append((index, torch.arange(index.shape[-1], device=d.device) < count[..., None], reach))
    width = max(index.shape[-1] for index, _, _ in parts)
    pad = nn.functional.pad
    return Neighbours(
        torch.cat([pad(index, (0, width - index.shape[-1])) for index, _, _ in parts], 1),
        torch.cat([pad(valid, (0, width - valid.shape[-1])) for _, valid, _ in parts], 1),
        torch.cat([reach for _, _, reach in parts], 1),
    )


def farthest_points(distance: Tensor, share: float, *, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Choose a share of each cloud's points, well spread: each as far as can be from those before it.

    The first is the one farthest from all others together. Nothing is random; of points that are equally far, the first
    is taken.

    Parameters
    ----------
    distance : Tensor, shape (B, N, N)
    share : float
        Above 0, up to 1; a cloud of n points keeps the least whole number that is no less than share · n.
    mask : Tensor, shape (B, N), bool
        Which points are no padding.

    Returns
    -------
    index : Tensor, shape (B, M), int64
    mask : Tensor, shape (B, M), bool
        Which are no padding; no point is chosen twice.

    Raises
    ------
    ValueError
        When share is not above 0 and up to 1.

    Source
    ------
    Finzi et al., eq. 18; Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and up to 1, got {share}")
    wanted = (share * mask.sum(1) - 1e-6).ceil().to(torch.int64).clamp(min=1)
    rows = torch.arange(len(mask), device=mask.device)
    tie = 1e3 * torch.finfo(distance.dtype).eps

    def first_of_largest(value: Tensor) -> Tensor:
        value = value.masked_fill(~mask, -2.0)
        largest = value.amax(1, keepdim=True)
        return (value >= largest - tie * largest.abs()).to(torch.int8).argmax(1)

    chosen = [first_of_largest((distance * mask[:, None]).sum(-1))]
    nearest = distance[rows, chosen[0]].clone()
    for _ in range(int(wanted.max()) - 1):
        nearest[rows, chosen[-1]] = -1.0  # so that of points at one place each is chosen once
        chosen.append(first_of_largest(nearest))
        nearest = torch.minimum(nearest, distance[rows, chosen[-1]])
    index = torch.stack(chosen, 1)
    return index, torch.arange(index.shape[1], device=mask.device) < wanted[:, None]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the values of neighbours.

    Parameters
    ----------
    x : Tensor, shape (B, N, C)
    index : Tensor, shape (B, M, k), int64

    Returns
    -------
    Tensor, shape (B, M, k, C)
    """
    start = x.shape[1] * torch.arange(len(x), device=x.device)[:, None, None]
    return x.flatten(0, 1).index_select(0, (index + start).flatten()).unflatten(0, index.shape)

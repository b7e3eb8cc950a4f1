"""Tensor field network: from a cloud of points with features to features of any type, or to one value a cloud."""

from collections.abc import Sequence

from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.neighbours import ball, check_cloud, euclidean, everyone, knn
from eqdmri_monai.nn import Gate, Linear
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.point_conv import PointConv, envelope


class PointNet(nn.Module):
    """`PointConv` and a gate for each entry of `irreps_hidden`, then a linear map, and a sum over points if asked for.

    Equivariant under rigid motions: x and y turn by their irreps, positions by R, and a shift changes nothing. The
    output is a continuous function of positions, so that forces are its gradient.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Types of the features, even labels.
    irreps_hidden : sequence of o3.Irreps
        After each layer.
    radius : float or None
        Of the ball of neighbours; all points where None.
    neighbours : int or None
        The nearest so many in place of a ball.
    reach : float or None
        Where the last radial bump is centred; the radius where left out.
    pool : str
        "none", or "sum" or "mean" over the points of each cloud.
    num_radial, hidden, lmax, z
        As in `PointConv`.

    Raises
    ------
    ValueError
        When an option is none of those named, or see `PointConv`.

    Source
    ------
    Thomas et al. 2018; gates: Weiler et al. 2018.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_hidden: Sequence[o3.Irreps | str],
        irreps_out: o3.Irreps | str,
        *,
        radius: float | None = None,
        neighbours: int | None = None,
        reach: float | None = None,
        pool: str = "none",
        num_radial: int = 8,
        hidden: tuple[int, ...] = (32,),
        lmax: int | None = None,
        z: float = 16.0,
    ):
        super().__init__()
        if pool not in ("none", "sum", "mean"):
            raise ValueError(f'pool must be "none", "sum" or "mean", got {pool!r}')
        if radius is not None and neighbours is not None:
            raise ValueError("radius and neighbours are two ways to choose neighbours; give one")
        reach = radius if reach is None else reach
        if reach is None:
            raise ValueError("reach must be given where there is no radius: it is the length of the radial functions")
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in, "irreps_in"), parse_irreps(irreps_out, "irreps_out")
        self.radius, self.neighbours, self.pool = radius, neighbours, pool
        self.convs, self.gates, irreps = nn.ModuleList(), nn.ModuleList(), self.irreps_in
        for hidden_type in parse_irreps_list(irreps_hidden, "irreps_hidden"):
            gate = Gate(hidden_type)
            conv = PointConv(irreps, gate.irreps_in, radius=reach, num_radial=num_radial, hidden=hidden, lmax=lmax, z=z)
            self.convs.append(conv)
            self.gates.append(gate)
            irreps = gate.irreps_out
        self.last = Linear(irreps, self.irreps_out)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, N)
        positions : Tensor, shape (B, N, 3)
        mask : Tensor, shape (B, N), bool
            Which points are no padding.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, N)
            0 at padding; (B, irreps_out.dim) where pooled.

        Raises
        ------
        ValueError
            See `check_cloud`, `ball` and `knn`; besides, when two points share a place.
        """
        mask = check_cloud(positions, mask, points=2)
        near = self._neighbours(positions, mask)
        weight = envelope(positions, near)
        for conv, gate in zip(self.convs, self.gates, strict=True):
            x = gate(conv(x, positions, near, weight=weight))
        y = self.last(x) * mask[:, None]
        if self.pool == "none":
            return y
        return y.sum(2) if self.pool == "sum" else y.sum(2) / mask.sum(1, keepdim=True)

    def _neighbours(self, positions: Tensor, mask: Tensor):
        distance = euclidean(positions)
        nearest = knn(distance, 1, mask=mask, centres=mask)
        closest = distance(slice(None)).gather(2, nearest.index[..., :1])[..., 0]
        if (closest[mask] == 0).any():
            raise ValueError(
                f"{int((closest[mask] == 0).sum())} points share their place with another; keep one of each"
            )
        if self.neighbours is not None:
            return knn(distance, self.neighbours, mask=mask, centres=mask)
        if self.radius is not None:
            return ball(distance, self.radius, mask=mask, centres=mask)
        return everyone(mask, mask, own=False)

"""Convolution over a cloud of points: a sum over neighbours of learned radial functions times spherical harmonics.

Feature maps are (B, irreps.dim, N), places (B, N, 3).
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import coupling, degree_slice, harmonics, triangle
from eqdmri_monai.bases.radial import NETWORK_POWER, Gaussian, RadialNetwork
from eqdmri_monai.neighbours import Neighbours, take
from eqdmri_monai.nn.irreps import parse_irreps, scalar_bias
from eqdmri_monai.nn.linear import Linear

SAME_PLACE = 1e-5  # of the radius; a nearer point lies in no direction, since rounding would choose it


class PointConv(nn.Module):
    r"""Convolution :math:`y_i = L' \, z^{-1/2} \sum_j h(|x_{ij}|) \, Y(\hat x_{ij}) \otimes f_j + L f_i + b`.

    Every copy of an irrep is multiplied with harmonics of each degree by a radial function of its own; linear maps L
    and L' mix copies. z is fixed, so that the sum over a batch's clouds never depends on the rest of the batch.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
        Types of the features, even labels.
    radius : float
        Where the last radial bump is centred, in the unit of positions.
    num_radial : int
        Number of Gaussian bumps.
    hidden : tuple of int
        Neurons of the layers between the bumps and the radial functions.
    lmax : int or None
        Largest degree of the harmonics; all that couple where None.
    z : float
        Number of neighbours that is usual.
    self_connection : bool
        Add L f_i; not for centres that are no points of the cloud.

    Raises
    ------
    ValueError
        When labels are odd, z or the radius is not positive, num_radial is below 1, or nothing couples.

    Source
    ------
    Thomas et al. 2018 (tensor field networks); eq. 34 to 44 of the review that follows them.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        *,
        radius: float,
        num_radial: int = 8,
        hidden: tuple[int, ...] = (32,),
        lmax: int | None = None,
        z: float = 16.0,
        self_connection: bool = True,
    ):
        super().__init__()
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in, "irreps_in"), parse_irreps(irreps_out, "irreps_out")
        if not z > 0:
            raise ValueError(f"z, the usual number of neighbours, must be positive, got {z}")
        degrees_out = set(self.irreps_out.ls)
        highest = max(self.irreps_in.ls, default=0) + max(degrees_out, default=0)
        self.lmax = highest if lmax is None else min(lmax, highest)
        self.paths = [  # sorted by the degree that they give, as `Linear` takes them
            (block, mul, l_in, l, l_out)
            for l_out in sorted(degrees_out)
            for block, (mul, (l_in, _)) in enumerate(self.irreps_in)
            for l in triangle(l_in, l_out)
            if l <= self.lmax
        ]
        if not self.paths:
            raise ValueError(f"nothing couples {self.irreps_in} to {self.irreps_out} with lmax {self.lmax}; raise lmax")
        count = sum(mul for _, mul, *_ in self.paths)
        self.radius, self.radial = radius, RadialNetwork(Gaussian(num_radial, radius), (*hidden, count))
        # the squares of the bumps sum to 1 at any length, so that their mean is 1 / num_radial
        self.scale = (num_radial / (NETWORK_POWER * z)) ** 0.5
        self.mix = Linear(o3.Irreps([(mul, (l_out, 1)) for _, mul, _, _, l_out in self.paths]), self.irreps_out)
        self.self_connection = Linear(self.irreps_in, self.irreps_out) if self_connection else None
        self.bias = nn.Parameter(torch.zeros(self.irreps_out.count("0e")))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        neighbours: Neighbours,
        *,
        centres: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, N)
        positions : Tensor, shape (B, N, 3)
        neighbours : Neighbours
            Of M centres among the N points.
        centres : Tensor, shape (B, M, 3)
            Where the result is wanted; at the points themselves where left out.
        weight : Tensor, shape (B, M, k)
            What each pair counts, such as an `envelope`.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, M)

        Raises
        ------
        ValueError
            When x has another shape.
        """
        if x.ndim != 3 or x.shape[1] != self.irreps_in.dim or x.shape[2] != positions.shape[1]:
            raise ValueError(
                f"x must be (B, {self.irreps_in.dim}, N) at positions (B, N, 3), got {tuple(x.shape)}, "
                f"{tuple(positions.shape)}"
            )
        length, sh = self._offsets(positions, neighbours, positions if centres is None else centres)
        counts = neighbours.mask.to(x.dtype) if weight is None else neighbours.mask * weight
        radial = (self.scale * counts)[..., None] * self.radial(length)  # [b, i, k, all copies of all paths]
        blocks = x.mT.split([mul * ir.dim for mul, ir in self.irreps_in], -1)
        f = [  # [b, i, k, m, u] each: copies side by side, as in `radial`
            take(block.unflatten(-1, (mul, -1)).mT.flatten(2), neighbours.index).unflatten(-1, (-1, mul))
            for block, (mul, _) in zip(blocks, self.irreps_in, strict=True)
        ]
        parts, radial = [], radial.split([mul for _, mul, *_ in self.paths], -1)
        for (block, _, l_in, l, l_out), r in zip(self.paths, radial, strict=True):
            fixed = coupling(l_in, l, l_out).to(sh).permute(2, 1, 0).flatten(1)  # [f, m o]
            angular = (sh[..., degree_slice(l)] @ fixed).unflatten(-1, (-1, 2 * l_out + 1)).flatten(2, 3)
            values = (r[..., None, :] * f[block]).flatten(2, 3)  # [b, i, k m, u]
            parts.append((values.mT @ angular).flatten(2))  # [b, i, u o], summed over k and m
        y = (torch.cat(parts, -1) @ self.mix.matrix().to(x).T).mT + scalar_bias(self.bias, self.irreps_out)[:, None]
        return y if self.self_connection is None else y + self.self_connection(x)

    def _offsets(self, positions: Tensor, neighbours: Neighbours, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Return lengths (B, M, k) of the offsets of pairs and the harmonics of their directions."""
        offset = centres[:, :, None] - take(positions, neighbours.index)
        offset = torch.where(neighbours.mask[..., None], offset, offset.new_ones(()))  # padding: any, but not zero
        length = offset.norm(dim=-1)
        apart = length > SAME_PLACE * self.radius
        unit = torch.where(apart[..., None], offset / torch.where(apart, length, 1.0)[..., None], 0.0)
        return length, harmonics(self.lmax, unit)


def envelope(positions: Tensor, neighbours: Neighbours, centres: Tensor | None = None) -> Tensor:
    r"""Weights :math:`(1 - (d / r)^2)^2` of pairs, shape (B, M, k), r being `Neighbours.reach`.

    They fall to 0 where the next point would begin to count, so that a network's output is a continuous function of the
    positions: neighbours come and go with weight 0. Where r is infinite they are 1.
    """
    centres = positions if centres is None else centres
    offset = centres[:, :, None] - take(positions, neighbours.index)
    square = offset.square().sum(-1) / neighbours.reach[..., None].square()
    return (1 - square.clamp(max=1.0)).square()

"""Convolution on a Lie group between points that were lifted to it, and the normalisation for ragged batches.

Source: Finzi et al. 2020 (LieConv).
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqdmri_monai.groups import Elements, Group
from eqdmri_monai.neighbours import Neighbours, take


@dataclass(frozen=True)
class LiePairs:
    """Pairs of an element and its neighbours, with what the kernel sees of each; computed once for all layers.

    The batch is 1 where all clouds share their points, as the pixels of images do.

    Parameters
    ----------
    index : Tensor, shape (B or 1, M, k), int64
    mask : Tensor, shape (B or 1, M, k), bool
        Which pairs are no padding.
    embedding : Tensor, shape (B or 1, M, k, group.size + 2 · group.orbit_size)
    """

    index: Tensor
    mask: Tensor
    embedding: Tensor


def lie_pairs(group: Group, out: Elements, source: Elements, neighbours: Neighbours) -> LiePairs:
    r"""Embed pairs as :math:`a_{ij} = [\log(v_j^{-1} u_i), q_i, q_j]`: the same when all elements are moved alike.

    Parameters
    ----------
    group : Group
    out, source : Elements
        Where the convolution is evaluated (u, M of them) and what it sums over (v, N of them).
    neighbours : Neighbours
        Of the M among the N.

    Returns
    -------
    LiePairs

    Source
    ------
    Finzi et al., eq. 9. Their algorithm 2 has the inverse, log(u⁻¹ v), which is -log(v⁻¹ u): the two kernels mirror
    each other.
    """
    index, rows = neighbours.index, torch.arange(len(neighbours.index), device=neighbours.index.device)[:, None, None]
    relative = group.between(source.u[rows, index], out.u[:, :, None])
    orbits = out.orbit[:, :, None].expand(-1, -1, index.shape[2], -1), source.orbit[rows, index]
    return LiePairs(index, neighbours.mask, torch.cat([relative, *orbits], -1))


def lie_distance(group: Group, out: Elements, source: Elements, *, alpha: float):
    r"""Return rows of distances :math:`d^2 = \|\log(u^{-1} v)\|^2 + \alpha \|q_u - q_v\|^2`, for `neighbours`.

    Source
    ------
    Finzi et al., section 4.5.
    """

    def rows(part: slice) -> Tensor:
        square = group.norm(group.between(out.u[:, part, None], source.u[:, None])).square()
        return (square + alpha * (out.orbit[:, part, None] - source.orbit[:, None]).square().sum(-1)).sqrt()

    return rows


class MaskedBatchNorm(nn.Module):
    """Batch normalisation whose statistics leave padding out.

    Parameters
    ----------
    channels : int

    Source
    ------
    Ioffe and Szegedy 2015; Finzi et al., appendix C.3. In evaluation moving averages stand in, as in torch.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (..., channels)
        mask : Tensor, shape (...) or one that broadcasts to it, bool

        Returns
        -------
        Tensor, shape (..., channels)
        """
        if mask is None or bool(mask.all()):
            return self._norm(x.reshape(-1, x.shape[-1])).view(x.shape)
        mask = mask.expand(x.shape[:-1])
        y = torch.zeros_like(x)
        y[mask] = self._norm(x[mask])
        return y

    def _norm(self, rows: Tensor) -> Tensor:
        return nn.functional.batch_norm(rows, self.mean, self.variance, self.weight, self.bias, self.training)


class LieConv(nn.Module):
    r"""Group convolution :math:`h_i = \frac{1}{n_i} \sum_{j \in nbhd(i)} k(a_{ij}) f_j`, a mean over neighbours.

    The kernel is a network of three layers, its last a linear map to a matrix (channels_out, channels_in). That map is
    taken out of the sum (the PointConv trick), so that no matrix is ever made for a pair.

    Parameters
    ----------
    channels_in, channels_out : int
    group : Group
        Sets the size of what the kernel sees.
    hidden, last : int
        Neurons of the kernel's first two layers and of the third.
    batch_norm : bool
        Normalise inside the kernel.

    Raises
    ------
    ValueError
        When a number is below 1.

    Source
    ------
    Finzi et al., eq. 9 and 14, appendix C.3; 16 neurons in the last layer are the authors' code's.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        group: Group,
        *,
        hidden: int = 32,
        last: int = 16,
        batch_norm: bool = True,
    ):
        super().__init__()
        if min(channels_in, channels_out, hidden, last) < 1:
            raise ValueError(
                f"channels and neurons must be 1 or more, got {channels_in}, {channels_out}, {hidden}, {last}"
            )
        widths = [group.size + 2 * group.orbit_size, hidden, hidden, last]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(MaskedBatchNorm(n) if batch_norm else nn.Identity() for n in widths[1:])
        self.batch_norm = batch_norm
        self.out = nn.Linear(last * channels_in, channels_out)

    def kernel(self, pairs: LiePairs) -> Tensor:
        """Return what the network's last layer but the map to matrices gives, shape (B or 1, M, k, last)."""
        mask = pairs.mask  # needed where statistics are made, and taken out once for all layers
        apart = self.batch_norm and self.training and not bool(mask.all())
        a = pairs.embedding[mask] if apart else pairs.embedding
        for layer, norm in zip(self.layers, self.norms, strict=True):
            a = nn.functional.silu(norm(layer(a)))
        return a.new_zeros(*mask.shape, a.shape[-1]).index_put((mask,), a) if apart else a

    def forward(self, x: Tensor, pairs: LiePairs) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, channels_in, N)
        pairs : LiePairs
            Of M elements with k of the N.

        Returns
        -------
        Tensor, shape (B, channels_out, M)
        """
        count = pairs.mask.sum(-1, keepdim=True).clamp(min=1)
        weight = (self.kernel(pairs) * (pairs.mask / count)[..., None].to(x.dtype)).mT  # [b, m, s, k]
        if len(weight) == 1:  # all clouds share their points: one product a point for the whole batch
            rows = take(x.permute(2, 0, 1).flatten(1)[None], pairs.index)  # [1, m, k, b c]
            summed = (weight @ rows)[0].unflatten(-1, (len(x), -1)).permute(2, 0, 1, 3)  # [b, m, s, c]
        else:
            summed = weight @ take(x.mT, pairs.index)
        return self.out(summed.flatten(-2)).mT

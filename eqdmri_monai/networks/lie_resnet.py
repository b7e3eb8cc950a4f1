"""Residual network of LieConv layers: from a cloud of points with values to a few numbers."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqdmri_monai.groups import Elements, Group
from eqdmri_monai.neighbours import check_cloud, everyone, farthest_points, knn
from eqdmri_monai.nn.lie_conv import LieConv, LiePairs, MaskedBatchNorm, lie_distance, lie_pairs


@dataclass(frozen=True)
class LieGeometry:
    """What a `LieResNet` needs to know of the places of points: computed once, for all layers.

    Parameters
    ----------
    lifts : int
    kept : tuple of Tensor, each (B or 1, M)
        Which of its input elements each block keeps.
    masks : tuple of Tensor, each (B or 1, M), bool
        Of the lifted points, then of each block's output.
    pairs : tuple of LiePairs
        Of each block.
    """

    lifts: int
    kept: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    pairs: tuple[LiePairs, ...]


class Bottleneck(nn.Module):
    """Norm, Swish, linear to a quarter of the channels; LieConv; the same again; and a connection around it all."""

    def __init__(self, group: Group, channels_in: int, channels_out: int, *, hidden: int, batch_norm: bool):
        super().__init__()
        narrow = max(channels_in // 4, 1)
        self.norms = nn.ModuleList(
            MaskedBatchNorm(n) if batch_norm else nn.Identity() for n in (channels_in, narrow, narrow)
        )
        self.batch_norm = batch_norm
        self.narrow, self.wide = nn.Linear(channels_in, narrow), nn.Linear(narrow, channels_out)
        self.conv = LieConv(narrow, narrow, group, hidden=hidden, batch_norm=batch_norm)
        self.around = nn.Identity() if channels_in == channels_out else nn.Linear(channels_in, channels_out)

    def forward(self, x: Tensor, pairs: LiePairs, kept: Tensor, mask_in: Tensor, mask_out: Tensor) -> Tensor:
        """Return values (B, M, channels_out) of values (B, N, channels_in)."""
        y = self.narrow(self._act(0, x, mask_in))
        y = self.conv(self._act(1, y, mask_in).mT, pairs).mT
        y = self.wide(self._act(2, y, mask_out))
        rows = torch.arange(len(kept), device=x.device)[:, None]
        around = x[:, kept[0]] if len(kept) == 1 else x[rows, kept]
        return self.around(around) + y

    def _act(self, i: int, x: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.silu(self.norms[i](x, mask) if self.batch_norm else x)


class LieResNet(nn.Module):
    """Lift points to a group, convolve there, and average: the output is invariant under the group.

    Exactly so where the group is single-valued, and given the lifts (turned along with the points) elsewhere; fresh
    lifts scatter the output of SO(3), SE(2) and SE(3), less so the more of them there are. In evaluation lifts are
    drawn from a fixed seed unless a generator is given, so that an answer is always the same.

    Parameters
    ----------
    group : Group
    channels_in, channels_out : int
    channels : int
        Of the first block.
    blocks : int
    neighbours : int or None
        Nearest elements that a convolution averages over, those at equal distance to the last included; all where None.
    share : float
        Share of the elements that is left after the last block; blocks share the thinning evenly. Channels grow by the
        inverse square root of what a block keeps; that k stays widens its reach by as much.
    lifts : int
        Of each point; 1 for single-valued groups.
    alpha : float
        Weight of the squared distance between orbits beside that on the group.
    hidden : int
        Neurons of the kernels' layers.
    batch_norm : bool

    Raises
    ------
    ValueError
        When a number is below 1, share is not above 0 and up to 1, or lifts do not fit the group.

    Source
    ------
    Finzi et al., Figure 5 and appendix C.3. Their neighbourhood is a random part of a ball whose radius follows the
    data by a moving average; ours is the nearest elements, so that nothing in evaluation is random.
    """

    def __init__(
        self,
        group: Group,
        channels_in: int,
        channels_out: int,
        *,
        channels: int = 64,
        blocks: int = 6,
        neighbours: int | None = 25,
        share: float = 1.0,
        lifts: int = 1,
        alpha: float = 1.0,
        hidden: int = 32,
        batch_norm: bool = True,
    ):
        super().__init__()
        if min(channels_in, channels_out, channels, blocks) < 1 or (neighbours is not None and neighbours < 1):
            raise ValueError(
                "channels, blocks and neighbours must be 1 or more, got "
                f"{(channels_in, channels_out, channels)}, {blocks}, {neighbours}"
            )
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and up to 1, got {share}")
        if lifts < 1 or (lifts > 1 and group.single_valued):
            raise ValueError(f"lifts must be {'1' if group.single_valued else '1 or more'} for {group}, got {lifts}")
        self.group, self.neighbours, self.lifts, self.alpha = group, neighbours, lifts, alpha
        self.step = share ** (1 / blocks)
        widths = [round(channels * self.step ** (-0.5 * i)) for i in range(blocks + 1)]
        self.first = nn.Linear(channels_in, widths[0])
        self.blocks = nn.ModuleList(
            Bottleneck(group, a, b, hidden=hidden, batch_norm=batch_norm) for a, b in itertools.pairwise(widths)
        )
        self.norm = MaskedBatchNorm(widths[-1]) if batch_norm else nn.Identity()
        self.last = nn.Linear(widths[-1], channels_out)
        self.batch_norm = batch_norm

    def lift(self, positions: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None) -> Elements:
        """Lift points (B, N, group.dim) with a mask (B, N) to N · lifts elements; see `Group.lift`."""
        if generator is None and not self.training:
            generator = torch.Generator().manual_seed(0)
        mask = check_cloud(positions, mask)
        return self.group.lift(positions, mask=mask, lifts=self.lifts, generator=generator)

    def geometry(self, elements: Elements) -> LieGeometry:
        """Choose the elements of each block, its neighbours, and what its kernel sees of them."""
        kept, masks, pairs = [], [elements.mask], []
        for _ in self.blocks:
            with torch.no_grad():
                if self.step < 1:
                    every = lie_distance(self.group, elements, elements, alpha=self.alpha)(slice(None))
                    index, mask = farthest_points(every, self.step, mask=elements.mask)
                else:
                    index = torch.arange(elements.mask.shape[1], device=elements.mask.device)
                    index, mask = index.expand_as(elements.mask), elements.mask
                out = elements.take(index, mask)
                available = int(elements.mask.sum(1).min())
                k = available if self.neighbours is None else min(self.neighbours, available)
                if self.neighbours is None or k == elements.mask.shape[1]:
                    near = everyone(elements.mask, mask)
                else:
                    distance = lie_distance(self.group, out, elements, alpha=self.alpha)
                    near = knn(distance, k, mask=elements.mask, centres=mask, own=True)
            out = elements.take(index, mask)  # with gradients
            pairs.append(lie_pairs(self.group, out, elements, near))
            kept.append(index)
            masks.append(mask)
            elements = out
        return LieGeometry(self.lifts, tuple(kept), tuple(masks), tuple(pairs))

    def convolve(self, x: Tensor, geometry: LieGeometry) -> Tensor:
        """Return numbers (B, channels_out) of values (B, channels_in, N) at places whose geometry is known."""
        y = self.first(x.mT.repeat_interleave(geometry.lifts, 1))
        for block, pairs, kept, before, after in zip(
            self.blocks, geometry.pairs, geometry.kept, geometry.masks[:-1], geometry.masks[1:], strict=True
        ):
            y = block(y, pairs, kept, before, after)
        mask = geometry.masks[-1]
        y = nn.functional.silu(self.norm(y, mask) if self.batch_norm else y)
        weight = (mask / mask.sum(1, keepdim=True)).to(y.dtype)
        return self.last((weight[..., None] * y).sum(1))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, channels_in, N)
            Values of the points.
        positions : Tensor, shape (B, N, group.dim)
            Or (1, N, group.dim) where all clouds share their points; all else is then computed once for the batch.
        mask : Tensor, shape (B, N) or (1, N), bool
            Which points are no padding.
        generator : torch.Generator
            Source of the lifts.

        Returns
        -------
        Tensor, shape (B, channels_out)

        Raises
        ------
        ValueError
            When x does not fit the positions, or see `check_cloud` and `Group.lift`.
        """
        if x.ndim != 3 or x.shape[2] != positions.shape[1] or len(positions) not in (1, len(x)):
            raise ValueError(
                f"x must be (B, C, N) at positions (B, N, d), got {tuple(x.shape)}, {tuple(positions.shape)}"
            )
        return self.convolve(x, self.geometry(self.lift(positions, mask, generator)))

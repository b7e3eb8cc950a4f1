"""Boosted decision trees as a layer: the sum of the leaves that a voxel's numbers lead to."""

import torch
from torch import Tensor, nn

CHUNK = 2**12  # voxels at a time; what they need then stays near the processor
MOST_LEAVES = 63  # bits of an integer, less its sign


class Forest(nn.Module):
    """Sum of regression trees on the channels of a map, voxel by voxel.

    Each node sends a voxel left where its channel is at most the threshold; leaves lead to themselves. Nodes lie in the
    order of a walk that goes left first. Buffers hold the trees; there is nothing to train by gradients.

    Nobody walks down the trees: all nodes are asked, and each that sends a voxel right takes the leaves to its left
    away. The first leaf that is left is the voxel's. Leaves are bits of an integer, so that a step is a few
    operations on many voxels at once.

    Parameters
    ----------
    trees, nodes : int
        Their number, and the most nodes of a tree.

    Source
    ------
    Leaves as bits: Lucchese et al. 2015, doi:10.1145/2766462.2767733.
    """

    def __init__(self, trees: int, nodes: int):
        super().__init__()
        for name in ("channel", "left", "right"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, nodes, dtype=torch.float32))
        self.register_buffer("value", torch.zeros(trees, nodes, dtype=torch.float32))
        self.register_buffer("start", torch.zeros((), dtype=torch.float32))  # what the leaves are added to

    @classmethod
    def of(cls, classifier) -> "Forest":
        """Return the trees of a fitted `sklearn.ensemble.HistGradientBoostingClassifier` of two classes.

        Raises
        ------
        ValueError
            When a tree has more leaves than `MOST_LEAVES`.
        """
        grown = [stage[0].nodes for stage in classifier._predictors]
        leaves = max(int(nodes["is_leaf"].sum()) for nodes in grown)
        if leaves > MOST_LEAVES:
            raise ValueError(f"a tree has {leaves} leaves, but {MOST_LEAVES} are the most; grow it with max_leaf_nodes")
        forest = cls(len(grown), max(len(nodes) for nodes in grown))
        for k, nodes in enumerate(grown):
            own = torch.arange(len(nodes), dtype=torch.int32)
            leaf = torch.from_numpy(nodes["is_leaf"].astype(bool))
            n = len(nodes)
            for name, field in (("left", "left"), ("right", "right")):
                child = torch.from_numpy(nodes[field].astype("int32"))
                getattr(forest, name)[k, :n] = torch.where(leaf, own, child)
            forest.channel[k, :n] = torch.from_numpy(nodes["feature_idx"].astype("int32"))
            # in double precision "at most"; rounded down, single precision decides alike for numbers that it can hold
            threshold = torch.from_numpy(nodes["num_threshold"].copy())
            single = threshold.float()
            above = single.double() > threshold
            forest.threshold[k, :n] = torch.where(above, torch.nextafter(single, single - 1), single)
            forest.value[k, :n] = torch.from_numpy(nodes["value"].copy()).float()
        forest.start.fill_(float(classifier._baseline_prediction.ravel()[0]))
        return forest

    def rescale(self, scale: float, shift: float) -> None:
        """Make its sums `scale` times what they were, plus `shift`: a calibration."""
        self.value.mul_(scale)
        self.start.mul_(scale).add_(shift)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (N, C)

        Returns
        -------
        Tensor, shape (N,)
            Logits.
        """
        if not len(x) or not len(self.value):
            return self.start.expand(len(x))
        nodes, values = self._nodes(), self._values()
        return torch.cat([self._sums(part.T.contiguous(), nodes, values) for part in x.float().split(CHUNK)])

    def _sums(self, x: Tensor, nodes: tuple[Tensor, Tensor, Tensor], values: Tensor) -> Tensor:
        """Return the sums of voxels (C, N), by `_nodes` and `_values`."""
        left = torch.full((len(values), x.shape[1]), -1, dtype=nodes[2].dtype, device=x.device)  # all leaves
        for channel, threshold, kept in zip(*nodes, strict=True):
            right = x[channel] > threshold
            left &= torch.where(right, kept, -1)
        first = (left & -left).double().frexp().exponent - 1  # the number of the lowest bit
        return self.start + values.gather(1, first.long()).sum(0)

    def _leaves(self) -> tuple[Tensor, Tensor]:
        """Return which nodes (trees, nodes) are leaves, and how many leaves of their tree come before each."""
        leaf = self.left == torch.arange(self.left.shape[1], device=self.left.device)
        return leaf, leaf.cumsum(1) - leaf.long()

    def _nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all nodes but leaves: channels (nodes, trees), thresholds (nodes, trees, 1), and leaves they keep.

        The last, (nodes, trees, 1), are the leaves that a voxel can still reach when a node sends it right, as bits.
        """
        leaf, before = self._leaves()
        leaves = int(leaf.sum(1).max())
        lost = (1 << before.gather(1, self.right.long())) - (1 << before.gather(1, self.left.long()))
        order = leaf.long().argsort(dim=1, stable=True)[:, : int((~leaf).sum(1).max())]
        bits = torch.int32 if leaves < 32 else torch.int64
        channel, threshold, kept = (
            part.gather(1, order).T.contiguous()
            for part in (self.channel.long(), self.threshold, (~lost.masked_fill(leaf, 0)).to(bits))
        )
        return channel, threshold[..., None], kept[..., None]

    def _values(self) -> Tensor:
        """Return the values of the leaves in their order, (trees, leaves)."""
        leaf, before = self._leaves()
        values = self.value.new_zeros(len(leaf), leaf.shape[1] + 1)
        return values.scatter_add_(1, before, self.value * leaf)

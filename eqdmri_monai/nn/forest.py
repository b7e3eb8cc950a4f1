"""Boosted decision trees as a layer: the sum of the leaves that a voxel's numbers lead to."""

import torch
from torch import Tensor, nn

CHUNK = 2**13  # voxels at a time


class Forest(nn.Module):
    """Sum of regression trees on the channels of a map, voxel by voxel.

    Each node sends a voxel left where its channel is at most the threshold. Leaves lead to themselves, so that all
    trees are as deep as the deepest. Buffers hold the trees; there is nothing to train by gradients.

    Parameters
    ----------
    trees, nodes : int
        Their number, and the most nodes of a tree.
    """

    def __init__(self, trees: int, nodes: int):
        super().__init__()
        for name in ("channel", "left", "right"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, nodes, dtype=torch.float32))
        self.register_buffer("value", torch.zeros(trees, nodes, dtype=torch.float32))
        self.register_buffer("start", torch.zeros((), dtype=torch.float32))  # what the leaves are added to
        self.register_buffer("depth", torch.zeros((), dtype=torch.int32))

    @classmethod
    def of(cls, classifier) -> "Forest":
        """Return the trees of a fitted `sklearn.ensemble.HistGradientBoostingClassifier` of two classes."""
        grown = [stage[0].nodes for stage in classifier._predictors]
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
            forest.depth.clamp_(min=int(nodes["depth"].max()))
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
        return torch.cat([self._sums(part) for part in x.float().split(CHUNK)]) if len(x) else x.new_zeros(0)

    def _sums(self, x: Tensor) -> Tensor:
        trees = torch.arange(len(self.channel), device=x.device)
        node = torch.zeros(len(x), len(trees), dtype=torch.int64, device=x.device)
        for _ in range(int(self.depth)):
            right = x.gather(1, self.channel[trees, node].long()) > self.threshold[trees, node]
            node = torch.where(right, self.right[trees, node], self.left[trees, node]).long()
        return self.start + self.value[trees, node].sum(1)

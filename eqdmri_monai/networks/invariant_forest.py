"""Boosted trees on numbers of a scan that do not turn with the head."""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn.forest import Forest
from eqdmri_monai.nn.invariants import TensorInvariants
from eqdmri_monai.nn.scale_space import blur_within


class InvariantForest(nn.Module):
    """Voxelwise prediction by boosted trees on `TensorInvariants`; called, saved and loaded as the other networks.

    Equivariant by its numbers, whatever the trees are, and for any gradient scheme that determines a tensor. Trees are
    grown by scikit-learn from voxels (`scripts/study.py`), not by gradients: where heads are few and computers small,
    that is what learns most.

    Parameters
    ----------
    trees, nodes : int
        As in `Forest`; none is a forest that is still to be grown.
    smooth : float
        Width in mm of a Gaussian that logits are blurred by within the brain: noise is a voxel's own, lesions are not.
    spacing : three floats
        Voxel sizes in mm that it is made for.
    """

    OUTSIDE = -20.0  # logit where there is no brain

    def __init__(
        self, trees: int = 0, nodes: int = 1, *, smooth: float = 2.0, spacing: Sequence[float] = (2.0, 2.0, 2.0)
    ):
        super().__init__()
        self.invariants = TensorInvariants(spacing)
        self.forest = Forest(trees, nodes)
        self.irreps_out, self.smooth = o3.Irreps("1x0e"), smooth

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Logarithm of the signal over one number for the whole scan, as `LogSignald` gives it; 0 outside the brain.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, 1, X, Y, Z)
            Logits.

        Raises
        ------
        ValueError
            When the q-vectors do not determine a tensor.
        """
        numbers = self.invariants(image, q).movedim(1, -1)
        brain = image.any(dim=1)
        logits = image.new_full(brain.shape, self.OUTSIDE)
        logits[brain] = self.forest(numbers[brain]).to(logits)
        logits, brain = logits[:, None], brain[:, None]
        if self.smooth:
            width = self.invariants.voxels(self.smooth)
            logits = torch.where(brain, blur_within(logits, brain.to(logits), width), logits)
        return logits

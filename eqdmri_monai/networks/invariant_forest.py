"""Boosted trees on numbers of a scan that do not turn with the head."""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn.forest import Forest
from eqdmri_monai.nn.invariants import TensorInvariants, eigenvalues
from eqdmri_monai.nn.scale_space import blur_within, gradient, hessian

# mm, of Gaussians
LOGITS, CHANCES, SHAPES = (1.5, 2.5, 4.0, 7.5, 15.0), (2.0, 4.0, 7.5), (2.5, 5.0)


class InvariantForest(nn.Module):
    """Voxelwise prediction by boosted trees on `TensorInvariants`, twice: the second time they see the first map too.

    What trees make of a voxel alone is noisy; the second forest also gets means of the first one's logits over
    neighbourhoods, and their gradients and curvatures, and so knows a blob from a rim and from noise. Equivariant by
    its numbers, whatever the trees are, and for any gradient scheme that determines a tensor. Called, saved and loaded
    as the other networks, but its trees are grown by scikit-learn from voxels (`scripts/study.py`), not by gradients:
    where heads are few and computers small, that is what learns most.

    Parameters
    ----------
    trees, nodes : pair of int
        Of the first and the second `Forest`; none are forests that are still to be grown.
    smooth : float
        Width in mm of a Gaussian that logits are blurred by within the brain: noise is a voxel's own, lesions are not.
    spacing : three floats
        Voxel sizes in mm that it is made for.

    Source
    ------
    A classifier that sees its own first map: Tu and Bai 2010, doi:10.1109/TPAMI.2009.186.
    """

    OUTSIDE = -20.0  # logit where there is no brain

    def __init__(
        self,
        trees: Sequence[int] = (0, 0),
        nodes: Sequence[int] = (1, 1),
        *,
        smooth: float = 2.0,
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
    ):
        super().__init__()
        self.invariants = TensorInvariants(spacing)
        self.first, self.second = (Forest(t, n) for t, n in zip(trees, nodes, strict=True))
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
        brain = image.any(dim=1, keepdim=True)
        numbers = self.invariants(image, q)
        logits = self._judged(self.first, numbers, brain)
        logits = self._judged(self.second, torch.cat([numbers, self.context(logits, brain)], dim=1), brain)
        if self.smooth:
            mean = blur_within(logits, brain.to(logits), self.invariants.voxels(self.smooth))
            logits = torch.where(brain, mean, logits)
        return logits

    def context(self, logits: Tensor, brain: Tensor) -> Tensor:
        """Return what the second forest sees of a first map: (B, 18, X, Y, Z) of logits (B, 1, X, Y, Z)."""
        weight, voxels = brain.to(logits), self.invariants.voxels
        logits = logits * weight
        means = {s: blur_within(logits, weight, voxels(s)) for s in LOGITS}
        out = [logits, *means.values(), means[2.5] - means[7.5]]
        out += [blur_within(logits.sigmoid(), weight, voxels(s)) for s in CHANCES]
        filled = torch.where(brain, logits, means[4.0])
        for s in SHAPES:
            out.append(gradient(filled, voxels(s))[:, 0].square().sum(1, keepdim=True).sqrt())
            out.append(eigenvalues(hessian(filled, voxels(s))[:, 0], weight))
        return torch.cat(out, dim=1)

    def _judged(self, forest: Forest, numbers: Tensor, brain: Tensor) -> Tensor:
        inside, logits = brain[:, 0], numbers.new_full(brain.shape, self.OUTSIDE)
        logits[:, 0][inside] = forest(numbers.movedim(1, -1)[inside]).to(logits)
        return logits

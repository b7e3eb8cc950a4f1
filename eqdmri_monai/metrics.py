"""Voxelwise ranking metrics inside the brain, pooled over scans; Dice is MONAI's own."""

import torch
from monai.metrics import CumulativeIterationMetric
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor


class VoxelRanking(CumulativeIterationMetric):
    """Area under the ROC curve, or average precision, over all voxels of all brains together.

    Parameters
    ----------
    score : str
        "auc" or "average_precision".

    Raises
    ------
    ValueError
        When the score is unknown.

    Source
    ------
    Müller et al., section 4.4; computed by scikit-learn.
    """

    def __init__(self, score: str):
        super().__init__()
        scores = {"auc": roc_auc_score, "average_precision": average_precision_score}
        if score not in scores:
            raise ValueError(f"score must be auc or average_precision, got {score!r}")
        self.score = scores[score]

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> Tensor:
        """Return (prediction, label) of each voxel of the brain, shape (N, 2).

        `y_pred` is (B, 1, X, Y, Z), `y` is (B, 2, X, Y, Z): label and mask.
        """
        brain = y[:, 1] > 0.5
        return torch.stack([y_pred[:, 0][brain].float(), y[:, 0][brain].float()], dim=1)

    def aggregate(self) -> float:
        """Return the score of all that was seen; not a number where the labels are all 0 or all 1."""
        values = self.get_buffer().cpu()
        label = values[:, 1] > 0.5
        if label.all() or not label.any():
            return float("nan")
        return float(self.score(label.numpy(), values[:, 0].numpy()))

"""What a lesion map is worth against lesions drawn by hand, inside the brain: of one scan, and of many together.

`scan_scores` and what it is made of are plain functions on arrays; `VoxelRanking` and `LesionDetection` pool scans in a
MONAI engine. Lesions are 26-connected: voxels that share a corner are one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric, compute_dice
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

SCORES = {"auc": roc_auc_score, "average_precision": average_precision_score}


def lesions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the lesions of a mask (X, Y, Z), numbered from 1 with 0 elsewhere, and how many there are."""
    return ndimage.label(mask, np.ones((3, 3, 3)))


def ranking(score: str, probability: np.ndarray, label: np.ndarray) -> float:
    """Return "auc" or "average_precision" of voxels (N,); not a number where the labels are all 0 or all 1.

    Source
    ------
    Müller et al., section 4.4; computed by scikit-learn.
    """
    label = label > 0.5
    if label.all() or not label.any():
        return float("nan")
    return float(SCORES[score](label, probability))


def calibration_error(probability: np.ndarray, label: np.ndarray, *, bins: int = 15) -> float:
    """Return the expected calibration error of voxels (N,): mean distance of what is said from what is true.

    Voxels are grouped by their probability into bins of equal width.

    Source
    ------
    Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602.
    """
    group = np.minimum((probability * bins).astype(int), bins - 1)
    said = np.bincount(group, probability, bins)
    true = np.bincount(group, label > 0.5, bins)
    return float(np.abs(said - true).sum() / len(probability))


@dataclass(frozen=True)
class LesionCounts:
    """How many lesions were drawn, how many of them found, how many predicted, and how many of those false."""

    true: int
    found: int
    predicted: int
    false: int

    @property
    def sensitivity(self) -> float:
        """Return the share of true lesions that were found; not a number where there is none."""
        return self.found / self.true if self.true else float("nan")

    @property
    def precision(self) -> float:
        """Return the share of predicted lesions that are not false; not a number where there is none."""
        return 1 - self.false / self.predicted if self.predicted else float("nan")


def count_lesions(prediction: np.ndarray, label: np.ndarray) -> LesionCounts:
    """Compare two masks lesion by lesion.

    A true lesion is found where at least one of its voxels is predicted; a predicted lesion is false where none of its
    voxels is true. So one prediction may find several lesions, and several may find one.

    Parameters
    ----------
    prediction, label : array, shape (X, Y, Z)
        Masks; what lies outside the brain is to be 0 in both.

    Source
    ------
    Carass et al. 2017, doi:10.1016/j.neuroimage.2016.12.064: sensitivity is their lesion true positive rate, precision
    one less their lesion false positive rate. (They take voxels that share an edge as one lesion.)
    """
    prediction, label = prediction > 0.5, label > 0.5
    (true, num_true), (predicted, num_predicted) = lesions(label), lesions(prediction)
    found, right = np.unique(true[prediction & label]), np.unique(predicted[prediction & label])
    return LesionCounts(num_true, len(found), num_predicted, num_predicted - len(right))


def scan_scores(
    probability: np.ndarray, label: np.ndarray, brain: np.ndarray, *, voxel_ml: float, threshold: float
) -> dict[str, float]:
    """Compare one lesion map with the lesions drawn by hand; voxels outside the brain do not count.

    Parameters
    ----------
    probability, label, brain : array, shape (X, Y, Z)
    voxel_ml : float
        Volume of a voxel.
    threshold : float
        Of the probability: lesion where it is that or more.

    Returns
    -------
    dict
        average_precision, auc; dice; lesion_sensitivity and lesion_precision, with the numbers true_lesions,
        found_lesions, predicted_lesions and false_lesions; true_ml, predicted_ml, brain_ml. What is not defined, such
        as Dice where no lesion was drawn, is not a number.
    """
    brain = brain > 0.5
    label, lesion = (label > 0.5) & brain, (probability >= threshold) & brain
    dice = compute_dice(*(torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (lesion, label)))
    counts = count_lesions(lesion, label)
    return {
        "average_precision": ranking("average_precision", probability[brain], label[brain]),
        "auc": ranking("auc", probability[brain], label[brain]),
        "dice": float(dice),
        "lesion_sensitivity": counts.sensitivity,
        "lesion_precision": counts.precision,
        "true_lesions": counts.true,
        "found_lesions": counts.found,
        "predicted_lesions": counts.predicted,
        "false_lesions": counts.false,
        "true_ml": voxel_ml * int(label.sum()),
        "predicted_ml": voxel_ml * int(lesion.sum()),
        "brain_ml": voxel_ml * int(brain.sum()),
    }


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
        if score not in SCORES:
            raise ValueError(f"score must be auc or average_precision, got {score!r}")
        self.score = score

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> Tensor:
        """Return (prediction, label) of each voxel of the brain and each output, shape (N, 2).

        `y_pred` is (B, C, X, Y, Z), `y` is (B, C + 1, X, Y, Z): labels, and the mask of the brain.
        """
        brain = (y[:, -1:] > 0.5).expand_as(y_pred)
        return torch.stack([y_pred[brain].float(), y[:, :-1][brain].float()], dim=1)

    def aggregate(self) -> float:
        """Return the score of all that was seen; not a number where the labels are all 0 or all 1."""
        probability, label = self.get_buffer().cpu().numpy().T
        return ranking(self.score, probability, label)


class LesionDetection(CumulativeIterationMetric):
    """Sensitivity or precision over all lesions of all brains together, by `count_lesions`.

    Parameters
    ----------
    score : str
        "sensitivity" or "precision".

    Raises
    ------
    ValueError
        When the score is unknown.
    """

    def __init__(self, score: str):
        super().__init__()
        if score not in ("sensitivity", "precision"):
            raise ValueError(f"score must be sensitivity or precision, got {score!r}")
        self.score = score

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> Tensor:
        """Return numbers of true, found, predicted and false lesions of each output, shape (B · C, 4).

        `y_pred` are masks (B, C, X, Y, Z), `y` is (B, C + 1, X, Y, Z): labels, and the mask of the brain.
        """
        brain = y[:, -1:] > 0.5
        pairs = zip(*((x * brain).flatten(0, 1).cpu().numpy() for x in (y_pred, y[:, :-1])), strict=True)
        counts = [count_lesions(prediction, label) for prediction, label in pairs]
        return torch.tensor([[c.true, c.found, c.predicted, c.false] for c in counts], device=y_pred.device)

    def aggregate(self) -> float:
        """Return the score of all that was seen; not a number where there is no such lesion."""
        return getattr(LesionCounts(*self.get_buffer().sum(0).tolist()), self.score)

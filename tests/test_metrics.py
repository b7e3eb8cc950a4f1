import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from sklearn.metrics import average_precision_score, roc_auc_score

from eqdmri_monai.metrics import (
    LesionCounts,
    LesionDetection,
    VoxelRanking,
    calibration_error,
    count_lesions,
    lesions,
    scan_scores,
)


def target_of(label, mask):
    return torch.cat([label, mask], dim=1)


def mask_of(*voxels, shape=(6, 6, 6)):
    mask = np.zeros(shape)
    for voxel in voxels:
        mask[voxel] = 1
    return mask


# --- lesion by lesion, on arrays made by hand


def test_voxels_that_share_a_corner_are_one_lesion():
    assert lesions(mask_of((1, 1, 1), (2, 2, 2)))[1] == 1
    assert lesions(mask_of((1, 1, 1), (3, 1, 1)))[1] == 2
    assert lesions(mask_of())[1] == 0


TOUCHING = slice(0, 2)
BY_HAND = {
    "the same": (mask_of((1, 1, 1)), mask_of((1, 1, 1)), LesionCounts(1, 1, 1, 0)),
    "one voxel of eight is enough": (mask_of((1, 1, 1)), mask_of(3 * (TOUCHING,)), LesionCounts(1, 1, 1, 0)),
    "neighbours do not overlap": (mask_of((1, 1, 1)), mask_of((2, 1, 1)), LesionCounts(1, 0, 1, 1)),
    "one of two found": (mask_of((1, 1, 1)), mask_of((1, 1, 1), (4, 4, 4)), LesionCounts(2, 1, 1, 0)),
    "one of two false": (mask_of((1, 1, 1), (4, 4, 4)), mask_of((1, 1, 1)), LesionCounts(1, 1, 2, 1)),
    "one finds two": (mask_of((slice(1, 5), 1, 1)), mask_of((1, 1, 1), (4, 1, 1)), LesionCounts(2, 2, 1, 0)),
    "two find one": (mask_of((1, 1, 1), (4, 1, 1)), mask_of((slice(1, 5), 1, 1)), LesionCounts(1, 1, 2, 0)),
    "nothing predicted": (mask_of(), mask_of((1, 1, 1)), LesionCounts(1, 0, 0, 0)),
    "nothing there": (mask_of((1, 1, 1)), mask_of(), LesionCounts(0, 0, 1, 1)),
    "nothing at all": (mask_of(), mask_of(), LesionCounts(0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_lesions_are_counted(case):
    prediction, label, expected = BY_HAND[case]
    assert count_lesions(prediction, label) == expected
    exchanged = count_lesions(label, prediction)  # what is found and what is right change places
    assert (exchanged.predicted, exchanged.false) == (expected.true, expected.true - expected.found)
    assert (exchanged.true, exchanged.found) == (expected.predicted, expected.predicted - expected.false)


def test_shares_of_lesions():
    assert LesionCounts(4, 3, 5, 1).sensitivity == 0.75
    assert LesionCounts(4, 3, 5, 1).precision == 0.8
    assert np.isnan(LesionCounts(0, 0, 5, 5).sensitivity)
    assert LesionCounts(0, 0, 5, 5).precision == 0
    assert np.isnan(LesionCounts(4, 0, 0, 0).precision)


# --- one scan


def test_scores_of_a_scan_made_by_hand():
    brain, probability = np.zeros((6, 6, 6)), np.zeros((6, 6, 6))
    brain[1:5, 1:5, 1:5] = 1
    label = mask_of((1, 1, 1), (1, 1, 2), (4, 4, 4), (5, 5, 5), (0, 0, 0))  # the last two are outside
    probability[1, 1, 1], probability[3, 1, 4], probability[5, 5, 5] = 0.5, 0.9, 1  # hit, false, outside
    scores = scan_scores(probability, label, brain, voxel_ml=0.25, threshold=0.5)
    inside = brain > 0
    assert scores == {
        "average_precision": pytest.approx(average_precision_score(label[inside], probability[inside])),
        "auc": pytest.approx(roc_auc_score(label[inside], probability[inside])),
        "dice": pytest.approx(2 * 1 / (2 + 3)),
        "lesion_sensitivity": 0.5,
        "lesion_precision": 0.5,
        "true_lesions": 2,
        "found_lesions": 1,
        "predicted_lesions": 2,
        "false_lesions": 1,
        "true_ml": 0.75,
        "predicted_ml": 0.5,
        "brain_ml": 16,
    }


def test_what_lies_outside_the_brain_changes_no_score():
    rng = np.random.default_rng(0)
    brain, label = rng.random((8, 8, 8)) > 0.4, rng.random((8, 8, 8)) > 0.8
    probability, other = rng.random((8, 8, 8)), rng.random((8, 8, 8))
    a = scan_scores(probability, label, brain, voxel_ml=0.008, threshold=0.7)
    probability, label = np.where(brain, probability, other), np.where(brain, label, other > 0.5)
    assert scan_scores(probability, label, brain, voxel_ml=0.008, threshold=0.7) == a


def test_a_scan_without_lesions_has_the_scores_that_are_defined():
    scores = scan_scores(mask_of((1, 1, 1)), mask_of(), mask_of() + 1, voxel_ml=1, threshold=0.5)
    undefined = {name for name, value in scores.items() if np.isnan(value)}
    assert undefined == {"average_precision", "auc", "dice", "lesion_sensitivity"}
    assert (scores["lesion_precision"], scores["false_lesions"], scores["predicted_ml"]) == (0, 1, 1)


# --- many scans together


def test_scores_of_many_scans_are_those_of_all_lesions_together():
    rng = np.random.default_rng(1)
    prediction, label, brain = (rng.random((3, 1, 9, 9, 9)) > p for p in (0.97, 0.97, 0.3))
    label[2] = False
    rows, metrics = [], {score: LesionDetection(score) for score in ("sensitivity", "precision")}
    dice = DiceMetric(include_background=True)
    for y_pred, y, mask in zip(prediction, label, brain, strict=True):
        rows.append(scan_scores(y_pred[0], y[0], mask[0], voxel_ml=1, threshold=0.5))
        tensors = [torch.from_numpy(x[None].astype(float)) for x in (y_pred, y, mask)]
        for metric in metrics.values():
            metric(y_pred=tensors[0], y=target_of(*tensors[1:]))
        dice(y_pred=tensors[0] * tensors[2], y=tensors[1] * tensors[2])
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    assert metrics["sensitivity"].aggregate() == pytest.approx(total["found_lesions"] / total["true_lesions"])
    assert metrics["precision"].aggregate() == pytest.approx(1 - total["false_lesions"] / total["predicted_lesions"])
    assert dice.aggregate().item() == pytest.approx(np.nanmean([row["dice"] for row in rows]))


@pytest.mark.parametrize(
    ("score", "function"), [("auc", roc_auc_score), ("average_precision", average_precision_score)]
)
def test_scores_pool_the_voxels_of_all_brains(score, function):
    metric = VoxelRanking(score)
    pred, label = torch.rand(3, 1, 4, 4, 4), (torch.rand(3, 1, 4, 4, 4) > 0.6).double()
    mask = (torch.rand(3, 1, 4, 4, 4) > 0.5).double()
    for item in range(3):
        metric(y_pred=pred[item : item + 1], y=target_of(label, mask)[item : item + 1])
    inside = mask > 0.5
    assert metric.aggregate() == pytest.approx(function(label[inside], pred[inside].float()))


@pytest.mark.parametrize("metric", [VoxelRanking("auc"), LesionDetection("sensitivity")])
def test_two_outputs_count_as_two_scans(metric):
    pred, label, brain = (torch.rand(1, 2, 5, 5, 5), *((torch.rand(1, c, 5, 5, 5) > 0.8).double() for c in (2, 1)))
    metric(y_pred=pred, y=target_of(label, brain))
    together = metric.aggregate()
    metric.reset()
    for k in range(2):
        metric(y_pred=pred[:, k : k + 1], y=target_of(label[:, k : k + 1], brain))
    assert together == metric.aggregate()


def test_a_score_without_lesions_is_not_a_number():
    metric = VoxelRanking("auc")
    zeros = torch.zeros(1, 1, 2, 2, 2)
    metric(y_pred=zeros, y=target_of(zeros, zeros + 1))
    assert metric.aggregate() != metric.aggregate()


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="score must be auc or average_precision"):
        VoxelRanking("f1")
    with pytest.raises(ValueError, match="score must be sensitivity or precision"):
        LesionDetection("f1")


def test_calibration_error_is_what_was_said_less_what_was_true():
    probability = np.array([0.1, 0.1, 0.9, 0.9])
    assert calibration_error(probability, np.array([0, 0, 1, 1])) == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 100_000)
    assert calibration_error(p, rng.uniform(0, 1, len(p)) < p) < 0.01
    assert calibration_error(np.ones(3), np.ones(3)) == 0

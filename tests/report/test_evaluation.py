import csv

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.report import SaveScores
from eqdmri_monai.simulate import make_phantom, single_shell


@pytest.fixture
def phantom():
    table = single_shell(6, 1000.0, np.random.default_rng(0))
    return make_phantom(1, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=3, snr=100)


def evaluated(phantom, folder, scans):
    """Evaluate scans, given as name: (probabilities, labels), each (C, X, Y, Z); return the rows of the table."""

    def item(name, probability, label):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path = write_nifti(folder / f"{name}.nii.gz", phantom.dwi, phantom.affine)
        meta = {"filename_or_obj": str(path), "file_gradients": phantom.table.rows.numpy()}
        probability, label, brain = (
            MetaTensor(torch.from_numpy(np.asarray(x, np.float32)), affine=torch.from_numpy(phantom.affine))
            for x in (probability, label, phantom.brain[None])
        )
        output = {"image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta), "pred": probability, "label": label}
        return [{"brain_mask": brain}], [output]

    batches, outputs = zip(*(item(name, *maps) for name, maps in scans.items()), strict=True)
    evaluator = Engine(lambda engine, batch: outputs[engine.state.iteration - 1])
    SaveScores(folder / "out", folder, 0.5).attach(evaluator)
    evaluator.run(batches)
    with (folder / "out" / "scan_metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file)), evaluator.state.metrics


def test_each_scan_has_a_row_and_a_picture(phantom, tmp_path):
    truth, nothing = phantom.lesion[None], np.zeros_like(phantom.lesion[None])
    scans = {"b/dwi": (truth, truth), "a/dwi": (0.9 * phantom.brain[None], nothing), "c": (nothing, truth)}
    rows, metrics = evaluated(phantom, tmp_path, scans)
    assert [row["scan"] for row in rows] == ["a/dwi.nii.gz", "b/dwi.nii.gz", "c.nii.gz"]
    healthy, perfect, missed = rows
    true_ml = phantom.lesion[phantom.brain].sum() * 6 * 6 * 7 / 1000
    assert {name for name, value in healthy.items() if value == ""} == {
        "average_precision", "auc", "dice", "lesion_sensitivity"
    }  # fmt: skip
    assert healthy["lesion_precision"] == "0"
    assert [perfect[name] for name in ("average_precision", "auc", "dice", "lesion_sensitivity")] == 4 * ["1"]
    assert float(perfect["true_ml"]) == float(perfect["predicted_ml"]) == pytest.approx(true_ml, rel=1e-5)
    assert (missed["dice"], missed["lesion_sensitivity"], missed["lesion_precision"]) == ("0", "0", "")
    assert metrics["val_true_ml"] == pytest.approx(2 * true_ml)
    assert metrics["val_predicted_ml"] == pytest.approx(true_ml + phantom.brain.sum() * 6 * 6 * 7 / 1000)
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert names == {"scan_metrics.csv", "a/dwi_evaluation.png", "b/dwi_evaluation.png", "c_evaluation.png"}


def test_each_output_has_a_row(phantom, tmp_path):
    truth = np.stack([phantom.lesion, phantom.brain & ~phantom.lesion])
    rows, _ = evaluated(phantom, tmp_path, {"dwi": (truth[::-1].copy(), truth)})
    assert [(row["scan"], row["output"], row["dice"]) for row in rows] == [("dwi.nii.gz", k, "0") for k in ("0", "1")]

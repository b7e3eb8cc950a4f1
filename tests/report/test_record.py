import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.report import SaveRecordd, SaveReportd, sha256
from eqdmri_monai.simulate import make_phantom, single_shell


@pytest.fixture
def phantom():
    table = single_shell(12, 1000.0, np.random.default_rng(0))
    return make_phantom(1, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=3, snr=100)


def record_of(tmp_path, out, root):
    return SaveRecordd(
        "image", output_dir=str(out), data_root_dir=str(root), weights=str(tmp_path / "model.pt"),
        settings={"spacing": [2.0, 2.0, 2.0]}, details={"window": -1},
    )  # fmt: skip


def test_the_report_measures_the_lesions_and_names_nothing_but_the_file(phantom, tmp_path):
    folder = tmp_path / "patient John Doe"
    folder.mkdir()
    scan = write_nifti(folder / "dwi.nii.gz", phantom.dwi, phantom.affine)
    write_fsl(phantom.table, phantom.affine, folder / "dwi")
    (tmp_path / "model.pt").write_bytes(b"weights")
    meta = {"filename_or_obj": str(scan), "file_gradients": phantom.table.rows.numpy()}
    data = {
        "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta),
        "pred": torch.from_numpy(phantom.lesion[None].astype(np.float32)),
        "brain_mask": MetaTensor(phantom.brain[None].astype(np.float32), meta={"made_of": ""}),
    }
    out = tmp_path / "out"
    save = SaveReportd("pred", record=record_of(tmp_path, out, folder), threshold=0.5)
    save(data)
    assert {path.name for path in out.iterdir()} == {"dwi_report.png", "dwi_report.json"}
    text = (out / "dwi_report.json").read_text()
    record = json.loads(text)
    assert record["lesion_ml"] == pytest.approx(phantom.lesion.sum() * 6 * 6 * 7 / 1000, abs=1e-3)
    assert record["volumes_per_b_value"] == {"0": 2, "1000": 12}
    assert record["input_sha256"] == sha256(scan)
    assert record["brain_mask"] == "median_otsu"
    assert record["threshold"] == 0.5
    assert record["spacing"] == [2.0, 2.0, 2.0]
    assert record["window"] == -1
    assert "Doe" not in text
    assert save.outputs({"image": str(scan)}) == [out / "dwi_report.json", out / "dwi_report.png"]


@pytest.mark.parametrize("threshold", [-1, 0, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(tmp_path, threshold):
    with pytest.raises(ValueError, match=r"threshold must be a probability above 0, such as 0\.5, not"):
        SaveReportd("pred", record=record_of(tmp_path, tmp_path, tmp_path), threshold=threshold)


def test_what_decides_a_map_is_in_its_identity(tmp_path):
    names = ("model.pt", "dwi.nii", "dwi.bval", "dwi.bvec", "brain.nii")
    for name in names:
        (tmp_path / name).write_text(name)

    def identity(threshold=0.5, **files):
        save = SaveReportd("pred", record=record_of(tmp_path, tmp_path, tmp_path), threshold=threshold)
        return save.identity({"image": str(tmp_path / "dwi.nii"), **files})

    def differences(other):
        return [key for key in first if other[key] != first[key]]

    first, masked = identity(), identity(brain_mask=str(tmp_path / "brain.nii"))
    assert identity() == first
    assert masked.keys() - first.keys() == {"brain_mask_sha256"}
    assert differences(identity(threshold=0.4)) == ["threshold"]
    for name in names[:-1]:
        (tmp_path / name).write_text("other")
        expected = {"model.pt": "weights_sha256", "dwi.nii": "input_sha256"}.get(name, f"{name[-4:]}_sha256")
        assert differences(identity()) == [expected]
        (tmp_path / name).write_text(name)

"""The main job from DICOM, and what a hospital's systems ask of a bundle."""

import json
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import IDENTITY, PATIENT, write_series
from monai.bundle import ConfigWorkflow
from pydicom import dcmread

from eqdmri_monai.files.dicom import dicom_to_scan
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [6.0, 6.0, 6.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A DICOM series of a phantom, and weights."""
    folder = tmp_path_factory.mktemp("case")
    table = single_shell(8, 1000.0, np.random.default_rng(0))
    phantom = make_phantom(0, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6)
    dwi = np.round(phantom.dwi / phantom.dwi.max() * 4000).astype(np.int16)
    write_series(folder / "Doe_Jane", dwi, phantom.affine, table)
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), folder / "model.pt")
    return folder


def run(case, output_dir, **options) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "inference.yaml"), logging_file=False, bundle_root=str(BUNDLE),
        initialize=["$None"], weights=str(case / "model.pt"), output_dir=str(output_dir), **SMALL, **options,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    return workflow


def test_dicom_and_nifti_give_the_same_map(case, tmp_path, capfd):
    (tmp_path / "nifti").mkdir()
    scan = dicom_to_scan(case / "Doe_Jane", tmp_path / "nifti")
    run(case, tmp_path / "a", dicom=str(case / "Doe_Jane"))
    run(case, tmp_path / "b", dwi=scan["image"])
    for kind in ("probability", "lesion", "brain"):
        a, b = (nib.load(tmp_path / run / f"series005_{kind}.nii.gz") for run in "ab")
        np.testing.assert_array_equal(a.dataobj, b.dataobj)
        np.testing.assert_array_equal(a.affine, nib.load(scan["image"]).affine)
    said = "".join(capfd.readouterr())
    written = b"".join(p.read_bytes() for p in (tmp_path / "a").iterdir() if p.suffix != ".dcm") + said.encode()
    names = " ".join(p.name for p in (tmp_path / "a").iterdir()).encode()
    assert not [word for word in IDENTITY if word.encode() in written + names]
    assert not list((tmp_path / "b").glob("*.dcm"))
    for kind, modality in (("lesion", "SEG"), ("probability", "OT"), ("report", "OT")):
        result = dcmread(tmp_path / "a" / f"series005_{kind}.dcm")
        assert result.Modality == modality
        assert result.PatientID == PATIENT["PatientID"]  # DICOM itself must say of whom it is
    lesion = nib.load(tmp_path / "a" / "series005_lesion.nii.gz")
    volume = hd.seg.segread(tmp_path / "a" / "series005_lesion.dcm").get_volume(combine_segments=True)
    assert volume.array.sum() == np.asarray(lesion.dataobj).sum() > 0


def test_a_warning_reaches_the_report_without_names_of_folders(case, tmp_path):
    folder = tmp_path / "Doe_Jane"
    folder.mkdir()
    scan = dicom_to_scan(case / "Doe_Jane", folder)
    bvec = np.loadtxt(scan["bvec"])
    bvec[:, 0] = [1, 0, 0]  # a direction at b = 0
    np.savetxt(scan["bvec"], bvec)
    with pytest.warns(UserWarning, match=f"{scan['bval']}: volume 0 has b = 0"):
        run(case, tmp_path / "out", dwi=scan["image"])
    (sentence,) = json.loads((tmp_path / "out" / "series005_report.json").read_text())["warnings"]
    assert sentence.startswith("series005.bval: volume 0 has b = 0")
    assert sentence in (tmp_path / "out" / "series005_report.html").read_text()

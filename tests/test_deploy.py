"""The MONAI Deploy application, where the SDK is installed: a DICOM series in, a segmentation out, on a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import IDENTITY, PATIENT, write_series
from monai.bundle import ConfigParser, ConfigWorkflow

from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [6.0, 6.0, 6.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}


def test_a_series_comes_in_and_a_segmentation_goes_out(tmp_path):
    pytest.importorskip("monai.deploy", reason="the MONAI Deploy App SDK is not installed")
    torch.set_default_dtype(torch.float32)
    table = single_shell(8, 1000.0, np.random.default_rng(0))
    phantom = make_phantom(0, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6)
    write_series(
        tmp_path / "in", np.round(phantom.dwi / phantom.dwi.max() * 4000).astype(np.int16), phantom.affine, table
    )
    bundle = tmp_path / "eqdmri_ms_segmentation"
    shutil.copytree(CONFIGS, bundle / "configs")
    shutil.copytree(ROOT / "bundle" / "deploy", bundle / "deploy")
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), bundle / "models" / "model.pt")
    config = ConfigParser(
        ConfigParser.load_config_files([str(CONFIGS / f"{n}.yaml") for n in ("inference", "integration")])
    )
    for key, value in SMALL.items():
        config[key] = value
    (bundle / "configs" / "inference.json").write_text(json.dumps(config.get()))
    done = subprocess.run(
        [sys.executable, str(bundle / "deploy"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")],
        cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"series005_lesion.dcm", "series005_report.json"}
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.yaml"), logging_file=False, bundle_root=str(bundle), initialize=["$None"],
        dicom=str(tmp_path / "in"), output_dir=str(tmp_path / "plain"), **SMALL,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    mine, plain = (hd.seg.segread(tmp_path / name / "series005_lesion.dcm") for name in ("out", "plain"))
    assert mine.PatientID == PATIENT["PatientID"]
    volumes = [one.get_volume(combine_segments=True) for one in (mine, plain)]
    assert volumes[0].array.any()
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_allclose(volumes[0].affine, volumes[1].affine)
    lesion = nib.load(tmp_path / "plain" / "series005_lesion.nii.gz")
    assert volumes[0].array.sum() == np.asarray(lesion.dataobj).sum()
    text = (tmp_path / "out" / "series005_report.json").read_text()
    assert json.loads(text)["threshold"] == 0.5
    assert not [word for word in IDENTITY if word in text + done.stdout + done.stderr]

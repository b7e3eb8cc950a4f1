import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.io import write_fsl, write_nifti
from eqdmri_monai.report import SaveReportd, colour_fa, sha256
from eqdmri_monai.simulate import make_phantom, single_shell


@pytest.fixture
def phantom():
    table = single_shell(12, 1000.0, np.random.default_rng(0))
    return make_phantom(1, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=3, snr=100)


def test_colours_are_the_fibres_directions(phantom):
    fibre, table = phantom.fibre, phantom.table
    white = np.linalg.norm(fibre, axis=-1) > 0.5
    rgb = colour_fa(phantom.dwi, table.bvals.numpy(), table.bvecs.numpy(), white)[white]
    fa = np.linalg.norm(rgb, axis=-1)
    strong = fa > np.percentile(fa, 80)  # one bundle, no crossing
    cosine = (rgb[strong] / fa[strong, None] * np.abs(fibre[white][strong])).sum(-1)
    assert np.median(cosine) > 0.97


def test_the_report_measures_the_lesions_and_names_nothing_but_the_file(phantom, tmp_path):
    folder = tmp_path / "patient John Doe"
    folder.mkdir()
    scan = write_nifti(folder / "dwi.nii.gz", phantom.dwi, phantom.affine)
    write_fsl(phantom.table, phantom.affine, folder / "dwi")
    (tmp_path / "model.pt").write_bytes(b"weights")
    meta = {"filename_or_obj": str(scan), "q_file": phantom.table.q.numpy()}
    data = {
        "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta),
        "pred": torch.from_numpy(phantom.lesion[None].astype(np.float32)),
        "brain_mask": torch.from_numpy(phantom.brain[None].astype(np.float32)),
    }
    out = tmp_path / "out"
    SaveReportd(
        "pred", output_dir=str(out), data_root_dir=str(folder), weights=str(tmp_path / "model.pt"), threshold=0.5
    )(data)
    assert {path.name for path in out.iterdir()} == {"dwi_report.png", "dwi_report.json"}
    text = (out / "dwi_report.json").read_text()
    record = json.loads(text)
    assert record["lesion_ml"] == pytest.approx(phantom.lesion.sum() * 6 * 6 * 7 / 1000, abs=1e-3)
    assert record["volumes_per_b_value"] == {"0": 2, "1000": 12}
    assert record["input_sha256"] == sha256(scan)
    assert "Doe" not in text


def test_an_error_that_ends_the_program_is_one_sentence():
    code = """
from eqdmri_monai.report import one_line_errors
one_line_errors()
try:
    raise ValueError("scan.nii: no b0; add one")
except ValueError as e:
    raise RuntimeError("applying transform") from e
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: scan.nii: no b0; add one"
    assert "Traceback" not in done.stderr
    assert logging.getLogger("ignite").level == logging.NOTSET  # nothing was changed here

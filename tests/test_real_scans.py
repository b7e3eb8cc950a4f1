"""Shipped weights on real scans: every scanner at hand, and a head in a scanner that is turned about it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_bundle import BUNDLE, run

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import read_table
from eqdmri_monai.gradients import GradientTable

pytestmark = pytest.mark.slow
SHIPPED = {"spacing": [2.0, 2.0, 2.0], "weights": str(BUNDLE / "models" / "model.pt")}
SCANS = (
    "dwi_philips_bangalore32/dwi",
    "dwi_philips_vanderbilt15_b2000/dwi",
    "dwi_philips_elition16_t1/dwi",
    "dwi_siemens_xa30_b2500/PA",
)


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


def infer(path: Path, out: Path) -> Path:
    defaults = {"irreps_pq": ["7x0e+4x1e"], "irreps_p": ["20x0e+5x1e", "10x0e+3x1e", "5x0e+2x1e"], "kernel_size": 5}
    network = {f"network_def#{key}": value for key, value in defaults.items()}
    run(["inference.yaml"], dwi=str(path), output_dir=str(out), **SHIPPED, **network)
    return out / f"{path.name.removesuffix('.nii.gz')}_probability.nii.gz"


@pytest.mark.parametrize("name", SCANS)
def test_one_set_of_weights_serves_every_scheme(data, tmp_path, name):
    scan = data / f"{name}.nii.gz"
    probability = nib.load(infer(scan, tmp_path))
    assert probability.shape == nib.load(scan).shape[:3]
    np.testing.assert_allclose(probability.affine, nib.load(scan).affine, atol=1e-4)
    p = probability.get_fdata()
    brain = nib.load(next(tmp_path.glob("*_brain.nii.gz"))).get_fdata() > 0
    assert np.isfinite(p).all()
    assert (p[brain] > 0.5).mean() < 0.05  # these heads are healthy


def test_where_the_scanners_axes_point_does_not_matter(data, tmp_path):
    """The same head with its header turned: voxels stay, the affine and the directions in the world turn."""
    scan = nib.load(data / "dwi_toshiba12_rotated" / "SAG30.nii.gz")
    table = read_table({"image": str(scan.get_filename())}, scan.affine, volumes=scan.shape[3])
    R = Rotation.from_rotvec([1.1, -0.4, 1.6]).as_matrix()  # 114 degrees: other axes are nearest
    affine = np.block([[R, np.zeros((3, 1))], [np.zeros((1, 3)), 1]]) @ scan.affine
    assert nib.aff2axcodes(affine) != nib.aff2axcodes(scan.affine)
    directions = {"as they are": (scan.affine, np.eye(3)), "turned": (affine, R), "left behind": (affine, np.eye(3))}
    maps = {}
    for name, (grid, turn) in directions.items():
        folder = tmp_path / name
        folder.mkdir()
        write_nifti(folder / "dwi.nii.gz", np.asarray(scan.dataobj), grid)
        rows = GradientTable(table.bvals, table.bvecs @ torch.from_numpy(turn).T).rows
        np.savetxt(folder / "dwi.b", rows.numpy())  # MRtrix's form, in the world
        maps[name] = nib.load(infer(folder / "dwi.nii.gz", folder / "out")).get_fdata()
    np.testing.assert_allclose(maps["turned"], maps["as they are"], rtol=0, atol=1e-4)
    assert np.abs(maps["left behind"] - maps["as they are"]).max() > 0.1  # the control

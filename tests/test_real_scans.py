"""Shipped weights on real scans: every scanner at hand, and one head scanned in three fields of view."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage
from test_bundle import BUNDLE, run

import eqdmri_monai.transforms.scan

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


def correlations(maps: list[Path]) -> list[float]:
    """Correlation of the log-odds of the turned scans with the first one's, over the brain, in the first one's grid."""
    first = nib.load(maps[0])
    images = [first] + [resample_from_to(nib.load(path), first, order=1) for path in maps[1:]]
    odds = [np.log((p := image.get_fdata().clip(1e-4, 1 - 1e-4)) / (1 - p)) for image in images]
    brain = ndimage.binary_erosion(np.all([image.get_fdata() > 0 for image in images], axis=0), iterations=2)
    return [float(np.corrcoef(odds[0][brain], other[brain])[0, 1]) for other in odds[1:]]


def test_a_turned_head_gets_the_same_map_in_the_world(data, tmp_path, monkeypatch, capsys):
    scans = [data / "dwi_toshiba12_rotated" / f"{name}.nii.gz" for name in ("ortho", "SAG30", "ALL20")]
    turned = correlations([infer(scan, tmp_path / "turned") for scan in scans])
    monkeypatch.setattr(eqdmri_monai.transforms.scan, "world_to_voxel", lambda q, affine: q)
    unturned = correlations([infer(scan, tmp_path / "unturned") for scan in scans])
    with capsys.disabled():
        print(f"\nworld-space correlation with ortho: SAG30 {turned[0]:.3f}, ALL20 {turned[1]:.3f}; ", end="")
        print(f"with q left unturned {unturned[0]:.3f}, {unturned[1]:.3f}")
    assert turned[0] > unturned[0]
    assert turned[1] > unturned[1]

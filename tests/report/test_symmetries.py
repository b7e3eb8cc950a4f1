"""The table of symmetries, of an equivariant network and of one that is not."""

import csv
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.networks import PQNet, TensorNet
from eqdmri_monai.report.symmetries import (
    Form,
    MapOfScan,
    check_symmetries,
    random_rotation,
    turned_between_voxels,
)
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[2] / "bundle"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [8.0, 8.0, 8.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}
U_NET = {"spatial_dims": 3, "in_channels": 9, "out_channels": 1, "channels": (4, 8), "strides": (2,)}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    table = single_shell(8, 1000.0, np.random.default_rng(0))
    phantom = make_phantom(0, table, shape=(20, 24, 16), spacing=(8, 8, 9), lesions=4)
    write_nifti(folder / "scan.nii.gz", phantom.dwi, phantom.affine)
    write_fsl(table, phantom.affine, folder / "scan")
    write_nifti(folder / "brain.nii.gz", phantom.brain.astype(np.uint8), phantom.affine)
    return folder


def run(folder: Path, *configs: str, **options) -> dict[str, list[dict[str, str]]]:
    workflow = ConfigWorkflow(
        config_file=[*configs, str(BUNDLE / "configs" / "symmetry.yaml")], logging_file=False, initialize=["$None"],
        dwi=str(folder / "scan.nii.gz"), brain_mask=str(folder / "brain.nii.gz"), output_dir=str(folder / "out"),
        device="cpu", **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()
    with (folder / "out" / "scan_symmetry.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {
        name: [row for row in rows if row["symmetry"] == name] for name in dict.fromkeys(r["symmetry"] for r in rows)
    }


def largest(rows: list[dict[str, str]]) -> float:
    return max(float(row["largest"]) for row in rows)


EXACT = ("once more", "storage order", "turn of the head", "sign of directions", "order of volumes")


def test_an_equivariant_network_has_small_numbers_and_a_plain_one_large_ones(scan, capsys):
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), scan / "model.pt")
    inference = str(BUNDLE / "configs" / "inference.yaml")
    options = {"bundle_root": str(BUNDLE), "weights": str(scan / "model.pt"), "turns": 4, "cases": 1}
    ours = run(scan, inference, **SMALL, **options)
    assert list(ours) == [*EXACT, "turn between voxels"]
    assert {name: len(rows) for name, rows in ours.items()} == {
        **dict.fromkeys(ours, 1),
        "turn of the head": 5,
    }
    assert max(largest(ours[name]) for name in EXACT) < 1e-5
    said = capsys.readouterr()
    assert "turn of the head         5" in said.out
    assert "turn between voxels any" in said.err  # the bar
    assert "10/10" in said.err
    record = json.loads((scan / "out" / "scan_symmetry.json").read_text())
    assert record["map"]["deviation"] > 0.01
    assert 1e-4 < largest(ours["turn between voxels"]) < 1
    assert {"weights_sha256", "input_sha256", "bval_sha256", "bvec_sha256", "brain_mask_sha256"} <= record.keys()
    # a bundle of another network, which hears nothing of q
    torch.save(UNet(**U_NET).state_dict(), scan / "model.pt")
    other = {"network_def": {"_target_": "UNet", **U_NET}, "inferer::with_q": False, "inferer::halo": 10}
    (scan / "other.json").write_text(json.dumps(other | {"inferer::stride": 2}))
    plain = run(scan, inference, str(scan / "other.json"), **options, spacing=SPACING)
    assert largest(plain["once more"]) == 0
    for name in ("turn of the head", "order of volumes"):
        assert largest(plain[name]) > 1e-3


def test_each_form_says_the_same_of_the_same_place(scan):
    """A map that reads the scan by its world coordinates, and is blind to nothing."""

    def map_of(files):
        image = nib.load(files["image"])
        return np.moveaxis(np.sort(image.get_fdata(), axis=-1)[..., -2:], -1, 0)

    _, rows = check_symmetries(map_of, {"image": str(scan / "scan.nii.gz")}, turns=23, cases=5)
    assert len([row for row in rows if row["symmetry"] == "turn of the head"]) == 28
    for row in rows:
        if row["symmetry"] in EXACT:
            assert row["largest"] == 0


def test_a_turn_between_voxels_is_one_of_the_head_in_the_scanner():
    """On voxels of three sizes along oblique axes, for a blob whose place is known."""
    rng = np.random.default_rng(0)
    affine, R, size = np.eye(4), random_rotation(rng), (24, 20, 16)
    affine[:3, :3] = random_rotation(rng) @ np.diag([2.0, 2.5, 3.0])
    world = np.stack(np.mgrid[tuple(map(slice, size))], -1) @ affine[:3, :3].T
    centre = affine[:3, :3] @ (np.array(size) - 1) / 2
    offset = np.array([3.0, -2.0, 2.0])

    def blob(place):
        return 1000 * np.exp(-((world - place) ** 2).sum(-1) / (2 * 5.0**2))

    table = GradientTable(torch.tensor([0.0, 1000.0]), torch.tensor([[0.0, 0, 0], [0, 0, 1]]))
    scan = Form("", "", blob(centre + offset)[..., None].repeat(2, -1), affine, table)
    form = turned_between_voxels(scan, R)
    np.testing.assert_allclose(form.dwi[..., 0], blob(centre + R @ offset), atol=10)
    np.testing.assert_allclose(form.table.bvecs[1], R[:, 2], atol=1e-6)
    back = form.back(form.dwi[None, ..., 1])[0]
    assert 0.2 < np.isfinite(back).mean() < 1
    np.testing.assert_allclose(back[np.isfinite(back)], scan.dwi[..., 1][np.isfinite(back)], atol=10)


def test_rotations_are_rotations():
    R = random_rotation(np.random.default_rng(0))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) > 0


@pytest.mark.parametrize("network", [TensorNet(), PQNet(irreps_out="1x0e+1x1e", **NETWORK)])
def test_maps_that_turn_with_the_head_are_refused(network):
    with pytest.raises(ValueError, match="this check is for maps of scalars"):
        MapOfScan(network, None, None, None, "cpu")

"""Tensors from few directions as a user gets them: training without labels, then maps of a scan."""

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.networks import TensorMeanNet
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.simulate import make_phantom, single_shell
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid
from eqdmri_monai.tensors import deviator, fit_tensor, fractional_anisotropy, squared_norm

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
SMALL = {"spacing": [6.0, 6.0, 6.0], "network_def#hidden": 4}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two scans of one head in two storage orders, and weights trained on the first."""
    folder = tmp_path_factory.mktemp("tensor")
    phantom = make_phantom(
        0, single_shell(14, 1000.0, np.random.default_rng(0)), shape=(24, 28, 20), spacing=(6, 6, 7), lesions=2
    )
    image = nib.Nifti1Image(phantom.dwi, phantom.affine)
    for codes in ("LAS", "PIR"):
        to = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
        turned = image.as_reoriented(to)
        write_nifti(folder / f"{codes}.nii.gz", np.asarray(turned.dataobj), turned.affine)
        write_fsl(phantom.table, turned.affine, folder / codes)
    scans = [{"image": "LAS.nii.gz"}]
    (folder / "scans.json").write_text(json.dumps({"training": scans, "validation": scans}))
    run(
        ["train.yaml", "tensor_train.yaml"], datalist=str(folder / "scans.json"), output_dir=str(folder / "run"),
        epochs=2, val_interval=1, crops=2, crop_size=[8, 8, 8], device="cpu",
    )  # fmt: skip
    return folder


def run(configs, **options) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in configs], meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False, bundle_root=str(CONFIGS.parent),
        initialize=["$monai.utils.set_determinism(seed=0)"], **SMALL | options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return workflow


def test_maps_are_in_the_world_whatever_the_storage_order(trained):
    names = ("tensor", "fa", "md", "v1", "brain")
    maps = {}
    for codes in ("LAS", "PIR"):
        out = trained / f"out_{codes}"
        weights = str(trained / "run" / "models" / "model.pt")
        run(
            ["inference.yaml", "tensor_inference.yaml"],
            dwi=str(trained / f"{codes}.nii.gz"), weights=weights, output_dir=str(out),
        )  # fmt: skip
        assert {path.name for path in out.iterdir()} == {
            *(f"{codes}_{name}.nii.gz" for name in names), f"{codes}_report.json", f"{codes}_report.png"
        }  # fmt: skip
        scan = nib.load(trained / f"{codes}.nii.gz")
        for name in names:
            image = nib.load(out / f"{codes}_{name}.nii.gz")
            assert image.shape[:3] == scan.shape[:3]
            np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
            maps[codes, name] = nib.as_closest_canonical(image).get_fdata()
        record = json.loads((out / f"{codes}_report.json").read_text())
        assert record["brain_ml"] > 0
        assert record["median_fa"] == pytest.approx(np.median(maps[codes, "fa"][maps[codes, "brain"] > 0]), abs=1e-3)
        with Image.open(out / f"{codes}_report.png") as picture:
            assert picture.size[0] > 1000
    assert maps["LAS", "tensor"].shape[3] == 6
    for name in ("tensor", "fa", "md"):
        scale = np.abs(maps["LAS", name]).max()
        np.testing.assert_allclose(maps["PIR", name], maps["LAS", name], rtol=0, atol=1e-4 * scale)
    brain = maps["LAS", "brain"] > 0
    assert 3e-4 < np.median(maps["LAS", "md"][brain]) < 3e-3  # mm²/s
    matrix = symmetric_matrix(torch.from_numpy(maps["LAS", "tensor"][brain]))
    evecs = torch.linalg.eigh(matrix).eigenvectors[..., -1].numpy()
    assert np.median(np.abs((evecs * maps["LAS", "v1"][brain]).sum(-1))) > 0.999


@pytest.fixture(scope="module")
def shipped():
    """The network that ships."""
    torch.set_default_dtype(torch.float32)
    network = TensorMeanNet(
        **{
            k: v
            for k, v in yaml.safe_load((CONFIGS / "tensor_inference.yaml").read_text())["network_def"].items()
            if k != "_target_"
        }
    )
    load_weights(network, CONFIGS.parent / "models" / "tensor.pt")
    return network.eval()


def test_shipped_weights_turn_with_the_scan(shipped):
    network, q = shipped.double(), random_scheme(6, 1.0)
    image, q = 0.3 * torch.randn(1, 7, 6, 7, 8, dtype=torch.float64), q.double()
    tensor = network(image, q)
    for R in cube_rotations():
        R = R.double()
        turned = symmetric_components(R @ symmetric_matrix(turn_grid(tensor, R)) @ R.T)
        torch.testing.assert_close(network(turn_grid(image, R), q @ R.T), turned, rtol=0, atol=1e-9)
    network.float()


def test_shipped_weights_are_nearer_the_truth_than_the_fit(shipped):
    phantom, clean = (
        make_phantom(
            3, single_shell(6, 1000.0, np.random.default_rng(0)), shape=(40, 44, 36), spacing=(2, 2, 2), snr=snr
        )
        for snr in (15, 1e4)
    )
    fits = []
    for scan in (phantom, clean):
        image = torch.from_numpy(np.moveaxis(scan.dwi, -1, 0) / scan.dwi[scan.brain, 0].mean()).float().clamp(min=0.01)
        image = image.log() * torch.from_numpy(scan.brain)
        q = world_to_voxel(scan.table.q, torch.from_numpy(scan.affine)).float()
        fits.append((image, q, fit_tensor(image[None], q)[0]))
    (image, q, plain), (_, _, truth) = fits
    with torch.no_grad():
        found = shipped(image[None], q)
    brain = torch.from_numpy(phantom.brain)
    white = brain & (fractional_anisotropy(truth)[0] > 0.3)
    errors = [squared_norm(deviator(x - truth))[0][white].mean().sqrt() for x in (found, plain)]
    assert errors[0] < 0.7 * errors[1]

"""The check of gradient tables: silent on tables that are right, and it names what is wrong with others."""

import itertools
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from eqdmri_monai.files.tables import read_fsl
from eqdmri_monai.frames import fsl_to_world
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.report.checks import better_table, fibre_coherence, table_changes
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.transforms import BrainMaskd, LoadGradientsd
from eqdmri_monai.transforms.scan import table_of

SCANS = [
    "dwi_philips_bangalore32/dwi", "dwi_philips_vanderbilt15_b2000/dwi", "dwi_philips_elition16_t1/dwi",
    "dwi_siemens_xa30_b2500/PA", "dwi_siemens_xa30_b2500/AP", "dwi_toshiba12_rotated/ortho",
    "dwi_toshiba12_rotated/SAG30", "dwi_toshiba12_rotated/ALL20", "dwi_canon12_rotated/ax_ortho",
    "dwi_canon12_rotated/ax_ALL20", "dwi_canon12_rotated/sag_ALL20", "dwi_canon12_rotated/ax_headturned_tilted",
]  # fmt: skip


def tubes(affine: np.ndarray, table: GradientTable) -> tuple[torch.Tensor, np.ndarray]:
    """A scan of thin bundles along two directions, both changed by any flip or swap of axes; and its brain."""
    i = np.stack(np.meshgrid(*map(np.arange, (34, 26, 26)), indexing="ij")).astype(float) - 12.5
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    diffusivity = np.full((len(table), *i.shape[1:]), 0.9e-3)
    for direction, half in (((1, 1, 0.2), i[0] < 4), ((0.2, 1, 1), i[0] >= 4)):
        d = axes @ direction / np.linalg.norm(direction)
        e = np.cross(d, axes[:, 0])
        e /= np.linalg.norm(e)
        across = np.einsum("ij,jxyz->ixyz", np.stack([e, np.cross(d, e)]) @ affine[:3, :3], i)
        in_tube = (np.hypot(*(across - 10 * np.round(across / 10))) < 3.0) & half  # mm
        along = table.bvecs.numpy() @ d
        diffusivity[:, in_tube] = (0.3e-3 + 1.4e-3 * along**2)[:, None]
    return torch.from_numpy(1000 * np.exp(-table.bvals.numpy()[:, None, None, None] * diffusivity)), np.ones(
        (34, 26, 26)
    )


TILTED = np.array([[-1.8, 0.5, 0.3, 0], [0.6, 1.8, -0.4, 0], [0.3, 0.5, 1.9, 0], [0, 0, 0, 1.0]])


def orthogonal(affine: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(affine[:3, :3])
    return np.block([[2.0 * u @ vt, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])


@pytest.mark.parametrize("affine", [np.diag([2.0, 2, 2, 1]), np.diag([-2.0, 2, 2, 1]), orthogonal(TILTED)])
def test_each_change_of_a_table_is_named(affine):
    table = single_shell(12, 1000.0, np.random.default_rng(0))
    dwi, brain = tubes(affine, table)
    assert better_table(dwi, table, affine, brain, affine) is None
    changes = table_changes(affine)
    for change in changes[1:24]:
        # What a table would be whose mend is this change.
        spoilt = GradientTable(table.bvals, table.bvecs @ torch.from_numpy(change.matrix))
        name, gain = better_table(dwi, spoilt, affine, brain, affine)
        # On an oblique image another frame is close to one of the flips.
        assert name == change.name or (len(changes) > 24 and name.startswith("they are along"))
        assert gain > 1.05


def test_a_change_speaks_of_the_rows_of_the_file():
    for affine in (np.diag([2.0, 2, 2, 1]), np.diag([-2.0, 2, 2, 1])):
        changes = {change.name: change.matrix for change in table_changes(affine)}
        rows = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
        right = fsl_to_world(rows, torch.from_numpy(affine)).numpy()
        mirrored = fsl_to_world(rows * torch.tensor([1, -1, 1]), torch.from_numpy(affine)).numpy()
        np.testing.assert_allclose(mirrored @ changes["row y changes its sign"].T, right, atol=1e-12)
        swapped = fsl_to_world(rows[:, [1, 0, 2]], torch.from_numpy(affine)).numpy()
        np.testing.assert_allclose(swapped @ changes["rows y x z stand in for x y z"].T, right, atol=1e-12)
        assert len(changes) == 24


def test_changes_are_a_group_up_to_sign():
    matrices = [change.matrix for change in table_changes(np.diag([-2.0, 2, 2, 1]))]
    for a, b in itertools.product(matrices, repeat=2):
        assert sum(np.allclose(a @ b, c) or np.allclose(a @ b, -c) for c in matrices) == 1


def test_coherence_is_largest_along_a_straight_bundle():
    direction, fa = np.zeros((3, 8, 8, 8)), np.zeros((8, 8, 8))
    direction[0], fa[:, 3:5, 3:5] = 1.0, 0.5
    score, alike = fibre_coherence(direction, fa, np.eye(4), [np.eye(3), np.eye(3)[[1, 0, 2]]])
    assert alike == 1.0
    assert score[0] == 7 * 4 * 1.0  # pairs along the bundle, FA 0.5 + 0.5 each
    assert score[1] == 8 * 2 * 1.0  # across it: of the two rows in y


def test_noise_and_small_brains_tell_nothing():
    table = single_shell(12, 1000.0, np.random.default_rng(0))
    dwi = 1000 * torch.exp(-0.7 * table.bvals[:, None, None, None] / 1000) + 50 * torch.randn(len(table), 20, 20, 20)
    affine = np.diag([2.0, 2, 2, 1])
    assert better_table(dwi, table, affine, np.ones((20, 20, 20)), affine) is None
    assert better_table(dwi, table, affine, np.zeros((20, 20, 20)), affine) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANS)
def test_real_scans_are_right_as_stored_and_each_flip_and_swap_is_found(data, name):
    load = Compose([LoadImaged("image", ensure_channel_first=True), LoadGradientsd("image"), BrainMaskd("image")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tables themselves
        scan = load({"image": str(data / f"{name}.nii.gz")})
    image: MetaTensor = scan["image"]
    table, affine = table_of(image), image.affine.numpy()
    brain = scan["brain_mask"][0].numpy()
    assert better_table(image.as_tensor(), table, affine, brain, affine) is None
    names = [f"row {r} changes its sign" for r in "xyz"] + [
        f"rows {r} stand in for x y z" for r in ("y x z", "x z y", "z y x")
    ]
    for change in table_changes(affine):
        if change.name in names:
            spoilt = GradientTable(table.bvals, table.bvecs @ torch.from_numpy(change.matrix))
            found = better_table(image.as_tensor(), spoilt, affine, brain, affine)
            assert found is not None
            assert found[0] == change.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dwi_toshiba12_rotated/SAG30", "dwi_toshiba12_rotated/ALL20"])
def test_world_directions_in_a_bvec_file_are_found(data, name):
    path = data / f"{name}.nii.gz"
    image = nib.load(path)
    table = read_fsl(data / f"{name}.bval", data / f"{name}.bvec", image.affine)
    wrong = GradientTable(table.bvals, fsl_to_world(table.bvecs, torch.as_tensor(image.affine)))
    scan = Compose([LoadImaged("image", ensure_channel_first=True), LoadGradientsd("image"), BrainMaskd("image")])(
        {"image": str(path)}
    )
    found = better_table(scan["image"].as_tensor(), wrong, image.affine, scan["brain_mask"][0].numpy(), image.affine)
    assert found is not None
    assert found[0] == "they are along the axes of the world, not of the image"

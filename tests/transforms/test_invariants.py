import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from heads import ball
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.transforms import (
    ApparentDiffusivityd,
    InvariantFeaturesd,
    InvariantMapsd,
    ResampleDirectionsd,
)
from eqdmri_monai.transforms.directions import icosahedron_edges
from eqdmri_monai.transforms.invariants import FEATURES
from eqdmri_monai.transforms.scan import table_of


def item(dwi: np.ndarray, table: GradientTable, affine: np.ndarray, brain: np.ndarray) -> dict:
    meta = {"gradients": table.rows.numpy(), "affine": torch.as_tensor(affine)}
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(np.moveaxis(dwi, -1, 0))), meta=meta)
    return {"image": image, "brain_mask": torch.from_numpy(brain[None].astype(np.float32))}


@pytest.fixture
def head():
    return ball()


@pytest.fixture
def table():
    return single_shell(20, 1000.0, np.random.default_rng(1), b0s=1)


def turned(dwi, table, brain):
    """A quarter turn of voxels and directions about z."""
    R = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return np.rot90(dwi, axes=(0, 1)), GradientTable(table.bvals, table.bvecs @ R.T), np.rot90(brain, axes=(0, 1))


@pytest.mark.parametrize(
    ("transform", "channels"), [(InvariantMapsd("image"), 3), (InvariantFeaturesd("image"), FEATURES)]
)
def test_maps_do_not_change_when_the_head_turns(head, table, transform, channels):
    dwi = head.signal(table)
    out = transform(item(dwi, table, head.affine, head.brain))["image"]
    assert out.shape == (channels, *head.brain.shape)
    dwi, table, brain = turned(dwi, table, head.brain)
    again = transform(item(dwi, table, head.affine, np.ascontiguousarray(brain)))["image"]
    np.testing.assert_allclose(again, np.rot90(out, axes=(1, 2)), atol=2e-3)
    assert FEATURES == 48


def test_maps_are_dipys(head, table):
    dwi = head.signal(table)
    out = InvariantMapsd("image")(item(dwi, table, head.affine, head.brain))["image"].numpy()
    gtab = gradient_table(table.bvals.numpy(), bvecs=table.bvecs.numpy())
    fit = TensorModel(gtab, fit_method="OLS").fit(dwi, mask=head.brain)
    solid = head.brain & (head.fluid == 0)
    np.testing.assert_allclose(0.5 * out[1][solid] + 1, 1000 * fit.md[solid], rtol=2e-3)
    np.testing.assert_allclose(0.2 * out[2][solid] + 0.3, fit.fa[solid], atol=2e-3)
    assert not out[:, ~head.brain].any()
    assert out[0][head.brain].mean() == pytest.approx(0, abs=1e-3)
    assert out[0][head.brain].std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("around", [None, 20.0])
def test_apparent_diffusivity_does_not_see_the_scanners_gain(head, table, around):
    dwi, transform = head.signal(table), ApparentDiffusivityd("image", around=around)
    out = transform(item(dwi, table, head.affine, head.brain))["image"]
    again = transform(item(7 * dwi, table, head.affine, head.brain))["image"]
    np.testing.assert_allclose(again, out, atol=1e-4)
    solid = head.brain & (head.fluid == 0)
    expected = -np.log(dwi[solid, 5] / dwi[solid, 0])  # µm²/ms at b = 1000
    np.testing.assert_allclose(0.5 * out[5].numpy()[solid] + 1, expected, rtol=1e-4)
    assert not out.numpy()[:, ~head.brain].any()


def test_a_neighbourhood_takes_the_coils_out_of_b0(head, table):
    dwi, spread = head.signal(table), {}
    coil = np.exp(head.world[..., :1] / 60).astype(np.float32)
    for around in (None, 15.0):
        transform = ApparentDiffusivityd("image", around=around)
        plain, uneven = (transform(item(s, table, head.affine, head.brain))["image"][0] for s in (dwi, dwi * coil))
        spread[around] = float(np.corrcoef(plain.numpy()[head.brain], uneven.numpy()[head.brain])[0, 1])
    assert spread[15.0] > spread[None]


def test_edges_of_an_icosahedron_are_spread():
    edges = icosahedron_edges()
    torch.testing.assert_close(edges.norm(dim=1), torch.ones(15, dtype=torch.float64))
    cosine = (edges @ edges.T).abs() - 2 * torch.eye(15)
    assert np.degrees(np.arccos(float(cosine.max()))) == pytest.approx(36, abs=1e-6)
    axes = edges.T @ edges / 15
    torch.testing.assert_close(axes, torch.eye(3, dtype=torch.float64) / 3)


def test_resampled_directions_are_those_of_the_signal(head, table):
    """What a smooth signal would be along the edges, whatever the array's orientation."""
    R = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    affine = head.affine.copy()
    affine[:3, :3] = R @ affine[:3, :3]
    out = ResampleDirectionsd("image", smoothness=1e-6)(item(head.signal(table), table, affine, head.brain))["image"]
    new = table_of(out)
    torch.testing.assert_close(new.bvecs[1:], icosahedron_edges() @ torch.from_numpy(R).T)
    solid = head.brain & (head.fluid == 0)
    np.testing.assert_allclose(out.numpy()[:, solid].T, head.signal(new)[solid], atol=0.01)


def test_few_directions_of_the_fullest_shell_are_enough(head):
    few = single_shell(6, 1000.0, np.random.default_rng(0), b0s=1)
    more = single_shell(9, 2000.0, np.random.default_rng(1), b0s=1)
    table = GradientTable.from_rows(torch.cat([few.rows, more.rows[1:]]))
    out = ResampleDirectionsd("image")(item(head.signal(table), table, head.affine, head.brain))["image"]
    assert out.shape[0] == 16
    assert table_of(out).bvals[1:].unique().tolist() == [2000.0]

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.sims.voxel import single_tensor

from eqdmri_monai.simulate import LesionEffect, components, implant, lesion_weight, make_phantom, pieces, single_shell
from eqdmri_monai.simulate.lesions import blob, tensor_change
from eqdmri_monai.simulate.phantom import oblique_affine, spread_directions
from eqdmri_monai.simulate.signal import fibre_tensor, rician, tensor_signal


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_tensor_signal_agrees_with_dipy(rng):
    bvals, bvecs = np.r_[0, np.full(20, 1500.0)], np.r_[np.zeros((1, 3)), spread_directions(20, rng)]
    evecs = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    theirs = single_tensor(gradient_table(bvals, bvecs=bvecs), S0=1, evals=[1.7e-3, 0.3e-3, 0.3e-3], evecs=evecs)
    np.testing.assert_allclose(
        tensor_signal(fibre_tensor(evecs[:, 0], 1.7e-3, 0.3e-3), bvals, bvecs), theirs, atol=1e-9
    )


def test_noise_is_rician(rng):
    """Without a signal the magnitude is Rayleigh: mean σ√(π/2), mean square 2σ²."""
    noise = rician(np.zeros(200_000), 2.0, rng)
    assert noise.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)
    assert (noise**2).mean() == pytest.approx(8, rel=0.01)


def test_spread_directions_are_farther_apart_than_random_ones(rng):
    def closest(v):
        cosine = np.abs(v @ v.T) - 2 * np.eye(len(v))
        return np.degrees(np.arccos(cosine.max()))

    assert closest(spread_directions(30, rng)) > 17  # about 20 degrees is the best for 30
    random = rng.standard_normal((30, 3))
    assert closest(random / np.linalg.norm(random, axis=1, keepdims=True)) < 12


def test_a_lesion_raises_diffusivity_and_lowers_anisotropy():
    tensor = fibre_tensor(np.array([0.0, 0, 1]), 1.7e-3, 0.3e-3)
    evals = np.linalg.eigvalsh(tensor + tensor_change(tensor, LesionEffect(gain=0.3, diffusivity=0.5, roundness=0.4)))
    mean = 1.5 * (1.7e-3 + 0.6e-3) / 3
    assert evals.mean() == pytest.approx(mean)
    assert evals[2] - evals[0] == pytest.approx(1.5 * 0.6 * 1.4e-3)


def test_implanting_equals_simulating_the_changed_tensor(rng):
    bvals, bvecs = np.r_[0, np.full(6, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(6, rng)]
    tensor = np.broadcast_to(fibre_tensor(np.array([0.6, 0.8, 0]), 1.7e-3, 0.3e-3), (2, 1, 1, 3, 3))
    effect, weight = LesionEffect(0.3, 0.5, 0.4), np.array([1.0, 0.0]).reshape(2, 1, 1)
    before = 100 * tensor_signal(tensor, bvals, bvecs)
    after = implant(before, bvals, bvecs, tensor, weight, effect)
    lesion = 130 * tensor_signal(tensor + tensor_change(tensor, effect), bvals, bvecs)
    np.testing.assert_allclose(after[0], lesion[0], rtol=1e-6)
    np.testing.assert_array_equal(after[1], before[1].astype(np.float32))


def test_a_placed_lesion_keeps_its_volume_and_place(rng):
    shape, centre = blob(np.random.default_rng(3)), np.array([3.0, -4.0, 5.0])
    affine = oblique_affine((40, 40, 30), (2.0, 2.0, 2.5), (10, 20, 30))
    weight = lesion_weight([shape], centre[None], (40, 40, 30), affine, rng)
    assert weight.sum() * 10 == pytest.approx(shape.sum(), rel=0.02)
    ijk = np.stack(np.nonzero(weight), -1)
    middle = (weight[weight > 0][:, None] * ijk).sum(0) / weight.sum() @ affine[:3, :3].T + affine[:3, 3]
    assert np.linalg.norm(middle - centre) < 1.5


def test_masks_are_cut_into_lesions_and_pieces(rng):
    mask = np.zeros((30, 30, 30))
    mask[2:5, 2:5, 2:5] = mask[10:28, 10:28, 10:28] = mask[0, 29, 0] = 1
    assert [c.sum() for c in components(mask)] == [27, 18**3]
    for piece in pieces(mask[10:28, 10:28, 10:28] > 0, 5, rng):
        assert 30 < piece.sum() < 4 / 3 * np.pi * 10**3


def test_a_phantom_is_the_same_for_the_same_seed():
    table = single_shell(8, 1000.0, np.random.default_rng(1))
    a, b, c = (make_phantom(seed, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.dwi, b.dwi)
    assert (a.dwi != c.dwi).any()
    assert a.lesion.any()
    assert not (a.lesion & ~a.brain).any()
    assert np.linalg.det(a.affine) < 0


def test_a_phantoms_fibres_are_those_that_its_signal_shows():
    """The volume along the fibre is the darkest: the table, the anatomy and the signal share one frame."""
    table = single_shell(60, 1000.0, np.random.default_rng(1))
    phantom = make_phantom(1, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=0, snr=200)
    white = np.linalg.norm(phantom.fibre, axis=-1) > 0.5
    weighted = ~table.b0_mask.numpy()
    darkest = table.bvecs.numpy()[weighted][phantom.dwi[white][:, weighted].argmin(1)]

    def off(mirror):
        """Median angle, degrees; crossings and the 60 directions alone cost about 20."""
        cosine = np.abs((darkest * mirror * phantom.fibre[white]).sum(-1))
        return np.degrees(np.arccos(np.median(cosine)))

    assert off([1, 1, 1]) < 25
    assert min(off([-1, 1, 1]), off([1, -1, 1]), off([1, 1, -1])) > off([1, 1, 1]) + 5


def test_tables_of_one_shell_have_their_b0s_first():
    table = single_shell(10, 700.0, np.random.default_rng(0), b0s=3)
    assert table.b0_mask.tolist() == 3 * [True] + 10 * [False]
    torch.testing.assert_close(table.bvecs[3:].norm(dim=1), torch.ones(10))

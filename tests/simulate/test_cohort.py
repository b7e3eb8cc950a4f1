import numpy as np
import pytest
from heads import ball

from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.cohort import VOLUMES, draw_lesions, implanted, put, simulated
from eqdmri_monai.simulate.lesions import STRENGTHS, Lesion, LesionEffect, blob
from eqdmri_monai.simulate.phantom import oblique_affine
from eqdmri_monai.simulate.shapes import stroke_shapes


@pytest.fixture(scope="module")
def shapes():
    rng = np.random.default_rng(0)
    return [blob(rng) for _ in range(5)]


def test_a_simulated_scan_is_the_same_to_the_bit_for_the_same_seed(shapes):
    head = ball()
    a, b, c = (simulated(head, shapes, np.random.default_rng(seed), 8) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.dwi, b.dwi)
    np.testing.assert_array_equal(a.lesion, b.lesion)
    assert a.dwi.shape != c.dwi.shape or (a.dwi != c.dwi).any()
    assert a.dwi.dtype == np.float32
    assert a.dwi.shape[3] == len(a.table)
    assert (a.lesion > 0).any()
    assert not ((a.lesion > 0) & ~a.brain).any()


def test_a_scan_without_lesions_is_the_scan(shapes):
    head, table = ball(), single_shell(6, 1000.0, np.random.default_rng(0))
    dwi = head.signal(table)
    scan = implanted(dwi, table, head, [])
    assert scan.dwi is dwi
    assert not scan.lesion.any()
    assert not simulated(head, shapes, np.random.default_rng(0), 0).lesion.any()


def test_lesions_are_numbered_and_do_not_overlap(shapes):
    head = ball(33, 4.0)
    lesions = draw_lesions(head, shapes, np.random.default_rng(0), 20)
    assert {lesion.strength for lesion in lesions} == set(STRENGTHS)
    assert len({lesion.region for lesion in lesions}) > 1
    changed, label = put(head, lesions)
    for number in np.unique(label)[1:]:
        where = label == number
        rise = (changed.S0[where] / head.S0[where] - 1) / lesions[number - 1].effect.gain
        # at least half of the voxel's tissue is lesion, and it is this one
        assert (rise > 0.5 * (1 - head.fluid[where]) - 1e-3).all()
        assert (rise < 1 + 1e-3).all()


def test_one_lesion_is_in_the_same_place_on_every_grid(shapes):
    rng = np.random.default_rng(0)
    lesion = Lesion(shapes[0], np.array([3.0, -4.0, 5.0]), np.linalg.qr(rng.standard_normal((3, 3)))[0], scale=1.4)
    grids = [((40, 40, 30), (2.0, 2.0, 2.5), (10, 20, 30)), ((30, 30, 30), (3.0, 3.0, 3.0), (0, 0, 0))]
    for shape, spacing, angles in grids:
        affine = oblique_affine(shape, spacing, angles)
        weight = lesion.weight(shape, affine)
        voxel = abs(np.linalg.det(affine[:3, :3]))
        assert weight.sum() * voxel == pytest.approx(1.4**3 * shapes[0].sum(), rel=0.03)
        ijk = np.argwhere(weight > 0) @ affine[:3, :3].T + affine[:3, 3]
        middle = (weight[weight > 0][:, None] * ijk).sum(0) / weight.sum()
        assert np.linalg.norm(middle - lesion.centre) < 2


def test_volumes_and_strengths_are_as_asked(shapes):
    lesions = draw_lesions(ball(33, 4.0), shapes, np.random.default_rng(0), 200)
    volumes = [lesion.scale**3 * lesion.shape.sum() / 1000 for lesion in lesions]
    assert VOLUMES[0] <= min(volumes) < 0.1
    assert 3 < max(volumes) <= VOLUMES[1]
    for lesion in lesions:
        values = (lesion.effect.gain, lesion.effect.diffusivity, lesion.effect.roundness)
        for value, (low, high) in zip(values, STRENGTHS[lesion.strength], strict=True):
            assert low <= value <= high


def test_effects_of_no_class_are_as_before():
    effect = LesionEffect.draw(np.random.default_rng(0))
    assert 0.1 <= effect.gain <= 0.6


def test_run_lengths_are_unpacked(tmp_path):
    mask = np.zeros((9, 8, 7), bool)
    mask[2:6, 2:6, 1:5] = True
    flat = np.flatnonzero(np.diff(np.r_[0, mask.ravel().astype(int), 0]))
    starts, ends = flat[::2], flat[1::2]
    np.savez(tmp_path / "packed.npz", shape=mask.shape, run_offset=[0, 0, len(starts)], run_start=starts,
             run_length=(ends - starts).astype(np.uint16))  # fmt: skip
    (shape,) = stroke_shapes(tmp_path / "packed.npz", [1])
    np.testing.assert_array_equal(shape, np.ones((4, 4, 4), bool))
    assert stroke_shapes(tmp_path / "packed.npz", [0]) == []

import numpy as np
import pytest
import torch
from heads import ball
from scipy.spatial.transform import Rotation

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.deformation import Deformation, Waves, no_waves, resample


def rigid(matrix) -> Deformation:
    return Deformation(np.asarray(matrix, float), np.zeros(3), no_waves())


def turned(table: GradientTable, matrix) -> GradientTable:
    return GradientTable(table.bvals, table.bvecs @ torch.as_tensor(np.asarray(matrix, float)).T)


QUARTER = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
MIRROR = [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(("matrix", "axes"), [(QUARTER, "turn"), (MIRROR, "mirror")])
def test_a_turned_or_mirrored_head_gives_the_turned_signal(matrix, axes):
    """S'(x, g) = S(Mx, Mg): what the head shows from x along g is what it showed from Mx along Mg."""
    head, table = ball(), single_shell(12, 1000.0, np.random.default_rng(0))
    new = resample(head, head.brain.shape, head.affine, rigid(matrix))
    expected = head.signal(turned(table, matrix))
    # values at Mx: (x, y) -> (-y, x) under the quarter turn, x -> -x under the mirror
    expected = np.rot90(expected, axes=(0, 1), k=-1) if axes == "turn" else expected[::-1]
    np.testing.assert_allclose(new.signal(table), expected, atol=2e-5)
    unturned = head.signal(table)
    unturned = np.rot90(unturned, axes=(0, 1), k=-1) if axes == "turn" else unturned[::-1]
    assert np.abs(new.signal(table) - unturned).max() > 0.05  # the tensors do count


def test_tensors_turn_by_any_rotation():
    head = ball()
    M = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    tensor = np.broadcast_to(np.diag([1.5e-3, 0.5e-3, 0.3e-3]), head.tensor.shape).astype(np.float32)
    head = type(head)(head.S0, 0 * head.fluid, tensor, head.brain, head.affine)
    new = resample(head, head.brain.shape, head.affine, rigid(M))
    inner = new.S0 > 0.5
    np.testing.assert_allclose(new.tensor[inner], np.broadcast_to(M.T @ tensor[0, 0, 0] @ M, new.tensor[inner].shape),
                               atol=1e-8)  # fmt: skip


def test_a_stretch_turns_nothing_and_a_rotation_is_found_behind_it():
    x = np.random.default_rng(0).normal(0, 30, (4, 3))
    np.testing.assert_allclose(rigid(np.diag([1.1, 0.9, 1.2])).rotation(x), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12)
    R = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    np.testing.assert_allclose(rigid(1.3 * R).rotation(x), np.tile(R.T, (4, 1, 1)), atol=1e-12)


def test_waves_know_their_derivative_and_deformations_their_inverse():
    rng = np.random.default_rng(0)
    deformation, x = Deformation.draw(rng, np.array([5.0, 0, 9])), rng.normal(0, 40, (6, 3))
    step = 1e-4
    numeric = np.stack(
        [(deformation.waves(x + step * e) - deformation.waves(x - step * e)) / (2 * step) for e in np.eye(3)], axis=-1
    )
    np.testing.assert_allclose(deformation.waves.jacobian(x), numeric, atol=1e-8)
    np.testing.assert_allclose(deformation.inverse(deformation(x)), x, atol=1e-6)
    R = deformation.rotation(x)
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (6, 1, 1)), atol=1e-9)


def test_random_heads_do_not_fold():
    x = np.random.default_rng(0).normal(0, 50, (500, 3))
    for seed in range(20):
        deformation = Deformation.draw(np.random.default_rng(seed), np.zeros(3))
        determinant = np.linalg.det(deformation.matrix + deformation.waves.jacobian(x))
        assert (np.sign(determinant) == np.sign(determinant[0])).all()
        assert 0.3 < np.abs(determinant).min() < np.abs(determinant).max() < 2.5


def test_half_of_the_heads_are_mirrored():
    signs = [np.linalg.det(Deformation.draw(np.random.default_rng(k), np.zeros(3)).matrix) < 0 for k in range(200)]
    assert 70 < sum(signs) < 130


def test_distortion_moves_signal_and_keeps_its_sum():
    head = ball(33, 4.0)
    shift = Waves(np.array([[0.0, 3.0, 0.0]]), np.array([[0.0, 0.05, 0.02]]), np.array([0.3]))
    new = resample(head, head.brain.shape, head.affine, rigid(np.eye(3)), shift)
    plain = resample(head, head.brain.shape, head.affine, rigid(np.eye(3)))
    np.testing.assert_allclose(plain.S0, head.S0, atol=1e-6)
    assert np.abs(new.S0 - head.S0).max() > 0.2
    assert new.S0.sum() == pytest.approx(head.S0.sum(), rel=0.02)
    same = (new.S0 > 0) & (new.fluid < 0.9)  # where there is tissue, its tensors are as they were
    assert np.abs(np.trace(new.tensor[same], axis1=1, axis2=2) - 2.4e-3).max() < 1e-5

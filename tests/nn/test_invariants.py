import pytest
import torch

from eqdmri_monai.nn.invariants import TensorInvariants
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid
from eqdmri_monai.tensors import q_squares


@pytest.fixture
def scan():
    """A scan whose brain is not the whole array."""
    q = random_scheme(8, 1.0)
    image = 0.3 * torch.randn(1, 9, 9, 11, 10) - 0.5
    image[..., :2] = 0
    image[:, :, 0] = 0
    return image, q


def test_they_do_not_turn_with_the_head_and_take_volumes_in_any_order(scan):
    image, q = scan
    invariants = TensorInvariants((2.5, 2.5, 2.5))
    maps = invariants(image, q)
    assert len(invariants.names) == maps.shape[1] == 98
    for R in cube_rotations():
        turned = invariants(turn_grid(image, R), q @ R.T)
        torch.testing.assert_close(turned, turn_grid(maps, R), rtol=0, atol=1e-9)
    order = torch.randperm(len(q))
    torch.testing.assert_close(invariants(image[:, order], -q[order]), maps, rtol=0, atol=1e-9)
    assert (maps.std((0, 2, 3, 4)) > 1e-6).all()  # none is empty


def test_voxels_longer_along_one_axis_may_lie_along_any(scan):
    image, q = scan
    maps = TensorInvariants((2.0, 2.0, 3.0))(image, q)
    R = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # z to x
    turned = TensorInvariants((3.0, 2.0, 2.0))(turn_grid(image, R), q @ R.T)
    torch.testing.assert_close(turned, turn_grid(maps, R), rtol=0, atol=1e-9)


def test_what_is_outside_does_not_count(scan):  # derivatives fill it in as far as the array goes
    image, q = scan
    invariants = TensorInvariants()
    wider = torch.nn.functional.pad(image, (3, 3, 3, 3, 3, 3))
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    seen = [not any(w in name for w in ("gradient", "curvature", "divergence")) for name in invariants.names]
    torch.testing.assert_close(invariants(wider, q)[:, seen][inner], invariants(image, q)[:, seen], rtol=0, atol=1e-9)
    assert (invariants(image, q)[..., :2] == 0).all()


def test_an_even_head_has_no_contrasts():
    q = random_scheme(6, 1.0)
    tensor = torch.tensor([1.7, 0, 0, 0.3, 0, 0.3])
    image = (-(q_squares(q) @ tensor))[None, :, None, None, None].expand(-1, -1, 8, 8, 8) - 0.1
    invariants = TensorInvariants()
    maps = dict(zip(invariants.names, invariants(image, q)[0, :, 4, 4, 4].tolist(), strict=True))
    for name, value in maps.items():
        if "against" in name or "gradient" in name or "curvature" in name or "divergence" in name:
            assert abs(value) < 1e-6, name
    assert maps["largest"] == pytest.approx(1.7)
    assert maps["smallest"] == pytest.approx(0.3)
    assert maps["md 8.0"] == pytest.approx((2.3 / 3 - 1) / 0.5)
    for s in ("2.5", "5.0", "10.0"):
        assert maps[f"alignment {s}"] == pytest.approx(1, abs=0.01)
        assert maps[f"coherence {s}"] == pytest.approx(1, abs=0.01)

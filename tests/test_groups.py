import math

import pytest
import torch
from e3nn import o3

from eqdmri_monai.groups import SE2, SE3, SO2, SO3, ScaleRotation, T, Trivial

GROUPS = [Trivial(2), T(2), T(2, axes=(1,)), SO2(), ScaleRotation(), SE2(), T(3), SO3(), SE3()]
names = {"ids": str}


def some(group, count=40):
    """Algebra components well inside the range of log."""
    return 0.8 * torch.randn(count, group.size).clamp(-1.2, 1.2)


@pytest.mark.parametrize("group", GROUPS, **names)
def test_exp_and_log_are_each_other_s_inverse(group):
    a = some(group)
    u = group.exp(a)
    torch.testing.assert_close(group.log(u), a, atol=1e-12, rtol=0)
    torch.testing.assert_close(group.exp(group.log(u)), u, atol=1e-12, rtol=0)
    torch.testing.assert_close(group.inverse(u) @ u, torch.eye(u.shape[-1]).expand_as(u), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 9.9e-3, 1.01e-2, 1.0])
@pytest.mark.parametrize("group", [SE2(), SO3(), SE3()], **names)
def test_exp_is_the_matrix_exponential(group, size):
    a = size * some(group)
    basis = (group.exp(1e-6 * torch.eye(group.size)) - group.exp(-1e-6 * torch.eye(group.size))) / 2e-6  # generators
    torch.testing.assert_close(
        group.exp(a), torch.linalg.matrix_exp(torch.einsum("na,aij->nij", a, basis)), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(group.log(group.exp(a)), a, atol=1e-13 + 1e-9 * size, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_logarithms_of_rotations_are_exact_up_to_half_a_turn(dtype, bound):
    axis = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    for below in (1e-1, 1e-3, 1e-6):
        a = ((math.pi - below) * axis).to(dtype)
        assert (SO3().log(SO3().exp(a.double()).to(dtype)) - a).abs().max() < bound


@pytest.mark.parametrize("group", GROUPS, **names)
def test_lifts_move_the_origin_of_their_orbit_to_the_point(group):
    x = torch.randn(2, 7, group.dim)
    lifts = 1 if group.single_valued else 3
    lifted = group.lift(x, lifts=lifts)
    assert lifted.orbit.shape == (2, 7 * lifts, group.orbit_size)
    torch.testing.assert_close(group.act(lifted.u, group.origin(lifted.orbit)), x.repeat_interleave(lifts, 1))


@pytest.mark.parametrize("group", GROUPS, **names)
def test_the_distance_is_kept_by_the_group(group):
    u, v, g = group.exp(some(group)), group.exp(some(group)), group.exp(some(group, 1))
    torch.testing.assert_close(group.distance(g @ u, g @ v), group.distance(u, v), atol=1e-10, rtol=0)
    torch.testing.assert_close(group.distance(u, v), group.distance(v, u), atol=1e-10, rtol=0)


def test_lifts_of_rotations_are_even():
    """The authors' code draws the stabiliser's angle unevenly; a chi-square test of 20 bins at 1 in 1000."""
    x = torch.tensor([0.3, -0.2, 0.9]).expand(1, 20000, 3)
    u = SO3().lift(x, generator=torch.Generator().manual_seed(1)).u[0]
    about = SO3().log(u[:1].mT @ u)[:, 2]  # turns about z, relative to the first lift
    count = torch.histc(about, 20, -math.pi, math.pi)
    assert ((count - 1000) ** 2 / 1000).sum() < 43.8
    R = SE3().lift(torch.zeros(1, 3000, 3), generator=torch.Generator().manual_seed(1)).u[0, :, :3, :3]
    for l in (1, 2):  # the mean of every representation over all rotations is zero
        assert o3.Irreps([(1, (l, 1))]).D_from_matrix(R).mean(0).abs().max() < 0.08


def test_padding_may_lie_anywhere():
    x, mask = torch.randn(1, 3, 2), torch.tensor([[True, True, False]])
    x[0, 2] = 0.0
    assert SO2().lift(x, mask=mask).u.isfinite().all()


@pytest.mark.parametrize("group", [SO2(), SO3(), ScaleRotation()], **names)
def test_a_point_at_the_origin_is_refused(group):
    with pytest.raises(ValueError, match="lies at the origin"):
        group.lift(torch.zeros(1, 1, group.dim))


def test_several_lifts_of_a_single_valued_group_are_refused():
    with pytest.raises(ValueError, match="lifts must be 1 for T"):
        T(2).lift(torch.randn(1, 3, 2), lifts=2)


def test_integer_coordinates_are_refused():
    with pytest.raises(ValueError, match="floating-point coordinates"):
        T(2).lift(torch.ones(1, 3, 2, dtype=torch.int64))


def test_axes_that_the_space_lacks_are_refused():
    with pytest.raises(ValueError, match="axes must be different ones"):
        T(2, axes=(2,))

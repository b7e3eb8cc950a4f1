from functools import partial

import pytest
import torch
from e3nn import o3

from eqdmri_monai.inferers import QSlidingWindowInferer
from eqdmri_monai.networks import PQUNet, TensorUNet
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid


@pytest.fixture
def net():
    return PQUNet(["2x0e+1x1e"], ["3x0e+1x1e", "2x0e+2x1e"], "1x0e+1x1e", kernel_size=3)


@pytest.fixture
def tensor_net():
    return TensorUNet(["3x0e+1x1e+1x2e", "2x0e+1x1e+1x2e"], "1x0e+1x2e")


@pytest.mark.parametrize("directions", [6, 9])
def test_the_one_over_a_fit_turns_and_takes_volumes_in_any_order(tensor_net, directions):
    q = random_scheme(directions, 1.0)
    image = torch.randn(2, len(q), 6, 7, 8)
    image[..., :2] = 0  # outside the brain
    y = tensor_net(image, q)
    for R in cube_rotations():
        D = o3.Irreps("1x0e+1x2e").D_from_matrix(R)
        expected = torch.einsum("ij,bjxyz->bixyz", D, turn_grid(y, R))
        torch.testing.assert_close(tensor_net(turn_grid(image, R), q @ R.T), expected, atol=1e-9, rtol=0)
    order = torch.randperm(len(q))
    torch.testing.assert_close(tensor_net(image[:, order], -q[order]), y, atol=1e-9, rtol=0)


def test_a_fit_out_of_bounds_is_shrunk_alike_in_all_frames(tensor_net):
    q, R = random_scheme(6, 1.0), o3.rand_matrix()
    image = 5 * torch.randn(1, len(q), 4, 4, 4)
    D = o3.Irreps("2x0e+1x2e").D_from_matrix(R)
    x = tensor_net.fit(image, q)
    torch.testing.assert_close(tensor_net.fit(image, q @ R.T), torch.einsum("ij,bjxyz->bixyz", D, x), atol=1e-9, rtol=0)
    assert 10 < x[:, 1:].norm(dim=1).max() < (tensor_net.LARGEST + 3**0.5) / tensor_net.SCATTER


def test_signs_and_order_of_gradients_do_not_matter(net):
    image, q = torch.randn(1, 4, 8, 8, 8), torch.randn(4, 3)
    order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1, -1, 1])[:, None]
    torch.testing.assert_close(net(image[:, order], (signs * q)[order]), net(image, q), atol=1e-9, rtol=1e-9)


def test_it_sees_farther_than_its_kernels():
    net = PQUNet(["1x0e"], ["1x0e", "1x0e", "1x0e"], kernel_size=3)
    image = torch.randn(1, 3, 25, 25, 25, requires_grad=True)
    net(image, torch.randn(3, 3))[0, 0, 12, 12, 12].backward()
    reach = (image.grad.abs().amax((0, 1)) > 0).nonzero()
    assert (12 - reach.min(0).values).max() >= 10  # a stack of as many convolutions sees 7


@pytest.mark.parametrize("kind", [partial(PQUNet, ["1x0e"], kernel_size=3), TensorUNet])
def test_windows_give_what_one_pass_gives(kind):
    net = kind(irreps_levels=["2x0e", "2x0e"])
    image, q = torch.randn(1, 7, 56, 8, 8), random_scheme(6, 1.0)
    with torch.no_grad():
        one = QSlidingWindowInferer([-1, -1, -1])(image, net, q=q)
        windows = QSlidingWindowInferer([52, -1, -1])(image, net, q=q)
    assert net.receptive_field.stride == (2, 2, 2)
    torch.testing.assert_close(windows, one, atol=1e-4 * float(one.abs().max()), rtol=0)


def test_recomputing_changes_nothing(net):
    image, q = torch.randn(1, 3, 8, 8, 8), torch.randn(3, 3)
    again = PQUNet(["2x0e+1x1e"], ["3x0e+1x1e", "2x0e+2x1e"], "1x0e+1x1e", kernel_size=3, recompute=True)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(image, q), net(image, q))


def test_one_grid_is_no_u_net():
    with pytest.raises(ValueError, match="two grids or more"):
        PQUNet(irreps_levels=["2x0e"])

import pytest
import torch
from e3nn import o3

from eqdmri_monai.inferers import QSlidingWindowInferer
from eqdmri_monai.networks import PQUNet


@pytest.fixture
def net():
    return PQUNet(["2x0e+1x1e"], ["3x0e+1x1e", "2x0e+2x1e"], "1x0e+1x1e", kernel_size=3)


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 7, 7)])
@pytest.mark.parametrize("axes", [(2, 3), (3, 4)])
def test_it_turns_with_voxels_and_q_vectors(net, size, axes):
    image, q = torch.randn(1, 4, *size), torch.randn(4, 3)
    R = torch.zeros(3, 3)
    a, b = axes[0] - 2, axes[1] - 2
    R[3 - a - b, 3 - a - b], R[b, a], R[a, b] = 1, 1, -1  # rot90 takes axis a to axis b
    D = torch.block_diag(torch.eye(1), o3.Irreps("1e").D_from_matrix(R))
    turned = net(torch.rot90(image, 1, axes), q @ R.T)
    expected = torch.einsum("ij,bjxyz->bixyz", D, torch.rot90(net(image, q), 1, axes))
    torch.testing.assert_close(turned, expected, atol=1e-9, rtol=1e-9)


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


def test_windows_give_what_one_pass_gives():
    net = PQUNet(["1x0e"], ["2x0e", "2x0e"], kernel_size=3)
    image, q = torch.randn(1, 3, 56, 8, 8), torch.randn(3, 3)
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

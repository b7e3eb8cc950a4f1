import pytest
import torch
from torch import nn

from eqdmri_monai.networks import TensorMeanNet
from eqdmri_monai.networks.tensor_mean_net import LARGEST, OFFSETS
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid
from eqdmri_monai.tensors import deviator, fit_tensor, mean_diffusivity, q_squares, shrunk


def trained(**options) -> TensorMeanNet:
    """A network whose weights are not those of the start."""
    torch.manual_seed(0)
    net = TensorMeanNet(**options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def turned(tensor: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
    """Turn a field of tensors: its grid and its components."""
    return symmetric_components(R @ symmetric_matrix(turn_grid(tensor, R)) @ R.T)


def scan(directions: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of a noisy signal of random tensors, 0 in a part of the array, and the scheme."""
    q = random_scheme(directions, 1.0)
    root = 0.5 * torch.randn(1, *shape, 3, 3) + 0.7 * torch.eye(3)
    tensor = symmetric_components(root @ root.mT)
    image = -torch.einsum("qc,bc...->bq...", q_squares(q), tensor) + 0.1 * torch.randn(1, directions + 1, *shape)
    image[..., 0, :, :] = image[..., :2, :2, :] = 0
    return image, q


@pytest.mark.parametrize("directions", [6, 9])
def test_tensors_turn_with_the_scan_and_signs_and_order_do_not_matter(directions):
    net, (image, q) = trained(), scan(directions, 5, 6, 7)
    tensor = net(image, q)
    for R in cube_rotations():
        torch.testing.assert_close(net(turn_grid(image, R), q @ R.T), turned(tensor, R), rtol=0, atol=1e-9)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(directions)])
    torch.testing.assert_close(net(image[:, order], -q[order]), tensor, rtol=0, atol=1e-9)
    assert (tensor - fit_tensor(image, q)[0])[:, :, 1:].abs().max() > 1e-2
    assert tensor[:, :, 0].abs().max() == 0  # no brain


def test_an_untrained_network_is_a_mean_over_a_ball():
    net, (image, q) = TensorMeanNet(), scan(6, 7, 7, 7)
    fit, weight = shrunk(fit_tensor(image, q)[0], LARGEST), (6 * torch.tanh(torch.tensor(-2.0 / 6))).exp()
    total = fit[0, :, 4, 4, 4] + weight * sum(fit[0, :, 4 + i, 4 + j, 4 + k] for i, j, k in OFFSETS)
    assert len(OFFSETS) == 56
    torch.testing.assert_close(net(image, q)[0, :, 4, 4, 4], total / (1 + 56 * weight), rtol=1e-6, atol=0)


def test_a_neighbour_counts_and_a_voxel_beyond_the_ball_does_not():
    net = trained()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)  # all weights alike
    q = random_scheme(6, 1.0)
    isotropic = torch.tensor([1.0, 0, 0, 1, 0, 1])[:, None, None, None]
    fit = (isotropic + 0.1 * torch.rand(6, 6, 6, 6))[None]

    def middle(tensor: torch.Tensor) -> torch.Tensor:
        return net(-torch.einsum("qc,bc...->bq...", q_squares(q), tensor), q)[0, :, 3, 3, 3]

    with torch.no_grad():
        for offset, share in (
            ((1, 0, 0), 1 / 57),
            ((0, -2, 1), 1 / 57),
            ((1, 1, 1), 1 / 57),
            ((2, 2, 0), 0),
            ((0, 0, -3), 0),
        ):
            other = fit.clone()
            other[(0, slice(None), *(3 + o for o in offset))] += 0.01 * isotropic[:, 0, 0, 0]
            change = mean_diffusivity((middle(other) - middle(fit))[None])[0]
            assert float(change) == pytest.approx(0.01 * share, abs=1e-9)


def test_it_sees_no_farther_than_it_says_and_learns_by_every_weight():
    net, (image, q) = trained(), scan(6, 41, 3, 3)
    image[..., 0] = 0.1
    net(image, q).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    other = image.clone()
    other[:, :, 20 + int(net.receptive_field.reach[0]) + 1 :] += 0.1 * torch.randn(1, 7, 3, 3, 3)
    difference = (net(other, q) - net(image, q)).abs().amax((0, 1, 3, 4))
    assert difference[:21].max() == 0
    assert difference[38:].max() > 0


def test_lengthening_multiplies_the_anisotropic_part():
    net, (image, q) = trained(), scan(6, 3, 4, 5)
    before = net(image, q)
    net.lengthen(1.3)
    torch.testing.assert_close(deviator(net(image, q)), 1.3 * deviator(before))
    torch.testing.assert_close(mean_diffusivity(net(image, q)), mean_diffusivity(before))

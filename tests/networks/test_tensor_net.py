import pytest
import torch

from eqdmri_monai.networks import PlainTensorNet, TensorNet
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid
from eqdmri_monai.tensors import fit_tensor, q_squares

SMALL = {"irreps_p": ("3x0e+1x1e+1x2e",), "kernel_size": 3}
WITH_VOLUMES = {**SMALL, "irreps_pq": ("2x0e+1x1e",), "irreps_features": "1x0e+1x1e+1x2e"}


def turned(tensor: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
    """Turn a field of tensors: its grid and its components."""
    return symmetric_components(R @ symmetric_matrix(turn_grid(tensor, R)) @ R.T)


@pytest.mark.parametrize("options", [SMALL, WITH_VOLUMES])
@pytest.mark.parametrize("directions", [6, 9])
def test_tensors_turn_with_the_scan_and_signs_and_order_do_not_matter(options, directions):
    net, q = TensorNet(**options), random_scheme(directions, 1.0)
    image = torch.randn(2, len(q), 3, 4, 5)
    tensor = net(image, q)
    for R in cube_rotations():
        torch.testing.assert_close(net(turn_grid(image, R), q @ R.T), turned(tensor, R), rtol=0, atol=1e-9)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(directions)])
    torch.testing.assert_close(net(image[:, order], -q[order]), tensor, rtol=0, atol=1e-9)
    fit = fit_tensor(image, q)[0]
    assert (tensor - fit).abs().max() > 1e-3  # the correction is there


def test_an_untrained_network_is_near_the_fit():
    q = random_scheme(8, 1.0)
    truth = symmetric_components(torch.eye(3).expand(1, 4, 4, 4, 3, 3) * 0.8)
    image = -torch.einsum("qc,bc...->bq...", q_squares(q), truth)
    assert (TensorNet(**SMALL)(image, q) - truth).abs().mean() < 0.3


def test_the_plain_one_is_a_fit_and_what_another_network_adds():
    q = random_scheme(6, 1.0)
    image = torch.randn(1, len(q), 3, 4, 5)
    net = PlainTensorNet(torch.nn.Conv3d(7, 6, 1))
    tensor, log_s0 = fit_tensor(image, q)
    added = TensorNet.START * net.correction(torch.cat([log_s0[:, None], tensor], dim=1))
    torch.testing.assert_close(net(image, q[None]), tensor + added)
    halving = torch.nn.Sequential(torch.nn.AvgPool3d(2), torch.nn.Upsample(scale_factor=2), net.correction)
    assert PlainTensorNet(halving, multiple=2)(image, q).shape == tensor.shape

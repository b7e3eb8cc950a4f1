import pytest
import torch
from e3nn import o3

from eqdmri_monai.networks import SteerableCNN3d, fold_steerable
from eqdmri_monai.networks.steerable_cnn import ResidualBlock, field_type
from eqdmri_monai.symmetry import cube_rotations, turn_features, turn_grid

FIELDS = [(3, 2, 1), (2, 2, 1, 1)]  # a 3³ kernel has no filter from 0 to 3
NETWORKS = [
    {"irreps_out": "1x0e+1x1e+1x2e"},
    {"residual": True, "kernel_size": 3, "in_channels": 2},
    {"residual": True, "strides": [2, 2], "kernel_size": 3},
    {"fields": [(3, 2, 1, 1), (4,)], "irreps_out": "8x0e", "whole": True},
]


def network(options) -> SteerableCNN3d:
    net = SteerableCNN3d(**({"fields": FIELDS} | options))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("options", NETWORKS)
def test_network_commutes_with_the_24_cube_rotations(options):
    net = network(options)
    image = torch.randn(1, net.irreps_in.dim, 5, 9, 5)  # a multiple of 4, and one more: strides keep the centre
    y = net(image)
    for R in cube_rotations():
        expected = y if options.get("whole") else turn_features(y, R, net.irreps_out)
        torch.testing.assert_close(net(turn_grid(image, R)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", NETWORKS)
def test_the_ordinary_cnn_is_the_same_function(options):
    net = network(options)
    image, plain = torch.randn(2, net.irreps_in.dim, 5, 9, 6), fold_steerable(net)
    torch.testing.assert_close(plain(image), net(image).detach(), rtol=0, atol=1e-9)
    assert not [m for m in plain.modules() if type(m).__module__.startswith("e3nn")]


def test_a_residual_block_adds_its_input():
    block = ResidualBlock(o3.Irreps("2x0e+1x1e"), o3.Irreps("2x0e+1x1e"), kernel_size=3)
    for parameter in block.branch.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 5, 4, 4, 4)
    torch.testing.assert_close(block(x), block.gate(0.5**0.5 * block.shortcut(x)))


def test_fields_are_irreps():
    assert field_type((4, 2, 0, 1)) == o3.Irreps("4x0e+2x1e+1x3e")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strides": [1]}, "shorter"),
        ({"whole": True}, "whole maps scalars to scalars, got 2x0e.2x1e.1x2e.1x3e to 1x0e"),
        ({"whole": True, "fields": [(4,)], "irreps_out": "1x0e+1x1e"}, "got 4x0e to 1x0e.1x1e"),
        ({"irreps_out": "1x1o"}, "irreps_out must have even labels only"),
        ({"limits": [0, 2]}, "limits must have 3 entries"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        network(options)

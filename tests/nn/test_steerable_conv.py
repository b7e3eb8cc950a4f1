import pytest
import torch

from eqdmri_monai.nn.grid_conv import kernel_lattice
from eqdmri_monai.nn.steerable_conv import SteerableConv3d, band_limits, sampled_filters
from eqdmri_monai.symmetry import cube_rotations, turn_features

LATTICE = {size: kernel_lattice(size, (1.0, 1.0, 1.0)) for size in (3, 5, 7)}


@pytest.mark.parametrize("size", [3, 5])
def test_filters_have_unit_norm_and_are_as_many_as_the_paper_counts(size):
    """B is the sum over shells of the degrees between |j - l| and min(j + l, J_max) (3.5.1)."""
    for j in range(4):
        for l in range(4):
            filters = sampled_filters(j, l, LATTICE[size][0].double(), band_limits(size))
            expected = sum(max(0, min(j + l, limit) - abs(j - l) + 1) for limit in band_limits(size))
            assert filters.shape == (expected, 2 * j + 1, 2 * l + 1, size**3)
            assert expected <= (size // 2 + 1) * (2 * min(j, l) + 1)
            torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(expected))


def test_filters_within_the_band_limit_are_independent_on_the_grid():
    for j in range(4):
        for l in range(4):
            filters = sampled_filters(j, l, LATTICE[5][0].double(), band_limits(5)).flatten(1)
            assert torch.linalg.matrix_rank(filters, rtol=1e-6) == len(filters)


def test_degrees_above_the_band_limit_alias():
    """On the shell of radius 1 of a 3³ grid (26 voxels), degree 3 and more leak into degrees that turn otherwise."""
    lattice = LATTICE[3][0].double()
    high = sampled_filters(4, 0, lattice, (0, 4)).flatten(1)
    low = sampled_filters(0, 0, lattice, (0, 0)).flatten(1)
    overlap = high.reshape(9, 27) @ low.T  # of single components, zero where harmonics stay orthogonal
    assert overlap.abs().max() > 0.05
    within = sampled_filters(2, 0, lattice, (0, 2)).reshape(5, 27) @ low.T
    assert within.abs().max() < 1e-12


@pytest.mark.parametrize(("irreps_in", "irreps_out"), [("2x0e+1x1e", "1x0e+2x1e+1x2e"), ("1x2e", "1x0e+1x3e")])
def test_layer_commutes_with_the_24_cube_rotations(irreps_in, irreps_out):
    for stride, shape in ((1, (4, 5, 6)), (2, (5, 7, 9))):
        conv = SteerableConv3d(irreps_in, irreps_out, stride=stride)
        torch.nn.init.normal_(conv.bias)
        x = torch.randn(1, conv.irreps_in.dim, *shape)
        y = conv(x)
        for R in cube_rotations():
            turned = conv(turn_features(x, R, conv.irreps_in))
            torch.testing.assert_close(turned, turn_features(y, R, conv.irreps_out), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "options", "words"),
    [
        ("1x0e", "2x0e+1x3e", {"kernel_size": 3}, "irreps_out has 1x3e, but no filter of kernel_size 3 with limits"),
        ("1x0e", "1x1e", {"kernel_size": 1}, "irreps_out has 1x1e, but no filter of kernel_size 1"),
        ("1x0e", "1x2e", {"kernel_size": 1, "limits": (2,)}, "leave 2e out or enlarge kernel_size"),
        ("1x1e", "1x3e", {"limits": (0, 0, 0)}, r"with limits \(0, 0, 0\) leads there from 1x1e"),
    ],
)
def test_an_output_that_no_filter_reaches_is_refused(irreps_in, irreps_out, options, words):
    with pytest.raises(ValueError, match=words):
        SteerableConv3d(irreps_in, irreps_out, **options)


def test_a_kernel_of_one_voxel_has_no_directions_whatever_its_limits():
    lattice, _ = kernel_lattice(1, (1.0, 1.0, 1.0))
    for l in range(4):
        assert sampled_filters(l, l, lattice, (2,)).shape == (1, 2 * l + 1, 2 * l + 1, 1)
    assert sampled_filters(1, 0, lattice, (2,)).shape == (0, 3, 1, 1)
    conv = SteerableConv3d("2x0e+1x1e", "1x0e+2x1e", kernel_size=1, limits=(2,))
    assert conv(torch.randn(1, 5, 3, 3, 3)).isfinite().all()


def test_white_noise_keeps_its_variance():
    sizes = []
    for seed in range(20):
        torch.manual_seed(seed)
        conv = SteerableConv3d("4x0e+4x1e", "6x0e+6x1e+3x2e")
        y = conv(torch.randn(1, 16, 12, 12, 12))[..., 2:-2, 2:-2, 2:-2]
        sizes.append(torch.stack([y[:, where].square().mean() for where in conv.irreps_out.slices()]))
    mean = torch.stack(sizes).mean(0)
    assert ((mean > 0.8) & (mean < 1.25)).all(), mean

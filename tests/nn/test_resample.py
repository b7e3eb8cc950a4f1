import math

import pytest
import torch
from e3nn import o3
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from eqdmri_monai.nn import Downsample, PConv, Upsample
from eqdmri_monai.nn.resample import coarse_positions
from eqdmri_monai.symmetry import cube_rotations, turn_features

IRREPS = o3.Irreps("1x0e+1x1e+1x2e")
SIZES = [(7, 7, 7), (8, 8, 8), (5, 6, 9)]


def waves(R, direction, height, cycles, axes):
    """A field of all three types made of plane waves of one length (cycles per voxel), turned by R."""
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    phase = 2 * math.pi * cycles * grid @ R @ direction.T  # [x, y, z, k]
    return torch.einsum("ij,kj,xyzk->ixyz", IRREPS.D_from_matrix(R), height, torch.cos(phase + 0.3))[None]


def centred(sizes, factor=1):
    return [
        (coarse_positions(n, factor) if factor > 1 else torch.arange(n)) - (n - 1) / 2 for n in sizes
    ]  # voxels from the centre of the array


def random_waves(count=8):
    direction = torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    return direction, torch.randn(count, IRREPS.dim)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_both_commute_with_the_24_cube_rotations(size, factor):
    x = torch.randn(2, IRREPS.dim, 2, *size)
    down, up = Downsample(factor), Upsample(factor)
    y = down(x)
    z = up(y, size)
    assert z.shape == x.shape
    for R in cube_rotations():
        turned = down(turn_features(x, R, IRREPS))
        torch.testing.assert_close(turned, turn_features(y, R, IRREPS), rtol=0, atol=1e-12)
        back = up(turned, turn_features(x, R, IRREPS).shape[-3:])
        torch.testing.assert_close(back, turn_features(z, R, IRREPS), rtol=0, atol=1e-12)


def test_plain_striding_does_not_commute():
    """The control: every second voxel, from the first on."""
    x = torch.randn(1, IRREPS.dim, 8, 8, 8)
    y = x[..., ::2, ::2, ::2]
    errors = [
        (turn_features(x, R, IRREPS)[..., ::2, ::2, ::2] - turn_features(y, R, IRREPS)).abs().max()
        for R in cube_rotations()
    ]
    assert sum(e > 0.1 for e in errors) == 21  # all but the three that only exchange axes


@pytest.mark.parametrize("cycles", [0.05, 0.1, 0.2])
def test_downsample_of_waves_commutes_with_any_rotation(cycles):
    """What is left of a wave depends on its length alone, so the coarse values of a turned field are known."""
    sizes, (direction, height), R = (33, 32, 31), random_waves(), o3.rand_matrix()
    y = Downsample()(waves(R, direction, height, cycles, centred(sizes)))
    expected = math.exp(-2 * math.pi**2 * cycles**2) * waves(R, direction, height, cycles, centred(sizes, 2))
    inner = (..., *3 * [slice(4, -4)])
    error = (y - expected)[inner].abs().max() / expected.abs().max()
    # A sampled Gaussian also passes the wave's first images, at 1 - cycles, on each of three axes.
    assert error < 3 * math.exp(-2 * math.pi**2 * ((1 - cycles) ** 2 - cycles**2))

    sizes = (32, 32, 32)
    box = torch.nn.functional.avg_pool3d(waves(R, direction, height, cycles, centred(sizes)), 2)
    expected = waves(R, direction, height, cycles, centred(sizes, 2))
    best = (box * expected).sum() / expected.square().sum()
    assert (box / best - expected).abs().max() / expected.abs().max() > 30 * error  # the control favours directions


def test_upsample_of_waves_commutes_with_any_rotation_the_better_the_longer_they_are():
    sizes, (direction, height) = (49, 48, 47), random_waves()
    inner = (..., *3 * [slice(16, -16)])
    errors = []
    for cycles in (0.02, 0.04, 0.08, 0.16):
        R = o3.rand_matrix()
        x = waves(R, direction, height, cycles, centred(sizes))
        y = Upsample()(waves(R, direction, height, cycles, centred(sizes, 2)), sizes)
        errors.append(((y - x)[inner].abs().max() / x.abs().max()).item())
    # A cubic spline is of fourth order: twice as long, 16 times as good.
    assert errors[0] < errors[1] / 12 < errors[2] / 12**2 < errors[3] / 12**3
    assert errors[1] < 1e-3


def test_down_and_up_again_gives_a_long_wave_back_and_blurs_a_short_one():
    sizes, (direction, height) = (49, 48, 47), random_waves()
    inner = (..., *3 * [slice(16, -16)])
    lost = []
    for cycles in (0.01, 0.02, 0.04):
        x = waves(torch.eye(3), direction, height, cycles, centred(sizes))
        z = Upsample()(Downsample()(x), sizes)
        left = math.exp(-2 * math.pi**2 * cycles**2)
        torch.testing.assert_close(z[inner], left * x[inner], rtol=0, atol=1e-3 * x.abs().max().item())
        lost.append(((z - x)[inner].norm() / x[inner].norm()).item())
    assert lost[0] < 0.003
    assert lost[0] < lost[1] / 3.5 < lost[2] / 3.5**2  # falls with the square


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [2, 3, (2, 1, 4)])
def test_constants_stay_constant_up_to_the_edge(size, factor):
    x = torch.full((1, 1, *size), 1.7)
    y = Downsample(factor)(x)
    torch.testing.assert_close(y, torch.full_like(y, 1.7), rtol=0, atol=1e-14)
    torch.testing.assert_close(Upsample(factor)(y, size), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(7, 8, 9), (10, 11, 12)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_field_linear_in_the_world_stays_so_with_the_affine_of_the_coarse_grid(size, factor):
    affine = torch.eye(4)
    affine[:3, :3] = 2 * o3.rand_matrix()
    first = torch.tensor([coarse_positions(n, factor)[0] for n in size])
    coarse_affine = affine.clone()
    coarse_affine[:3, :3] *= factor
    coarse_affine[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]

    def field(affine, size):
        index = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij"), dim=-1)
        return (index @ affine[:3, :3].T + affine[:3, 3]).movedim(-1, 0)[None]  # its own world coordinates

    count = [math.ceil(n / factor) for n in size]
    torch.testing.assert_close(
        Upsample(factor)(field(coarse_affine, count), size), field(affine, size), rtol=0, atol=1e-11
    )
    large = tuple(n + 16 * factor for n in size)  # away from the edge
    middle = Downsample(factor)(field(affine, large))[(..., *(slice(8, 8 + n) for n in count))]
    shift = affine[:3, :3] @ torch.full((3,), 8.0 * factor)
    expected = field(coarse_affine, count) + shift[:, None, None, None]
    torch.testing.assert_close(middle, expected, rtol=0, atol=1e-6)


def test_odd_axes_keep_voxels_and_even_axes_meet_half_way():
    assert coarse_positions(7, 2).tolist() == [0, 2, 4, 6]
    assert coarse_positions(8, 2).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert coarse_positions(9, 3).tolist() == [1, 4, 7]
    assert coarse_positions(10, 3).tolist() == [0, 3, 6, 9]


def test_downsample_agrees_with_scipy_on_odd_axes():
    """Both see zeros outside; dividing by the filtered ones renormalises the weights."""
    x = torch.randn(9, 11, 13)
    smooth = [gaussian_filter(f.numpy(), 1.0, mode="constant", truncate=14) for f in (x, torch.ones_like(x))]
    expected = torch.from_numpy(smooth[0] / smooth[1])[::2, ::2, ::2]
    torch.testing.assert_close(Downsample()(x[None, None])[0, 0], expected, rtol=0, atol=1e-12)


def test_downsample_agrees_with_a_strided_convolution_of_even_taps_on_even_axes():
    tap = torch.exp(-0.5 * torch.arange(-9.5, 10).square())  # half-way between two voxels
    weight = torch.einsum("i,j,k->ijk", tap, tap, tap)[None, None]
    x = torch.randn(1, 1, 8, 10, 12)
    mean, ones = (torch.nn.functional.conv3d(f, weight, stride=2, padding=9) for f in (x, torch.ones_like(x)))
    torch.testing.assert_close(Downsample()(x), mean / ones, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "factor"), [(2, 1), (3, 2), (4, 2), (12, 2), (13, 2), (13, 3), (14, 3)])
def test_upsample_agrees_with_scipy(size, factor):
    x = torch.randn(math.ceil(size / factor))
    y = Upsample((factor, 1, 1))(x[None, None, :, None, None], (size, 1, 1)).flatten()
    positions = coarse_positions(size, factor) if factor > 1 else torch.arange(size)
    expected = CubicSpline(positions, x, bc_type="natural")(torch.arange(size))
    torch.testing.assert_close(y, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_two_steps_of_two_are_one_of_four_for_long_waves():
    sizes = (65, 66, 68)
    x = waves(torch.eye(3), *random_waves(), 0.05, centred(sizes))
    twice, once = Downsample()(Downsample()(x)), Downsample(4)(x)
    assert twice.shape == once.shape
    inner = (..., *3 * [slice(5, -5)])
    torch.testing.assert_close(twice[inner], once[inner], rtol=0, atol=1e-5 * x.abs().max().item())


def test_downsample_commutes_with_shifts_by_the_factor_away_from_the_edge():
    x = torch.randn(1, 1, 40, 41, 42)
    y, shifted = Downsample()(x), Downsample()(x.roll((2, -4, 6), dims=(2, 3, 4)))
    inner = (..., *3 * [slice(8, -8)])
    torch.testing.assert_close(shifted[inner], y.roll((1, -2, 3), dims=(2, 3, 4))[inner], rtol=0, atol=1e-12)


def test_a_small_network_over_two_grids_commutes_with_the_24_cube_rotations():
    fine, coarse = PConv("1x0e+1x1e", "2x0e+1x1e+1x2e", kernel_size=3), PConv("2x0e+1x1e+1x2e", IRREPS, kernel_size=3)
    x = torch.randn(1, 4, 6, 7, 9)

    def network(x):
        return Upsample()(coarse(Downsample()(fine(x))), x.shape[-3:])

    y = network(x)
    for R in cube_rotations():
        turned = network(turn_features(x, R, fine.irreps_in))
        torch.testing.assert_close(turned, turn_features(y, R, IRREPS), rtol=0, atol=1e-9)


def test_float32_maps_stay_float32_and_pass_gradients():
    x = torch.randn(1, 2, 5, 6, 7, dtype=torch.float32, requires_grad=True)
    y = Upsample()(Downsample()(x), x.shape[-3:])
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(y.double(), Upsample()(Downsample()(x.double()), x.shape[-3:]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [Downsample, Upsample])
@pytest.mark.parametrize("factor", [0, 1.5, (2, 2)])
def test_impossible_factors_are_refused(layer, factor):
    with pytest.raises(ValueError, match="factor must be one or three whole numbers of 1 or more"):
        layer(factor)


def test_short_axes_are_refused():
    with pytest.raises(ValueError, match="an axis of 2 voxels is too short for factor 2"):
        Downsample()(torch.randn(1, 1, 2, 8, 8))


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"size \(9, 8, 8\) thins out to \(5, 4, 4\) voxels but x has \(4, 4, 4\)"):
        Upsample()(torch.randn(1, 1, 4, 4, 4), (9, 8, 8))

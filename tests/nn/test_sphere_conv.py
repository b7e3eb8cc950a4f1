import math
from pathlib import Path

import numpy as np
import pytest
import torch
from dipy.reconst.shm import real_sh_descoteaux, smooth_pinv
from e3nn import nn as e3nn_nn
from e3nn import o3
from monai.bundle import ConfigParser

from eqdmri_monai.bases import Radial
from eqdmri_monai.bases.angular import degree_slice, harmonics
from eqdmri_monai.networks import SphereNet
from eqdmri_monai.nn import Gate, ShellHarmonics, SphereConv, SpherePower
from eqdmri_monai.nn.sphere_conv import degrees
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_features, turn_grid


def turned(x, irreps, R):
    return torch.einsum("ij,bj...->bi...", irreps.D_from_matrix(R), x)


@pytest.mark.parametrize("even", [True, False])
def test_coefficients_turn_with_the_directions(even):
    layer, q, R = ShellHarmonics(2, even=even), random_scheme(20, 1.0, 1.5), o3.rand_matrix()
    x = torch.randn(2, len(q), 2, 1, 1)
    torch.testing.assert_close(layer(x, q @ R.T), turned(layer(x, q), layer.irreps_out, R), atol=1e-10, rtol=0)
    order = torch.randperm(len(q))
    torch.testing.assert_close(layer(x[:, order], q[order]), layer(x, q), atol=1e-10, rtol=0)


def test_the_sign_of_a_gradient_does_not_matter():
    layer, q = ShellHarmonics(4), random_scheme(30, 1.0)
    x, sign = torch.randn(1, 31, 1, 1, 1), torch.where(torch.rand(31, 1) < 0.5, -1.0, 1.0)
    torch.testing.assert_close(layer(x, sign * q), layer(x, q), atol=1e-10, rtol=0)


def test_the_fit_is_that_of_dipy():
    q = random_scheme(40, 1.0)[1:]
    signal = torch.rand(40)
    layer = ShellHarmonics(4, radial=Radial(num_q=1, q_max=1.0), penalty=0.006)
    coefficients = layer(signal[None, :, None, None, None], q)[0, :, 0, 0, 0] / layer.radial(torch.ones(())).item()
    Y = torch.cat([harmonics(4, q)[:, degree_slice(l)] for l in (0, 2, 4)], 1)
    x, y, z = q.T.numpy()
    B, _, l = real_sh_descoteaux(4, np.arccos(z), np.arctan2(y, x), legacy=False)
    fitted = B @ (smooth_pinv(B, np.sqrt(0.006) * l * (l + 1)) @ signal.numpy())
    np.testing.assert_allclose((Y @ coefficients).numpy(), fitted, atol=1e-9)


def test_band_limited_signals_are_found_again():
    layer = ShellHarmonics(3, even=False, radial=Radial(num_q=1, q_max=1.0), penalty=0.0)
    q = random_scheme(40, 1.0)[1:]
    f = torch.randn(16)
    again = layer((harmonics(3, q) @ f)[None, :, None, None, None], q)[0, :, 0, 0, 0]
    torch.testing.assert_close(again, f * layer.radial(torch.ones(())), atol=1e-9, rtol=0)


def test_b0_has_degree_zero_only():
    layer, q = ShellHarmonics(2), random_scheme(12, 1.0)
    assert not layer.matrix(q)[layer.radial.num :, 0].any()
    assert layer.matrix(q)[: layer.radial.num, 0].all()


def quadrature(lmax):
    """Points and weights on the sphere, exact for polynomials up to degree 2 lmax; weights sum to 4π."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(lmax + 1))
    phi = 2 * math.pi * torch.arange(2 * lmax + 1) / (2 * lmax + 1)
    r = (1 - z**2).sqrt()
    points = torch.stack([r[:, None] * phi.cos(), r[:, None] * phi.sin(), z[:, None].expand(-1, len(phi))], -1)
    return points.flatten(0, 1), (w[:, None] * 2 * math.pi / len(phi)).expand(-1, len(phi)).flatten()


@pytest.mark.parametrize("even", [True, False])
def test_the_convolution_is_the_integral_over_the_sphere(even):
    lmax = 4
    conv = SphereConv(1, 1, lmax, even=even, rotations_out=True)
    f = torch.randn(conv.irreps_in.dim)
    h = conv(f[None])[0]
    points, weights = quadrature(lmax)
    pick = [m for l in degrees(lmax, even=even) for m in range(l**2, (l + 1) ** 2)]
    g = torch.cat([w.flatten() for w in conv.linear.weights])  # one number for each l and n
    R = o3.rand_matrix()
    integral = (weights * (harmonics(lmax, points)[:, pick] @ f) * (harmonics(lmax, points @ R)[:, pick] @ g)).sum()
    at_R, start = 0.0, 0
    for l in degrees(lmax, even=even):
        d = 2 * l + 1
        block = h[start : start + d * d].view(d, d)  # [n, m]
        at_R = at_R + (block.T * o3.Irreps([(1, (l, 1))]).D_from_matrix(R)).sum()
        start += d * d
    torch.testing.assert_close(integral, 4 * math.pi * at_R, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("rotations_in", "rotations_out"), [(False, False), (False, True), (True, True)])
def test_the_convolution_commutes_with_rotations(rotations_in, rotations_out):
    conv = SphereConv(2, 3, 3, even=False, rotations_in=rotations_in, rotations_out=rotations_out, gates=2)
    x, R = torch.randn(2, conv.irreps_in.dim, 5), o3.rand_matrix()
    torch.nn.init.normal_(conv.bias)
    torch.testing.assert_close(conv(turned(x, conv.irreps_in, R)), turned(conv(x), conv.irreps_out, R))


def test_powers_do_not_turn_and_are_those_of_the_degrees():
    power, R = SpherePower(2, 3, even=False), o3.rand_matrix()
    x = torch.randn(2, power.irreps_in.dim, 5)
    y = power(x)
    torch.testing.assert_close(power(turned(x, power.irreps_in, R)), turned(y, power.irreps_out, R))
    torch.testing.assert_close(y[:, 6:], x)
    second = x[:, 2 + 2 * 9 + 25 : 2 + 2 * 9 + 50]  # degree 2 of the second function
    torch.testing.assert_close(y[:, 3], second.square().mean(1))


def test_a_voxel_alone_shows_its_anisotropy():
    net, q, x = SphereNet([2], ["4x0e"], kernel_size=1), random_scheme(30, 1.0), torch.rand(31)
    means = net.harmonics.matrix(q)[: net.harmonics.radial.num]
    shape = torch.randn(31)
    shape = shape - torch.linalg.pinv(means) @ (means @ shape)  # nothing of degree 0
    y, other = (net(s[None, :, None, None, None], q) for s in (x, x + shape))
    assert (y - other).abs().max() > 1e-6  # without powers 1e-16


@pytest.mark.parametrize("R", cube_rotations()[5::9])
def test_a_network_commutes_with_quarter_turns_of_voxels_and_q(R):
    net = SphereNet([2, 2], ["4x0e+2x1e"], "1x0e+1x1e", lmax=2)
    q, image = random_scheme(12, 1.0, 1.4), torch.randn(1, 25, 4, 4, 4)
    y = net(image, q)
    torch.testing.assert_close(
        net(turn_grid(image, R), q @ R.T), turn_features(y, R, net.irreps_out), atol=1e-9, rtol=0
    )
    assert y.abs().max() > 1e-3


def test_a_network_takes_any_scheme():
    net = SphereNet([2], ["2x0e"])
    for q in (random_scheme(6, 1.0), random_scheme(30, 0.7, 1.0, 1.7)):
        assert net(torch.randn(2, len(q), 3, 3, 3), q.expand(2, -1, -1)).shape == (2, 1, 3, 3, 3)


def test_too_few_directions_are_refused():
    with pytest.raises(ValueError, match="12 directions at b = 1000 s/mm² are too few"):
        ShellHarmonics(4).matrix(random_scheme(12, 1.0))
    flat = torch.nn.functional.normalize(torch.randn(20, 3) * torch.tensor([1.0, 1.0, 0.0]), dim=1)
    with pytest.raises(ValueError, match="too much alike"):
        ShellHarmonics(2).matrix(flat)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShellHarmonics(-1), "must not be negative"),
        (lambda: SphereConv(0, 1, 2), "channels must be 1 or more"),
        (lambda: SphereConv(1, 1, 2, rotations_in=True), "set rotations_out"),
        (lambda: SphereNet([]), "at least one spherical layer"),
    ],
)
def test_options_that_make_no_layer_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("config", ["train.yaml", "inference.yaml"])
def test_the_bundle_takes_the_network(config):
    root = Path(__file__).parents[2]
    parser = ConfigParser()
    parser.read_config([root / "bundle" / "configs" / config, root / "configs" / "sphere_net.yaml"])
    parser.update({"spacing": [6.0, 6.0, 6.0], "network_def#channels": [2], "network_def#irreps_p": ["2x0e"]})
    net = parser.get_parsed_content("network_def")
    q = random_scheme(9, 1.0)
    assert net(torch.randn(1, 10, 4, 4, 4), q[None]).shape == (1, 1, 4, 4, 4)


def test_activations_on_a_grid_are_approximate_where_gates_are_exact():
    """A function of the values at points of a sphere turns along to the resolution of the points only."""
    irreps, R = o3.Irreps.spherical_harmonics(4, p=1), o3.rand_matrix()
    x, errors = torch.randn(20, irreps.dim), {}
    D = irreps.D_from_matrix(R)
    for points in (10, 20, 40):
        grid = e3nn_nn.S2Activation(irreps, torch.relu, points, normalization="component")
        y = grid(x)
        errors[points] = float((grid(x @ D.T) - y @ grid.irreps_out.D_from_matrix(R).T).norm() / y.norm())
    gate = Gate("2x0e+2x1e+2x2e")
    x, R = torch.randn(20, gate.irreps_in.dim), o3.rand_matrix()
    torch.testing.assert_close(gate(turned(x, gate.irreps_in, R)), turned(gate(x), gate.irreps_out, R))
    assert 0.1 < errors[10] < 0.4  # 19 %, 1.5 % and 0.2 % on average
    assert 3e-3 < errors[20] < 5e-2
    assert 3e-4 < errors[40] < 1e-2

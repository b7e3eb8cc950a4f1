import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from eqdmri_monai.nn import ChannelsFirst, NormNonlinearity, TensorProductNonlinearity, nonlinear_layer, norm_layer

IRREPS = o3.Irreps("2x0e+2x1e+1x2e")
NAMES = ["gate", "norm", "squash", "tensor product"]


def turned(x, irreps, R):
    return torch.einsum("ij,bj...->bi...", irreps.D_from_matrix(R), x)


@pytest.mark.parametrize("name", NAMES)
def test_nonlinearities_commute_with_rotation(name):
    layer, R = nonlinear_layer(name, IRREPS), o3.rand_matrix()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, layer.irreps_in.dim, 3, 4, 5, 2)
    expected = turned(layer(x), layer.irreps_out, R)
    torch.testing.assert_close(layer(turned(x, layer.irreps_in, R)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_nonlinearities_are_not_linear_and_keep_the_size_of_features(name):
    layer = nonlinear_layer(name, "20x0e+20x1e+10x2e")
    x = torch.randn(50, layer.irreps_in.dim, 1)
    y = layer(x)
    assert y.shape == (50, 20 + 60 + 50, 1)
    assert (layer(2 * x) - 2 * y).abs().max() > 0.1
    assert 0.3 < y.square().mean().sqrt() < 1.5


@pytest.mark.parametrize("name", NAMES)
def test_zeros_have_gradients(name):
    layer = nonlinear_layer(name, IRREPS)
    x = torch.zeros(1, layer.irreps_in.dim, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert gradient.isfinite().all()


def test_norm_and_squashing_follow_their_formulas():
    v = torch.randn(4, 3, 5)
    length = v.norm(dim=1, keepdim=True)
    norm, squash = NormNonlinearity("1x1e"), NormNonlinearity("1x1e", squash=True)
    torch.nn.init.constant_(norm.lengths.module.biases, 0.3)
    expected = torch.nn.functional.silu(length + 0.3) * v / length
    torch.testing.assert_close(norm(v), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(squash(v), length**2 / (1 + length**2) * v / length, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_scalars_alone_pass_every_nonlinearity(name):
    assert nonlinear_layer(name, "3x0e")(torch.randn(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("name", ["batch", "instance"])
def test_normalisation_commutes_with_rotation_and_gives_unit_size(name):
    layer, R = norm_layer(name, IRREPS), o3.rand_matrix()
    x = 5 * torch.randn(2, IRREPS.dim, 6, 7, 8) + 3 * torch.tensor([1.0, 1] + 11 * [0])[:, None, None, None]
    y = layer(x)
    torch.testing.assert_close(layer(turned(x, IRREPS, R)), turned(y, IRREPS, R), rtol=0, atol=1e-9)
    assert y[:, :2].mean((0, 2, 3, 4)).abs().max() < 1e-9
    for part in (y[:, :1], y[:, 2:5], y[:, 8:]):
        torch.testing.assert_close(part.square().mean(), torch.tensor(1.0), rtol=1e-5, atol=0)


def test_dropout_leaves_out_whole_copies():
    layer = ChannelsFirst(e3nn_nn.Dropout(IRREPS, 0.5))
    x = torch.randn(200, IRREPS.dim, 2, 2, 2)
    kept = layer(x) / x
    for where in (slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 8), slice(8, 13)):
        first = kept[:, where.start, 0, 0, 0]
        torch.testing.assert_close(kept[:, where], first[:, None, None, None, None].expand_as(kept[:, where]))
        assert 60 < (first > 0).sum() < 140
    torch.testing.assert_close(kept.max(), torch.tensor(2.0))
    torch.testing.assert_close(layer.eval()(x), x)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='nonlinearity must be "gate", "norm", "squash" or "tensor product", got'):
        nonlinear_layer("relu", IRREPS)
    with pytest.raises(ValueError, match='normalization must be "batch", "instance" or none, got'):
        norm_layer("layer", IRREPS)


@pytest.mark.parametrize("name", NAMES)
def test_types_that_are_unsorted_or_odd_are_refused(name):
    with pytest.raises(ValueError, match="sorted by degree"):
        nonlinear_layer(name, "1x1e+1x0e")
    for odd in ("1x0e+1x1o", "2x0o"):
        with pytest.raises(ValueError, match="irreps_out must have even labels only"):
            nonlinear_layer(name, odd)


@pytest.mark.parametrize("layer", [NormNonlinearity, TensorProductNonlinearity])
def test_layers_by_themselves_refuse_odd_types(layer):
    with pytest.raises(ValueError, match="irreps_out must have even labels only"):
        layer("1x0e+1x1o")

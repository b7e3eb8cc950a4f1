import pytest
import torch
from e3nn import o3

from eqdmri_monai.bases import Radial, pq_diff, q_space
from eqdmri_monai.nn import PConv
from eqdmri_monai.symmetry import cube_rotations, turn_features

CASES = [("2x0e+1x1e", "1x0e+2x1e+1x2e"), ("1x2e", "1x0e+1x3e"), ("1x1e+1x0e", "1x1e")]


@pytest.mark.parametrize(("irreps_in", "irreps_out"), CASES)
@pytest.mark.parametrize("radial", ["cosine", "Gaussian+fc"])
def test_kernel_commutes_with_any_rotation(irreps_in, irreps_out, radial):
    conv, R = PConv(irreps_in, irreps_out, radial=Radial(radial)), o3.rand_matrix()
    offset = torch.cat([torch.zeros(1, 3), 3 * torch.randn(10, 3)])
    D_in, D_out = conv.irreps_in.D_from_matrix(R), conv.irreps_out.D_from_matrix(R)
    expected = torch.einsum("oi,nij,kj->nok", D_out, conv.kernel(offset), D_in)
    torch.testing.assert_close(conv.kernel(offset @ R.T), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("irreps_in", "irreps_out"), CASES)
def test_layer_commutes_with_the_24_cube_rotations(irreps_in, irreps_out):
    conv = PConv(irreps_in, irreps_out)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(1, conv.irreps_in.dim, 5, 6, 7)
    y = conv(x)
    for R in cube_rotations():
        turned = conv(turn_features(x, R, conv.irreps_in))
        torch.testing.assert_close(turned, turn_features(y, R, conv.irreps_out), rtol=0, atol=1e-9)


def test_layer_is_its_kernel_summed_over_voxels():
    conv = PConv("1x0e+1x1e", "1x0e+1x1e", kernel_size=3, spacing=(1.0, 1.0, 2.0))
    x = torch.randn(1, 4, 4, 4, 4)
    expected = 0.5**0.5 * conv.self_connection(x)
    voxels = torch.cartesian_prod(*3 * [torch.arange(4)])
    for p_in in voxels:
        near = voxels[(voxels - p_in).abs().max(dim=1).values <= 1]
        y = (
            conv.kernel((near - p_in) * torch.tensor([1.0, 1, 2])) @ x[(0, slice(None), *p_in)]
        )  # of all p_out near p_in
        expected[0, :, near[:, 0], near[:, 1], near[:, 2]] += y.T
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-9)


def test_anisotropic_voxels_turn_about_the_long_axis_only():
    conv = PConv("1x0e", "1x0e+1x1e", spacing=(1.0, 1.0, 3.0))
    x = torch.randn(1, 1, 6, 6, 6)
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    about_x = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    errors = [
        (conv(turn_features(x, R, conv.irreps_in)) - turn_features(conv(x), R, conv.irreps_out)).abs().max()
        for R in (about_z, about_x)
    ]
    assert errors[0] < 1e-9
    assert errors[1] > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kernel_size": 4}, "kernel_size must be odd"), ({"spacing": (1.0, 1.0, 0.0)}, "three positive lengths")],
)
def test_impossible_kernels_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PConv("1x0e", "1x0e", **options)


def test_an_input_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"x must be \(B, 4, X, Y, Z\), got \(2, 3, 5, 5, 5\)"):
        PConv("1x0e+1x1e", "1x0e")(torch.randn(2, 3, 5, 5, 5))


@pytest.mark.parametrize("basis", [q_space, pq_diff])
def test_a_basis_over_q_is_refused(basis):
    with pytest.raises(ValueError, match="basis of a p layer must not depend on q"):
        PConv("1x0e", "1x0e", basis=basis)


def test_odd_labels_are_refused():
    with pytest.raises(ValueError, match="irreps_in must have even labels only"):
        PConv("1x1o", "1x0e")

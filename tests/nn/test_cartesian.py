import math

import pytest
import torch
from dipy.reconst.dti import lower_triangular
from e3nn import o3
from e3nn.io import CartesianTensor

from eqdmri_monai.nn import CartesianToIrreps, Gate, IrrepsToCartesian, PConv, TensorHead
from eqdmri_monai.nn.cartesian import UPPER, symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import cube_rotations, turn_grid

KINDS = [["scalar"], ["vector"], ["symmetric"], ["tensor"], ["tensor", "scalar", "symmetric", "vector", "vector"]]
SIZE = {"scalar": 1, "vector": 3, "symmetric": 6, "tensor": 9}


def size(kinds) -> int:
    return sum(SIZE[kind] for kind in kinds)


def turn_quantity(x, R, kind):
    """R v for vectors, R T Rᵀ for tensors (B, components, ...), written out."""
    if kind == "scalar":
        return x
    if kind == "vector":
        return torch.einsum("ij,bj...->bi...", R, x)
    if kind == "tensor":
        return torch.einsum("ik,jl,bkl...->bij...", R, R, x.unflatten(1, (3, 3))).flatten(1, 2)
    xx, xy, xz, yy, yz, zz = x.unbind(1)
    full = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=1)
    return turn_quantity(full, R, "tensor")[:, [0, 1, 2, 4, 5, 8]]


def turn(x, R, kinds):
    parts = x.split([SIZE[kind] for kind in kinds], dim=1)
    return torch.cat([turn_quantity(part, R, kind) for part, kind in zip(parts, kinds, strict=True)], dim=1)


@pytest.mark.parametrize("kinds", KINDS)
def test_turned_quantities_become_turned_features_and_back(kinds):
    there, back = CartesianToIrreps(kinds), IrrepsToCartesian(kinds)
    x, y = torch.randn(2, size(kinds), 2, 3, 4), torch.randn(2, back.irreps_in.dim, 2, 3, 4)
    for R in (*cube_rotations(), o3.rand_matrix(), o3.rand_matrix()):
        D = there.irreps_out.D_from_matrix(R)
        expected = torch.einsum("ij,bj...->bi...", D, there(x))
        torch.testing.assert_close(there(turn(x, R, kinds)), expected, rtol=0, atol=1e-12)
        turned = back(torch.einsum("ij,bj...->bi...", D, y))
        torch.testing.assert_close(turned, turn(back(y), R, kinds), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kinds", KINDS)
def test_there_and_back_is_the_identity(kinds):
    there, back = CartesianToIrreps(kinds), IrrepsToCartesian(kinds)
    assert there.irreps_out == back.irreps_in
    x, y = torch.randn(2, size(kinds), 3), torch.randn(2, back.irreps_in.dim, 3)
    torch.testing.assert_close(back(there(x)), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(there(back(y)), y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", SIZE)
def test_frobenius_norms_are_kept(kind):
    x = torch.randn(5, SIZE[kind])
    entries = symmetric_matrix(x).flatten(1) if kind == "symmetric" else x
    torch.testing.assert_close(CartesianToIrreps([kind])(x).norm(dim=1), entries.norm(dim=1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "formula"), [("symmetric", "ij=ji"), ("tensor", "ij")])
def test_tensors_agree_with_e3nn(kind, formula):
    x = torch.randn(4, 3, 3)
    x = x + x.mT if kind == "symmetric" else x
    entries = x.flatten(1)[:, UPPER] if kind == "symmetric" else x.flatten(1)
    y = CartesianToIrreps([kind])(entries)
    torch.testing.assert_close(y, CartesianTensor(formula).from_cartesian(x), rtol=0, atol=1e-14)


def test_the_parts_of_a_tensor_are_its_trace_its_axis_and_what_is_left():
    a, T = torch.randn(3), torch.randn(3, 3)
    cross = torch.linalg.cross(a.expand(3, 3), torch.eye(3)).T  # cross @ b = a × b
    to_irreps = CartesianToIrreps(["tensor"])
    irreps = to_irreps(T.reshape(1, 9))[0]
    torch.testing.assert_close(irreps[0], T.trace() / math.sqrt(3))
    torch.testing.assert_close(to_irreps(cross.reshape(1, 9))[0, 1:4].abs(), math.sqrt(2) * a.abs())
    assert to_irreps(torch.eye(3).reshape(1, 9))[0, 1:].abs().max() < 1e-14
    torch.testing.assert_close(irreps[4:].norm(), (0.5 * (T + T.T) - T.trace() / 3 * torch.eye(3)).norm())


def test_types_are_sorted_by_degree_so_that_layers_take_them():
    to_irreps = CartesianToIrreps(["tensor", "vector", "scalar", "symmetric"])
    assert to_irreps.irreps_out == o3.Irreps("3x0e+2x1e+2x2e")
    Gate(to_irreps.irreps_out)
    quantities = torch.zeros(1, 19)
    quantities[0, 9:12] = torch.tensor([1.0, 2.0, 3.0])  # the vector is the second l = 1 copy
    assert to_irreps(quantities)[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3] + 10 * [0]


def test_the_six_components_are_an_order_of_dipys():
    D = torch.randn(4, 3, 3)
    D = D + D.mT
    ours = symmetric_components(D)
    theirs = torch.from_numpy(lower_triangular(D.numpy()))  # xx xy yy xz yz zz
    torch.testing.assert_close(ours, theirs[:, [0, 1, 3, 2, 4, 5]])
    torch.testing.assert_close(symmetric_matrix(ours), D)


def test_a_stack_from_quantities_to_quantities_commutes_with_the_24_cube_rotations():
    kinds_in, kinds_out = ["vector", "symmetric"], ["tensor", "vector"]
    first, last, gate = CartesianToIrreps(kinds_in), IrrepsToCartesian(kinds_out), Gate("2x0e+1x1e+1x2e")
    network = torch.nn.Sequential(
        first,
        PConv(first.irreps_out, gate.irreps_in, kernel_size=3),
        gate,
        PConv(gate.irreps_out, last.irreps_in, kernel_size=3),
        last,
    )
    x = torch.randn(1, 9, 3, 4, 5)
    y = network(x)
    assert y.shape == (1, 12, 3, 4, 5)
    for R in cube_rotations():
        turned = network(turn(turn_grid(x, R), R, kinds_in))
        torch.testing.assert_close(turned, turn(turn_grid(y, R), R, kinds_out), rtol=0, atol=1e-9)
    norms = y.flatten(2).norm(dim=2)
    assert norms.min() > 0.01 * norms.max()  # every component takes part


def test_the_head_gives_the_tensor_whose_parts_it_gets():
    D = symmetric_components(torch.randn(2, 3, 4, 5, 3, 3))
    irreps = CartesianToIrreps(["symmetric"])(D)
    torch.testing.assert_close(TensorHead()(irreps), D, rtol=0, atol=1e-14)
    affine, R = torch.eye(4), o3.rand_matrix()
    affine[:3, :3] = 2 * R
    torch.testing.assert_close(TensorHead()(irreps, affine), turn_quantity(D, R, "symmetric"), rtol=0, atol=1e-12)


def test_float32_maps_stay_float32():
    x, affine = torch.randn(1, 6, 2, 2, 2, dtype=torch.float32), torch.eye(4)
    assert TensorHead()(x, affine).dtype == torch.float32
    assert CartesianToIrreps(["symmetric"])(x).dtype == torch.float32


@pytest.mark.parametrize("kinds", ["vector", [], ["matrix"]])
@pytest.mark.parametrize("layer", [CartesianToIrreps, IrrepsToCartesian])
def test_unknown_kinds_are_refused(layer, kinds):
    with pytest.raises(ValueError, match="kinds must be a list of 'scalar', 'vector', 'symmetric', 'tensor'"):
        layer(kinds)

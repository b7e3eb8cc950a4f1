"""The filters of a layer are all that equivariance allows, and none is there twice."""

import pytest
import torch
from e3nn import o3
from e3nn.nn.models.v2104.voxel_convolution import Convolution

from eqdmri_monai.bases import FilterBasis, Radial, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.nn import PConv, PQConv
from eqdmri_monai.symmetry import random_scheme

ONE = Radial("Gaussian", num_p=1, num_q=1)


def filters_at(layer: torch.nn.Module, *points: torch.Tensor) -> torch.Tensor:
    """Return what each weight of a layer's bases stands for, shape (weights, numbers of `kernel` at these points)."""
    weights = [w for name, w in layer.named_parameters() if name.startswith("filters.")]
    flat, rows = torch.cat([w.detach().flatten() for w in weights]), []
    for one in torch.eye(len(flat)):
        with torch.no_grad():
            for w, part in zip(weights, one.split([w.numel() for w in weights]), strict=True):
                w.copy_(part.view_as(w))
            rows.append(layer.kernel(*points).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("j", range(4))
@pytest.mark.parametrize("l", range(4))
def test_kernels_are_all_that_the_constraint_allows(j, l):
    """κ(rx) = D^j(r) κ(x) D^l(r)⁻¹, solved at one point by the rotations about it (Weiler et al. 2018, eq. 12-14)."""
    x = torch.nn.functional.normalize(torch.randn(3), dim=0)
    R = o3.axis_angle_to_matrix(x, torch.tensor(1.0))  # 1 radian is no fraction of a turn: its powers fill the circle
    D_j, D_l = o3.Irrep(j, 1).D_from_matrix(R), o3.Irrep(l, 1).D_from_matrix(R)
    constraint = torch.kron(D_j, D_l) - torch.eye((2 * j + 1) * (2 * l + 1))  # of the rows of κ, one after another
    _, singular, V = torch.linalg.svd(constraint)
    solutions = V[singular < 1e-9]
    assert len(solutions) == 2 * min(j, l) + 1
    conv = PConv(f"1x{l}e", f"1x{j}e", radial=ONE)
    ours = filters_at(conv, x[None])
    assert torch.linalg.matrix_rank(ours) == len(solutions)
    torch.testing.assert_close(ours @ solutions.T @ solutions, ours, rtol=0, atol=1e-9)


TYPES = ("1x0e+1x1e", "1x0e+1x1e")
BASES = [(p_space,), (q_space,), (tp_vec,), (tp(0),), (tp1,), (tp(2),), (pq_diff,), (pq_diff, p_space)]


@pytest.mark.parametrize("bases", BASES)
def test_no_filter_is_a_sum_of_others(bases):
    """For vector inputs, with one radial function each: as many independent filters as weights."""
    layer = PQConv(*TYPES, bases=bases, radial=ONE)
    filters = filters_at(layer, 2 * torch.randn(12, 3), random_scheme(3, 1.0)[1:], random_scheme(4, 1.0, 1.5)[1:])
    paths = sum(len(basis.paths(a, b)) for basis in bases for a in (0, 1) for b in (0, 1))
    assert len(filters) == paths
    assert torch.linalg.matrix_rank(filters, rtol=1e-9) == paths


@pytest.mark.parametrize(
    ("kernel_size", "bases"),
    [(3, (tp1,)), (5, (tp1,)), (3, (tp_vec,)), (3, (p_space,)), (3, (q_space,)), (3, (tp(2),)), (3, (pq_diff,))],
)
def test_grids_alias_nothing_with_one_radial_function(kernel_size, bases):
    """|Δp| takes only 4 values in 3³ voxels and 10 in 5³, so this cannot hold for any number of radial functions."""
    layer = PQConv(*TYPES, bases=bases, kernel_size=kernel_size, radial=ONE)
    filters = filters_at(layer, layer.lattice, random_scheme(3, 1.0)[1:], random_scheme(4, 1.0, 1.5)[1:])
    assert torch.linalg.matrix_rank(filters, rtol=1e-9) == len(filters)


@pytest.mark.parametrize(("kernel_size", "lengths"), [(3, 4), (5, 10)])
def test_a_grid_holds_no_more_radial_functions_than_it_has_lengths(kernel_size, lengths):
    """Offsets in 3³ voxels are 0, 1, √2, √3 long, in 5³ there are 10 lengths; the paper's 3 bumps are well below."""
    few, many = (PConv("1x0e", "1x0e", kernel_size=kernel_size, radial=Radial("Gaussian", num_p=n)) for n in (3, 13))
    assert len(few.lattice.norm(dim=1).mul(1e6).round().unique()) == lengths
    assert torch.linalg.matrix_rank(filters_at(few, few.lattice), rtol=1e-9) == 3
    assert torch.linalg.matrix_rank(filters_at(many, many.lattice), rtol=1e-9) <= lengths < 13


class SameValues(torch.nn.Module):
    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.values = values

    def forward(self, length: torch.Tensor) -> torch.Tensor:
        return self.values


def test_voxel_convolution_of_e3nn_is_ours_for_the_same_filter():
    """e3nn sums Y(p_in - p_out) w φ(|Δp|) / voxels through 3j symbols with the filter second.

    So a weight of degree l there is (-1)^l and the symmetry sign of the 3j symbol times one here, times
    1 / (voxels √paths) with e3nn's count of paths into an output, and over our fixed scale.
    """
    irreps_in, irreps_out = o3.Irreps("2x0e+1x1e"), o3.Irreps("1x0e+2x1e+1x2e")
    theirs = Convolution(irreps_in, irreps_out, o3.Irreps("0e+1e+2e+3e"), diameter=5, num_radial_basis=3)
    ours = PConv(irreps_in, irreps_out, kernel_size=5, radial=Radial("Gaussian", num_p=3))
    ours.filters.radial_p = SameValues(theirs.emb.flatten(0, 2))
    weights = theirs.weight.detach()
    views = dict(zip(
        [(i.i_out, i.i_in1, i.i_in2) for i in theirs.tp.instructions], theirs.tp.weight_views(weights), strict=True
    ))  # fmt: skip
    learned = iter(ours.filters.weights)
    for o, (mul_o, ir_o) in enumerate(irreps_out):
        into = [(i, l) for out, i, l in views if out == o]
        norm = len(theirs.lattice.flatten(0, 2)) * sum(irreps_in[i].mul for i, _ in into) ** 0.5
        for i, (mul_i, ir_i) in enumerate(irreps_in):
            w = next(learned)  # [path, k, 1, 1, out, in]
            for f, (l, _, _) in enumerate(p_space.paths(ir_o.l, ir_i.l)):
                sign = (-1) ** l * (-1) ** (l + ir_i.l + ir_o.l)
                view = views[o, i, l].reshape(3, mul_i, mul_o)
                w.data[f, :, 0, 0] = sign * view.transpose(1, 2) / norm / ours.filters.scale[o]
    ours.self_connection.weights = torch.nn.ParameterList(torch.zeros_like(w) for w in ours.self_connection.weights)
    torch.testing.assert_close(ours.grid_kernel(), theirs.kernel().detach(), rtol=0, atol=1e-9)
    x = torch.randn(1, irreps_in.dim, 5, 6, 7)
    expected = theirs(x) - theirs.sc(x.transpose(1, 4)).transpose(1, 4)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-9)


def test_own_choices_of_filters_are_part_of_the_whole():
    whole = PConv("1x1e", "1x1e", radial=ONE)
    part = FilterBasis("part", over_q=False, l_filters=[(1, 1, [0, 2])])
    conv = PConv("1x1e", "1x1e", radial=ONE, basis=part)
    offsets = torch.randn(6, 3)
    rows = torch.cat([filters_at(whole, offsets), filters_at(conv, offsets)])
    assert torch.linalg.matrix_rank(rows, rtol=1e-9) == 3
    assert torch.linalg.matrix_rank(rows[3:], rtol=1e-9) == 2

import itertools
import math

import pytest
import torch
from e3nn import o3

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, Radial, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.gradients import QSampling
from eqdmri_monai.nn import PQConv
from eqdmri_monai.nn.linear import Linear
from eqdmri_monai.nn.q_plan import quadrature
from eqdmri_monai.symmetry import cube_rotations, quarter_turns, random_scheme, turn_features

CASES = [
    ("1x0e", "2x0e+1x1e+1x2e", (tp1,)),
    ("1x0e+2x1e", "1x0e+1x1e", (tp1,)),
    ("1x0e+1x1e+1x2e", "1x0e+1x1e", (p_space, q_space, tp(0))),
    ("2x0e", "1x0e+1x3e", (tp(2), FilterBasis("far", products=[(0, 3, 3), (3, 0, 3)]))),
    ("1x0e", "1x0e", (p_space,)),
    ("1x0e", "2x0e+1x1e+1x2e", (pq_diff,)),
    ("1x0e+1x1e", "1x0e+1x1e", (pq_diff, p_space, q_space)),
]


def layer(case, **options) -> PQConv:
    irreps_in, irreps_out, bases = case
    conv = PQConv(irreps_in, irreps_out, bases=bases, kernel_size=3, **options)
    torch.nn.init.normal_(conv.bias)
    return conv


def dense(conv: PQConv, x, q_in, q_out, same):
    """The definition: one conv3d from all volumes to all volumes, its weight evaluated by `PQConv.kernel`."""
    weight = quadrature(QSampling.of(q_in[: len(q_in) // 2] if conv.antipodal else q_in))
    weight = torch.cat([weight, weight]) / 2 if conv.antipodal else weight
    kernel = conv.kernel(conv.lattice, q_out, q_in) * weight[:, None]  # [n, q, o, r, i]
    kernel = kernel.permute(1, 2, 4, 3, 0).unflatten(-1, 3 * (conv.kernel_size,)).flatten(0, 1).flatten(1, 2)
    y = torch.nn.functional.conv3d(x.flatten(1, 2), kernel, padding=conv.kernel_size // 2)
    y = y.unflatten(1, (len(q_out), -1)).transpose(1, 2)
    matrix = sum(c.matrix() for c in conv.self_connections) * (0.5 / conv.num_bases) ** 0.5
    y = y + torch.einsum("oi,qr,birxyz->boqxyz", matrix, same, x)
    return y + conv.scalar_bias()[:, None, None, None, None]


RADIUS, Q_MAX = 5.0, 2.5  # 2 voxels of 2.5 mm in the formulas below
NUM_P, NUM_Q_OUT, NUM_Q_IN = 4, 3, 2


def cosines(x: torch.Tensor, num: int, end: float) -> list[float]:
    """Eq. 38."""
    step = end / (num - 1)
    return [math.cos((x - k * step) / step * math.pi / 2) ** 2 * (abs(x - k * step) <= step) for k in range(num)]


def gaussians(x: torch.Tensor, num: int, end: float) -> list[float]:
    """Eq. 37."""
    step = end / (num - 1)
    return [math.exp(-((x - k * step) ** 2) / (2 * (0.8 * step) ** 2 / 2)) for k in range(num)]


def harmonic(l: int, v: torch.Tensor) -> torch.Tensor:
    return o3.spherical_harmonics(l, v, normalize=True, normalization="component")


def tensor_product(l1: int, x: torch.Tensor, l2: int, y: torch.Tensor, l: int) -> torch.Tensor:
    """Eq. 33."""
    return torch.einsum("abc,a,b->c", o3.wigner_3j(l1, l2, l) * (2 * l + 1) ** 0.5, x, y)


def angular_part(basis, path, p_out, p_in, q_out, q_in) -> torch.Tensor:
    """Eq. 20 (p in units of the kernel's radius, q in units of q_max), or one of 18, 19 and 21."""
    l, l_p, l_q = path
    if isinstance(basis, DifferenceBasis):
        return harmonic(l, (p_out / RADIUS - q_out / Q_MAX) - (p_in / RADIUS - q_in / Q_MAX))
    if not basis.over_q:
        return harmonic(l, p_out - p_in)
    if not basis.over_p:
        return harmonic(l, q_out - q_in)
    return tensor_product(l_p, harmonic(l_p, p_out - p_in), l_q, harmonic(l_q, q_out - q_in), l)


def literal_kernel(conv: PQConv, p_out, p_in, q_out, q_in) -> torch.Tensor:
    """Eq. 47 with the filters of eq. 23-26, one after another: shape (irreps_out.dim, irreps_in.dim)."""
    kernel = torch.zeros(conv.irreps_out.dim, conv.irreps_in.dim)
    for filters in conv.filters:
        basis, weights = filters.basis, iter(filters.weights)
        radial_p = cosines((p_out - p_in).norm(), NUM_P, RADIUS) if basis.over_p else [1]
        radial_out = gaussians(q_out.norm(), NUM_Q_OUT, Q_MAX) if basis.over_q else [1]
        radial_in = gaussians(q_in.norm(), NUM_Q_IN, Q_MAX) if basis.over_q else [1]
        for i_o, (rows, (_, ir_o)) in enumerate(zip(conv.irreps_out.slices(), conv.irreps_out, strict=True)):
            for columns, (_, ir_i) in zip(conv.irreps_in.slices(), conv.irreps_in, strict=True):
                weight = filters.scale[i_o] * next(weights).detach()
                for f, path in enumerate(basis.paths(ir_o.l, ir_i.l)):
                    angular = angular_part(basis, path, p_out, p_in, q_out, q_in)
                    mapped = [tensor_product(path[0], angular, ir_i.l, unit, ir_o.l) for unit in torch.eye(ir_i.dim)]
                    coefficients = sum(  # of all copies out and in
                        weight[f, k1, k2, k3] * radial_p[k1] * radial_out[k2] * radial_in[k3]
                        for k1, k2, k3 in itertools.product(*(range(n) for n in weight.shape[1:4]))
                    )
                    kernel[rows, columns] += torch.kron(coefficients, torch.stack(mapped, dim=1))
    return kernel


@pytest.mark.parametrize("bases", [(p_space,), (q_space,), (pq_diff,), (tp1,), (tp_vec,), (p_space, q_space, pq_diff)])
def test_kernel_is_the_papers_formula(bases):
    """Sizes of all radial bases differ, so that no length can stand for another."""
    conv = PQConv(
        "1x0e+2x1e", "2x0e+1x1e+1x2e", bases=bases, spacing=(1.5, 2.0, 2.5),
        radial=Radial("cosine", num_p=NUM_P, num_q=NUM_Q_IN, num_q_out=NUM_Q_OUT, q_max=Q_MAX),
    )  # fmt: skip
    p_out, p_in, q_out, q_in = 3 * torch.randn(2, 3), torch.randn(2, 3), 1.5 * torch.randn(2, 3), torch.randn(2, 3)
    kernel = conv.kernel(p_out - p_in, q_out, q_in)
    for n, q, r in itertools.product(range(2), repeat=3):
        expected = literal_kernel(conv, p_out[n], p_in[n], q_out[q], q_in[r])
        torch.testing.assert_close(kernel[n, q, :, r], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_kernel_commutes_with_any_rotation(case):
    conv, R = layer(case), o3.rand_matrix()
    offset = torch.cat([torch.zeros(1, 3), torch.randn(4, 3)])
    q_out, q_in = random_scheme(3, 1.0), random_scheme(4, 1.0, 1.5)
    D_in, D_out = conv.irreps_in.D_from_matrix(R), conv.irreps_out.D_from_matrix(R)
    expected = torch.einsum("oi,nqirj,kj->nqork", D_out, conv.kernel(offset, q_out, q_in), D_in)
    turned = conv.kernel(offset @ R.T, q_out @ R.T, q_in @ R.T)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_dense_convolution(case):
    conv, q = layer(case, antipodal=False), random_scheme(4, 1.0, 1.5)
    x = torch.randn(2, conv.irreps_in.dim, len(q), 3, 4, 5)
    torch.testing.assert_close(conv(x, q), dense(conv, x, q, q, torch.eye(len(q))), rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_antipodal_layer_equals_the_dense_convolution_over_the_closed_set(case):
    conv, q = layer(case), random_scheme(4, 1.0, 1.5)
    x = torch.randn(1, conv.irreps_in.dim, 2 * len(q), 3, 4, 5)
    x[:, :, len(q)] = x[:, :, 0]  # b0 at +0 and at -0
    closed = torch.cat([q, -q])
    expected = dense(conv, x, closed, closed, torch.eye(len(closed)))
    torch.testing.assert_close(conv(x, q), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_map_given_at_q_alone_counts_at_minus_q_too(case):
    conv, q = layer(case), random_scheme(4, 1.0, 1.5)
    x = torch.randn(1, conv.irreps_in.dim, len(q), 3, 4, 5)
    torch.testing.assert_close(conv(x, q), conv(torch.cat([x, x], dim=2), q), rtol=0, atol=1e-9)


@pytest.mark.parametrize("antipodal", [False, True])
def test_fewer_q_out_are_a_part_of_all(antipodal):
    conv, q = layer(CASES[1], antipodal=antipodal), random_scheme(5, 1.0)
    x = torch.randn(1, conv.irreps_in.dim, (1 + antipodal) * len(q), 3, 3, 3)
    x[:, :, -len(q)] = x[:, :, 0]  # b0 at +0 and at -0
    keep = torch.tensor([4, 0, 2])
    full, part = conv(x, q), conv(x, q, q[keep])
    opposite = conv(x, q, -q[keep]) if antipodal else part
    keep = torch.cat([keep, keep + len(q)]) if antipodal else keep
    torch.testing.assert_close(part, full[:, :, keep], rtol=0, atol=1e-9)
    torch.testing.assert_close(opposite, part.roll(3 * antipodal, dims=2), rtol=0, atol=1e-9)


def test_a_new_q_out_has_no_self_connection():
    conv, q = layer(CASES[0]), random_scheme(5, 1.0)
    x = torch.randn(1, 1, len(q), 3, 3, 3)
    q_new = random_scheme(2, 1.0)[1:]
    before = conv(x, q, q_new)
    conv.self_connections[0] = Linear(conv.irreps_in, conv.irreps_out)
    torch.testing.assert_close(conv(x, q, q_new), before)


@pytest.mark.parametrize("antipodal", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_layer_commutes_with_rotations_of_the_grid(case, antipodal):
    conv, q = layer(case, antipodal=antipodal), random_scheme(3, 1.0)
    x = torch.randn(1, conv.irreps_in.dim, len(q), 3, 4, 5)
    with torch.no_grad():
        y = conv(x, q)
        for R in cube_rotations() if case == CASES[1] else quarter_turns():
            turned = conv(turn_features(x, R, conv.irreps_in), q @ R.T)
            torch.testing.assert_close(turned, turn_features(y, R, conv.irreps_out), rtol=0, atol=1e-9)


def test_the_size_of_a_chunk_does_not_matter():
    conv, q = layer(CASES[0]), random_scheme(6, 1.0, 1.5)
    x = torch.randn(1, 1, len(q), 3, 4, 5)
    torch.testing.assert_close(conv(x, q, chunk=1), conv(x, q, chunk=100), rtol=0, atol=1e-12)


def test_order_of_volumes_is_the_order_of_outputs():
    conv, q = layer(CASES[0], antipodal=False), random_scheme(6, 1.0, 1.5)
    x, order = torch.randn(1, 1, len(q), 3, 3, 3), torch.randperm(len(q))
    torch.testing.assert_close(conv(x[:, :, order], q[order]), conv(x, q)[:, :, order], rtol=0, atol=1e-9)


def test_more_directions_of_a_constant_signal_give_the_same():
    """Means over shells do not depend on the number of directions: a signal without direction sees l_q = 0 alone."""
    conv = PQConv("1x0e", "3x0e", bases=(p_space,), kernel_size=3)
    few, many = random_scheme(6, 1.0), random_scheme(60, 1.0)
    signal = torch.randn(1, 1, 1, 4, 4, 4)
    y = [conv(signal.expand(-1, -1, len(q), -1, -1, -1), q)[:, :, :2] for q in (few, many)]
    torch.testing.assert_close(y[0], y[1])


def test_gradients_equal_those_of_the_dense_convolution():
    conv, q = layer(CASES[1], antipodal=False), random_scheme(4, 1.0)
    x = torch.randn(1, conv.irreps_in.dim, len(q), 3, 3, 3, requires_grad=True)
    parameters = [x, *conv.parameters()]
    fast = torch.autograd.grad(conv(x, q).square().sum(), parameters)
    slow = torch.autograd.grad(dense(conv, x, q, q, torch.eye(len(q))).square().sum(), parameters)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_maps_and_q_vectors_must_fit():
    conv = layer(CASES[0])
    with pytest.raises(ValueError, match="x has 5 maps over q but there are 4 q-vectors"):
        conv(torch.randn(1, 1, 5, 3, 3, 3), random_scheme(3, 1.0))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, Q, X, Y, Z\)"):
        conv(torch.randn(1, 2, 4, 3, 3, 3), random_scheme(3, 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bases": ()}, "at least one filter basis"),
        ({"bases": [FilterBasis("far", products=[(2, 1, 1)])]}, "basis far has no filter from 1x0e to 1x0e"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PQConv("1x0e", "1x0e", **options)

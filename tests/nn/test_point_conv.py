import pytest
import torch
from e3nn import o3

from eqdmri_monai.bases.angular import coupling, harmonics
from eqdmri_monai.neighbours import ball, euclidean, everyone, knn
from eqdmri_monai.networks import PointNet
from eqdmri_monai.nn import PointConv
from eqdmri_monai.nn.point_conv import envelope

IN, OUT = o3.Irreps("2x0e+1e+2e"), o3.Irreps("3x0e+2x1e+2e")


def cloud(n=9, unit=1.0):
    mask = torch.arange(n) < torch.tensor([n, n - 3])[:, None]
    return unit * torch.randn(2, n, 3), torch.randn(2, IN.dim, n), mask


def turned(x, irreps, R):
    return torch.einsum("ij,bj...->bi...", irreps.D_from_matrix(R), x)


NETS = {
    "all": {"reach": 3.0},
    "ball": {"radius": 4.0},
    "nearest": {"neighbours": 3, "reach": 3.0},
}


@pytest.mark.parametrize("choice", NETS)
@pytest.mark.parametrize("pool", ["none", "sum"])
def test_a_network_commutes_with_rigid_motions(choice, pool):
    net = PointNet(IN, ["4x0e+2x1e+2e", "4x0e+2x1e+2e"], OUT, pool=pool, **NETS[choice])
    x, f, mask = cloud()
    R, shift = o3.rand_matrix(), torch.randn(3)
    y = net(f, x, mask)
    moved = net(turned(f, IN, R), x @ R.T + shift, mask)
    torch.testing.assert_close(moved, turned(y, OUT, R), atol=1e-10, rtol=0)
    assert y.abs().max() > 0.1


@pytest.mark.parametrize("choice", NETS)
def test_neither_order_nor_padding_matters(choice):
    net = PointNet(IN, ["4x0e+2x1e"], OUT, **NETS[choice])
    x, f, mask = cloud()
    y, order = net(f, x, mask), torch.randperm(9)
    torch.testing.assert_close(net(f[..., order], x[:, order], mask[:, order]), y[..., order], atol=1e-10, rtol=0)
    alone = net(f[1:, :, mask[1]], x[1:, mask[1]])
    torch.testing.assert_close(alone, y[1:, :, mask[1]], atol=1e-10, rtol=0)
    assert not y[1, :, ~mask[1]].any()


def test_mirrors_are_told_apart():
    """Couplings such as 1e × 1e → 1e make the network one of SO(3), not O(3)."""
    net = PointNet("0e", ["4x0e+4x1e", "4x0e+4x1e", "4x0e+4x1e"], "0e", reach=3.0, pool="sum")
    x = torch.randn(1, 5, 3)
    one = torch.ones(1, 1, 5)
    assert (net(one, x) - net(one, -x)).abs() > 1e-4


def test_one_pair_is_the_coupling_of_harmonics_and_features():
    conv = PointConv("1e", "1e", radius=2.0, z=1.0, self_connection=False)
    x, f = torch.randn(1, 2, 3), torch.randn(1, 3, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    y = conv(f, x, everyone(mask, mask, own=False))[0, :, 0]
    offset = x[0, 0] - x[0, 1]
    sh, radial = harmonics(2, offset), conv.radial(offset.norm()[None])[0]
    weights = 3**-0.5 * torch.cat(list(conv.mix.weights)).flatten()
    expected = 0.0
    for (_, _, _, l, _), h, w in zip(conv.paths, radial, weights, strict=True):
        fixed = coupling(1, l, 1)
        expected = expected + w * h * torch.einsum("omf,m,f->o", fixed, f[0, :, 1], sh[l**2 : (l + 1) ** 2])
    torch.testing.assert_close(y, conv.scale * expected)


def test_the_unit_of_positions_does_not_matter():
    """`harmonics` counts offsets below 1e-3 as zero; here directions are made unit vectors before."""
    x, f, mask = cloud()
    torch.manual_seed(1)
    y = PointConv(IN, OUT, radius=3.0)(f, x, knn(euclidean(x), 3, mask=mask, centres=mask))
    torch.manual_seed(1)
    small = 1e-6 * x
    again = PointConv(IN, OUT, radius=3e-6)(f, small, knn(euclidean(small), 3, mask=mask, centres=mask))
    torch.testing.assert_close(again[0], y[0], atol=1e-9, rtol=0)


def test_forces_turn_along_and_are_the_gradient():
    net = PointNet("2x0e", ["4x0e+2x1e", "4x0e+2x1e"], "0e", radius=3.0, pool="sum")
    f = torch.randn(1, 2, 6)

    def forces(x):
        x = x.clone().requires_grad_()
        return -torch.autograd.grad(net(f, x).sum(), x)[0]

    x, R = torch.randn(1, 6, 3), o3.rand_matrix()
    torch.testing.assert_close(forces(x @ R.T), forces(x) @ R.T, atol=1e-10, rtol=0)
    torch.testing.assert_close(forces(x).sum(1), torch.zeros(1, 3), atol=1e-10, rtol=0)  # no force on the whole
    assert torch.autograd.gradcheck(lambda x: net(f, x), x.requires_grad_())


@pytest.mark.parametrize("choice", ["ball", "nearest"])
def test_neighbours_come_and_go_with_weight_zero(choice):
    net = PointNet(
        "0e", ["4x0e+2x1e"], "0e", **{"ball": {"radius": 2.0}, "nearest": {"neighbours": 2, "reach": 2.0}}[choice]
    )
    x = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0], [0, 1.5, 0], [0, 0, 1.5]]])
    if choice == "ball":  # the last point leaves the ball about the first, not that about the third
        x[0, 2:] = torch.tensor([[0, 0.5, 1.0], [0, 0, 2.0]])

    def at(shift):
        y = x.clone()
        y[0, 3, 2] += shift
        return net(torch.ones(1, 1, 4), y)[0, 0, 0]

    step = 1e-6
    assert (at(step) - at(-step)).abs() < 100 * step


def test_the_envelope_reaches_zero_where_the_next_point_would_count():
    x, _, mask = cloud()
    found = ball(euclidean(x), 4.0, mask=mask, centres=mask)
    d = (x[:, :, None] - x[torch.arange(2)[:, None, None], found.index]).norm(dim=-1)
    torch.testing.assert_close(envelope(x, found)[found.mask], ((1 - (d / 4) ** 2) ** 2)[found.mask])


def test_features_keep_their_size():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(8, 40, 3), dim=-1) * torch.rand(8, 40, 1) ** (1 / 3) * 3
    mask = torch.ones(8, 40, dtype=torch.bool)
    conv = PointConv("8x0e+8x1e", "8x0e+8x1e", radius=6.0, z=39.0, self_connection=False)
    y = conv(torch.randn(8, 32, 40), x, everyone(mask, mask, own=False))
    assert 0.3 < y.square().mean() < 3.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PointConv("1o", "0e", radius=1.0), "even labels only"),
        (lambda: PointConv("0e", "2e", radius=1.0, lmax=1), "nothing couples"),
        (lambda: PointConv("0e", "0e", radius=1.0, z=0.0), "z, the usual number"),
        (lambda: PointNet("0e", ["0e"], "0e"), "reach must be given"),
        (lambda: PointNet("0e", ["0e"], "0e", radius=1.0, neighbours=2), "give one"),
        (lambda: PointNet("0e", ["0e"], "0e", radius=1.0, pool="max"), "pool must be"),
    ],
)
def test_options_that_make_no_layer_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_clouds_that_are_none_are_refused():
    net = PointNet("0e", ["0e"], "0e", radius=1.0)
    with pytest.raises(ValueError, match="share their place"):
        net(torch.ones(1, 1, 3), torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]]))
    with pytest.raises(ValueError, match="2 or more points"):
        net(torch.ones(1, 1, 1), torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="x must be"):
        net(torch.ones(1, 2, 2), torch.randn(1, 2, 3) * 0.1)

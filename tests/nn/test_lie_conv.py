import pytest
import torch
from e3nn import o3

from eqdmri_monai.groups import SE2, SE3, SO2, SO3, Elements, ScaleRotation, T, Trivial
from eqdmri_monai.neighbours import knn
from eqdmri_monai.networks import LieResNet
from eqdmri_monai.nn.lie_conv import LieConv, MaskedBatchNorm, lie_distance, lie_pairs

GROUPS = [Trivial(2), T(2), T(2, axes=(1,)), SO2(), ScaleRotation(), SE2(), T(3), SO3(), SE3()]


def moved(group, elements):
    """Elements moved by one element of the group, away from the cut of the logarithm."""
    g = group.exp(0.3 * torch.randn(1, 1, group.size))
    return Elements(g @ elements.u, elements.orbit, elements.mask)


def setting(group, n=12, lifts=1):
    x = torch.randn(2, n, group.dim)
    mask = torch.arange(n) < torch.tensor([n, n - 4])[:, None]
    return x, torch.randn(2, 3, n), mask


def network(group, **options):
    net = LieResNet(group, 3, 2, **{"channels": 8, "blocks": 2, "neighbours": 5, "share": 0.5, **options})
    net.train()
    for _ in range(2):  # running statistics that are not those of a fresh layer
        x, f, mask = setting(group)
        net(f, x, mask)
    return net.eval()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_trick_gives_what_a_matrix_for_each_pair_gives(batch_norm, shared):
    group = SE2()
    x, f, mask = setting(group)
    x, mask = (x[:1], mask[:1]) if shared else (x, mask)
    e = group.lift(x, mask=mask)
    pairs = lie_pairs(group, e, e, knn(lie_distance(group, e, e, alpha=1.0), 4, mask=mask, centres=mask, own=True))
    conv = LieConv(3, 5, group, batch_norm=batch_norm)
    y = conv(f, pairs)
    matrices = torch.einsum("bmks,osc->bmkoc", conv.kernel(pairs), conv.out.weight.unflatten(1, (16, 3)))
    for b in range(2):
        p = 0 if shared else b
        for i in mask[p].nonzero().flatten().tolist():
            valid = pairs.mask[p, i]
            terms = [matrices[p, i, k] @ f[b, :, pairs.index[p, i, k]] for k in valid.nonzero().flatten().tolist()]
            torch.testing.assert_close(y[b, :, i], torch.stack(terms).mean(0) + conv.out.bias, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_network_is_invariant_under_its_group_given_the_lifts(group):
    net = network(group)
    x, f, mask = setting(group)
    elements = net.lift(x, mask)
    y = net.convolve(f, net.geometry(elements))
    turned = net.convolve(f, net.geometry(moved(group, elements)))
    torch.testing.assert_close(turned, y, atol=1e-10, rtol=0)
    assert y.abs().max() > 1e-3


@pytest.mark.parametrize("group", [T(2), T(2, axes=(1,)), SO2(), ScaleRotation(), T(3)], ids=str)
def test_a_network_of_a_single_valued_group_is_invariant_in_its_points(group):
    net = network(group)
    x, f, mask = setting(group)
    g = group.exp(0.3 * torch.randn(1, 1, group.size))
    torch.testing.assert_close(net(f, group.act(g, x), mask), net(f, x, mask), atol=1e-10, rtol=0)


@pytest.mark.parametrize("group", [g for g in GROUPS if g.single_valued], ids=str)
def test_neither_order_nor_padding_matters(group):
    net = network(group)
    x, f, mask = setting(group)
    y = net(f, x, mask)
    order = torch.randperm(x.shape[1])
    torch.testing.assert_close(net(f[:, :, order], x[:, order], mask[:, order]), y, atol=1e-10, rtol=0)
    alone = net(f[1:, :, mask[1]], x[1:, mask[1]])
    torch.testing.assert_close(alone, y[1:], atol=1e-10, rtol=0)


def test_a_network_of_no_group_is_not_invariant():
    net = network(Trivial(2))
    x, f, mask = setting(Trivial(2))
    assert (net(f, x + 0.5, mask) - net(f, x, mask)).abs().max() > 1e-5


@pytest.mark.parametrize("group", [SO3(), SE3()], ids=str)
def test_fresh_lifts_scatter_less_the_more_there_are(group):
    """Only statistical, for the groups with more than one lift a point; see the class's docstring."""
    x, f = torch.randn(1, 8, 3), torch.randn(1, 3, 8)
    spread = []
    for lifts in (1, 8):
        torch.manual_seed(0)
        net = LieResNet(group, 3, 2, channels=8, blocks=1, neighbours=None, lifts=lifts, batch_norm=False)
        drawn = torch.stack([net(f, x, generator=torch.Generator().manual_seed(i)) for i in range(40)])
        spread.append(drawn.std(0).mean() / drawn.mean(0).abs().mean())
    assert spread[1] < 0.6 * spread[0]


def test_evaluation_is_deterministic_and_training_is_not():
    net = LieResNet(SE3(), 3, 2, channels=8, blocks=1, neighbours=4, batch_norm=False)
    x, f = torch.randn(1, 8, 3), torch.randn(1, 3, 8)
    assert not torch.equal(net.train()(f, x), net(f, x))
    assert torch.equal(net.eval()(f, x), net(f, x))


def test_shared_points_give_what_copies_of_them_give():
    net = network(SO2())
    x, f, _ = setting(SO2())
    torch.testing.assert_close(net(f, x[:1]), net(f, x[:1].expand_as(x)), atol=1e-12, rtol=0)


def test_second_derivatives_with_respect_to_points_are_finite():
    """What a Hamiltonian network is trained by."""
    net = LieResNet(SO2(), 1, 1, channels=8, blocks=1, neighbours=None, batch_norm=False)
    x = torch.randn(1, 5, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: net(torch.ones(1, 1, 5), x).sum(), x)


def test_normalisation_leaves_padding_out():
    norm, torch_norm = MaskedBatchNorm(4), torch.nn.BatchNorm1d(4)
    x, mask = torch.randn(3, 7, 4), torch.rand(3, 7) < 0.6
    torch.testing.assert_close(norm(x, mask)[mask], torch_norm(x[mask]))
    torch.testing.assert_close(norm.eval()(x, mask)[mask], torch_norm.eval()(x[mask]))
    torch.testing.assert_close(norm.train()(x), torch_norm.train()(x.flatten(0, 1)).view_as(x))


def test_rotations_are_those_of_e3nn():
    R = o3.rand_matrix(5)
    torch.testing.assert_close(SO3().log(R).norm(dim=1), o3.matrix_to_axis_angle(R)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0.0}, "share must be"),
        ({"lifts": 2}, "lifts must be 1 for"),
        ({"blocks": 0}, "must be 1 or more"),
    ],
)
def test_options_that_make_no_network_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LieResNet(SO2(), 1, 1, **options)


def test_values_that_do_not_fit_the_points_are_refused():
    with pytest.raises(ValueError, match="x must be"):
        LieResNet(T(2), 1, 1)(torch.randn(1, 1, 5), torch.randn(1, 4, 2))
    with pytest.raises(ValueError, match="must be 1 or more"):
        LieConv(0, 1, T(2))

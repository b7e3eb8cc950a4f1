import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, Radial, p_space, pq_diff, q_space, tp_vec
from eqdmri_monai.networks import GradualPQNet, PlainCNN, PQNet
from eqdmri_monai.symmetry import cube_rotations, quarter_turns, random_scheme, turn_features, turn_grid

SMALL = {"irreps_p": ("4x0e+2x1e", "3x0e+1x1e+1x2e"), "kernel_size": 3, "radial": Radial(num_q=2)}
NETWORKS = [
    {},
    {"antipodal": False},
    {"bases": (tp_vec,), "irreps_out": "1x0e+1x1e+1x2e"},
    {"bases": (p_space, q_space), "radial": Radial("Gaussian", num_q=2)},
    {"irreps_pq": ("2x0e+1x1e", "2x0e+1x1e")},
    {"bases": (pq_diff, p_space)},
    {"bases": (FilterBasis("own", products=[(0, 1, 1), (1, 1, 2), (2, 2, 0)], lmax=2), DifferenceBasis(lmax=1))},
    {"radial": Radial("Gaussian+fc", num_q=2, learned=True), "reduction": "mean"},
    {"nonlinearity": "norm", "normalization": "instance"},
    {"nonlinearity": "squash", "normalization": "batch"},
    {"nonlinearity": "tensor product"},
]


def network(options) -> PQNet:
    return PQNet(**({"irreps_pq": ("3x0e+2x1e",)} | SMALL | options))


@pytest.mark.parametrize("options", NETWORKS)
def test_network_commutes_with_rotations_of_the_grid(options):
    net, q = network(options), random_scheme(4, 1.0, 1.4)
    image = torch.randn(1, len(q), 3, 4, 5)
    with torch.no_grad():
        logits = net(image, q)
        for R in cube_rotations() if not options else quarter_turns():
            turned = net(turn_grid(image, R), q @ R.T)
            torch.testing.assert_close(turned, turn_features(logits, R, net.irreps_out), rtol=0, atol=1e-9)


def test_a_network_of_vectors_and_tensors_commutes_with_quarter_turns():
    net, q = network({"irreps_in": "1x0e+1x1e+1x2e", "irreps_out": "1x1e+1x2e"}), random_scheme(4, 1.0)
    image = torch.randn(1, 9, len(q), 3, 4, 5)
    with torch.no_grad():
        logits = net(image, q)
        for R in quarter_turns():
            turned = net(turn_features(image, R, net.irreps_in), q @ R.T)
            torch.testing.assert_close(turned, turn_features(logits, R, net.irreps_out), rtol=0, atol=1e-9)


@pytest.mark.parametrize("antipodal", [True, False])
def test_gradual_network_commutes_with_quarter_turns(antipodal):
    net = GradualPQNet(
        ["3x0e+1x1e", "2x0e+1x1e"], [6, 4], "3x0e+2x1e", ["2x0e+1x1e"], kernel_size=3, num_q=(2, 2, 2),
        antipodal=antipodal,
    )  # fmt: skip
    q = random_scheme(8, 1.0)
    image = torch.randn(1, len(q), 4, 5, 6)
    with torch.no_grad():
        logits = net(image, q)
        for R in quarter_turns():
            torch.testing.assert_close(net(turn_grid(image, R), q @ R.T), turn_grid(logits, R), rtol=0, atol=1e-9)
    order = torch.randperm(len(q))
    torch.testing.assert_close(net(image[:, order], q[order]), logits, rtol=0, atol=1e-9)
    sign = torch.tensor([1.0, -1.0]).repeat(5)[: len(q), None]
    change = (net(image, sign * q) - logits).abs().max()
    assert change < 1e-9 if antipodal else change > 1e-3  # in the paper's form the sign matters


def test_voxels_turned_without_q_give_another_answer():
    net, q = network({}), random_scheme(5, 1.0)
    image = torch.randn(1, len(q), 5, 5, 5)
    R = cube_rotations()[5]
    assert (net(turn_grid(image, R), q) - turn_grid(net(image, q), R)).abs().max() > 0.01


def test_the_plain_network_is_not_equivariant():
    """The control: this test's rotations are seen by a network that is not made for them."""
    net, q = PlainCNN([6, 4, 1], kernel_size=3), random_scheme(5, 1.0)
    image = torch.randn(1, 6, 5, 5, 5)
    errors = [(net(turn_grid(image, R), q @ R.T) - turn_grid(net(image, q), R)).abs().max() for R in cube_rotations()]
    assert min(sorted(errors)[1:]) > 0.01


@pytest.mark.parametrize("options", NETWORKS)
def test_order_of_volumes_does_not_matter(options):
    net, q = network(options), random_scheme(5, 1.0, 1.4)
    image, order = torch.randn(1, len(q), 4, 4, 4), torch.randperm(len(q))
    torch.testing.assert_close(net(image[:, order], q[order]), net(image, q), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [NETWORKS[0], *NETWORKS[2:]])
def test_the_sign_of_a_gradient_does_not_matter(options):
    net, q = network(options), random_scheme(5, 1.0, 1.4)
    image, sign = torch.randn(1, len(q), 4, 4, 4), torch.randint(0, 2, (len(q), 1)) * 2.0 - 1
    torch.testing.assert_close(net(image, sign * q), net(image, q), rtol=0, atol=1e-9)


def test_the_sign_matters_in_the_papers_form():
    net, q = network({"antipodal": False}), random_scheme(5, 1.0)
    image = torch.randn(1, len(q), 4, 4, 4)
    q_flipped = torch.cat([q[:2], -q[2:]])
    assert (net(image, q_flipped) - net(image, q)).abs().max() > 1e-3


def test_network_commutes_with_translation_away_from_the_edge():
    net, q = network({}), random_scheme(5, 1.0)
    image = torch.zeros(1, len(q), 16, 16, 16)
    image[..., 6:9, 6:9, 6:9] = torch.randn(1, len(q), 3, 3, 3)
    shifted = torch.roll(image, (2, -1, 1), dims=(2, 3, 4))
    inner = (..., *3 * [slice(5, 11)])
    expected = torch.roll(net(image, q), (2, -1, 1), dims=(2, 3, 4))
    torch.testing.assert_close(net(shifted, q)[inner], expected[inner], rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [NETWORKS[0], NETWORKS[4], NETWORKS[5]])
@pytest.mark.parametrize("shells", [(6, 1.0), (20, 1.4), (4, 0.8, 1.2, 1.7)])
@pytest.mark.parametrize("b0", [0, 1])
def test_a_scan_of_any_scheme_measured_twice_gives_the_same_map(options, shells, b0):
    net, q = network(options), random_scheme(*shells)[1 - b0 :]
    image = torch.randn(2, len(q), 3, 4, 3)
    with torch.no_grad():
        once, twice = net(image, q), net(torch.cat([image, image], 1), torch.cat([q, q]))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [lambda: network({}), lambda: GradualPQNet(["2x0e+1x1e"], [5])])
def test_noise_in_b_changes_little_and_no_size(make):
    net, q = make(), random_scheme(8, 1.0)
    image = torch.randn(1, len(q), 4, 4, 4)
    noisy = q * (1 + 0.002 * torch.randn(len(q), 1))
    torch.testing.assert_close(net(image, noisy), net(image, q), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"irreps_pq": ("2x0e+1x1e", "2x0e+1x1e"), "dropout": 0.3},
        {"nonlinearity": "tensor product", "radial": Radial(num_q=2, learned=True), "antipodal": False},
        {"nonlinearity": "norm", "bases": [pq_diff, p_space]},
    ],
)
def test_chunks_and_recomputation_change_nothing(options):
    net, q = network(options), random_scheme(7, 1.0, 1.4)
    image = torch.randn(1, len(q), 4, 4, 4)
    results = []
    for chunk, recompute in ((1, False), (100, False), (3, True)):
        torch.manual_seed(0)  # of the dropout
        net.chunk, net.recompute, net.p_layers.recompute = chunk, recompute, recompute
        loss = net(image, q).square().sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("directions", [6, 30, 90])
def test_features_keep_their_size_through_every_layer(directions):
    """White noise in; the mean over seeds of each layer's RMS, at initialisation."""
    torch.set_default_dtype(torch.float32)
    sizes = []
    for seed in range(6):
        torch.manual_seed(seed)
        net, q = PQNet(), random_scheme(directions, 1.0)
        image, rms = torch.randn(1, len(q), 12, 12, 12), []
        hook = lambda *args: rms.append(args[-1].detach().square().mean().sqrt())  # noqa: B023, E731
        for module in (*net.pq_convs, *net.pq_nonlinearities, net.pool, *net.p_layers):
            module.register_forward_hook(hook)
        with torch.no_grad():
            x = net.pq_nonlinearities[0](net.pq_convs[0](image[:, None], q))
            net.p_layers(net.pool(x, q))
        sizes.append(torch.stack(rms))
    mean = torch.stack(sizes).mean(0)
    assert mean.min() > 0.3, mean
    assert mean.max() < 3.0, mean


def test_recomputation_keeps_fewer_numbers_for_the_backward_pass():
    q = random_scheme(20, 1.0)
    image, kept = torch.randn(1, len(q), 6, 6, 6), []
    for recompute in (False, True):
        net, numbers = network({"recompute": recompute}), [0]

        def count(x: torch.Tensor, numbers=numbers) -> torch.Tensor:
            numbers[0] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            net(image, q)
        kept.append(numbers[0])
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_metadata_of_a_scan_reaches_the_logits(recompute):
    net, q = network({"recompute": recompute}), random_scheme(7, 1.0)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    image = torch.randn(1, len(q), 4, 4, 4)
    logits = net(MetaTensor(image, affine=affine), q)
    torch.testing.assert_close(logits.affine.float(), affine.float())
    logits.sum().backward()
    gradient = net.p_layers[0].bias.grad.clone()
    net.zero_grad()
    net(image, q).sum().backward()
    torch.testing.assert_close(gradient, net.p_layers[0].bias.grad)


def test_q_vectors_may_be_monais_tensors():
    net, q = network({}), random_scheme(5, 1.0)
    image = torch.randn(1, 6, 8, 8, 8)
    torch.testing.assert_close(net(image, MetaTensor(q)).as_tensor(), net(image, q))


def test_with_recomputation_only_the_input_grows_with_the_number_of_volumes():
    def saved(net: PQNet, directions: int) -> tuple[int, int]:
        """Numbers kept for the backward pass, each piece of memory counted once, and numbers of the image."""
        q, kept = random_scheme(directions, 1.0), {}
        image = torch.randn(1, len(q), 8, 8, 8)

        def keep(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net(image, q)
        return sum(s.nbytes() for s in kept.values()) // image.element_size(), image.numel()

    for recompute in (True, False):
        net = network({"recompute": recompute})
        (few, image), (many, three_images) = saved(net, 7), saved(net, 23)
        growth = (many - few) / (three_images - image)
        assert growth < 1.05 if recompute else growth > 3, growth  # a volume has its q-vector too, 11 numbers in all


def test_gradual_options_must_fit():
    with pytest.raises(ValueError, match="must have 1 and 2 entries for 1 pq layers, got 2 and 2"):
        GradualPQNet(["2x0e"], [7, 3])
    with pytest.raises(ValueError, match="q_counts asks for 7 q-vectors but the scan has 5"):
        GradualPQNet(["2x0e"], [7], "2x0e", [], kernel_size=3)(torch.zeros(1, 5, 3, 3, 3), random_scheme(4, 1.0))
    with pytest.raises(ValueError, match="irreps_reduction must have even labels"):
        GradualPQNet(["2x0e"], [5], "2x0o")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"irreps_pq": ()}, "irreps_pq must name"),
        ({"reduction": "max"}, 'reduction must be "length" or "mean"'),
        ({"nonlinearity": "relu"}, "nonlinearity must be"),
        ({"normalization": "layer"}, "normalization must be"),
        ({"irreps_in": "1x1o"}, "irreps_in must have even labels"),
        ({"irreps_pq": ["2x0o"]}, "irreps_pq must have even labels"),
        ({"irreps_p": ["2x0e", "1x1o"]}, "irreps_p must have even labels"),
        ({"irreps_pq": "2x0e"}, r'irreps_pq must be a list of one type for each layer, such as \["2x0e"\]'),
        ({"bases": ()}, "at least one filter basis"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        network(options)


def test_an_ordinary_network_with_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd, so that the output is as large as the image, got 4"):
        PlainCNN([6, 4, 1], kernel_size=4)


def test_the_state_dict_holds_parameters_alone():
    net = PQNet()
    assert net.state_dict().keys() == dict(net.named_parameters()).keys()


def test_a_configured_scheme_stands_in_for_a_missing_one():
    q = random_scheme(6, 1.0)
    net = network({"q": q.tolist()})
    image = torch.randn(1, len(q), 4, 4, 4)
    torch.testing.assert_close(net(image), net(image, q))


@pytest.mark.parametrize(
    ("image", "q", "words"),
    [
        (torch.zeros(1, 7, 4, 4, 4), None, "needs the q-vectors of this scan"),
        (torch.zeros(1, 7, 4, 4, 4), torch.zeros(6, 3), "the image has 7 volumes"),
        (torch.zeros(7, 4, 4, 4), torch.zeros(7, 3), "image must be"),
        (torch.zeros(2, 7, 4, 4, 4), torch.arange(42.0).reshape(2, 7, 3), "same q-vectors"),
    ],
)
def test_calls_that_cannot_be_right_are_refused(image, q, words):
    with pytest.raises(ValueError, match=words):
        network({})(image, q)

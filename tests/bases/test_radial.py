import pytest
import torch

from eqdmri_monai.bases import Cosine, Gaussian, RadialNetwork, radial_basis


def test_cosine_bumps_are_one_at_their_centre_and_zero_a_step_away():
    values = Cosine(3, 2.0)(torch.tensor([0.0, 1.0, 2.0, 3.0, 3.4]))
    torch.testing.assert_close(values[:3], torch.eye(3), rtol=0, atol=1e-12)
    torch.testing.assert_close(values[3:], torch.zeros(2, 3), rtol=0, atol=1e-12)


def test_neighbouring_cosine_bumps_sum_to_one():
    torch.testing.assert_close(Cosine(5, 2.0)(torch.linspace(0, 2, 50)).sum(-1), torch.ones(50))


def test_gaussian_bumps_follow_their_formula():
    x, basis = torch.rand(10) * 2, Gaussian(3, 2.0)
    expected = torch.stack([torch.exp(-((x - mu) ** 2) / (2 * (0.8 / 2**0.5) ** 2)) for mu in (0.0, 1.0, 2.0)], -1)
    torch.testing.assert_close(basis(x), expected)


def test_the_network_is_zero_beyond_the_reach_of_its_basis():
    assert RadialNetwork(Cosine(3, 2.0))(torch.tensor([3.5])).abs().max() == 0


def test_the_network_has_the_papers_parameters():
    assert sum(p.numel() for p in radial_basis("cosine+fc", 3, 2.0).parameters()) == 5150


@pytest.mark.parametrize("kind", [Cosine, Gaussian])
def test_learned_bumps_start_as_the_fixed_ones_and_have_gradients(kind):
    x = 2.5 * torch.rand(20)
    fixed, learned = kind(3, 2.0), kind(3, 2.0, learned=True)
    torch.testing.assert_close(fixed(x), learned(x), rtol=0, atol=0)
    assert not fixed.state_dict()
    assert {name: p.shape for name, p in learned.named_parameters()} == {"centers": (3,), "width": ()}
    assert torch.autograd.gradcheck(
        lambda centers, width: torch.func.functional_call(learned, {"centers": centers, "width": width}, (x,)),
        tuple(learned.parameters()),
    )


def test_one_bump_is_centred_at_zero():
    assert Gaussian(1, 2.0)(torch.zeros(1)).item() == Cosine(1, 2.0)(torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize("kind", [Cosine, Gaussian])
@pytest.mark.parametrize(
    ("num", "end", "words"),
    [
        (0, 1.0, "num must ask for at least 1 function"),
        (3, 0.0, "end, .* must be positive, got 0"),
        (3, float("nan"), "got nan"),
    ],
)
def test_bumps_without_a_number_or_a_reach_are_refused(kind, num, end, words):
    with pytest.raises(ValueError, match=words):
        kind(num, end)


@pytest.mark.parametrize("widths", [(), (50, 0)])
def test_a_network_without_neurons_is_refused(widths):
    with pytest.raises(ValueError, match="widths must be one or more positive numbers of neurons"):
        RadialNetwork(Cosine(3, 2.0), widths)


@pytest.mark.parametrize("name", ["sine", "cosine+mlp", "gaussian", None])
def test_unknown_radial_bases_are_refused(name):
    with pytest.raises(ValueError, match="name: a radial basis must be cosine, cosine"):
        radial_basis(name, 3, 1.0)

import pytest
import torch

from eqdmri_monai.bases import Cosine, Gaussian, Radial, RadialNetwork


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
    assert sum(p.numel() for p in Radial("cosine+fc", num_p=3).over_p(2.0).parameters()) == 5150


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
@pytest.mark.parametrize(("num", "end"), [(0, 1.0), (3, 0.0), (3, float("nan"))])
def test_bumps_without_a_number_or_a_reach_are_refused(kind, num, end):
    with pytest.raises(ValueError, match="radial functions must be 1 or more, their last centre positive, got num="):
        kind(num, end)


def test_a_radial_says_how_many_functions_of_each_length_there_are():
    radial = Radial("cosine", num_p=4, num_q=3, num_reduction=5)
    assert [r.num for r in (radial.over_p(2.0), radial.over_q_in(), radial.over_q_out(), radial.over_reduction())] == [
        4, 3, 3, 5,
    ]  # fmt: skip
    assert Radial(num_q=3, num_q_out=1).over_q_out().num == 1
    assert Radial("Gaussian+fc").over_p(2.0).num == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": "sine"}, "radial p must be cosine, cosine.fc, Gaussian or Gaussian.fc, got 'sine'"),
        ({"p": "cosine+mlp"}, "radial p must be"),
        ({"num_p": 0}, "num_p must ask for at least 1 radial function, got 0"),
        ({"num_q_out": -1}, "num_q_out must ask for at least 1"),
        ({"q_max": 0.0}, "q_max, .* must be positive, got 0"),
    ],
)
def test_a_radial_that_cannot_be_right_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Radial(**options)

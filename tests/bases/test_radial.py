import pytest
import torch

from eqdmri_monai.bases import Cosine, Gaussian, RadialNetwork
from eqdmri_monai.bases.radial import radial_basis


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


def test_a_negative_end_is_refused():
    with pytest.raises(ValueError, match="must be positive, got -1"):
        radial_basis("cosine", 3, -1.0)


@pytest.mark.parametrize(
    ("name", "num", "words"),
    [("sine", 3, "must be cosine"), ("cosine+mlp", 3, "must be cosine"), ("cosine", 0, "at least 1")],
)
def test_unknown_radial_bases_are_refused(name, num, words):
    with pytest.raises(ValueError, match=words):
        radial_basis(name, num, 1.0)

import pytest
import torch
from e3nn import o3

from eqdmri_monai.bases.angular import coupling, degree_slice, harmonics, triangle


def test_harmonics_turn_with_their_argument():
    v, R = torch.randn(20, 3), o3.rand_matrix()
    D = o3.Irreps.spherical_harmonics(4, p=1).D_from_matrix(R)
    torch.testing.assert_close(harmonics(4, v @ R.T), harmonics(4, v) @ D.T, rtol=0, atol=1e-9)


def test_degree_one_is_the_direction_itself():
    v = torch.randn(5, 3)
    torch.testing.assert_close(harmonics(1, v)[:, degree_slice(1)], 3**0.5 * v / v.norm(dim=1, keepdim=True))


def test_harmonics_of_zero_are_zero_but_for_degree_zero():
    assert harmonics(3, torch.zeros(3)).tolist() == [1.0] + 15 * [0.0]


def test_rounding_noise_is_no_direction():
    assert torch.equal(harmonics(2, torch.tensor([1e-6, 0, 0])), harmonics(2, torch.zeros(3)))


@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (1, 1), (1, 2), (2, 3)])
def test_couplings_are_equivariant_and_keep_variance(l1, l2):
    R = o3.rand_matrix()
    D = [o3.Irrep(l, 1).D_from_matrix(R) for l in (l1, l2)]
    x, y = torch.randn(2 * l1 + 1), torch.randn(2 * l2 + 1)
    for l in triangle(l1, l2):
        C = coupling(l1, l2, l)
        turned = torch.einsum("oij,i,j->o", C, D[0] @ x, D[1] @ y)
        expected = o3.Irrep(l, 1).D_from_matrix(R) @ torch.einsum("oij,i,j->o", C, x, y)
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(C.square().sum((1, 2)), torch.ones(2 * l + 1))

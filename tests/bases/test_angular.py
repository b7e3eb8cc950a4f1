import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.special import sph_harm_y
from sympy.physics.wigner import wigner_3j

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


def test_harmonics_agree_with_scipy():
    """Ours have y as polar axis, z and x in the plane across it, no Condon-Shortley phase, and mean square 1."""
    v = torch.nn.functional.normalize(torch.randn(30, 3), dim=1)
    x, y, z = v.T.numpy()
    polar, azimuth = np.arccos(y), np.arctan2(x, z)
    for l in range(5):
        for m in range(-l, l + 1):
            value = (-1) ** m * sph_harm_y(l, abs(m), polar, azimuth) * (4 * np.pi) ** 0.5 * (2 if m else 1) ** 0.5
            expected = torch.as_tensor(value.imag if m < 0 else value.real)
            torch.testing.assert_close(harmonics(4, v)[:, l**2 + l + m], expected, rtol=0, atol=1e-12)


def to_complex(l: int) -> np.ndarray:
    """Real harmonics as combinations of complex ones: rows are real, columns complex, m from -l to l."""
    U = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    U[l, l] = 1
    for m in range(1, l + 1):
        U[l + m, l + m], U[l + m, l - m] = (-1) ** m / 2**0.5, 1 / 2**0.5
        U[l - m, l + m], U[l - m, l - m] = (-1) ** m / (1j * 2**0.5), -1 / (1j * 2**0.5)
    return U


@pytest.mark.parametrize(
    ("l1", "l2", "l3"), [(0, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2), (1, 2, 3)]
)
def test_couplings_agree_with_sympy(l1, l2, l3):
    """Up to one sign for each triple of degrees, and i where their sum is odd."""
    symbols = np.array(
        [
            [[float(wigner_3j(l1, l2, l3, a, b, c)) for c in range(-l3, l3 + 1)] for b in range(-l2, l2 + 1)]
            for a in range(-l1, l1 + 1)
        ]
    )
    U = [to_complex(l).conj() for l in (l1, l2, l3)]
    real = np.einsum("abc,xa,yb,zc->xyz", symbols, *U)
    real = torch.as_tensor(real.imag if (l1 + l2 + l3) % 2 else real.real)
    ours = coupling(l1, l2, l3).permute(1, 2, 0) / (2 * l3 + 1) ** 0.5
    sign = torch.sign((real * ours).sum())
    torch.testing.assert_close(ours, sign * real, rtol=0, atol=1e-12)

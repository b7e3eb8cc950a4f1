import torch
from e3nn import o3

from eqdmri_monai.nn import QLengthPool, QMean
from eqdmri_monai.symmetry import random_scheme


def test_pool_is_a_weighted_mean_over_each_shell():
    pool, q = QLengthPool("2x0e+1x1e"), random_scheme(4, 1.0)
    x = torch.randn(2, 5, 5, 2, 2, 2)
    by_length = [
        (pool.radial(torch.tensor(length)) @ pool.weight).repeat_interleave(pool.repeats) for length in (0.0, 1.0)
    ]
    expected = torch.einsum("i,bixyz->bixyz", by_length[0], x[:, :, 0])
    expected = expected + torch.einsum("i,bixyz->bixyz", by_length[1], x[:, :, 1:].mean(2))
    torch.testing.assert_close(pool(x, q), expected)


def test_pool_passes_any_irreps_unchanged():
    pool, q, R = QLengthPool("1x0e+2x1e+1x2e"), random_scheme(4, 1.0, 1.5), o3.rand_matrix()
    D, x = pool.irreps_in.D_from_matrix(R), torch.randn(1, 12, 9, 2, 2, 2)
    turned = pool(torch.einsum("ij,bj...->bi...", D, x), q @ R.T)
    torch.testing.assert_close(turned, torch.einsum("ij,bj...->bi...", D, pool(x, q)), rtol=0, atol=1e-9)


def test_pool_takes_the_mean_of_plus_and_minus_q():
    pool, q = QLengthPool("2x0e"), random_scheme(4, 1.0)
    plus, minus = torch.randn(2, 1, 2, 5, 2, 2, 2)
    torch.testing.assert_close(pool(torch.cat([plus, minus], 2), q), pool(0.5 * (plus + minus), q))


def test_the_plain_mean_is_the_mean():
    q, x = random_scheme(4, 1.0, 1.5), torch.randn(2, 5, 18, 2, 3, 2)
    torch.testing.assert_close(QMean()(x, q), x.mean(2))
    torch.testing.assert_close(QMean()(x[:, :, :9], q), x[:, :, :9].mean(2))

import numpy as np
import pytest
import torch
from scipy import ndimage

from eqdmri_monai.nn.scale_space import blur, blur_within, filtered, gradient, hessian, kernel


def test_it_blurs_as_scipy_does():
    x, sigma = torch.randn(1, 1, 12, 11, 10), [1.0, 1.5, 0.75]
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode="constant")
    torch.testing.assert_close(blur(x, sigma)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-12)
    for order in ((1, 0, 0), (0, 1, 0), (0, 0, 2)):
        expected = ndimage.gaussian_filter(x[0, 0].numpy(), 3.0, order=order, mode="nearest") * 3.0 ** sum(order)
        found = filtered(x, [3.0] * 3, order, border=True)[0, 0].numpy()
        assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()  # ours are exact on polynomials


def test_derivatives_of_polynomials_are_exact():
    x, y, z = torch.meshgrid(*(torch.arange(40.0) - 20,) * 3, indexing="ij")
    sigma = [1.2, 2.0, 1.0]
    field = (3 * x - 2 * y + z)[None, None]
    inner = (0, 0, slice(None), 20, 20, 20)
    torch.testing.assert_close(gradient(field, sigma)[inner], torch.tensor([3 * 1.2, -2 * 2.0, 1.0]))
    field = (x * x + 3 * x * y - 2 * z * z + y * z)[None, None]
    expected = torch.tensor([2 * 1.2**2, 3 * 1.2 * 2.0, 0, 0, 2.0 * 1.0, -4])
    torch.testing.assert_close(hessian(field, sigma)[inner], expected, rtol=0, atol=1e-9)


def test_voxels_of_no_weight_do_not_count():
    x, weight = torch.randn(1, 2, 8, 9, 7), torch.rand(1, 1, 8, 9, 7).round()
    a = blur_within(x, weight, [1.0] * 3)
    b = blur_within(torch.where(weight > 0, x, 1e3), weight, [1.0] * 3)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(blur_within(torch.ones_like(x), weight, [1.0] * 3), torch.ones_like(x))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_kernel_is_even_or_odd(order):
    taps = kernel(1.3, order)
    torch.testing.assert_close(taps.flip(0), taps * (-1) ** order)

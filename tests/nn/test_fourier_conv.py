import pytest
import torch
from monai.data import MetaTensor
from torch.utils.flop_counter import FlopCounterMode

from eqdmri_monai.nn import fourier_conv as module
from eqdmri_monai.nn.fourier_conv import fourier_conv, is_faster, spectrum, transform

SHAPES = [(7, 6, 5), (6, 7, 9), (5, 5, 1), (1, 2, 3)]


def fourier(x: torch.Tensor, weight: torch.Tensor, *, shared: bool = False) -> torch.Tensor:
    t = transform(*x.shape[2:4], weight.shape[-1], x.dtype, x.device)
    return fourier_conv(x, spectrum(weight, t) if shared else weight, t, weight.shape[-1] // 2)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_conv3d(shape, kernel_size, shared):
    x = torch.randn(3, 4, *shape, requires_grad=True)
    weight = torch.randn(2, 4, *3 * (kernel_size,), requires_grad=True)
    ours, theirs = fourier(x, weight, shared=shared), torch.nn.functional.conv3d(x, weight, padding=kernel_size // 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    upstream = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_blocks_change_nothing(monkeypatch):
    x, weight = torch.randn(3, 2, 5, 6, 7, requires_grad=True), torch.randn(4, 2, 5, 5, 5, requires_grad=True)
    results = []
    for block, slices in ((2**22, 32), (1, 3)):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "SLICES", slices)
        y = fourier(x, weight)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)


def test_the_gradient_of_an_image_is_not_computed():
    weight, cost = torch.randn(4, 2, 3, 3, 3, requires_grad=True), []
    for wanted in (True, False):
        y = fourier(torch.randn(1, 2, 5, 6, 7, requires_grad=wanted), weight)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        cost.append(counter.get_total_flops())
    assert cost[1] < 0.7 * cost[0]


def test_metadata_stays_as_in_conv3d():
    x, weight = torch.randn(1, 2, 5, 6, 7), torch.randn(4, 2, 3, 3, 3, requires_grad=True)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    y = fourier(MetaTensor(x, affine=affine), weight)
    assert isinstance(y, MetaTensor)
    torch.testing.assert_close(y.affine, affine)
    torch.testing.assert_close(y.as_tensor(), fourier(x, weight))
    y.sum().backward()
    assert type(weight.grad) is torch.Tensor


def test_the_faster_way_is_chosen_by_counting():
    assert is_faster(torch.empty(23, 8, 5, 5, 5), torch.Size((24, 24, 24)))
    assert not is_faster(torch.empty(23, 8, 1, 1, 1), torch.Size((24, 24, 24)))
    assert not is_faster(torch.empty(1, 1, 3, 3, 3), torch.Size((90, 90, 24)))  # transforms cost more than they save
    assert not is_faster(torch.empty(23, 8, 5, 5, 5, device="meta"), torch.Size((24, 24, 24)))
    assert not is_faster(torch.empty(23, 8, 5, 5, 5, dtype=torch.bfloat16), torch.Size((24, 24, 24)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_faster(torch.empty(23, 8, 5, 5, 5), torch.Size((24, 24, 24)))

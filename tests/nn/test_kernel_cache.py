import pytest
import torch

from eqdmri_monai.nn import PConv, PQConv
from eqdmri_monai.nn.kernel_cache import KernelCache
from eqdmri_monai.symmetry import random_scheme


def test_kernels_are_built_once_without_gradients_and_each_time_with_them():
    conv, built = PConv("1x0e", "1x0e", kernel_size=3), []
    conv.filters.radial_p.register_forward_hook(lambda *args: built.append(1))
    x = torch.randn(1, 1, 4, 4, 4)
    with torch.no_grad():
        conv(x), conv(x)
    assert len(built) == 1
    conv(x), conv(x)
    assert len(built) == 3


@pytest.mark.parametrize("change", ["step", "load", "assign", "float"])
def test_a_changed_weight_gives_another_kernel(change):
    conv, x = PConv("1x0e", "2x0e", kernel_size=3), torch.randn(1, 1, 4, 4, 4)
    with torch.no_grad():
        before = conv(x)
    if change == "step":
        conv(x).sum().backward()
        torch.optim.SGD(conv.parameters(), lr=1.0).step()
    elif change == "float":
        conv, x = conv.float(), x.float()
    else:
        other = PConv("1x0e", "2x0e", kernel_size=3).state_dict()
        conv.load_state_dict(other, assign=change == "assign")
    with torch.no_grad():
        after = conv(x)
    torch.testing.assert_close(after, conv(x).detach(), rtol=0, atol=0)
    assert not torch.equal(after.double(), before)


def test_another_scheme_gives_other_kernels():
    conv, q, other = PQConv("1x0e", "1x0e", kernel_size=3), random_scheme(6, 1.0), random_scheme(6, 1.4)
    x = torch.randn(1, 1, 7, 3, 3, 3)
    with torch.no_grad():
        for scheme_now in (q, other, q):
            torch.testing.assert_close(conv(x, scheme_now), conv(x, scheme_now.clone()), rtol=0, atol=0)
            with torch.enable_grad():
                expected = conv(x, scheme_now).detach()
            torch.testing.assert_close(conv(x, scheme_now), expected, rtol=0, atol=0)


def test_keys_are_compared_by_value():
    cache, module, key = KernelCache(), torch.nn.Linear(2, 2), torch.zeros(3)
    with torch.no_grad():
        assert cache(module, (key,), lambda: 1) == cache(module, (torch.zeros(3),), lambda: 2) == 1
        key += 1
        assert cache(module, (key,), lambda: 3) == 3

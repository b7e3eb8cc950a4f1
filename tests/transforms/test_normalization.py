import pytest
import torch
from monai.data import MetaTensor
from scans import image_from, table_from

from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.transforms import LogSignald, NormalizeChannelsd, NormalizeShellsd


def test_each_shell_gets_mean_zero_and_deviation_one_in_the_brain():
    q = random_scheme(6, 1.0, 1.5)
    x, mask = 10 * image_from(q), torch.zeros(1, 6, 6, 6)
    mask[:, 1:5] = 1
    out = NormalizeShellsd("image")({"image": x, "brain_mask": mask})["image"].as_tensor()
    for volumes in (slice(0, 1), slice(1, 7), slice(7, 13)):
        values = out[volumes][:, mask[0] > 0]
        assert abs(values.mean()) < 1e-5
        assert abs(values.std(correction=0) - 1) < 1e-5
    assert out[:, mask[0] == 0].abs().max() == 0


def test_normalisation_does_not_depend_on_order_or_sign_of_gradients():
    q, mask = random_scheme(6, 1.0, 1.5), torch.ones(1, 6, 6, 6)
    x, order = image_from(q), torch.randperm(13)
    shuffled = MetaTensor(x.as_tensor()[order], meta={"gradients": table_from(-q[order]).rows.numpy()})
    a, b = (NormalizeShellsd("image")({"image": i, "brain_mask": mask})["image"].as_tensor() for i in (x, shuffled))
    torch.testing.assert_close(b, a[order])


def test_a_constant_shell_is_refused():
    x = image_from(random_scheme(6, 1.0))
    x[1:] = 1.0
    with pytest.raises(ValueError, match="constant inside the brain"):
        NormalizeShellsd("image")({"image": x, "brain_mask": torch.ones(1, 6, 6, 6)})


def test_channel_means_give_the_papers_normalisation():
    x = image_from(random_scheme(6, 1.0))
    means = 1.0 + torch.arange(7)
    out = NormalizeChannelsd("image", means.tolist())({"image": x})["image"].as_tensor()
    scaled = x.as_tensor() / means.float()[:, None, None, None]
    torch.testing.assert_close(out, scaled / scaled.mean())
    with pytest.raises(ValueError, match="7 volumes but 6 channel means"):
        NormalizeChannelsd("image", means[:6].tolist())({"image": x})
    with pytest.raises(ValueError, match="mean intensity is 0"):
        NormalizeChannelsd("image", means.tolist())({"image": 0 * x})


def test_the_logarithm_of_the_signal_does_not_depend_on_its_unit():
    x, mask = image_from(random_scheme(6, 1.0)), torch.ones(1, 6, 6, 6)
    x[3, 2, 2, 2] = 0.0
    a, b = (LogSignald("image")({"image": k * x, "brain_mask": mask})["image"].as_tensor() for k in (1.0, 300.0))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert a[3, 2, 2, 2] == a.min()
    torch.testing.assert_close(a.min().double(), torch.tensor(LogSignald.LOWEST).log(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the b0 is 0 on average inside the brain"):
        LogSignald("image")({"image": 0 * x, "brain_mask": mask})

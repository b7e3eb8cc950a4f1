from math import exp

import pytest
import torch
from scans import image_from

from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.transforms import RandLogNoised
from eqdmri_monai.transforms.scan import table_of, with_volumes


def scan(level: float, size: int = 20):
    """Logarithms of an even signal, 0 in one slice of the array."""
    image = image_from(random_scheme(6, 1.0))
    log_signal = torch.full((7, size, size, size), level)
    log_signal[:, 0] = 0
    return with_volumes(image, log_signal, table_of(image))


@pytest.mark.parametrize("level", [-0.5, -6.0])
def test_noise_is_rician_and_stays_in_the_brain(level):
    image = scan(level)
    noisy = RandLogNoised("image", 1.0, least=0.05, most=0.05, widest=0.0).set_random_state(0)({"image": image})[
        "image"
    ]
    signal = noisy[:, 1:].exp().as_tensor()
    assert float(signal.square().mean()) == pytest.approx(exp(2 * level) + 2 * 0.05**2, rel=0.01)
    if level > -1:  # far above the noise it is almost Gaussian
        assert float(signal.std()) == pytest.approx(0.05, rel=0.02)
    assert noisy[:, 0].abs().max() == 0
    torch.testing.assert_close(table_of(noisy).rows, table_of(image).rows)


def test_neighbours_share_noise_that_is_blurred():
    image = scan(-0.5)
    alike = []
    for widest in (0.0, 3.0):
        noise = (
            RandLogNoised("image", 1.0, widest=widest).set_random_state(1)({"image": image})["image"][:, 1:].as_tensor()
        )
        noise = noise - noise.mean()
        along = [(noise.narrow(a, 1, 18) * noise.narrow(a, 0, 18)).mean() / noise.square().mean() for a in (1, 2, 3)]
        alike.append(float(sum(along)) / 3)
    assert abs(alike[0]) < 0.02
    assert alike[1] > 0.1


def test_some_scans_stay_as_they_are_and_a_seed_gives_the_same_noise():
    image = scan(-0.5, 4)
    rare, often = RandLogNoised("image", 0.0), RandLogNoised("image", 1.0)
    assert torch.equal(rare({"image": image})["image"].as_tensor(), image.as_tensor())
    a, b = (often.set_random_state(3)({"image": image})["image"].as_tensor() for _ in range(2))
    assert torch.equal(a, b)

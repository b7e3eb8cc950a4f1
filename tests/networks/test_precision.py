"""How far single precision and bfloat16 may lie from double precision: the one place that says so."""

import pytest
import torch

from eqdmri_monai.networks import GradualPQNet, PQNet
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid

# Relative RMS error of logits and of gradients; seen over 6 seeds: 1e-6 and 1e-6, 0.023 and 0.038.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (0.05, 0.1)}


def gradual() -> GradualPQNet:
    return GradualPQNet(["5x0e+3x1e"], [7], "10x0e+4x1e", ["5x0e+2x1e"])


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()


def logits_and_gradients(network, image, q, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = network(image, q)
    gradients = torch.autograd.grad(logits.to(image).square().mean(), list(network.parameters()))
    return logits.detach().double(), torch.cat([g.flatten() for g in gradients]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [PQNet, lambda: PQNet(antipodal=False), gradual])
def test_lower_precision_stays_within_its_tolerance(make, dtype):
    network, q = make(), random_scheme(20, 1.0)
    image = torch.randn(1, len(q), 10, 10, 10)
    exact = logits_and_gradients(network, image, q, torch.float64)
    values = logits_and_gradients(network.float(), image.float(), q.float(), dtype)
    for value, expected, tolerance in zip(values, exact, TOLERANCE[dtype], strict=True):
        assert error(value, expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quarter_turns_commute_within_the_same_tolerance(dtype):
    torch.set_default_dtype(torch.float32)
    network, q = PQNet(), random_scheme(12, 1.0)
    image, R = torch.randn(1, len(q), 8, 9, 10), cube_rotations()[7].float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits, turned = network(image, q).float(), network(turn_grid(image, R), q @ R.T).float()
    assert error(turned, turn_grid(logits, R)) < TOLERANCE[dtype][0]

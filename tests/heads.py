"""A small head without a scanner: a ball of tissue with a core of water, on a cubic grid about the origin."""

import numpy as np

from eqdmri_monai.simulate.head import Head


def ball(size: int = 17, spacing: float = 6.0, seed: int = 0) -> Head:
    """Return a head whose tensors are smooth and random, mean diffusivity about 0.8e-3 mm²/s."""
    rng = np.random.default_rng(seed)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (size - 1) / 2
    ijk = np.stack(np.mgrid[tuple(3 * [slice(size)])], axis=-1)
    world = ijk @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm(world, axis=-1)
    brain = radius < 0.4 * size * spacing
    direction = np.cos(world @ rng.normal(0, 1 / 40, (3, 3)) + rng.uniform(0, 6, 3)) + np.array([0, 0, 1.5])
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    tensor = 0.4e-3 * np.eye(3) + 1.2e-3 * direction[..., :, None] * direction[..., None, :]
    fluid = np.clip(1.2 - radius / (0.2 * size * spacing), 0, 1) * brain
    S0 = brain * (1 + 0.3 * np.cos(world[..., 0] / 30) + fluid)
    maps = (S0, fluid, tensor * brain[..., None, None])
    return Head(*(m.astype(np.float32) for m in maps), brain, affine)

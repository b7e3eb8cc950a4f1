"""A brain-like digital phantom: curved and crossing fibre bundles, grey matter, fluid, lesions, b0s, Rician noise.

Anatomy is a function of world coordinates (mm, RAS+, origin in the brain's middle), so that any affine samples the
same head.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.lesions import LesionEffect, blob, implant, lesion_weight
from eqdmri_monai.simulate.signal import FIBRE, FLUID, GREY_MATTER, fibre_tensor, rician, tensor_signal

# b0 intensity, relative to white matter, of spin-echo EPI at an echo time near 90 ms.
B0 = {"white": 1.0, "grey": 1.25, "fluid": 2.8}
BRAIN_RADII = np.array([62.0, 78.0, 56.0])  # mm


@dataclass(frozen=True)
class Phantom:
    """A simulated scan.

    Parameters
    ----------
    dwi : array, shape (X, Y, Z, Q), float32
    table : GradientTable
    affine : array, shape (4, 4)
        mm.
    lesion, brain : array, shape (X, Y, Z), bool
    fibre : array, shape (X, Y, Z, 3)
        World direction of the strongest bundle; zero outside white matter.
    """

    dwi: np.ndarray
    table: GradientTable
    affine: np.ndarray
    lesion: np.ndarray
    brain: np.ndarray
    fibre: np.ndarray


def spread_directions(number: int, rng: np.random.Generator) -> np.ndarray:
    """Spread unit vectors over the sphere by electrostatic repulsion, opposite vectors being one; shape (number, 3).

    Source
    ------
    Jones et al. 1999, doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q; steps of fixed, falling
    length.
    """
    x = rng.standard_normal((number, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for step in np.geomspace(0.3, 1e-3, 300):
        difference = x[:, None] - np.concatenate([x, -x])[None]
        distance = np.linalg.norm(difference, axis=-1, keepdims=True)
        force = (difference / np.maximum(distance, 1e-6) ** 3).sum(1)
        x += step * force / np.linalg.norm(force, axis=1, keepdims=True).max()
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def single_shell(number: int, b: float, rng: np.random.Generator, *, b0s: int = 2) -> GradientTable:
    """Return a table of some b0s and one shell of spread directions (world frame)."""
    bvals = np.concatenate([np.zeros(b0s), np.full(number, b)])
    bvecs = np.concatenate([np.zeros((b0s, 3)), spread_directions(number, rng)])
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))


def oblique_affine(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], angles: tuple[float, float, float]
) -> np.ndarray:
    """Return an affine stored LAS and turned by angles (degrees about x, y, z), its middle voxel at the origin."""
    from scipy.spatial.transform import Rotation

    linear = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([-spacing[0], *spacing[1:]])
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2)
    return affine


def make_phantom(
    seed: int,
    table: GradientTable,
    *,
    shape: tuple[int, int, int] = (72, 88, 58),
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.4),
    angles: tuple[float, float, float] = (12.0, -7.0, 5.0),
    lesions: int = 16,
    snr: float = 25.0,
) -> Phantom:
    """Simulate a scan.

    Parameters
    ----------
    seed : int
        Everything random follows from it.
    table : GradientTable
        World frame.
    shape : three ints
    spacing : three floats
        mm.
    angles : three floats
        Obliqueness, degrees.
    lesions : int
        Number of lesions, all in white matter.
    snr : float
        White-matter b0 over the noise's standard deviation.
    """
    rng = np.random.default_rng(seed)
    affine = oblique_affine(shape, spacing, angles)
    ijk = np.stack(np.mgrid[tuple(slice(n) for n in shape)], axis=-1)
    world = ijk @ affine[:3, :3].T + affine[:3, 3]  # [x, y, z, 3]
    white, grey, fluid, brain = _tissues(world, rng)
    directions, bundles = _bundles(world, rng)  # [n, x, y, z, 3], [n, x, y, z]

    bvals, bvecs = table.bvals.numpy(), table.bvecs.numpy()
    tensors = fibre_tensor(directions, *FIBRE)
    fibres = sum(f[..., None] * tensor_signal(t, bvals, bvecs) for f, t in zip(bundles, tensors, strict=True))
    signal = (
        B0["white"] * white[..., None] * fibres
        + B0["grey"] * grey[..., None] * np.exp(-bvals * GREY_MATTER)
        + B0["fluid"] * fluid[..., None] * np.exp(-bvals * FLUID)
    )
    mean_tensor = (bundles[..., None, None] * tensors).sum(0)
    inner = ndimage.binary_erosion(white > 0.9)
    weight = np.zeros(shape, np.float32)
    for centre in world[inner][rng.choice(inner.sum(), lesions)]:
        one = lesion_weight([blob(rng)], centre[None], shape, affine, rng) * (white > 0.2)
        signal = implant(signal, bvals, bvecs, mean_tensor, one * (weight < 0.05), LesionEffect.draw(rng))
        weight = np.maximum(weight, one)
    coil = 1 + 0.1 * np.cos(world @ rng.standard_normal(3) / 60 + rng.uniform(0, 6))[..., None]
    dwi = 800 * rician(signal * coil, B0["white"] / snr, rng)
    strongest = np.take_along_axis(directions, bundles.argmax(0)[None, ..., None], axis=0)[0]
    return Phantom(dwi.astype(np.float32), table, affine, weight > 0.5, brain, strongest * (white > 0.5)[..., None])


def _tissues(world: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return shares of white matter, grey matter and fluid (X, Y, Z), and the brain (bool)."""
    scale = (world - rng.normal(0, 2, 3)) / (BRAIN_RADII * rng.uniform(0.95, 1.05, 3))
    radius = np.linalg.norm(scale, axis=-1)
    azimuth, height = np.arctan2(scale[..., 1], scale[..., 0]), scale[..., 2] / np.maximum(radius, 1e-6)
    folds = sum(  # gyri: waves over the surface
        rng.uniform(0.5, 1) * np.cos(k * azimuth + rng.uniform(0, 6)) * np.cos(m * np.pi * height + rng.uniform(0, 6))
        for k, m in ((7, 3), (11, 4), (5, 5))
    )
    split = np.abs(world[..., 0]) < 1.5  # fissure between the hemispheres, above the callosum
    cortex = 0.82 + 0.06 * folds

    def ramp(x, width):
        return np.clip(0.5 - x / width, 0, 1)

    inside, core = ramp(radius - 0.97, 0.04), ramp(radius - cortex, 0.05)
    fissure = split & (world[..., 2] > 22)
    ventricles = np.zeros_like(radius)
    for side in (-1, 1):
        curve = world - np.array([side * 9.0, 0.0, 12.0])
        curve = curve - np.stack([0 * curve[..., 0], 0 * curve[..., 0], -0.006 * curve[..., 1] ** 2], axis=-1)
        ventricles = np.maximum(ventricles, ramp(np.linalg.norm(curve / np.array([5.0, 26.0, 6.0]), axis=-1) - 1, 0.3))
    thalami = sum(
        ramp(
            np.linalg.norm((world - np.array([side * 12, -8, -4])) / np.array([8.0, 13.0, 8.0]), axis=-1) - 1,
            0.2,
        )
        for side in (-1, 1)
    )
    fluid = np.clip(np.maximum(ventricles, inside * fissure) + ramp(radius - 1.0, 0.03) - inside, 0, 1)
    fluid = np.maximum(fluid, np.maximum(ventricles, inside * fissure))
    white = core * (1 - fluid) * (1 - thalami)
    grey = np.clip(inside * (1 - fluid) - white, 0, 1)
    return white, grey, fluid, radius < 1.0


def _bundles(world: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return directions (bundle, X, Y, Z, 3) and shares (bundle, X, Y, Z) that sum to 1."""
    x, y, z = np.moveaxis(world, -1, 0)
    zero = np.zeros_like(x)
    # Callosum: arcs across the midline, round a centre below it.
    callosum = np.stack([z + 12.0, zero, -x], axis=-1)
    callosum_share = np.exp(-(((np.hypot(x, z + 12.0) - 38) / 14) ** 2) - (y / 45) ** 4)
    # Projection fibres: from the brain stem fanning up and outwards.
    fan = np.stack([x * 0.9, y * 0.6, 0 * z + 45.0], axis=-1)
    fan_share = 1.1 * np.exp(-(((np.abs(x) - 24 - 0.2 * z) / 13) ** 2) - ((y + 5) / 32) ** 2)
    # Association fibres: long arcs from front to back.
    arc = np.stack([0.1 * np.sign(x) * y, z + 60.0, -y], axis=-1)
    arc_share = np.exp(-(((np.hypot(y, z + 60.0) - 80) / 16) ** 2) - ((np.abs(x) - 32) / 12) ** 2)
    # White matter elsewhere: a weak, smoothly varying bundle.
    phase = [rng.uniform(0, 6, 3) for _ in range(3)]
    rest = np.stack([np.cos(world @ rng.normal(0, 1 / 25, 3) + p[0]) for p in phase], axis=-1)
    directions = np.stack([callosum, fan, arc, rest])
    directions = directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-6)
    shares = np.stack([callosum_share, fan_share, arc_share, zero + 0.15])
    return directions, shares / shares.sum(0)

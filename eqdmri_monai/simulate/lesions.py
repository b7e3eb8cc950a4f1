"""Lesions: shapes, places, and what they do to a diffusion signal, measured or simulated.

Inside a lesion the signal is multiplied by ``(1 + gain) · exp(-b gᵀ ΔD g)``, where ΔD makes the local tensor rounder
and raises its mean diffusivity, as inflammation and loss of myelin do (Filippi et al. 2001, doi:10.1212/WNL.56.3.304).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from eqdmri_monai.simulate.signal import tensor_signal


@dataclass(frozen=True)
class LesionEffect:
    """How strongly a full lesion changes its voxel.

    Parameters
    ----------
    gain : float
        Relative rise of the b0 (longer T2).
    diffusivity : float
        Relative rise of the mean diffusivity.
    roundness : float
        Share of the tensor's anisotropic part that is lost, 0 to 1.
    """

    gain: float
    diffusivity: float
    roundness: float

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: str | None = None) -> "LesionEffect":
        """Draw from ranges reported for multiple-sclerosis plaques against white matter that appears normal.

        With a class of `STRENGTHS`, from its ranges.
        """
        if strength is not None:
            return cls(*(rng.uniform(*bounds) for bounds in STRENGTHS[strength]))
        return cls(gain=rng.uniform(0.1, 0.6), diffusivity=rng.uniform(0.15, 0.7), roundness=rng.uniform(0.2, 0.7))


# Ranges of gain, diffusivity and roundness. Against normal-appearing white matter, tissue around plaques has a mean
# diffusivity of +6 % and FA of -22 %, plaques on average +39 % and -43 % (Guo et al. 2002,
# doi:10.1148/radiol.2223010311); destructive ones, dark in T1, have the highest diffusivity (Werring et al. 1999,
# doi:10.1212/WNL.52.8.1626). The gain of the b0 is ours: plaques are found by eye at about +20 % and more.
STRENGTHS = {
    "faint": ((0.05, 0.2), (0.06, 0.2), (0.1, 0.3)),
    "medium": ((0.15, 0.4), (0.2, 0.45), (0.25, 0.5)),
    "strong": ((0.3, 0.6), (0.45, 0.7), (0.45, 0.7)),
}


def tensor_change(tensor: np.ndarray, effect: LesionEffect) -> np.ndarray:
    """Return ΔD of a full lesion, mm²/s, for tensors (..., 3, 3)."""
    mean = np.trace(tensor, axis1=-2, axis2=-1)[..., None, None] / 3 * np.eye(3)
    lesion = (1 + effect.diffusivity) * (mean + (1 - effect.roundness) * (tensor - mean))
    return lesion - tensor


def implant(
    dwi: np.ndarray,
    bvals: np.ndarray,
    bvecs: np.ndarray,
    tensor: np.ndarray,
    weight: np.ndarray,
    effect: LesionEffect,
) -> np.ndarray:
    """Return a scan with a lesion in it; voxels of weight 0 keep their value to the last bit.

    Parameters
    ----------
    dwi : array, shape (X, Y, Z, Q)
    bvals : array, shape (Q,)
        s/mm².
    bvecs : array, shape (Q, 3)
    tensor : array, shape (X, Y, Z, 3, 3)
        Local diffusion tensors, mm²/s, in the frame of bvecs.
    weight : array, shape (X, Y, Z)
        Share of each voxel that is lesion, 0 to 1.
    effect : LesionEffect
    """
    inside = weight > 0
    change = weight[inside][:, None, None] * tensor_change(tensor[inside], effect)
    factor = (1 + effect.gain * weight[inside])[:, None] * tensor_signal(change, bvals, bvecs)
    out = np.array(dwi, dtype=np.float32)
    out[inside] = dwi[inside] * factor
    return out


def components(mask: np.ndarray, *, minimum: int = 10) -> list[np.ndarray]:
    """Cut a lesion mask into its connected lesions of at least `minimum` voxels, each in its own small box (bool)."""
    labels, _ = ndimage.label(mask > 0)
    boxes = [(labels[box] == k + 1) for k, box in enumerate(ndimage.find_objects(labels))]
    return [box for box in boxes if box.sum() >= minimum]


def pieces(lesion: np.ndarray, number: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut pieces out of a large confluent lesion, each in a ball of 4 to 10 voxels round one of its voxels."""
    grid = np.stack(np.mgrid[tuple(slice(n) for n in lesion.shape)], axis=-1)
    out = []
    for centre in np.argwhere(lesion)[rng.choice(int(lesion.sum()), number)]:
        piece = lesion & (np.linalg.norm(grid - centre, axis=-1) < rng.uniform(4, 10))
        out.append(piece[ndimage.find_objects(piece.astype(np.int8))[0]])
    return out


def blob(rng: np.random.Generator) -> np.ndarray:
    """Draw a lesion shape without an example: an uneven ellipsoid of about 2 to 10 mm, at 1 mm (bool)."""
    radii = rng.uniform(2.5, 8.0) * rng.uniform(0.6, 1.4, 3)
    size = int(np.ceil(radii.max())) + 3
    grid = np.stack(np.mgrid[tuple(3 * [slice(-size, size + 1)])], axis=-1)
    bumps = ndimage.gaussian_filter(rng.standard_normal(grid.shape[:3]), 2.0)
    return np.sqrt(((grid / radii) ** 2).sum(-1)) + 0.25 * bumps / bumps.std() < 1


def lesion_weight(
    shapes: Sequence[np.ndarray],
    centres: np.ndarray,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Place lesions on the grid of a scan, each turned at random.

    Parameters
    ----------
    shapes : sequence of bool arrays at 1 mm
    centres : array, shape (lesions, 3)
        World mm.
    shape : three ints
        Of the scan.
    affine : array, shape (4, 4)
        Of the scan, mm.
    rng : Generator

    Returns
    -------
    array, shape (X, Y, Z), float32
        Share of each voxel that is lesion, 0 to 1.
    """
    weight = np.zeros(shape, np.float32)
    for lesion, centre in zip(shapes, centres, strict=True):
        rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        weight = np.maximum(weight, Lesion(lesion, centre, rotation).weight(shape, affine))
    return weight


@dataclass(frozen=True)
class Lesion:
    """One lesion in the world, to be seen on any grid.

    Parameters
    ----------
    shape : array of bool
        At `scale` mm.
    centre : array, shape (3,)
        World mm.
    rotation : array, shape (3, 3)
        From the world to the axes of `shape`; mirrors too.
    scale : float
        mm.
    effect : LesionEffect
    strength : str
        Class of `STRENGTHS`.
    region : str
        Where it lies, of `head.regions`.
    """

    shape: np.ndarray
    centre: np.ndarray
    rotation: np.ndarray
    scale: float = 1.0
    effect: LesionEffect | None = None
    strength: str = ""
    region: str = ""

    def weight(self, grid: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Return the share of each voxel of a grid (X, Y, Z) that is lesion, 0 to 1, float32."""
        weight = np.zeros(grid, np.float32)
        voxels = np.linalg.norm(affine[:3, :3], axis=0)
        # a voxel's own width, and 1 mm of it that is uncertain
        soft = ndimage.gaussian_filter(
            np.pad(self.shape, 4 + int(2 * voxels.mean() / self.scale) // 2).astype(np.float32),
            (0.5 * voxels.mean() / 2.355 + 0.5) / self.scale,
        )
        reach = np.linalg.norm(soft.shape) / 2 * self.scale
        middle = np.linalg.inv(affine) @ np.append(self.centre, 1)
        low = np.maximum(np.floor(middle[:3] - reach / voxels.min()), 0).astype(int)
        high = np.minimum(np.ceil(middle[:3] + reach / voxels.min()) + 1, grid).astype(int)
        if (high <= low).any():
            return weight
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        ijk = np.stack(np.mgrid[box], axis=-1).reshape(-1, 3)
        world = ijk @ affine[:3, :3].T + affine[:3, 3]
        where = (world - self.centre) @ self.rotation.T / self.scale + (np.array(soft.shape) - 1) / 2
        weight[box] = ndimage.map_coordinates(soft, where.T, order=1).reshape(weight[box].shape)
        return weight

"""Scans with lesions whose place is known: drawn for a head, then implanted into its scan or into a new one of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.acquisition import Acquisition, acquire
from eqdmri_monai.simulate.deformation import Deformation, resample
from eqdmri_monai.simulate.head import Head, implant_measured, regions, with_lesions
from eqdmri_monai.simulate.lesions import STRENGTHS, Lesion, LesionEffect

# Share of lesions in each region of `head.regions`, after the criteria for multiple sclerosis (Thompson et al. 2018,
# doi:10.1016/S1474-4422(17)30470-2), which name the first three.
SHARES = {
    "periventricular": 0.3,
    "juxtacortical": 0.25,
    "infratentorial": 0.1,
    "deep white": 0.25,
    "deep grey": 0.1,
}
VOLUMES = 0.05, 5.0  # ml; drawn evenly over their logarithm
LABEL = 0.5  # share of lesion from which a voxel counts as one


@dataclass(frozen=True)
class Scan:
    """A scan and what is known of it.

    Parameters
    ----------
    dwi : array, shape (X, Y, Z, Q), float32
    table : GradientTable
        World frame.
    affine : array, shape (4, 4)
        mm.
    brain : array, shape (X, Y, Z), bool
    lesion : array, shape (X, Y, Z), int16
        0, or the number of the lesion, from 1.
    lesions : list of Lesion
    """

    dwi: np.ndarray
    table: GradientTable
    affine: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    lesions: list[Lesion]


def draw_lesions(head: Head, shapes: Sequence[np.ndarray], rng: np.random.Generator, number: int) -> list[Lesion]:
    """Draw lesions for a head: shapes, places, sizes and strengths independent of each other.

    Parameters
    ----------
    head : Head
    shapes : sequence of arrays of bool
        At 1 mm; each is scaled to the volume that is drawn.
    rng : Generator
    number : int

    Raises
    ------
    ValueError
        When the head has no white or deep grey matter.
    """
    masks = {name: np.argwhere(mask) for name, mask in regions(head).items() if mask.sum() > 10}
    if number and not masks:
        raise ValueError("no white or deep grey matter was found in this head; check its brain mask and gradient table")
    share = np.array([SHARES[name] for name in masks])
    lesions = []
    for _ in range(number):
        region = str(rng.choice(list(masks), p=share / share.sum()))
        voxel = masks[region][rng.integers(len(masks[region]))] + rng.uniform(-0.5, 0.5, 3)
        shape = shapes[rng.integers(len(shapes))]
        volume = 1000 * np.exp(rng.uniform(*np.log(VOLUMES)))  # mm³
        strength = str(rng.choice(list(STRENGTHS)))
        lesions.append(
            Lesion(
                shape=shape,
                centre=head.affine[:3, :3] @ voxel + head.affine[:3, 3],
                rotation=np.linalg.qr(rng.standard_normal((3, 3)))[0],
                scale=float((volume / shape.sum()) ** (1 / 3)),
                effect=LesionEffect.draw(rng, strength),
                strength=strength,
                region=region,
            )
        )
    return lesions


def put(head: Head, lesions: Sequence[Lesion]) -> tuple[Head, np.ndarray]:
    """Put lesions into a head, where there is brain tissue and no other lesion yet.

    Returns
    -------
    Head
    array, shape (X, Y, Z), int16
        The number of the lesion, from 1, where it is half of a voxel or more.
    """
    total, label = np.zeros(head.brain.shape, np.float32), np.zeros(head.brain.shape, np.int16)
    tissue, weights = head.brain & (head.fluid < 0.5), []
    for number, lesion in enumerate(lesions, start=1):
        weight = lesion.weight(head.brain.shape, head.affine) * tissue * (total < 0.05)
        if (weight > LABEL).any():
            weights.append((weight, lesion.effect))
            total = np.maximum(total, weight)
            label[weight > LABEL] = number
    return with_lesions(head, weights), label


def implanted(dwi: np.ndarray, table: GradientTable, head: Head, lesions: Sequence[Lesion]) -> Scan:
    """Return a measured scan with lesions; noise and artefacts are its own."""
    changed, label = put(head, lesions)
    dwi = implant_measured(dwi, table, head, changed) if lesions else dwi
    return Scan(dwi, table, head.affine, head.brain, label, list(lesions))


def simulated(head: Head, shapes: Sequence[np.ndarray], rng: np.random.Generator, number: int) -> Scan:
    """Return a new scan of a head that is deformed and has `number` lesions, on a scanner drawn at random."""
    points = head.affine[:3, :3] @ np.argwhere(head.brain)[::50].T + head.affine[:3, 3:]
    deformation = Deformation.draw(rng, points.mean(1))
    acquisition = Acquisition.draw(rng)
    shape, affine = acquisition.grid(deformation.inverse(points.T))
    new = resample(head, shape, affine, deformation, acquisition.shift)
    lesions = draw_lesions(new, shapes, rng, number) if number else []
    changed, label = put(new, lesions)
    dwi = acquire(changed, acquisition, rng)
    return Scan(dwi, acquisition.table, affine, new.brain, label, lesions)

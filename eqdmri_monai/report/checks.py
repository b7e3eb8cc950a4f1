"""Checks of one's own scan and one's own model: is the gradient table right, is the model equivariant.

Fibres go on in their own direction. A table with one axis mirrored or two exchanged turns the fitted directions, which
then lead out of their tracts: the table under which most neighbours continue each other is the right one.
"""

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from eqdmri_monai.frames import voxel_axes
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.tensors import fit_tensor, fractional_anisotropy, principal_direction
from eqdmri_monai.transforms.scan import file_of, table_of, warn_of

MIN_FA = 0.3  # of voxels with one clear direction
DEPTH = 9.0  # mm below the edge of the brain; closer, edges and eyes have directions of their own
SAME = np.cos(np.radians(30.0))  # two directions agree; Schilling et al. take about the same
MIN_VOXELS = 500  # fewer tell nothing
MAX_SPACING = 4.0  # mm; tracts are thinner than larger voxels
# On all twelve real scans that were tried the stored table is ahead of the next one: by 12 to 22 % on the scan's own
# grid, by 7 to 17 % after resampling to 2 mm.
MIN_GAIN = 1.05
MIN_ALIKE = 0.3  # of pairs of neighbours with like directions; noise has 0.13
MIN_TILT = (
    20.0  # degrees; closer frames lie within what counts as alike: few fibres, as in a phantom, chose the wrong one
)
ROWS = 24  # permutations and signs of the rows
MIN_EXTRA = 1.02  # how much more than any of these another frame must give: it is close to one of them


@dataclass(frozen=True)
class Change:
    """A change of all directions of a table, and what to say of it.

    Parameters
    ----------
    name : str
    matrix : array, shape (3, 3)
        Of world directions.
    """

    name: str
    matrix: np.ndarray


def table_changes(affine: np.ndarray) -> list[Change]:
    """List what commonly goes wrong with a ``.bvec`` file of an image of this affine; the first is no change.

    These are the 24 ways to permute its rows and change their signs (up to a sign of all), and, where the image is
    clearly oblique, that it holds directions along the axes of the world or of the patient in place of the image's.
    """
    axes = voxel_axes(torch.as_tensor(np.array(affine))).numpy()
    fsl = axes * ([-1, 1, 1] if np.linalg.det(axes) > 0 else [1, 1, 1])  # columns: the world directions of its rows
    changes = []
    for order in itertools.permutations(range(3)):
        for sign in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)):
            matrix = np.diag(sign) @ np.eye(3)[list(order)]
            changes.append(Change(_said(order, sign), fsl @ matrix @ fsl.T))
    tilt = np.degrees(np.arccos(np.clip(np.abs(axes).max(0).min(), 0, 1)))
    if tilt > MIN_TILT:
        changes.append(Change("they are along the axes of the world, not of the image", fsl.T))
        changes.append(
            Change("they are along the axes of the patient (LPS), not of the image", np.diag([-1, -1, 1]) @ fsl.T)
        )
    return changes


def _said(order: tuple[int, ...], sign: tuple[int, ...]) -> str:
    parts = []
    if order != (0, 1, 2):
        parts.append(f"rows {' '.join('xyz'[i] for i in order)} stand in for x y z")
    if min(sign) < 0:
        parts.append(f"row {'xyz'[sign.index(-1)]} changes its sign")
    return " and ".join(parts) or "they stay as they are"


def fibre_coherence(
    direction: np.ndarray, fa: np.ndarray, affine: np.ndarray, matrices: list[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Return how well fibres continue each other when their directions are changed.

    The sum of FA over pairs of neighbours of like direction (30 degrees) that both point along the line between them.

    Parameters
    ----------
    direction : array, shape (3, X, Y, Z)
        Principal directions in the world, unit.
    fa : array, shape (X, Y, Z)
        0 where a voxel shall not count.
    affine : array, shape (4, 4)
        mm.
    matrices : list of array, shape (3, 3)
        Changes of world directions.

    Returns
    -------
    array, shape (changes,)
    float
        Share of all pairs of neighbours that have like directions; 0.13 where directions are random.

    Source
    ------
    Schilling et al. 2019, doi:10.1016/j.mri.2019.01.018, "fiber coherence index"; the idea of trying all flips and
    swaps: Jeurissen et al. 2014, doi:10.1016/j.media.2014.05.012 (MRtrix's dwigradcheck).
    """
    total, pairs, alike = np.zeros(len(matrices)), 0, 0
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue
        line = affine[:3, :3] @ offset
        line /= np.linalg.norm(line)
        near = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in zip(offset, fa.shape, strict=True))
        far = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(offset, fa.shape, strict=True))
        both = (fa[near] > 0) & (fa[far] > 0)
        a, b = direction[(slice(None), *near)][:, both], direction[(slice(None), *far)][:, both]  # [3, pairs]
        like = np.abs((a * b).sum(0)) > SAME
        pairs, alike = pairs + len(like), alike + int(like.sum())
        a, b, weight = a[:, like], b[:, like], (fa[near] + fa[far])[both][like]
        back = np.stack([m.T @ line for m in matrices])  # (m a)·line = a·(mᵀ line)
        along = (np.abs(back @ a) > SAME) & (np.abs(back @ b) > SAME)  # [changes, pairs]
        total += along @ weight
    return total, alike / max(pairs, 1)


def better_table(
    dwi: torch.Tensor, table: GradientTable, affine: np.ndarray, brain: np.ndarray, file_affine: np.ndarray
) -> tuple[str, float] | None:
    """Look for a change of the gradient table under which fibres continue each other clearly better.

    Parameters
    ----------
    dwi : Tensor, shape (Q, X, Y, Z)
        Signals.
    table : GradientTable
        Of the Q volumes.
    affine, file_affine : array, shape (4, 4)
        Of this array, and of the file that the table came with; mm.
    brain : array, shape (X, Y, Z)

    Returns
    -------
    tuple of str and float
        The change, and how much more coherence it gives; None where the table is best, or too few voxels tell.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    deep = ndimage.distance_transform_edt(np.pad(brain > 0.5, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    inside = torch.from_numpy(deep > DEPTH)
    if int(inside.sum()) < MIN_VOXELS or spacing.max() > MAX_SPACING:
        return None
    signal = dwi[:, inside].to(torch.float64)
    log_signal = signal.clamp(min=1e-3 * float(signal.mean()) + 1e-12).log()[None]
    try:
        tensor, _ = fit_tensor(log_signal, table.q.to(torch.float64))
    except (ValueError, RuntimeError):  # no tensor can be fitted to this table
        return None
    fa, direction = np.zeros(deep.shape), np.zeros((3, *deep.shape))
    fa[inside], direction[:, inside] = fractional_anisotropy(tensor)[0], principal_direction(tensor)[0]
    fa *= (fa > MIN_FA) & (fa < 1)
    if (fa > 0).sum() < MIN_VOXELS:
        return None
    changes = table_changes(file_affine)
    coherence, alike = fibre_coherence(direction, fa, affine, [change.matrix for change in changes])
    if alike < MIN_ALIKE:
        return None
    coherence[ROWS:] /= MIN_EXTRA
    best = int(coherence.argmax())
    gain = coherence[best] / max(coherence[0], 1e-12)
    return (changes[best].name, float(gain)) if gain > MIN_GAIN else None


class CheckGradientsd(MapTransform):
    """Warn where fibres say that the gradient table is wrong; nothing is changed.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) with a gradient table, before their intensities are normalised.
    mask_key : str
        Brain mask (1, X, Y, Z).

    Warns
    -----
    UserWarning
        With the likely fix.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            found = better_table(
                image.as_tensor(), table_of(image), image.affine.numpy(), data[self.mask_key][0].numpy(),
                np.asarray(image.meta["original_affine"]),
            )  # fmt: skip
            if found:
                warn_of(
                    image,
                    f"{file_of(image)}: the gradient table looks wrong: fibres continue each other better (by "
                    f"{100 * found[1] - 100:.0f} %) if, of the directions in the .bvec file, {found[0]}; check it",
                )
        return dict(data)

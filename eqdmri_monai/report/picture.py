"""The picture beside a lesion map: b0, colour-coded fibre direction and probability in three planes."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from matplotlib.figure import Figure
from scipy import ndimage

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.metrics import lesions


def colour_fa(dwi: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the direction-encoded colour map |principal direction| · FA, shape (..., 3), 0 to 1.

    Red is left-right, green front-back, blue up-down, where bvecs are in the world frame.

    Source
    ------
    Pajevic and Pierpaoli 1999, doi:10.1002/(SICI)1522-2594(199909)42:3<526::AID-MRM15>3.0.CO;2-J; tensor fit by dipy.
    """
    fit = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(dwi, mask=mask)
    return np.clip(np.abs(fit.evecs[..., 0]) * np.nan_to_num(fit.fa)[..., None], 0, 1)


def picture(
    path: Path,
    dwi: np.ndarray,
    table: GradientTable,
    affine: np.ndarray,
    probability: np.ndarray,
    brain: np.ndarray,
    *,
    outline: np.ndarray | None = None,
) -> None:
    """Write a PNG: b0, colour-coded FA and probability, in three planes through the largest lesion.

    Parameters
    ----------
    path : Path
    dwi : array, shape (X, Y, Z, Q)
    table : GradientTable
        Of the Q volumes.
    affine : array, shape (4, 4)
        mm.
    probability, brain : array, shape (X, Y, Z)
    outline : array, shape (X, Y, Z)
        Lesions to draw as outlines, such as those drawn by hand; planes then go through the largest of them, if any.
    """
    brain = brain > 0.5
    outline = None if outline is None else outline > 0.5
    labels, count = lesions(probability > 0.5 if outline is None or not outline.any() else outline)
    if count:  # the lesion that holds the most probability
        best = 1 + int(np.argmax(ndimage.sum_labels(probability, labels, range(1, count + 1))))
        centre = np.argwhere(labels == best).mean(0)
    else:
        centre = ndimage.center_of_mass(brain)
    planes = Planes(affine, centre, brain.shape)
    cuts = planes.mask & brain
    b0 = grey(dwi[..., table.b0_mask.numpy()].mean(-1), brain)
    drawn = "" if outline is None else "; outlined, as drawn"
    columns = {"b0": b0, "fibre direction (colour FA)": colour_fa(dwi, *numbers(table), cuts)}
    figure, axes = planes.figure(columns | {f"lesion probability{drawn}": b0})
    for row in range(3):
        ax = axes[row, 2]
        seen = np.ma.masked_less(planes.cut(probability, row), 0.05)
        shown = ax.imshow(seen, cmap="inferno", vmin=0, vmax=1, alpha=0.8, **planes.show(row))
        if outline is not None:
            ax.contour(planes.cut(outline, row), [0.5], colors="cyan", linewidths=1)
    bar = figure.colorbar(shown, ax=axes[:, 2], shrink=0.4)
    bar.ax.tick_params(colors="white")
    save_black(path, figure)


class Planes:
    """Three planes through a point of a scan, shown in RAS whatever its storage order: axial, coronal, sagittal.

    Parameters
    ----------
    affine : array, shape (4, 4)
        mm.
    centre : three floats
        In voxels.
    shape : three ints
    """

    AXES = (2, 1, 0)  # across which the planes lie, in RAS
    NAMES = ("L", "R"), ("P", "A"), ("I", "S")

    def __init__(self, affine: np.ndarray, centre: Sequence[float], shape: Sequence[int]):
        self.to_ras = nib.orientations.io_orientation(affine)
        self.voxel = nib.affines.voxel_sizes(affine)[np.argsort(self.to_ras[:, 0])]
        self.mask, at = np.zeros(shape, dtype=bool), np.round(centre).astype(int)
        for axis in range(3):  # of the array
            self.mask[tuple(at[axis] if a == axis else slice(None) for a in range(3))] = True
        point = np.zeros(shape, dtype=bool)
        point[tuple(at)] = True
        self.centre = np.argwhere(nib.orientations.apply_orientation(point, self.to_ras))[0]

    def cut(self, volume: np.ndarray, row: int) -> np.ndarray:
        """Return the plane of a row, as `imshow` wants it, of a volume (X, Y, Z) or (X, Y, Z, 3)."""
        axis = self.AXES[row]
        return np.swapaxes(nib.orientations.apply_orientation(volume, self.to_ras).take(self.centre[axis], axis), 0, 1)

    def show(self, row: int) -> dict[str, object]:
        """Return options of `imshow`."""
        across, up = (a for a in range(3) if a != self.AXES[row])
        return {"origin": "lower", "aspect": self.voxel[up] / self.voxel[across], "interpolation": "nearest"}

    def figure(self, columns: Mapping[str, np.ndarray]) -> tuple[Figure, np.ndarray]:
        """Return a figure with a column for each volume, 0 to 1, by title, and its axes (3, columns)."""
        figure = Figure(figsize=(11 / 3 * len(columns), 11), facecolor="black", layout="constrained")
        axes = figure.subplots(3, len(columns))
        for (row, axis), (column, (title, volume)) in product(enumerate(self.AXES), enumerate(columns.items())):
            ax = axes[row, column]
            ax.imshow(self.cut(volume, row), cmap="gray", vmin=0, vmax=1, **self.show(row))
            if row == 0:
                ax.set_title(title, color="white")
            ax.set_axis_off()
            across, up = (a for a in range(3) if a != axis)
            style = {"transform": ax.transAxes, "color": "white", "fontsize": 9}
            ax.text(0.01, 0.5, self.NAMES[across][0], **style)
            ax.text(0.95, 0.5, self.NAMES[across][1], **style)
            ax.text(0.5, 0.01, self.NAMES[up][0], **style)
            ax.text(0.5, 0.95, self.NAMES[up][1], **style)
        return figure, axes


def grey(volume: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return a volume as a share of what is almost its largest in the brain, 0 to 1."""
    return np.clip(volume / max(np.percentile(volume[brain], 99), 1e-6), 0, 1)


def numbers(table: GradientTable) -> tuple[np.ndarray, np.ndarray]:
    """Return b-values and directions."""
    return table.bvals.numpy(), table.bvecs.numpy()


def save_black(path: Path, figure: Figure) -> None:
    """Write a figure on black."""
    with matplotlib.rc_context({"savefig.facecolor": "black"}):
        save_figure(path, figure)

"""The picture beside a lesion map: b0, colour-coded fibre direction and probability in three planes."""

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
    # Show every scan in RAS, whatever its storage order.
    to_ras = nib.orientations.io_orientation(affine)
    turn = lambda a: nib.orientations.apply_orientation(a, to_ras)  # noqa: E731
    voxel = nib.affines.voxel_sizes(affine)[np.argsort(to_ras[:, 0])]
    dwi, probability, brain = turn(dwi), turn(probability), turn(brain) > 0.5
    outline = None if outline is None else turn(outline) > 0.5
    bvals, bvecs = table.bvals.numpy(), table.bvecs.numpy()
    b0 = dwi[..., table.b0_mask.numpy()].mean(-1)
    labels, count = lesions(probability > 0.5 if outline is None or not outline.any() else outline)
    if count:  # the lesion that holds the most probability
        best = 1 + int(np.argmax(ndimage.sum_labels(probability, labels, range(1, count + 1))))
        centre = np.argwhere(labels == best).mean(0)
    else:
        centre = ndimage.center_of_mass(brain)
    centre = np.round(centre).astype(int)
    figure = Figure(figsize=(11, 11), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 3)
    drawn = "" if outline is None else "; outlined, as drawn"
    names = ("L", "R"), ("P", "A"), ("I", "S")
    for row, axis in enumerate((2, 1, 0)):
        cut = tuple(slice(centre[axis], centre[axis] + 1) if a == axis else slice(None) for a in range(3))
        rgb = colour_fa(dwi[cut], bvals, bvecs, brain[cut]).squeeze(axis)
        grey = np.clip(b0[cut].squeeze(axis) / max(np.percentile(b0[brain], 99), 1e-6), 0, 1)
        across, up = (a for a in range(3) if a != axis)
        for column, (title, under) in enumerate(
            (("b0", grey), ("fibre direction (colour FA)", rgb), (f"lesion probability{drawn}", grey))
        ):
            ax = axes[row, column]
            show = {"origin": "lower", "aspect": voxel[up] / voxel[across], "interpolation": "nearest"}
            ax.imshow(np.swapaxes(under, 0, 1), cmap="gray", vmin=0, vmax=1, **show)
            if column == 2:
                p = np.swapaxes(probability[cut].squeeze(axis), 0, 1)
                shown = ax.imshow(np.ma.masked_less(p, 0.05), cmap="inferno", vmin=0, vmax=1, alpha=0.8, **show)
                if outline is not None:
                    ax.contour(np.swapaxes(outline[cut].squeeze(axis), 0, 1), [0.5], colors="cyan", linewidths=1)
            if row == 0:
                ax.set_title(title, color="white")
            ax.set_axis_off()
            style = {"transform": ax.transAxes, "color": "white", "fontsize": 9}
            ax.text(0.01, 0.5, names[across][0], **style)
            ax.text(0.95, 0.5, names[across][1], **style)
            ax.text(0.5, 0.01, names[up][0], **style)
            ax.text(0.5, 0.95, names[up][1], **style)
    bar = figure.colorbar(shown, ax=axes[:, 2], shrink=0.4)
    bar.ax.tick_params(colors="white")
    with matplotlib.rc_context({"savefig.facecolor": "black"}):
        save_figure(path, figure)

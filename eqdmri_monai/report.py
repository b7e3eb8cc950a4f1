"""What goes beside a lesion map: a picture, a record of how it was made, and errors in one sentence."""

import hashlib
import importlib.metadata
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.data import FolderLayout
from monai.transforms import MapTransform
from scipy import ndimage

import eqdmri_monai
from eqdmri_monai.gradients import B_UNIT, QSampling
from eqdmri_monai.io import written_whole
from eqdmri_monai.transforms import file_of

PACKAGES = ("torch", "monai", "e3nn", "dipy", "nibabel", "numpy")


def one_line_errors() -> None:
    """Let an error that ends the program print one sentence, that of its first cause, in place of a traceback.

    Unless logging is at level DEBUG, which keeps the traceback. For command lines; importing changes nothing.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback) -> None:
        if issubclass(kind, KeyboardInterrupt) or logging.getLogger().isEnabledFor(logging.DEBUG):
            sys.__excepthook__(kind, error, traceback)
            return
        while error.__cause__ is not None:
            error = error.__cause__
        name = "" if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: "
        print(f"error: {name}{error}", file=sys.stderr)

    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every error with a traceback of its own
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.excepthook = hook


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
    q_world: np.ndarray,
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
    q_world : array, shape (Q, 3)
        World frame.
    affine : array, shape (4, 4)
        mm.
    probability, brain : array, shape (X, Y, Z)
    outline : array, shape (X, Y, Z)
        Lesions to draw as outlines, such as those drawn by hand; planes then go through the largest of them.
    """
    # Show every scan in RAS, whatever its storage order.
    to_ras = nib.orientations.io_orientation(affine)
    turn = lambda a: nib.orientations.apply_orientation(a, to_ras)  # noqa: E731
    voxel = nib.affines.voxel_sizes(affine)[np.argsort(to_ras[:, 0])]
    dwi, probability, brain = turn(dwi), turn(probability), turn(brain) > 0.5
    outline = None if outline is None else turn(outline) > 0.5
    length = np.linalg.norm(q_world, axis=1)
    bvals = B_UNIT * length**2
    bvecs = q_world / np.maximum(length, 1e-12)[:, None]
    b0 = dwi[..., length == 0].mean(-1)
    labels, count = ndimage.label(probability > 0.5 if outline is None else outline)
    if count:  # the lesion that holds the most probability
        best = 1 + int(np.argmax(ndimage.sum_labels(probability, labels, range(1, count + 1))))
        centre = np.argwhere(labels == best).mean(0)
    else:
        centre = ndimage.center_of_mass(brain)
    centre = np.round(centre).astype(int)
    figure = Figure(figsize=(11, 11), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 3)
    names = ("L", "R"), ("P", "A"), ("I", "S")
    for row, axis in enumerate((2, 1, 0)):
        cut = tuple(slice(centre[axis], centre[axis] + 1) if a == axis else slice(None) for a in range(3))
        rgb = colour_fa(dwi[cut], bvals, bvecs, brain[cut]).squeeze(axis)
        grey = np.clip(b0[cut].squeeze(axis) / max(np.percentile(b0[brain], 99), 1e-6), 0, 1)
        across, up = (a for a in range(3) if a != axis)
        for column, (title, under) in enumerate(
            (("b0", grey), ("fibre direction (colour FA)", rgb), ("lesion probability", grey))
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
    with matplotlib.rc_context({"savefig.facecolor": "black"}), written_whole(path) as part:
        figure.savefig(part, dpi=80, format="png")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class SaveReportd(MapTransform):
    """Write a picture and a record (JSON) beside each probability map.

    Parameters
    ----------
    keys : keys
        One probability map (1, X, Y, Z), on the scan's own grid; the data must also hold ``image`` and ``brain_mask``.
    output_dir, data_root_dir : path
        As in `SaveImaged`.
    weights : path
        Named in the record by its hash.
    threshold : float
        What was counted as lesion.
    """

    def __init__(self, keys: KeysCollection, *, output_dir: str, data_root_dir: str, weights: str, threshold: float):
        super().__init__(keys)
        self.output_dir, self.data_root_dir = output_dir, data_root_dir
        self.weights, self.threshold = weights, threshold
        self.start = time.monotonic()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        probability, source = data[self.keys[0]], file_of(data["image"])
        scan = nib.load(source)
        q = torch.as_tensor(data["image"].meta["q_file"])
        lesion = (probability[0] > self.threshold).numpy()
        brain = data["brain_mask"][0].numpy() > 0.5
        picture(
            self._path(source, "png"),
            np.asarray(scan.dataobj, dtype=np.float32),
            q.numpy(),
            scan.affine,
            probability[0].numpy(),
            brain,
        )
        sampling = QSampling.of(q)
        litres = abs(np.linalg.det(scan.affine[:3, :3])) * 1e-6
        record = {
            "eqdmri_monai": eqdmri_monai.__version__,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "weights_sha256": sha256(self.weights),
            "input": Path(source).name,
            "input_sha256": sha256(source),
            "volumes_per_b_value": {
                f"{round(float(B_UNIT * length**2))}": int((sampling.shell == s).sum())
                for s, length in enumerate(sampling.length)
            },
            "threshold": self.threshold,
            "lesion_ml": round(1000 * litres * float(lesion.sum()), 3),
            "lesions": int(ndimage.label(lesion, np.ones((3, 3, 3)))[1]),
            "brain_ml": round(1000 * litres * float(brain.sum()), 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - self.start, 1),
            "use": "research only, not for diagnosis",
        }
        with written_whole(self._path(source, "json")) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
        self.start = time.monotonic()
        return dict(data)

    def _path(self, source: str, extension: str) -> Path:
        layout = FolderLayout(
            self.output_dir, "report", extension, parent=False, makedirs=True, data_root_dir=self.data_root_dir
        )
        return Path(layout.filename(source))

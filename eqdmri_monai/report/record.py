"""The record beside a lesion map: how it was made, and what it measures."""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Hashable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import FolderLayout
from monai.transforms import MapTransform
from scipy import ndimage

import eqdmri_monai
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable, shells
from eqdmri_monai.report.picture import picture
from eqdmri_monai.transforms.scan import file_of

PACKAGES = ("torch", "monai", "e3nn", "dipy", "nibabel", "numpy")


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
        table = GradientTable.from_rows(data["image"].meta["file_gradients"])
        lesion = (probability[0] > self.threshold).numpy()
        brain = data["brain_mask"][0].numpy() > 0.5
        picture(
            self._path(source, "png"),
            np.asarray(scan.dataobj, dtype=np.float32),
            table,
            scan.affine,
            probability[0].numpy(),
            brain,
        )
        shell = shells(table.bvals)
        litres = abs(np.linalg.det(scan.affine[:3, :3])) * 1e-6
        record = {
            "eqdmri_monai": eqdmri_monai.__version__,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "weights_sha256": sha256(self.weights),
            "input": Path(source).name,
            "input_sha256": sha256(source),
            "volumes_per_b_value": {
                f"{float(table.bvals[shell == s].mean()):.0f}": int((shell == s).sum()) for s in shell.unique()
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

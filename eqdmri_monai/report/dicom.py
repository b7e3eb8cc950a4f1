"""Results as DICOM, for scans that came in as DICOM."""

from collections.abc import Hashable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import FolderLayout
from monai.transforms import MapTransform
from PIL import Image

from eqdmri_monai.report.record import sha256
from eqdmri_monai.transforms.scan import file_of


class SaveDicomd(MapTransform):
    """Write segmentation, parametric map and picture as DICOM, where the scan came in as DICOM.

    That is where the data hold ``dicom``, the folder with the source files; other data pass untouched.

    Parameters
    ----------
    keys : keys
        Probability and lesion map, each (1, X, Y, Z) on the scan's own grid.
    output_dir, data_root_dir : path
        As in `SaveImaged`; the picture is the one that `SaveReportd` wrote there.
    weights : path
        Named in the segmentation by its hash.
    threshold : float
        What was counted as lesion.
    """

    def __init__(self, keys: KeysCollection, *, output_dir: str, data_root_dir: str, weights: str, threshold: float):
        super().__init__(keys)
        self.output_dir, self.data_root_dir = output_dir, data_root_dir
        self.weights, self.threshold = weights, threshold

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged.

        Raises
        ------
        ValueError
            When the series has no b0 image.
        """
        if not data.get("dicom"):
            return dict(data)
        # They need packages of the extra "dicom".
        from eqdmri_monai.files.dicom_results import b0_images, write_picture, write_probability, write_segmentation

        probability, lesion = (data[key][0].numpy() for key in self.keys)
        source = file_of(data["image"])
        affine = nib.load(source).affine
        images = b0_images(data["dicom"], np.loadtxt(data["bval"], ndmin=1))
        parameters = {"threshold": f"{self.threshold:g}", "weights_sha256": sha256(self.weights)}
        write_segmentation(self._path(source, "lesion", "dcm"), lesion, affine, images, parameters=parameters)
        write_probability(self._path(source, "probability", "dcm"), probability, affine, images, parameters=parameters)
        with Image.open(self._path(source, "report", "png")) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        write_picture(self._path(source, "report", "dcm"), pixels, images, parameters=parameters)
        return dict(data)

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the paths of a scan's files: none where it did not come in as DICOM."""
        names = ("lesion", "probability", "report") if scan.get("dicom") else ()
        return [self._path(scan["image"], name, "dcm") for name in names]

    def _path(self, source: str, postfix: str, extension: str) -> Path:
        layout = FolderLayout(
            self.output_dir, postfix, extension, parent=False, makedirs=False, data_root_dir=self.data_root_dir
        )
        return Path(layout.filename(source))

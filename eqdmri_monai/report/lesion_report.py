"""What a lesion map measures, and its picture."""

from collections.abc import Hashable, Mapping

import nibabel as nib
import numpy as np
from monai.config import KeysCollection

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.metrics import lesions
from eqdmri_monai.report.picture import picture
from eqdmri_monai.report.record import SavePictured, SaveRecordd, ml_of_voxel
from eqdmri_monai.transforms.scan import file_of


class SaveReportd(SavePictured):
    """Write a record of lesions, and a picture, beside each probability map.

    Parameters
    ----------
    keys : keys
        One probability map (1, X, Y, Z), on the scan's own grid; the data must also hold ``image`` and ``brain_mask``.
    record : SaveRecordd
        Writes the record, to which this adds the lesions.
    threshold : float
        Of the probability, for what counts as lesion; it decides a map too.

    Raises
    ------
    ValueError
        When the threshold is no probability, or 0, which would make all that is outside the brain a lesion.
    """

    def __init__(self, keys: KeysCollection, *, record: SaveRecordd, threshold: float):
        super().__init__(keys, record=record)
        if not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"threshold must be a probability above 0, such as 0.5, not {threshold!r}")
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        probability, source = data[self.keys[0]], file_of(data["image"])
        lesion = (probability[0] >= self.threshold).numpy()
        measured = {
            "threshold": self.threshold,
            "lesion_ml": round(float(lesion.sum()) * ml_of_voxel(source), 3),
            "lesions": lesions(lesion)[1],
        }
        self.record.write(data, measured)
        _, png = self.outputs({"image": source})
        scan, table = nib.load(source), GradientTable.from_rows(data["image"].meta["file_gradients"])
        dwi, brain = np.asarray(scan.dataobj, dtype=np.float32), data["brain_mask"][0].numpy() > 0.5
        picture(png, dwi, table, scan.affine, probability[0].numpy(), brain)
        return dict(data)

    def identity(self, scan: Mapping[str, str | None]) -> dict[str, object]:
        """Return what decides a map; see `SaveRecordd.identity`."""
        return {**super().identity(scan), "threshold": self.threshold}

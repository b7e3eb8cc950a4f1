"""What lies beside the maps of a diffusion tensor: a record, and a picture."""

from collections.abc import Hashable, Mapping

import nibabel as nib
import numpy as np
from scipy import ndimage

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.report.picture import Planes, colour_fa, numbers, save_black
from eqdmri_monai.report.record import SavePictured
from eqdmri_monai.transforms.scan import file_of

SHOWN = 2e-3  # mm²/s, the diffusivity that is shown white


class SaveTensorReportd(SavePictured):
    """Write a record, and a picture: colour FA of the plain fit and of the maps, their FA and MD, in three planes.

    Parameters
    ----------
    keys : keys
        FA (1, X, Y, Z), MD in mm²/s and principal direction (3, X, Y, Z), as `TensorMapsd` makes them, on the scan's
        own grid; the data must also hold ``image`` and ``brain_mask``.
    record : SaveRecordd
        Writes the record, to which this adds medians over the brain.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        fa, md, v1 = (data[key].numpy() for key in self.keys)
        source, brain = file_of(data["image"]), data["brain_mask"][0].numpy() > 0.5
        medians = {f"median_{name}": round(float(np.median(x[0][brain])), 6) for name, x in (("fa", fa), ("md", md))}
        self.record.write(data, medians)
        _, png = self.outputs({"image": source})
        scan, table = nib.load(source), GradientTable.from_rows(data["image"].meta["file_gradients"])
        planes = Planes(scan.affine, ndimage.center_of_mass(brain), brain.shape)
        dwi = np.asarray(scan.dataobj, dtype=np.float32)
        columns = {
            "fibre direction, plain fit": colour_fa(dwi, *numbers(table), planes.mask & brain),
            "fibre direction, network": np.clip(np.abs(np.moveaxis(v1, 0, -1)) * fa[0][..., None], 0, 1),
            "FA": np.clip(fa[0], 0, 1),
            "MD, white at 2 µm²/ms": np.clip(md[0] / SHOWN, 0, 1),
        }
        save_black(png, planes.figure(columns)[0])
        return dict(data)

"""MONAI's reader of NIfTI files, with less memory and no corrections."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import ensure_tuple


class ScanReader(NibabelReader):
    """MONAI's NIfTI reader for `LoadImaged`, for files that `check_nifti` passes.

    Voxels become float32 volume by volume, where MONAI scales all of a scan in float64 first: at most the file's own
    voxels are in memory beside the loaded ones. The affine is that of the file, where MONAI sometimes takes another one
    when sform, qform and pixdim differ in a digit.
    """

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs):
        """See `monai.data.NibabelReader.read`."""
        self.filenames = ensure_tuple(data)
        images = [nib.load(name, **self.kwargs | kwargs) for name in self.filenames]
        return images if len(images) > 1 else images[0]

    def _get_array_data(self, img: nib.Nifti1Image, filename: str) -> np.ndarray:
        raw, slope, inter = img.dataobj.get_unscaled(), img.dataobj.slope, img.dataobj.inter
        if raw.dtype == np.float32 and (slope, inter) == (1, 0):
            return np.asarray(raw)
        voxels = np.empty(raw.shape, np.float32, order="F")  # as in the file
        for volume in np.ndindex(raw.shape[3:]):
            at = (..., *volume)
            voxels[at] = raw[at] * slope + inter  # in float64
        return voxels

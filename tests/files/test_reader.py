import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from eqdmri_monai.files.reader import ScanReader


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 5, 6), (4, 5, 1, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.float32, np.float64])
def test_voxels_and_affine_are_those_of_nibabel(tmp_path, name, shape, dtype):
    affine = np.diag([-2.0, 2, 3, 1])
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(0, 200, shape).astype(dtype), affine)
    if np.dtype(dtype).kind in "iu":
        image.header.set_slope_inter(0.3, -7.0)
    nib.save(image, tmp_path / name)
    x = LoadImage(reader=ScanReader, ensure_channel_first=True)(tmp_path / name)
    expected = nib.load(tmp_path / name).get_fdata()
    expected = np.moveaxis(expected, -1, 0) if len(shape) == 4 else expected[None]
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x, expected.astype(np.float32), rtol=1e-6)
    np.testing.assert_array_equal(x.affine, affine)


def test_a_digit_between_sform_and_pixdim_changes_no_affine(tmp_path):
    """MONAI takes the qform in place of the sform here."""
    affine = np.diag([-2.0, 2, 2, 1])
    image = nib.Nifti1Image(np.ones((4, 5, 6, 3), np.float32), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine * [[1.001], [1], [1], [1]], code=1)
    nib.save(image, tmp_path / "a.nii")
    own = nib.load(tmp_path / "a.nii").affine
    np.testing.assert_array_equal(LoadImage(reader=ScanReader)(tmp_path / "a.nii").affine, own)
    assert not np.array_equal(LoadImage()(tmp_path / "a.nii").affine, own)

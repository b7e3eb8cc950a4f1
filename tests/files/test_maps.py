import nibabel as nib
import numpy as np
import pytest
import torch

from eqdmri_monai.files.maps import WholeNibabelWriter

AFFINE = np.diag([-2.0, 2, 2, 1])


def test_monai_writer_leaves_the_whole_file_only(tmp_path):
    writer = WholeNibabelWriter(output_dtype=np.float32)
    writer.set_data_array(torch.ones(1, 3, 4, 5), channel_dim=0)
    writer.set_metadata({"affine": AFFINE}, resample=False)
    writer.write(tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, AFFINE)


@pytest.mark.parametrize("shape", [(3, 4, 1), (1, 4, 5), (3, 4, 5)])
@pytest.mark.parametrize("affine", [AFFINE, AFFINE[[1, 2, 0, 3]], AFFINE[[2, 0, 1, 3]]])  # axial, sagittal, coronal
def test_a_map_has_the_shape_and_the_affine_that_it_is_given(tmp_path, shape, affine):
    writer = WholeNibabelWriter(output_dtype=np.float32)
    writer.set_data_array(torch.ones(1, *shape), channel_dim=0)
    writer.set_metadata({"affine": affine}, resample=False)
    writer.write(tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").shape == shape
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii.gz").affine, affine)


def test_resampling_is_refused():
    with pytest.raises(ValueError, match="does not resample"):
        WholeNibabelWriter().set_metadata({"affine": AFFINE}, resample=True)

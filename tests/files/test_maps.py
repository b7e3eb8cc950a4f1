import nibabel as nib
import numpy as np
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

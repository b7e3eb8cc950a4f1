import gzip

import nibabel as nib
import numpy as np
import pytest

from eqdmri_monai.files.nifti import check_nifti, same_grid, write_nifti

AFFINE = np.diag([-2.0, 2, 2, 1])


def scan(path, shape=(4, 5, 6, 8), affine=AFFINE):
    return write_nifti(path, np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


def test_a_whole_scan_passes_the_check(tmp_path):
    shape, affine = check_nifti(scan(tmp_path / "a.nii.gz"), ndim=4)
    assert shape == (4, 5, 6, 8)
    np.testing.assert_allclose(affine, AFFINE)


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])
    return path


def forms_that_disagree(path):
    image = nib.Nifti1Image(np.ones((4, 5, 6, 8), np.float32), AFFINE)
    image.set_qform(np.diag([2.0, -2, 2, 1]), code=1)
    nib.save(image, path)
    return path


def sheared(path):
    image = nib.Nifti1Image(np.ones((4, 5, 6, 8), np.float32), None)
    image.set_sform(np.array([[2.0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), code=1)
    nib.save(image, path)
    return path


def no_nifti(path):
    path.write_bytes(gzip.compress(b"nothing of the kind"))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: cut(scan(p)), "cut short"),
        (lambda p: scan(p, shape=(4, 5, 6)), r"3 axes \(4, 5, 6\); a diffusion scan has 4"),
        (forms_that_disagree, r"sform and qform turn the voxel axes differently \(180 degrees\)"),
        (sheared, "sheared voxel axes"),
        (no_nifti, "not a readable NIfTI file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, make, words):
    path = make(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=words) as error:
        check_nifti(path, ndim=4)
    assert str(path) in str(error.value)


def test_an_uncompressed_file_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cut short"):
        check_nifti(cut(scan(tmp_path / "a.nii")), ndim=4)


def test_a_missing_scan_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.nii: no such file"):
        check_nifti(tmp_path / "nowhere.nii", ndim=4)


def test_grids_are_compared_at_their_corners():
    near, off = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 1e-4
    off[0, 3] += 0.1
    assert same_grid((4, 5, 6), AFFINE, (4, 5, 6), near)
    assert not same_grid((4, 5, 6), AFFINE, (4, 5, 6), off)
    assert not same_grid((4, 5, 6), AFFINE, (4, 5, 7), AFFINE)

import numpy as np
import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from scans import image_from

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.transforms import AverageB0d, CheckScand, LoadGradientsd, WriteQd
from eqdmri_monai.transforms.scan import table_of


@pytest.fixture
def scan(tmp_path):
    """A scan on disk, with sidecars."""
    table = GradientTable(torch.tensor([0.0] + 7 * [1000.0]), random_scheme(7, 1.0))
    affine = np.diag([-2.0, 2, 2, 1])
    rng = np.random.default_rng(0)
    write_nifti(tmp_path / "dwi.nii.gz", rng.random((4, 5, 6, 8), dtype=np.float32), affine)
    write_fsl(table, affine, tmp_path / "dwi")
    return tmp_path / "dwi.nii.gz", table, affine


def test_loaded_gradients_are_in_the_world(scan):
    path, table, affine = scan
    meta = {"filename_or_obj": str(path), "original_affine": affine}
    x = MetaTensor(torch.rand(8, 4, 5, 6), affine=torch.from_numpy(affine), meta=meta)
    out = LoadGradientsd("image")({"image": x})["image"]
    torch.testing.assert_close(table_of(out).q, table.q, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(out.meta["file_gradients"], out.meta["gradients"])


def test_check_passes_a_scan_with_a_mask_on_its_grid(scan, tmp_path):
    path, _, affine = scan
    mask = write_nifti(tmp_path / "mask.nii.gz", np.ones((4, 5, 6), np.uint8), affine)
    off = write_nifti(tmp_path / "off.nii.gz", np.ones((4, 5, 5), np.uint8), affine)
    check = CheckScand(["image", "brain_mask"], allow_missing_keys=True)
    assert check({"image": str(path)}) == {"image": str(path)}
    check({"image": str(path), "brain_mask": str(mask)})
    with pytest.raises(ValueError, match=r"off\.nii\.gz: another grid than .*dwi\.nii\.gz"):
        check({"image": str(path), "brain_mask": str(off)})


def test_an_image_without_a_table_is_refused():
    with pytest.raises(ValueError, match="use LoadGradientsd after LoadImaged"):
        AverageB0d("image")({"image": MetaTensor(torch.rand(3, 4, 4, 4))})


def test_a_volume_that_was_dropped_by_hand_is_noticed():
    x = image_from(random_scheme(6, 1.0))
    with pytest.raises(ValueError, match="7 rows for 6 volumes"):
        AverageB0d("image")({"image": x[:6]})


def test_q_is_written_along_the_current_axes():
    q, affine = random_scheme(6, 1.0), torch.eye(4)
    affine[:3, :3] = 2 * o3.rand_matrix()
    out = WriteQd("image")({"image": image_from(q, affine)})["q"]
    torch.testing.assert_close(out, (q @ (affine[:3, :3] / 2)).float(), rtol=0, atol=1e-6)


def test_left_handed_axes_are_refused():
    with pytest.raises(ValueError, match="left-handed"):
        WriteQd("image")({"image": image_from(random_scheme(6, 1.0), torch.diag(torch.tensor([-1.0, 1, 1, 1])))})


def test_a_scan_without_a_demanded_shell_is_refused():
    load = LoadGradientsd("image", shells=[0, 1000])
    one, other = image_from(random_scheme(6, 1.01)), image_from(random_scheme(6, 1.2))
    for x in (one, other):
        x.meta["filename_or_obj"] = "scan.nii.gz"
    assert load({"image": one})["image"].shape[0] == 7
    with pytest.raises(ValueError, match=r"scan.nii.gz: no shell of b = 1000 s/mm², only 0, 1440"):
        load({"image": other})


def test_shells_are_one_b_value_or_several():
    assert LoadGradientsd("image", shells=1000).shells == (1000.0,)
    assert LoadGradientsd("image", shells=(1000, 2000)).shells == (1000.0, 2000.0)
    for wrong in ("abc", [None], [[1000]]):
        with pytest.raises(ValueError, match=r"shells must be b-values in s/mm², such as \[1000, 2000\], not"):
            LoadGradientsd("image", shells=wrong)


def test_b_values_beyond_the_network_are_refused():
    x = image_from(random_scheme(6, 1.87))  # b = 3500
    with pytest.raises(ValueError, match=r"b is up to 3497 s/mm², and the network is made for 3062 at most"):
        LoadGradientsd("image", q_max=1.75)({"image": x})
    LoadGradientsd("image", q_max=1.75)({"image": image_from(random_scheme(6, 1.76))})  # within the width of a shell


def test_a_scan_that_says_not_where_it_lies_is_read_as_fsl_does(scan):
    path, table, affine = scan
    meta = {"filename_or_obj": str(path), "original_affine": affine, "sform_code": 0, "qform_code": 0}
    x = MetaTensor(torch.rand(8, 4, 5, 6), affine=torch.from_numpy(affine), meta=meta)
    with pytest.warns(UserWarning, match="read as FSL does"):
        out = LoadGradientsd("image")({"image": x})["image"]
    torch.testing.assert_close(table_of(out).q, table.q, rtol=0, atol=1e-7)
    assert out.meta["warnings"].startswith("dwi.nii.gz: the header does not say")
    np.savetxt(path.parent / "dwi.b", table.rows.numpy())
    x.meta.pop("gradients")
    with pytest.raises(ValueError, match="which directions of MRtrix need"):
        LoadGradientsd("image")({"image": x, "mrtrix": str(path.parent / "dwi.b")})

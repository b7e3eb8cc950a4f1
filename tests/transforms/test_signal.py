import pytest
import torch
from monai.data import MetaTensor
from scans import image_from

from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.transforms import CheckSignald


def smooth(size: int = 12) -> MetaTensor:
    """Volumes like those of a head: smooth, and the b0 the brightest."""
    x = image_from(random_scheme(6, 1.0), size=size)
    ramp = torch.arange(float(size))
    x[:] = 1 + ramp + ramp[:, None] + ramp[:, None, None] + 0.1 * torch.rand(x.shape)
    x[0] *= 2
    x.meta["filename_or_obj"] = "a.nii"
    return x


def spoil(index, value) -> MetaTensor:
    x = smooth()
    x[index] = value(x[index]) if callable(value) else value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (spoil((2, 3, 4, 5), torch.nan), "volume 2 has 1 voxels that are not finite"),
        (spoil((2, slice(2)), torch.inf), "volume 2 has 288 voxels that are not finite"),
        (spoil(3, 0.0), "volume 3 is 0 in every voxel"),
        (spoil(slice(None), 7.0), "volume 0 is 7 in every voxel"),
        (spoil(slice(None), lambda v: -v), r"volume 0 is -\d+\.?\d* on average"),
        (spoil((4, 1, 2, 3), 1e9), r"volume 4 is 1e\+09 in voxel \(1, 2, 3\), which has 100 % of its variance"),
    ],
)
def test_a_volume_that_nothing_can_be_read_from_is_refused(x, words):
    with pytest.raises(ValueError, match=f"a.nii: {words}"):
        CheckSignald("image")({"image": x})


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (spoil(0, lambda v: v / 4), "weighted volumes are brighter than the b0"),
        (spoil(0, lambda v: 50 * torch.rand(v.shape)), "neighbouring voxels of the b0 have nothing in common"),
    ],
)
def test_intensities_unlike_those_of_a_scan_are_warned_about(x, words):
    with pytest.warns(UserWarning, match=words):
        CheckSignald("image")({"image": x})
    assert words in x.meta["warnings"]


def test_the_signal_of_a_scan_passes():
    assert "warnings" not in CheckSignald("image")({"image": smooth()})["image"].meta

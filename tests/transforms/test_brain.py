import pytest
import torch
from monai.data import MetaTensor
from scans import image_from

from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.transforms import BrainMaskd


def test_the_brain_of_a_bright_ball_is_the_ball():
    ball = torch.stack(torch.meshgrid(*3 * [torch.arange(-12.0, 12)], indexing="ij")).norm(dim=0) < 8
    x = image_from(random_scheme(6, 1.0), torch.diag(torch.tensor([3.0, 3, 3, 1])), size=24)
    x[0] = 100.0 * ball + torch.rand(24, 24, 24)
    mask = BrainMaskd("image")({"image": x})["brain_mask"]
    assert mask.shape == (1, 24, 24, 24)
    assert (mask[0].as_tensor().bool() ^ ball).sum() < 0.1 * ball.sum()


def head() -> MetaTensor:
    """Voxels of 10 mm, the first half of them bright."""
    x = image_from(random_scheme(6, 1.0), torch.diag(torch.tensor([10.0, 10, 10, 1])))
    x[0, :3] += 1
    return x


def test_a_given_mask_is_kept_and_an_empty_one_refused():
    x, mask = head(), MetaTensor(torch.zeros(1, 6, 6, 6))
    mask[:, :3] = 1
    out = BrainMaskd("image")({"image": x, "brain_mask": mask.clone()})["brain_mask"]
    torch.testing.assert_close(out.as_tensor(), mask.as_tensor().float())
    with pytest.raises(ValueError, match="the brain mask is empty"):
        BrainMaskd("image")({"image": x, "brain_mask": 0 * mask})
    with pytest.raises(ValueError, match="resample it"):
        BrainMaskd("image")({"image": x, "brain_mask": mask[:, :4]})
    with pytest.raises(ValueError, match="values that are not finite"):
        BrainMaskd("image")({"image": x, "brain_mask": mask / mask})


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ((slice(None), slice(3, 6)), "brighter outside of the brain"),
        ((slice(None),), "is the whole image"),
        ((slice(None), 0, 0), "only 6 ml"),
    ],
)
def test_a_doubtful_mask_is_warned_about(where, words):
    x, mask = head(), MetaTensor(torch.zeros(1, 6, 6, 6), meta={"filename_or_obj": "mask.nii"})
    mask[where] = 1
    with pytest.warns(UserWarning, match=f"mask.nii: .*{words}"):
        out = BrainMaskd("image")({"image": x, "brain_mask": mask})
    assert words in out["image"].meta["warnings"]

import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.transforms import CheckLabeld


@pytest.mark.parametrize(("label", "outputs"), [(2 * torch.ones(1, 4, 4, 4), 1), (torch.zeros(1, 4, 4, 4), 3)])
def test_labels_for_another_number_of_classes_are_refused(label, outputs):
    with pytest.raises(ValueError, match=f"the network has {outputs} outputs"):
        CheckLabeld("label", outputs=outputs)({"label": label})
    CheckLabeld("label")({"label": torch.eye(4)[None, None]})


def test_a_scan_without_a_label_is_named():
    image = MetaTensor(torch.zeros(7, 4, 4, 4), meta={"filename_or_obj": "a.nii.gz"})
    with pytest.raises(ValueError, match=r"a\.nii\.gz: no label; name one for each scan"):
        CheckLabeld("label")({"image": image})

import pytest
import torch

from eqdmri_monai.transforms import CheckLabeld


@pytest.mark.parametrize(("label", "outputs"), [(2 * torch.ones(1, 4, 4, 4), 1), (torch.zeros(1, 4, 4, 4), 3)])
def test_labels_for_another_number_of_classes_are_refused(label, outputs):
    with pytest.raises(ValueError, match=f"the network has {outputs} outputs"):
        CheckLabeld("label", outputs=outputs)({"label": label})
    CheckLabeld("label")({"label": torch.eye(4)[None, None]})

import json

import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.statistics import training_statistics


@pytest.fixture
def datalist(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").touch()
        (tmp_path / f"{name}_label.nii.gz").touch()
    items = [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in "ab"]
    (tmp_path / "scans.json").write_text(json.dumps({"training": items}))
    return str(tmp_path / "scans.json")


def transform(volumes):
    """Return a loader of made-up scans with these numbers of volumes, one after another."""
    left = iter(volumes)

    def load(scan):
        count = next(left)
        label, brain = torch.zeros(2, 1, 4, 4, 4)
        brain[0, :2] = 1
        label[0, 1:3, 0, 0] = 1  # one voxel in the brain, one outside
        image = torch.arange(count)[:, None, None, None] + torch.ones(4, 4, 4) * (1 + len(list(scan)))
        return {"image": MetaTensor(image), "label": MetaTensor(label), "brain_mask": MetaTensor(brain)}

    return load


def test_statistics_are_found_once_and_written(tmp_path, datalist):
    file = tmp_path / "models" / "statistics.json"
    found = training_statistics(file, datalist=datalist, transform=transform([3, 3]))
    assert found == {"channel_means": [3.0, 4.0, 5.0], "positives": 2, "negatives": 62, "scans": 2}
    assert training_statistics(file, datalist=datalist, transform=None) == found


def test_weights_without_statistics_are_refused(tmp_path, datalist):
    with pytest.raises(FileNotFoundError, match="copy it from the folder in which the weights were trained"):
        training_statistics(tmp_path / "statistics.json", datalist=datalist, transform=None, trained=True)


def test_scans_of_several_schemes_are_refused(tmp_path, datalist):
    with pytest.raises(ValueError, match=r"b.nii.gz: 4 volumes but the scans before have 3"):
        training_statistics(tmp_path / "statistics.json", datalist=datalist, transform=transform([3, 4]))


def test_labels_without_lesions_are_refused(tmp_path, datalist):
    def load(scan):
        zeros = MetaTensor(torch.zeros(1, 4, 4, 4))
        return {"image": zeros + 1, "label": zeros, "brain_mask": zeros + 1}

    with pytest.raises(ValueError, match="no scan for training has a lesion voxel"):
        training_statistics(tmp_path / "statistics.json", datalist=datalist, transform=load)

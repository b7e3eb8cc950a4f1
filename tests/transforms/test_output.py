from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from eqdmri_monai.files.writing import part_of
from eqdmri_monai.transforms import CheckFinited, SaveTogether


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_refused_with_scan_and_weights(value):
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "a/scan.nii.gz"})
    data = {"image": image, "pred": torch.zeros(1, 2, 2, 2)}
    check = CheckFinited("pred", weights="model.pt")
    assert check(data)["pred"] is data["pred"]
    data["pred"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"a/scan.nii.gz: 1 of the 8 values that the network with model.pt gives"):
        check(data)


def writer(part: Path, name: str, seen: list):
    def write(data):
        seen.append({path.name for path in part.parent.iterdir()} - {part.name})
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(data)
        return data

    return write


def test_files_of_a_scan_appear_together_and_in_order(tmp_path, monkeypatch):
    part, seen = part_of(tmp_path / "scan"), []
    writers = [writer(part, name, seen) for name in ("b_report.json", "sub/a_report.json", "a_map.nii.gz")]
    (tmp_path / "a_map.nii.gz").write_text("old")
    placed = []
    monkeypatch.setattr("eqdmri_monai.files.writing.put_in_place", lambda p, t: (placed.append(t.name), p.replace(t)))
    assert SaveTogether(writers, part=part, folder=tmp_path, data_root_dir=tmp_path)("new") == "new"
    assert seen == 3 * [{"a_map.nii.gz"}]
    assert placed == ["b_report.json", "a_report.json", "a_map.nii.gz"]
    assert {path.name for path in tmp_path.iterdir()} == {"b_report.json", "sub", "a_map.nii.gz"}
    assert (tmp_path / "a_map.nii.gz").read_text() == (tmp_path / "sub" / "a_report.json").read_text() == "new"


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    def fail(data):
        raise OSError("no space left")

    part, seen = part_of(tmp_path / "scan"), []
    (tmp_path / "a_map.nii.gz").write_text("old")
    together = SaveTogether(
        [writer(part, "a_map.nii.gz", seen), fail], part=part, folder=tmp_path, data_root_dir=tmp_path
    )
    with pytest.raises(OSError, match="no space left"):
        together("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a_map.nii.gz"]
    assert (tmp_path / "a_map.nii.gz").read_text() == "old"

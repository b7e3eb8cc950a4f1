import json

import pytest

from eqdmri_monai.files.scans import scan_list


def test_a_datalist_is_relative_to_its_own_folder(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "scans.json").write_text(json.dumps({"testing": [{"image": "a.nii.gz"}]}))
    assert scan_list(datalist=str(tmp_path / "scans.json")) == [{"image": str(tmp_path / "a.nii.gz")}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", 'no list "testing"'),
        ('{"training": []}', 'no list "testing"'),
        ('{"testing": []}', "is empty"),
        ('{"testing": [{"dwi": "a.nii"}]}', "must be a mapping with image"),
        ('{"testing": [{"image": "a.nii"}]}', "no such file"),
    ],
)
def test_a_bad_datalist_is_refused(tmp_path, text, words):
    (tmp_path / "scans.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        scan_list(datalist=str(tmp_path / "scans.json"))


def test_one_scan_or_a_list_must_be_named():
    with pytest.raises(ValueError, match="name one scan"):
        scan_list()

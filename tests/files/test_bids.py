"""Scans of a BIDS folder, and names of results in one."""

import json
from pathlib import Path

import pytest

from eqdmri_monai.files.bids import bids_scans, derivative_name, describe_derivatives, uri
from eqdmri_monai.files.scans import common_folder, scan_list

TABLE = {".bval": "0 1000 1000", ".bvec": "0 1 0\n0 0 1\n0 0 0"}


def make(root: Path, *names: str, **contents: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(path.name.partition(".")[0], TABLE.get(path.suffix, "")))
    return root


def found(root: Path) -> dict[str, set[str]]:
    """The scans by their place, each with the tables that it has."""
    place = lambda path: Path(path).relative_to(root).as_posix()  # noqa: E731
    return {place(s["image"]): {place(v) for k, v in s.items() if k != "image"} for s in bids_scans(root)}


def test_scans_with_their_own_tables_are_found(tmp_path):
    one, two = "sub-1/dwi/sub-1_dwi", "sub-2/ses-a/dwi/sub-2_ses-a_dir-AP_run-1_dwi"
    others = ("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/dwi/sub-1_sbref.nii.gz", "sub-1/dwi/sub-1_dwi.json",
              "derivatives/x/sub-1/dwi/sub-1_dwi.nii.gz", "sourcedata/sub-1/dwi/sub-1_dwi.nii.gz")  # fmt: skip
    make(tmp_path, f"{two}.nii.gz", f"{two}.bval", f"{two}.bvec", f"{one}.nii", f"{one}.bval", f"{one}.bvec", *others)
    assert found(tmp_path) == {
        f"{one}.nii": {f"{one}.bval", f"{one}.bvec"},
        f"{two}.nii.gz": {f"{two}.bval", f"{two}.bvec"},
    }
    scans = scan_list(bids=str(tmp_path))
    assert common_folder(scans, bids=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("place", ["", "sub-1/", "sub-1/ses-a/", "sub-1/ses-a/dwi/"])
@pytest.mark.parametrize("name", ["dwi", "acq-x_dwi", "sub-1_ses-a_acq-x_dwi"])
def test_tables_are_inherited_from_every_level(tmp_path, place, name):
    stem = "sub-1/ses-a/dwi/sub-1_ses-a_acq-x_run-2_dwi"
    tables = {f"{place}{name}.bval", f"{place}{name}.bvec"}
    # of another suffix, and with entities that the scan has not, or has otherwise
    others = [f"{place}{other}.bval" for other in ("sbref", "acq-y_dwi", "acq-x_dir-AP_dwi", "run-1_dwi")]
    make(tmp_path, f"{stem}.nii.gz", *tables, *others)
    assert found(tmp_path) == {f"{stem}.nii.gz": tables}


def test_the_lowest_level_wins_for_each_file_alone(tmp_path):
    stem = "sub-1/dwi/sub-1_dwi"
    make(tmp_path, f"{stem}.nii.gz", "dwi.bval", "dwi.bvec", "sub-1/sub-1_dwi.bvec", f"{stem}.bval")
    assert found(tmp_path) == {f"{stem}.nii.gz": {f"{stem}.bval", "sub-1/sub-1_dwi.bvec"}}


def test_two_tables_of_one_level_are_refused(tmp_path):
    make(tmp_path, "sub-1/dwi/sub-1_acq-x_dwi.nii.gz", "dwi.bval", "acq-x_dwi.bval")
    with pytest.raises(ValueError, match=r"sub-1_acq-x_dwi.nii.gz: both acq-x_dwi.bval and dwi.bval in .* apply to it"):
        bids_scans(tmp_path)


def test_a_scan_without_a_table_is_listed_and_says_so_itself(tmp_path):
    make(tmp_path, "sub-1/dwi/sub-1_dwi.nii.gz", "sub-2/sub-2_dwi.bval", "sub-2/sub-2_dwi.bvec")
    assert found(tmp_path) == {"sub-1/dwi/sub-1_dwi.nii.gz": set()}


def test_what_is_no_map_to_be_is_left_out_with_a_message(tmp_path, caplog):
    names = ["sub-1/dwi/sub-1_part-mag_dwi", "sub-1/dwi/sub-1_part-phase_dwi", "sub-1/dwi/sub-1_dir-PA_dwi"]
    files = [f"{name}{ending}" for name in names for ending in (".nii.gz", ".bval", ".bvec")]
    make(tmp_path, *files)
    (tmp_path / f"{names[2]}.bval").write_text("0 5 0")
    assert set(found(tmp_path)) == {f"{names[0]}.nii.gz"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{names[2]}.nii.gz: has no volume with diffusion weighting, left out",
        f"{names[1]}.nii.gz: holds the phase part, not magnitudes, left out",
    ]


def test_what_is_no_bids_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such folder; give the root"):
        scan_list(bids=str(tmp_path / "none"))
    make(tmp_path, "scan.nii.gz", "sub-1/sub-1_dwi.nii.gz")
    with pytest.raises(ValueError, match=r"no diffusion scan; in BIDS they are sub-\*/\[ses-\*/\]dwi"):
        scan_list(bids=str(tmp_path))
    with pytest.raises(ValueError, match="--bval belongs to one scan"):
        scan_list(bids=str(tmp_path), bval="a.bval")


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        ("sub-1_dwi", "sub-1_desc-lesion_mask"),
        ("sub-1_ses-a_run-2_dwi", "sub-1_ses-a_run-2_desc-lesion_mask"),
        ("sub-1_space-ACPC_desc-preproc_dwi", "sub-1_space-ACPC_desc-lesion_mask"),
    ],
)
def test_results_have_the_entities_of_their_scan_and_a_desc_of_their_own(tmp_path, scan, name):
    names = {"lesion": {"name": "desc-lesion_mask", "Type": "Lesion"}}
    for ending in ("nii.gz", "json"):
        assert derivative_name(tmp_path / f"{scan}_lesion.{ending}", names) == tmp_path / f"{name}.{ending}"
    with pytest.raises(ValueError, match="no name of BIDS for 'other'"):
        derivative_name(tmp_path / f"{scan}_other.nii.gz", names)


def test_a_folder_of_derivatives_says_what_it_is_and_stays_with_its_data_set(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "eqdmri_monai"
    out.mkdir(parents=True)
    describe_derivatives(out, raw)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "eqdmri_monai"
    assert (out / description["DatasetLinks"]["raw"]).resolve() == raw.resolve()
    assert uri(raw, raw / "sub-1" / "dwi" / "sub-1_dwi.nii.gz") == "bids:raw:sub-1/dwi/sub-1_dwi.nii.gz"
    assert "*_report.*" in (out / ".bidsignore").read_text()
    before = (out / "dataset_description.json").stat()
    describe_derivatives(out, raw)
    assert (out / "dataset_description.json").stat() == before
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="belongs to another BIDS data set; choose another output folder"):
        describe_derivatives(out, tmp_path / "other")


@pytest.mark.parametrize("text", ["", '{"Name": "study"}', '{"GeneratedBy": [{"Name": "other"}], "DatasetLinks": {}}'])
def test_results_go_into_no_data_set_of_others(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    for folder in (tmp_path, tmp_path / "raw"):  # of others, and the raw data themselves
        with pytest.raises(ValueError, match="belongs to another BIDS data set"):
            describe_derivatives(tmp_path, folder)
    assert (tmp_path / "dataset_description.json").read_text() == text


def test_the_raw_data_set_is_refused_without_a_description_too(tmp_path):
    with pytest.raises(ValueError, match=r"belongs to another BIDS data set; choose .*/derivatives/eqdmri_monai$"):
        describe_derivatives(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())

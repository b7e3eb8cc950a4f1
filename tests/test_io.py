import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs
from rotation import scheme

from eqdmri_monai.frames import fsl_to_world
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.io import (
    WholeNibabelWriter,
    check_nifti,
    find_sidecars,
    output_folder,
    read_fsl,
    read_mrtrix,
    read_table,
    same_grid,
    scan_list,
    write_fsl,
    write_nifti,
    written_whole,
)

AFFINE = np.diag([-2.0, 2, 2, 1])


@pytest.fixture
def table():
    bvecs = scheme(7, 1.0)
    return GradientTable(torch.tensor([0.0] + [1000.0] * 7), bvecs)


@pytest.mark.parametrize("affine", [AFFINE, np.diag([2.0, 2, 2, 1])])
def test_what_is_written_is_read(tmp_path, table, affine):
    read = read_fsl(*write_fsl(table, affine, tmp_path / "dwi"), affine, volumes=8)
    torch.testing.assert_close(read.bvecs, table.bvecs, rtol=0, atol=1e-7)
    torch.testing.assert_close(read.bvals, table.bvals)


def test_fsl_files_agree_with_dipy():
    _, bval, bvec = get_fnames(name="small_25")
    bvals, bvecs = read_bvals_bvecs(str(bval), str(bvec))
    table = read_fsl(bval, bvec, AFFINE)
    expected = fsl_to_world(torch.from_numpy(bvecs), torch.as_tensor(AFFINE))
    torch.testing.assert_close(table.bvecs, expected * (table.bvals > 50)[:, None], rtol=0, atol=1e-3)
    torch.testing.assert_close(table.bvals, torch.from_numpy(bvals))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("gap", "end"), [(" ", "\n"), (", ", "\n"), ("\t", "\r\n"), (",", "\r\n")])
def test_every_layout_of_fsl_files_reads_alike(tmp_path, table, transpose, gap, end):
    fsl = -table.bvecs[:, :1], table.bvecs[:, 1:]
    rows = torch.cat(fsl, dim=1).tolist()
    rows = rows if transpose else list(zip(*rows, strict=True))
    (tmp_path / "a.bvec").write_bytes(end.join(gap.join(f"{x:.9f}" for x in row) for row in rows).encode() + b"\r\n")
    bvals = [f"{b:g}" for b in table.bvals.tolist()]
    (tmp_path / "a.bval").write_bytes((end if transpose else gap).join(bvals).encode())
    read = read_fsl(tmp_path / "a.bval", tmp_path / "a.bvec", AFFINE)
    torch.testing.assert_close(read.bvecs, table.bvecs, rtol=0, atol=1e-8)


def test_mrtrix_directions_are_in_the_world(tmp_path, table):
    rows = torch.cat([table.bvecs, table.bvals[:, None]], dim=1).tolist()
    (tmp_path / "dwi.b").write_text("\n".join(" ".join(map(str, row)) for row in rows))
    read = read_table({"image": str(tmp_path / "dwi.nii.gz")}, AFFINE, volumes=8)
    torch.testing.assert_close(read.bvecs, table.bvecs)
    torch.testing.assert_close(read_mrtrix(tmp_path / "dwi.b").bvals, table.bvals)


@pytest.mark.parametrize("names", [("dwi.bval", "dwi.bvec"), ("dwi.bvals", "dwi.bvecs"), ("bvals", "bvecs")])
def test_sidecars_are_found(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    found = find_sidecars(tmp_path / "dwi.nii.gz")
    assert [path.name for path in found.values()] == list(names)


def test_a_missing_table_names_what_to_add(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put dwi.bval and dwi.bvec \(or dwi.b\) next to it"):
        find_sidecars(tmp_path / "dwi.nii.gz")


@pytest.mark.parametrize(
    ("bval", "bvec", "words"),
    [
        ("0 1000 1000 1000", "1 0 0\n0 1 0\n0 0 1", "belong to different scans"),
        ("0 1000 1000", "1 0 0\n0 1 0\n0 0 1", "rows and columns cannot be told apart"),
        ("0 1000", "1 0 0 0\n0 1 0 0", "must be 3 rows or 3 columns"),
        ("0 b", "1 0 0", "not a table of numbers"),
        ("0 1000", "1 0 0\n0 1", "rows must be equally long"),
        ("", "1 0 0", "rows must be equally long"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path, bval, bvec, words):
    (tmp_path / "a.bval").write_text(bval)
    (tmp_path / "a.bvec").write_text(bvec)
    with pytest.raises(ValueError, match=words):
        read_fsl(tmp_path / "a.bval", tmp_path / "a.bvec", AFFINE)


def test_an_mrtrix_file_of_three_columns_is_refused(tmp_path):
    (tmp_path / "a.b").write_text("0 0 0\n")
    with pytest.raises(ValueError, match="an MRtrix table has 4"):
        read_mrtrix(tmp_path / "a.b")


def test_bval_without_bvec_is_refused():
    with pytest.raises(ValueError, match="must be given together"):
        read_table({"image": "a.nii", "bval": "a.bval"}, AFFINE)


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
    with pytest.raises(ValueError, match="name either one scan"):
        scan_list()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="choose another output folder"):
        output_folder(tmp_path / "file" / "results")


def test_nothing_is_left_where_writing_fails(tmp_path):
    def fail():
        with written_whole(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_monai_writer_leaves_the_whole_file_only(tmp_path):
    writer = WholeNibabelWriter(output_dtype=np.float32)
    writer.set_data_array(torch.ones(1, 3, 4, 5), channel_dim=0)
    writer.set_metadata({"affine": AFFINE}, resample=False)
    writer.write(tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, AFFINE)


def test_grids_are_compared_at_their_corners():
    near, off = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 1e-4
    off[0, 3] += 0.1
    assert same_grid((4, 5, 6), AFFINE, (4, 5, 6), near)
    assert not same_grid((4, 5, 6), AFFINE, (4, 5, 6), off)
    assert not same_grid((4, 5, 6), AFFINE, (4, 5, 7), AFFINE)

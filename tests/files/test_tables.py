import numpy as np
import pytest
import torch
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs

from eqdmri_monai.files.tables import find_sidecars, read_fsl, read_mrtrix, read_table, write_fsl
from eqdmri_monai.frames import fsl_to_world
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.symmetry import random_scheme

AFFINE = np.diag([-2.0, 2, 2, 1])


@pytest.fixture
def table():
    bvecs = random_scheme(7, 1.0)
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
        ("", "1 0 0", "there is no number in it"),
        ("0 1_000", "1 0 0", "'1_000' is no number"),
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

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from eqdmri_monai.files.tractograms import bundle_labels, read_tractogram, write_trx

AFFINE = np.array([[0.0, 2, 0, -30], [-2, 0, 0, 40], [0, 0, 2.5, -20], [0, 0, 0, 1]])  # axes turned, not cubic
SIZE = 30, 40, 20


def lines():
    """Streamlines of different lengths inside the grid, mm."""
    rng = np.random.default_rng(0)
    voxel = [rng.uniform(1, 18, size=(n, 3)) for n in (5, 2, 9)]
    return [np.float32(nib.affines.apply_affine(AFFINE, v)) for v in voxel]


def write(path, streamlines, affine=AFFINE, size=SIZE, **data):
    header = {
        "voxel_to_rasmm": affine,
        "dimensions": size,
        "voxel_sizes": nib.affines.voxel_sizes(affine),
        "voxel_order": b"PLS",
    }
    tractogram = nib.streamlines.Tractogram(streamlines, affine_to_rasmm=np.eye(4), **data)
    nib.streamlines.save(tractogram, str(path), header=header if path.suffix == ".trk" else None)
    return path


def image(path):
    nib.save(nib.Nifti1Image(np.zeros(SIZE), AFFINE), path)
    return path


@pytest.mark.parametrize("suffix", [".trk", ".tck", ".trx"])
def test_every_format_gives_the_same_world_coordinates(tmp_path, suffix):
    path = write(tmp_path / f"a{'.trk' if suffix == '.trx' else suffix}", lines())
    if suffix == ".trx":
        write_trx(tmp_path / "a.trx", read_tractogram(path), groups={}, per_streamline={})
        path = tmp_path / "a.trx"
    trx = read_tractogram(path, image(tmp_path / "scan.nii.gz") if suffix == ".tck" else None)
    for ours, theirs in zip(trx.streamlines, lines(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(trx.affine, AFFINE, atol=1e-5)
    assert tuple(trx.dimensions) == SIZE


def test_what_is_written_keeps_all_that_was_read(tmp_path):
    data = {"data_per_streamline": {"length": np.float32([[1], [2], [3]])}}
    data["data_per_point"] = {"fa": [np.float32(np.arange(len(s)))[:, None] for s in lines()]}
    trx = read_tractogram(write(tmp_path / "a.trk", lines(), **data))
    numbers = {"p": np.array([0.1, 0.2, 0.3])}
    write_trx(tmp_path / "b.trx", trx, groups={"first": np.array([0, 2])}, per_streamline=numbers)
    once = read_tractogram(tmp_path / "b.trx")
    write_trx(tmp_path / "c.trx", once, groups={"second": np.array([1])}, per_streamline={})
    again = read_tractogram(tmp_path / "c.trx")
    np.testing.assert_array_equal(again.streamlines.get_data(), trx.streamlines.get_data())
    np.testing.assert_array_equal([len(s) for s in again.streamlines], [5, 2, 9])
    np.testing.assert_array_equal(again.per_streamline["length"], [[1], [2], [3]])
    np.testing.assert_allclose(again.per_streamline["p"], [[0.1], [0.2], [0.3]])
    np.testing.assert_array_equal(again.per_point["fa"][2], np.arange(9.0)[:, None])
    assert {name: list(members) for name, members in again.groups.items()} == {"first": [0, 2], "second": [1]}
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"a.trk", "b.trx", "c.trx"}


def test_a_name_that_is_taken_is_not_written_over(tmp_path):
    trx = read_tractogram(write(tmp_path / "a.trk", lines()))
    write_trx(tmp_path / "b.trx", trx, groups={"AF": np.array([0])}, per_streamline={})
    with pytest.raises(ValueError, match="has AF already; name another prefix"):
        write_trx(
            tmp_path / "c.trx", read_tractogram(tmp_path / "b.trx"), groups={"AF": np.array([1])}, per_streamline={}
        )


def labelled(tmp_path, groups):
    trx = read_tractogram(write(tmp_path / "a.trk", lines()))
    return replace(trx, groups={name: np.array(members) for name, members in groups.items()})


def test_labels_are_places_in_the_list_of_names(tmp_path):
    trx = labelled(tmp_path, {"B": [0], "A": [2]})
    assert bundle_labels(trx, ["A", "B"], "a.trk").tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("groups", "names", "other", "words"),
    [
        ({}, ["A"], True, "no groups to learn from"),
        ({"C": [0]}, ["A", "B"], True, "group C is none of the bundles A, B"),
        ({"A": [0, 1], "B": [1]}, ["A", "B"], True, "1 streamlines of group B are in another"),
        ({"A": [0]}, ["A", "A"], True, "names of bundles must differ"),
        ({"A": [0]}, ["A"], False, "2 streamlines are in no group"),
    ],
)
def test_groups_that_are_no_labels_are_refused(tmp_path, groups, names, other, words):
    with pytest.raises(ValueError, match=words):
        bundle_labels(labelled(tmp_path, groups), names, "a.trk", other=other)


def test_files_that_are_no_tractogram_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tractogram(tmp_path / "none.trk")
    (tmp_path / "a.vtk").write_text("")
    with pytest.raises(ValueError, match="a tractogram must be"):
        read_tractogram(tmp_path / "a.vtk")
    (tmp_path / "bad.trk").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as a tractogram"):
        read_tractogram(tmp_path / "bad.trk")
    with pytest.raises(ValueError, match="name an image of the scan as reference"):
        read_tractogram(write(tmp_path / "a.tck", lines()))
    with pytest.raises(ValueError, match="no streamlines"):
        read_tractogram(write(tmp_path / "empty.trk", []))


def test_coordinates_that_cannot_be_right_are_refused(tmp_path):
    broken = lines()
    broken[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="1 points are not finite"):
        read_tractogram(write(tmp_path / "nan.trk", broken))
    away = [s + np.float32(200) for s in lines()]
    with pytest.raises(ValueError, match="100% of the points lie outside the volume; name the image"):
        read_tractogram(write(tmp_path / "away.trk", away))
    far = nib.affines.from_matvec(np.diag([2.0, 2.0, 2.5]), [100, 100, 100])
    voxel = [np.float32(nib.affines.apply_affine(np.linalg.inv(AFFINE), s)) for s in lines()]
    with pytest.raises(ValueError, match="they look like voxel coordinates"):
        read_tractogram(write(tmp_path / "voxel.trk", voxel, affine=far))
    with pytest.raises(ValueError, match="names no volume"):
        read_tractogram(write(tmp_path / "blank.trk", lines(), affine=np.eye(4), size=(1, 1, 1)))

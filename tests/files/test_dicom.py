"""DICOM in: what is converted is what was scanned; what cannot be is refused with a sentence."""

import gzip
import lzma
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import IDENTITY, write_series
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from eqdmri_monai.files.dicom import dicom_to_scan
from eqdmri_monai.files.tables import read_fsl
from eqdmri_monai.frames import fsl_to_world
from eqdmri_monai.simulate import make_phantom, single_shell


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(
        0, single_shell(6, 1000.0, np.random.default_rng(0)), shape=(12, 14, 10), spacing=(12, 13, 14), lesions=0
    )


@pytest.fixture(scope="module")
def dwi(phantom):
    return np.round(phantom.dwi / phantom.dwi.max() * 4000).astype(np.int16)


def turned(affine: np.ndarray, degrees: list[float]) -> np.ndarray:
    out = affine.copy()
    out[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ affine[:3, :3]
    return out


def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def canonical(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.as_closest_canonical(image)


# Axial, oblique, coronal and sagittal slices.
SLICES = {"axial": [0, 0, 0], "oblique": [20, -10, 35], "coronal": [90, 0, 0], "sagittal": [90, 0, 90]}


@pytest.mark.parametrize("slices", SLICES)
def test_a_classic_series_comes_in_as_it_was_scanned(tmp_path, phantom, dwi, slices):
    affine = turned(phantom.affine, SLICES[slices])
    write_series(tmp_path / "dicom", dwi, affine, phantom.table)
    scan = dicom_to_scan(tmp_path / "dicom", out(tmp_path))
    image = nib.load(scan["image"])
    got, stored = canonical(image), canonical(nib.Nifti1Image(dwi, affine))
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_allclose(got.affine, stored.affine, rtol=0, atol=1e-4)
    table = read_fsl(scan["bval"], scan["bvec"], image.affine, volumes=dwi.shape[3])
    np.testing.assert_allclose(table.bvals, phantom.table.bvals)
    np.testing.assert_allclose(table.bvecs, phantom.table.bvecs, rtol=0, atol=1e-5)
    assert len(list(Path(scan["dicom"]).iterdir())) == dwi.shape[2] * dwi.shape[3]


def test_names_of_results_hold_nothing_of_the_patient(tmp_path, phantom, dwi):
    write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    folder = out(tmp_path)
    dicom_to_scan(tmp_path / "dicom", folder)
    names = " ".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert not [word for word in IDENTITY if word in names]
    assert not list(folder.rglob("*.json"))


ARCHIVES = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.xz": "xztar"}


@pytest.mark.parametrize("ending", ARCHIVES)
def test_an_archive_is_read_like_its_folder(tmp_path, phantom, dwi, ending):
    write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    shutil.make_archive(str(tmp_path / "a"), ARCHIVES[ending], tmp_path / "dicom")
    (tmp_path / "one").mkdir()
    one = dicom_to_scan(tmp_path / "dicom", tmp_path / "one")
    two = dicom_to_scan(tmp_path / f"a.{ending}", out(tmp_path))
    for key in ("image", "bval", "bvec"):
        assert Path(one[key]).read_bytes() == Path(two[key]).read_bytes()


def test_names_in_an_archive_lead_nowhere(tmp_path, phantom, dwi):
    first, *rest = write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(first, "../../escaped.dcm")
        for path in rest:
            archive.write(path, f"/absolute/{path.name}")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(first, "../escaped.dcm")
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for path in rest:
            archive.add(path, path.name)
    for name in ("a.zip", "a.tar"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        assert nib.load(dicom_to_scan(tmp_path / name, folder)["image"]).shape == dwi.shape
        assert {p.name for p in (folder / "unpacked").iterdir()} == {
            f"{k:06d}" for k in range(dwi.shape[2] * dwi.shape[3])
        }
    assert not list(tmp_path.rglob("escaped.dcm"))


def test_other_series_are_left_out_with_a_message(tmp_path, phantom, dwi, caplog):
    folder = tmp_path / "dicom"
    write_series(folder / "5", dwi, phantom.affine, phantom.table)
    maps = ("ADC", "ADC map"), ("FA", "FA map"), ("TRACEW", "trace image")
    for number, (word, _) in enumerate(maps, start=6):
        kind = ("DERIVED", "PRIMARY", "DIFFUSION", word)
        write_series(folder / f"{number}", dwi[..., :1], phantom.affine, None, number=number, image_type=kind)
    write_series(folder / "2", dwi[..., :1], phantom.affine, None, number=2, image_type=("ORIGINAL", "PRIMARY", "M"))
    write_series(folder / "9", dwi[..., :1], phantom.affine, None, number=9, modality="CT")
    (folder / "notes.txt").write_text("Jane Doe")
    scan = dicom_to_scan(folder, out(tmp_path))
    assert Path(scan["image"]).name == "series005.nii"
    assert nib.load(scan["image"]).shape == dwi.shape
    for number, (_, name) in enumerate(maps, start=6):
        assert f"series {number}: {name}, skipped" in caplog.messages
    assert "series 2: no volumes weighted along a direction, skipped" in caplog.messages
    assert "series 9: no MR (CT), skipped" in caplog.messages
    assert not [word for word in IDENTITY if word in caplog.text]


def test_two_series_make_it_ask_which(tmp_path, phantom, dwi):
    for number in (5, 8):
        write_series(tmp_path / f"dicom/{number}", dwi + number, phantom.affine, phantom.table, number=number)
    folder = out(tmp_path)
    with pytest.raises(
        ValueError, match=r"2 diffusion series \(5: 8 volumes of 12 x 14 x 10 .*; name one with --series 5"
    ):
        dicom_to_scan(tmp_path / "dicom", folder)
    (tmp_path / "eight").mkdir()
    scan = dicom_to_scan(tmp_path / "dicom", tmp_path / "eight", series=8)
    assert np.asarray(nib.load(scan["image"]).dataobj).sum() == (dwi + 8).sum(dtype=int)
    (tmp_path / "seven").mkdir()
    with pytest.raises(ValueError, match=r"no diffusion series of number 7 \(its series are \[5, 8\]"):
        dicom_to_scan(tmp_path / "dicom", tmp_path / "seven", series=7)
    (tmp_path / "two").mkdir()
    write_series(tmp_path / "dicom/other", dwi, phantom.affine, phantom.table, number=5, study="1.2.3")
    with pytest.raises(ValueError, match="3 diffusion series of several studies; give the folder of one study"):
        dicom_to_scan(tmp_path / "dicom", tmp_path / "two")


def test_a_file_that_occurs_twice_counts_once(tmp_path, phantom, dwi):
    paths = write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    shutil.copy(paths[3], tmp_path / "dicom" / "again.dcm")
    assert nib.load(dicom_to_scan(tmp_path / "dicom", out(tmp_path))["image"]).shape == dwi.shape


@pytest.mark.parametrize("lost", [[7], [0], [-1], [3, 14, 25]], ids=str)
def test_missing_slices_are_refused(tmp_path, phantom, dwi, lost):
    paths = write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    for k in lost:
        paths[k].unlink()
    with pytest.raises(ValueError, match=r"series 5: 7 to 8 slices at each of 10 positions, files are missing"):
        dicom_to_scan(tmp_path / "dicom", out(tmp_path))


def test_a_missing_volume_is_warned_of(tmp_path, phantom, dwi):
    paths = write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    for path in paths[30:40]:
        path.unlink()
    with pytest.warns(UserWarning, match="10 numbers between instances 1 and 80 do not occur"):
        scan = dicom_to_scan(tmp_path / "dicom", out(tmp_path))
    np.testing.assert_array_equal(np.loadtxt(scan["bval"]), np.delete(phantom.table.bvals.numpy(), 3))


def test_what_is_no_diffusion_series_is_refused(tmp_path, phantom, dwi):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        dicom_to_scan(tmp_path / "nowhere", out(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no diffusion series .it holds no DICOM image; 0 files are not DICOM"):
        dicom_to_scan(tmp_path / "empty", tmp_path / "out")
    write_series(tmp_path / "t1", dwi[..., :1], phantom.affine, None, number=3)
    with pytest.raises(ValueError, match="series 3: no volumes weighted along a direction"):
        dicom_to_scan(tmp_path / "t1", tmp_path / "out")


DAMAGED = {
    "a.zip": lambda b: b[:-200] + b[-100:],
    "a.tar.gz": lambda b: gzip.compress(b)[:4000],
    "a.tar.xz": lambda b: lzma.compress(b)[:600],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_refused(tmp_path, phantom, dwi, name):
    write_series(tmp_path / "dicom", dwi[..., :1], phantom.affine, phantom.table)
    whole = shutil.make_archive(str(tmp_path / "whole"), "zip" if name == "a.zip" else "tar", tmp_path / "dicom")
    (tmp_path / name).write_bytes(DAMAGED[name](Path(whole).read_bytes()))
    with pytest.raises(ValueError, match=f"{name}: (this archive is damaged|no diffusion series)"):
        dicom_to_scan(tmp_path / name, out(tmp_path))


def test_a_siemens_mosaic_comes_in(tmp_path):
    """The pair of b = 0 and b = 1000 that nibabel's own reader is tested with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data"
    (tmp_path / "dicom").mkdir()
    for b in ("0", "1000"):
        (tmp_path / "dicom" / b).write_bytes(gzip.decompress((source / f"siemens_dwi_{b}.dcm.gz").read_bytes()))
    scan = dicom_to_scan(tmp_path / "dicom", out(tmp_path))
    image = nib.load(scan["image"])
    assert image.shape == (128, 128, 48, 2)
    np.testing.assert_array_equal(np.loadtxt(scan["bval"]), [0, 1000])
    got = canonical(image)
    for k, b in enumerate(("0", "1000")):
        wrapper = wrapper_from_data(dcmread(tmp_path / "dicom" / b))
        to_ras = np.diag([-1, -1, 1, 1]) @ wrapper.affine
        own = canonical(nib.Nifti1Image(wrapper.get_data().astype(np.int32), to_ras))
        np.testing.assert_array_equal(np.asarray(got.dataobj)[..., k], np.asarray(own.dataobj))
        np.testing.assert_allclose(got.affine, own.affine, rtol=0, atol=1e-3)
    # nibabel gives the direction along the axes of its own array.
    axes = to_ras[:3, :3] / np.linalg.norm(to_ras[:3, :3], axis=0)
    bvecs = torch.from_numpy(np.loadtxt(scan["bvec"]).T)
    assert abs(fsl_to_world(bvecs, torch.from_numpy(image.affine))[1].numpy() @ axes @ wrapper.b_vector) > 0.9999


@pytest.mark.slow
def test_an_enhanced_series_equals_the_nifti_of_the_same_scan(tmp_path, data):
    scan = dicom_to_scan(data / "dicom_siemens_xa30_enhanced" / "series10.tar.xz", out(tmp_path))
    image, stored = (nib.load(p) for p in (scan["image"], data / "dwi_siemens_xa30_b2500" / "PA.nii.gz"))
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_array_equal(image.affine, stored.affine)
    for key in ("bval", "bvec"):
        np.testing.assert_array_equal(np.loadtxt(scan[key]), np.loadtxt(data / "dwi_siemens_xa30_b2500" / f"PA.{key}"))


def mutate(rng: np.random.Generator, paths: list[Path]) -> str:
    """Spoil one or several files of a series in one of the ways that transfers and exports spoil them."""
    path = paths[rng.integers(len(paths))]
    content = bytearray(path.read_bytes())
    kind = ["flip", "cut", "lose", "empty", "noise", "tag"][rng.integers(6)]
    if kind == "flip":  # bits in the header
        for k in rng.integers(132, 1200, 8):
            content[k] ^= 1 << rng.integers(8)
    elif kind == "cut":
        content = content[: rng.integers(len(content))]
    elif kind == "noise":
        content = bytearray(rng.bytes(len(content)))
    elif kind == "empty":
        content = bytearray()
    if kind == "lose":
        path.unlink()
    elif kind == "tag":
        d = dcmread(path)
        keyword = ["ImagePositionPatient", "PixelSpacing", "Rows", "DiffusionBValue", "SeriesInstanceUID"][
            rng.integers(5)
        ]
        d.pop(keyword, None)
        d.save_as(path)
    else:
        path.write_bytes(content)
    return kind


@pytest.mark.parametrize("seed", range(12))
def test_a_spoilt_series_gives_the_right_scan_or_a_sentence(tmp_path, phantom, dwi, seed):
    paths = write_series(tmp_path / "dicom", dwi, phantom.affine, phantom.table)
    mutate(np.random.default_rng(seed), paths)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            scan = dicom_to_scan(tmp_path / "dicom", out(tmp_path))
        except ValueError as e:
            scan, sentence = None, str(e)
    if scan is None:
        assert "\n" not in sentence
        assert not [word for word in IDENTITY if word in sentence.replace(str(tmp_path), "")]
        return
    image = nib.load(scan["image"])
    same = image.shape == dwi.shape and np.array_equal(
        np.asarray(canonical(image).dataobj), np.asarray(canonical(nib.Nifti1Image(dwi, phantom.affine)).dataobj)
    )
    assert same or seen, f"seed {seed}: {image.shape}, no warning"

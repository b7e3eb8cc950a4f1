"""DICOM out: results lie where the scan lies, refer to its b0 images, and say how they were made."""

import gzip
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from dicom_series import PATIENT, write_series
from pydicom import dcmread
from pydicom.sr.codedict import codes
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import eqdmri_monai
from eqdmri_monai.files.dicom import dicom_to_scan
from eqdmri_monai.files.dicom_results import b0_images, write_picture, write_probability, write_segmentation
from eqdmri_monai.simulate import make_phantom, single_shell

PARAMETERS = {"threshold": "0.5", "weights_sha256": "0123456789abcdef" * 4}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SLICES = {"axial": [0, 0, 0], "oblique": [20, -10, 35], "coronal": [90, 0, 0], "sagittal": [90, 0, 90]}


@pytest.fixture(params=SLICES, scope="module")
def case(request, tmp_path_factory):
    """A classic series, the scan made of it, and a lesion map and probability on the scan's grid."""
    table = single_shell(6, 1000.0, np.random.default_rng(0))
    phantom = make_phantom(0, table, shape=(12, 14, 10), spacing=(12, 13, 14), lesions=0)
    affine = phantom.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", SLICES[request.param], degrees=True).as_matrix() @ affine[:3, :3]
    dwi = np.round(phantom.dwi / phantom.dwi.max() * 4000).astype(np.int16)
    tmp_path = tmp_path_factory.mktemp(request.param)
    write_series(tmp_path / "dicom", dwi, affine, table)
    return converted(tmp_path)


def converted(tmp_path):
    (tmp_path / "out").mkdir()
    scan = dicom_to_scan(tmp_path / "dicom", tmp_path / "out")
    image = nib.load(scan["image"])
    rng = np.random.default_rng(1)
    probability = rng.random(image.shape[:3]).astype(np.float32)
    sources = b0_images(scan["dicom"], np.loadtxt(scan["bval"]))
    return scan, image, probability > 0.97, probability, sources, tmp_path


def positions(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World positions (mm) of the voxels of a mask."""
    return nib.affines.apply_affine(affine, np.argwhere(mask))


def check_segmentation(path, lesion, image):
    """Compare a segmentation with the map that it was made of; return it."""
    seg = hd.seg.segread(path)
    volume = seg.get_volume(combine_segments=True)
    got, stored = positions(volume.array > 0, volume.affine), positions(lesion, LPS @ image.affine)
    assert len(got) == len(stored)
    assert cKDTree(got).query(stored)[0].max() < 0.01
    assert cKDTree(stored).query(got)[0].max() < 0.01
    return seg


def test_a_segmentation_lies_where_the_scan_lies(case):
    _, image, lesion, _, sources, tmp_path = case
    check_segmentation(
        write_segmentation(tmp_path / "seg.dcm", lesion, image.affine, sources, parameters=PARAMETERS), lesion, image
    )


def test_each_frame_refers_to_the_b0_slice_that_it_lies_on(case):
    scan, image, lesion, _, sources, tmp_path = case
    path = write_segmentation(tmp_path / "seg.dcm", lesion, image.affine, sources, parameters=PARAMETERS)
    seg = dcmread(path)
    files = {d.SOPInstanceUID: d for d in map(dcmread, Path(scan["dicom"]).iterdir())}
    uids = {r.ReferencedSOPInstanceUID for r in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert len(uids) == image.shape[2]
    assert {float(files[uid].DiffusionBValue) for uid in uids} == {0.0}
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    masks = hd.seg.segread(path).get_volume(combine_segments=True).array
    stored = nib.load(scan["image"])
    b0 = np.asarray(stored.dataobj)[..., 0]
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = files[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float),
            np.array(source.ImagePositionPatient, dtype=float), rtol=0, atol=0.01,
        )  # fmt: skip
    # The pixels under the mask in the source files are those under the map in the scan.
    frames = seg.pixel_array.reshape(-1, *masks.shape[1:])
    under = [
        files[g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID].pixel_array[frame > 0]
        for g, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(under)), np.sort(b0[lesion]))


def test_a_segmentation_says_what_made_it_and_of_whom(case):
    _, image, lesion, _, sources, tmp_path = case
    seg = dcmread(write_segmentation(tmp_path / "seg.dcm", lesion, image.affine, sources, parameters=PARAMETERS))
    segment = seg.SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Lesion.value
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodingSchemeDesignator == "SCT"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
        "eqdmri_ms_segmentation",
        eqdmri_monai.__version__,
    )
    assert PARAMETERS["weights_sha256"] in algorithm.AlgorithmParameters
    assert segment.TrackingUID
    assert segment.TrackingID
    assert seg.PatientID == PATIENT["PatientID"]
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID
    assert seg.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert "Research only" in seg.ContentDescription


def test_a_probability_is_read_back_in_its_place(case):
    _, image, _, probability, sources, tmp_path = case
    path = write_probability(tmp_path / "map.dcm", probability, image.affine, sources, parameters=PARAMETERS)
    volume = hd.imread(path).get_volume()
    centres = np.linalg.inv(volume.affine) @ LPS @ image.affine
    index = np.argwhere(np.ones(probability.shape, bool))
    there = nib.affines.apply_affine(centres, index)
    spacing = image.header.get_zooms()[:3]
    assert (np.abs(there - there.round()).max(0) * max(spacing)).max() < 0.01
    np.testing.assert_array_equal(volume.array[tuple(there.round().astype(int).T)], probability.ravel())


def test_no_lesion_is_a_segmentation_too(case):
    _, image, lesion, _, sources, tmp_path = case
    seg = dcmread(write_segmentation(tmp_path / "s.dcm", 0 * lesion, image.affine, sources, parameters=PARAMETERS))
    assert seg.NumberOfFrames == image.shape[2]
    assert not seg.pixel_array.any()


@pytest.mark.parametrize("case", ["axial"], indirect=True)
def test_a_picture_becomes_a_secondary_capture(case):
    sources, tmp_path = case[4], case[5]
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    d = dcmread(write_picture(tmp_path / "sc.dcm", pixels, sources, parameters=PARAMETERS))
    np.testing.assert_array_equal(d.pixel_array, pixels)
    assert d.StudyInstanceUID == sources[0].StudyInstanceUID


@pytest.mark.parametrize("case", ["axial"], indirect=True)
def test_b_values_that_files_do_not_tell_are_those_of_the_scan(case, tmp_path):
    scan, *_, sources, _ = case
    for path in Path(scan["dicom"]).iterdir():
        d = dcmread(path)
        del d.DiffusionBValue
        d.save_as(tmp_path / path.name)
    uids = {d.SOPInstanceUID for d in sources}
    assert {d.SOPInstanceUID for d in b0_images(tmp_path, np.loadtxt(scan["bval"]))} == uids
    with pytest.raises(ValueError, match="no b0 image at 10 of 10 positions"):
        b0_images(tmp_path, [1000.0] * 8)


def test_a_siemens_mosaic_is_referred_to(tmp_path):
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data"
    (tmp_path / "dicom").mkdir()
    for b in ("0", "1000"):
        (tmp_path / "dicom" / b).write_bytes(gzip.decompress((source / f"siemens_dwi_{b}.dcm.gz").read_bytes()))
    _, image, lesion, _, sources, _ = converted(tmp_path)
    path = write_segmentation(tmp_path / "seg.dcm", lesion, image.affine, sources, parameters=PARAMETERS)
    seg = check_segmentation(path, lesion, image)
    (reference,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == dcmread(tmp_path / "dicom" / "0").SOPInstanceUID


@pytest.mark.slow
def test_an_enhanced_series_is_referred_to(tmp_path, data):
    source = data / "dicom_siemens_xa30_enhanced" / "series10.tar.xz"
    (tmp_path / "dicom").symlink_to(source)
    scan, image, lesion, _, sources, _ = converted(tmp_path)
    path = write_segmentation(tmp_path / "seg.dcm", lesion, image.affine, sources, parameters=PARAMETERS)
    seg = check_segmentation(path, lesion, image)
    b0 = dcmread(Path(scan["dicom"]) / "000000.dcm")
    assert [d.SOPInstanceUID for d in sources] == [b0.SOPInstanceUID]
    planes = [np.array(g.PlanePositionSequence[0].ImagePositionPatient) for g in b0.PerFrameFunctionalGroupsSequence]
    for group in seg.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        there = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        assert np.abs(there - planes[int(reference.ReferencedFrameNumber) - 1].astype(float)).max() < 0.01

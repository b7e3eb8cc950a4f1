"""DICOM out: a lesion map as a segmentation, a probability as a parametric map, a picture as secondary capture.

All refer to the b0 images of the source series, and take patient and study from them. The world is RAS in this package
and LPS in DICOM; voxels are stored along the axes of the source images.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import eqdmri_monai
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import B0_THRESHOLD

try:
    import highdicom as hd
    from pydicom import Dataset, dcmread
    from pydicom.sr.codedict import codes
except ImportError as e:
    raise ImportError(f"DICOM needs the package {e.name}: pip install 'eqdmri_monai[dicom]'") from None

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Where vendors keep the b-value of a single-frame image: the standard's, Siemens', Philips', GE's.
B_VALUE = (0x0018, 0x9087), (0x0019, 0x100C), (0x2001, 0x1003), (0x0043, 0x1039)
GE_OFFSET = 10**9  # GE adds it to b-values of some software versions
USE = "Research only, not for diagnosis"
# Numbers of the series that are made from series n: 100 n + 1, ...
SEGMENTATION, PROBABILITY, PICTURE = 1, 2, 3


def b0_images(folder: str | Path, bvals: Sequence[float]) -> list[Dataset]:
    """Read the headers of the first b0 volume of a diffusion series.

    Parameters
    ----------
    folder : path
        The files of one series, as `dicom.dicom_to_scan` leaves them.
    bvals : sequence of float
        Of the scan made from them, s/mm²; used where the files do not tell their b-value.

    Returns
    -------
    list of Dataset
        Without pixels: one single-frame image for each slice position, or one multi-frame or mosaic image.

    Raises
    ------
    ValueError
        When the folder has no such image.
    """
    images = [_header(path) for path in sorted(Path(folder).iterdir())]
    stacks: dict[tuple, list[Dataset]] = {}
    for image in images:
        one_plane = "NumberOfFrames" not in image and "MOSAIC" not in image.ImageType
        position = tuple(round(float(x), 2) for x in image.ImagePositionPatient) if one_plane else ()
        stacks.setdefault(position, []).append(image)
    found = []
    for stack in stacks.values():
        stack.sort(key=lambda image: int(image.InstanceNumber))
        b = [_b_value(image) for image in stack]
        if None in b and len(stack) == len(bvals):
            b = list(bvals)  # dcm2niix keeps the order of the images at one position
        found += [image for image, value in zip(stack, b, strict=True) if value is not None and value <= B0_THRESHOLD][
            :1
        ]
    if len(found) != len(stacks):
        raise ValueError(f"{folder}: no b0 image at {len(stacks) - len(found)} of {len(stacks)} positions")
    return found


def _header(path: Path) -> Dataset:
    with _no_names():
        image = dcmread(path, stop_before_pixels=True)
    if "PerFrameFunctionalGroupsSequence" in image:
        # Some scanners repeat for each frame what all frames share, and highdicom looks among what they share.
        shared, first = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence[0]
        for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if name not in shared and name in first:
                setattr(shared, name, getattr(first, name))
    return image


@contextmanager
def _no_names() -> Iterator[None]:
    """Keep warnings quiet that quote patients' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _b_value(image: Dataset) -> float | None:
    if "PerFrameFunctionalGroupsSequence" in image:
        frames = [*image.PerFrameFunctionalGroupsSequence, *image.SharedFunctionalGroupsSequence]
        values = [f.MRDiffusionSequence[0].get("DiffusionBValue", 0) for f in frames if "MRDiffusionSequence" in f]
        return min(map(float, values), default=None)
    for tag in B_VALUE:
        if tag in image:
            value = image[tag].value
            if isinstance(value, bytes):  # implicit transfer syntaxes do not name the type of private elements
                value = value.decode("ascii", "ignore").split("\\")
            first = value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value
            try:
                return float(first) % GE_OFFSET
            except (TypeError, ValueError):
                return None
    return None


def write_segmentation(
    path: str | Path, lesion: np.ndarray, affine: np.ndarray, sources: Sequence[Dataset], *, parameters: dict[str, str]
) -> Path:
    """Write a lesion map as DICOM segmentation.

    Parameters
    ----------
    path : path
    lesion : array, shape (X, Y, Z)
        Nonzero is lesion; may be empty.
    affine : array, shape (4, 4)
        RAS, mm.
    sources : sequence of Dataset
        From `b0_images`.
    parameters : dict of str
        Of the algorithm, such as threshold and hash of the weights.

    Returns
    -------
    Path

    Source
    ------
    DICOM PS3.3 A.51 and C.8.20; codes of SNOMED CT.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name="eqdmri_ms_segmentation",
        family=codes.cid7162.ArtificialIntelligence,
        version=eqdmri_monai.__version__,
        parameters=parameters,
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id="Lesions in diffusion MRI",
        anatomic_regions=[codes.SCT.Brain],
    )
    volume = _volume((np.asarray(lesion) > 0).astype(np.uint8), affine, sources)
    with _no_names():
        dataset = hd.seg.Segmentation(
            sources,
            volume,
            hd.seg.SegmentationTypeValues.BINARY,
            [segment],
            omit_empty_frames=bool(volume.array.any()),
            content_label="LESION",
            content_description=USE,
            **_origin(sources, SEGMENTATION, parameters),
        )
    dataset.SeriesDescription = "Lesions, research only"
    return _save(dataset, path)


def write_probability(
    path: str | Path,
    probability: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[Dataset],
    *,
    parameters: dict[str, str],
) -> Path:
    """Write a probability (X, Y, Z), 0 to 1, as DICOM parametric map of float32; else like `write_segmentation`.

    Source
    ------
    DICOM PS3.3 A.75.
    """
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="Probability",
        lut_explanation="Probability of lesion",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.Probability,
    )
    with _no_names():
        dataset = hd.pm.ParametricMap(
            sources,
            _volume(np.asarray(probability, dtype=np.float32), affine, sources),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
            content_label="PROBABILITY",
            content_description=USE,
            **_origin(sources, PROBABILITY, parameters),
        )
    dataset.SeriesDescription = "Probability of lesion, research only"
    return _save(dataset, path)


def write_picture(
    path: str | Path, picture: np.ndarray, sources: Sequence[Dataset], *, parameters: dict[str, str]
) -> Path:
    """Write a picture (rows, columns, 3), uint8, as DICOM secondary capture.

    The orientation that DICOM demands is that of `picture.picture`'s first row: columns to the right, rows to the back.
    """
    origin = _origin(sources, PICTURE, parameters)
    names = "series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer"
    with _no_names():
        dataset = hd.sc.SCImage.from_ref_dataset(
        sources[0], np.ascontiguousarray(picture[..., :3]), "RGB", 8, hd.CoordinateSystemNames.PATIENT,
        patient_orientation=("R", "P"), **{name: origin[name] for name in names},
    )  # fmt: skip
    dataset.SeriesDescription = "Picture of lesions, research only"
    return _save(dataset, path)


def _origin(sources: Sequence[Dataset], offset: int, parameters: dict[str, str]) -> dict[str, object]:
    return {
        "series_instance_uid": hd.UID(),
        "series_number": 100 * int(sources[0].get("SeriesNumber") or 0) + offset,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "eqdmri_monai",
        "manufacturer_model_name": "eqdmri_ms_segmentation",
        "software_versions": eqdmri_monai.__version__,
        "device_serial_number": parameters.get("weights_sha256", "none")[:16],
    }


def _volume(array: np.ndarray, affine: np.ndarray, sources: Sequence[Dataset]) -> hd.Volume:
    """Turn an array (X, Y, Z) into slices, rows and columns along those of the source images."""
    lps = RAS_TO_LPS @ affine
    for axis, direction in enumerate(_orientation(sources[0])):  # columns along i, rows along j
        if direction @ lps[:3, axis] < 0:
            array = np.flip(array, axis)
            lps = lps.copy()
            lps[:3, 3] += (array.shape[axis] - 1) * lps[:3, axis]
            lps[:3, axis] *= -1
    return hd.Volume(
        np.ascontiguousarray(array.transpose(2, 1, 0)),
        lps[:, [2, 1, 0, 3]],
        hd.CoordinateSystemNames.PATIENT,
        frame_of_reference_uid=sources[0].get("FrameOfReferenceUID"),
    )


def _orientation(image: Dataset) -> np.ndarray:
    """Directions along columns' and rows' index, shape (2, 3), LPS."""
    if "SharedFunctionalGroupsSequence" in image:
        image = image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    return np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)


def _save(dataset: Dataset, path: str | Path) -> Path:
    with written_whole(path) as part:
        dataset.save_as(part, enforce_file_format=True)
    return Path(path)

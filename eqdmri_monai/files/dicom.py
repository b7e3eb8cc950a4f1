"""DICOM in: the diffusion series of a folder or an archive, as NIfTI with its gradient table.

dcm2niix reads what vendors write (classic, enhanced multi-frame, mosaic). What is ours: which series it is, that no
frame was lost, and that neither paths nor names of a patient reach a file name or a message.
"""

import atexit
import logging
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from eqdmri_monai.gradients import B0_THRESHOLD

try:
    from dcm2niix import bin as DCM2NIIX
    from pydicom import dcmread
except ImportError as e:
    raise ImportError(f"DICOM needs the package {e.name}: pip install 'eqdmri_monai[dicom]'") from None

logger = logging.getLogger(__name__)
SECONDS = 1800  # that dcm2niix may take; it takes less than one for a scan of 21 volumes
TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "StudyInstanceUID", "Modality", "ImageType",
    "NumberOfFrames", "InstanceNumber", "ImagePositionPatient", "Rows",
)  # fmt: skip
# Words of Image Type (0008,0008) in series that scanners derive from a diffusion scan, and of phase images.
DERIVED = {
    "ADC": "ADC map", "EADC": "ADC map", "EXP": "exponential ADC map", "FA": "FA map", "COLFA": "colour FA map",
    "FA_COLOR": "colour FA map", "TRACEW": "trace image", "TRACE": "trace image", "TENSOR": "tensor",
    "TENSOR_B0": "tensor", "PHASE": "phase image", "P": "phase image", "PHASE MAP": "phase image",
}  # fmt: skip
# What dcm2niix puts behind the name of volumes that are no plain magnitude.
SUFFIXES = ("_ADC", "_ph", "_real", "_imaginary", "_Eq")


@dataclass(frozen=True)
class Instance:
    """One DICOM file."""

    path: Path
    uid: str
    series: str
    number: int
    study: str
    modality: str
    image_type: tuple[str, ...]
    frames: int
    index: int
    position: tuple[float, ...]


def dicom_to_scan(source: str | Path, folder: str | Path, *, series: int | None = None) -> dict[str, str]:
    """Convert the diffusion series of a folder or archive to NIfTI, bval and bvec.

    Other series are left out, with a message in the log.

    Parameters
    ----------
    source : path
        A folder, searched with all it holds; or a .zip or .tar archive, compressed or not; or one multi-frame file.
    folder : path
        Where the scan is written: ``series010.nii``, ``.bval``, ``.bvec``, and ``series010/`` with links to the DICOM
        files (the files themselves, from an archive). It must exist.
    series : int
        Series Number (0020,0011) of the series to take, where there are several.

    Returns
    -------
    dict of str
        ``image``, ``bval`` and ``bvec`` as in `scans.scan_list`, and ``dicom``, the folder with the files.

    Raises
    ------
    FileNotFoundError
        When there is no such folder or file.
    ValueError
        When the archive cannot be read, when there is not exactly one diffusion series to take, or when dcm2niix does
        not turn all its frames into one scan.
    """
    source, folder = Path(source), Path(folder)
    instances, foreign = _instances(source, folder)
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.series, []).append(instance)
    found, skipped = [], []
    for group in sorted(groups.values(), key=lambda g: g[0].number):
        if series is not None and group[0].number != series:
            continue
        place = folder / f"series{group[0].number:03d}"
        while place.exists():  # the same number in another study
            place = place.with_name(place.name + "a")
        scan = _convert(source, group, place)
        if isinstance(scan, str):
            skipped.append(f"series {group[0].number}: {scan}")
            logger.warning("%s, skipped", skipped[-1])
        else:
            found.append((group, scan))
    if len(found) == 1:
        return found[0][1]
    if not found:
        numbers = sorted({group[0].number for group in groups.values()})
        seen = "; ".join(skipped) or (f"its series are {numbers}" if numbers else "it holds no DICOM image")
        which = "" if series is None else f" of number {series}"
        raise ValueError(f"{source}: no diffusion series{which} ({seen}; {foreign} files are not DICOM)")
    if len({group[0].study for group, _ in found}) > 1 or len({group[0].number for group, _ in found}) < len(found):
        raise ValueError(f"{source}: {len(found)} diffusion series of several studies; give the folder of one study")
    shown = "; ".join(f"{group[0].number}: {_described(scan)}" for group, scan in found)
    raise ValueError(
        f"{source}: {len(found)} diffusion series ({shown}); name one with --series {found[0][0][0].number}"
    )


def temporary_folder() -> Path:
    """Make a folder that only this user can read and that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="eqdmri-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _described(scan: dict[str, str]) -> str:
    image, bvals = nib.load(scan["image"]), np.loadtxt(scan["bval"], ndmin=1)
    x, y, z, volumes = (*image.shape, 1)[:4]
    spacing = " x ".join(f"{s:.3g}" for s in image.header.get_zooms()[:3])
    shells = " ".join(f"{b:g}" for b in np.unique(np.round(bvals, -1))[:8])
    return f"{volumes} volumes of {x} x {y} x {z} voxels of {spacing} mm, b {shells} s/mm²"


def _instances(source: Path, folder: Path) -> tuple[list[Instance], int]:
    """Read the headers of all DICOM images; return them, each image once, and how many files are something else."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
    elif not source.is_file():
        raise FileNotFoundError(f"{source}: no such file or folder")
    elif (reader := _archive(source)) is not None:
        paths = _unpack(source, reader, folder / "unpacked")
    else:
        paths = [source]
    instances: dict[str, Instance] = {}
    foreign = 0
    for path in paths:
        instance = _instance(path)
        if instance is None:
            foreign += 1
        else:
            instances.setdefault(instance.uid, instance)
    return list(instances.values()), foreign


def _instance(path: Path) -> Instance | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values of the file
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
            if "Rows" not in header:
                return None
            return Instance(
                path,
                str(header.SOPInstanceUID),
                str(header.SeriesInstanceUID),
                int(header.get("SeriesNumber") or 0),
                str(header.get("StudyInstanceUID", "")),
                str(header.get("Modality", "")),
                tuple(str(word).upper() for word in header.get("ImageType") or ()),
                int(header.get("NumberOfFrames") or 1),
                int(header.get("InstanceNumber") or 0),
                tuple(round(float(x), 2) for x in header.get("ImagePositionPatient") or ()),
            )
    except Exception:  # pydicom lets a damaged file raise anything
        return None


def _convert(source: Path, group: list[Instance], place: Path) -> dict[str, str] | str:
    """Convert one series; return the scan, or why it is none."""
    first = group[0]
    if first.modality != "MR":
        return f"no MR ({first.modality or 'no modality'})"
    derived = [DERIVED[word] for word in first.image_type if word in DERIVED]
    if derived:
        return derived[0]
    slices = Counter(instance.position for instance in group if instance.frames == 1).values()
    if len(set(slices)) > 1:
        return f"{min(slices)} to {max(slices)} slices at each of {len(slices)} positions, files are missing"
    place.mkdir()
    for k, instance in enumerate(sorted(group, key=lambda i: (i.index, i.uid))):
        _link(instance.path, place / f"{k:06d}.dcm")
    out = place.with_name(place.name + "_out")
    out.mkdir()
    command = [DCM2NIIX, "-g", "i", "-b", "y", "-ba", "y", "-z", "n", "-f", place.name, "-o", str(out), str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{source}: dcm2niix takes more than {SECONDS} s for series {first.number}") from None
    images = sorted(out.glob("*.nii"))
    scans = [image for image in images if _directions(image) and not image.stem.endswith(SUFFIXES)]
    if not scans:
        shutil.rmtree(out)
        shutil.rmtree(place)
        return "no volumes weighted along a direction" if images else "no image volume that dcm2niix can read"
    if len(scans) > 1:
        raise ValueError(
            f"{source}: series {first.number} falls into {len(scans)} scans ({'; '.join(map(_shape, scans))}); "
            f"files are missing or of several scans: export the series again"
        )
    scan = scans[0]
    _check_frames(source, group, scan, images)
    for line in (done.stdout + done.stderr).splitlines():
        if line.startswith("Warning:") and "Slice timing" not in line:
            warnings.warn(f"series {first.number}: dcm2niix: {line.removeprefix('Warning:').strip()}", stacklevel=2)
    paths = {"image": place.with_suffix(".nii"), "bval": place.with_suffix(".bval"), "bvec": place.with_suffix(".bvec")}
    for path in paths.values():
        os.replace(scan.with_suffix(path.suffix), path)
    shutil.rmtree(out)
    return {key: str(path.absolute()) for key, path in paths.items()} | {"dicom": str(place.absolute())}


def _directions(image: Path) -> bool:
    """Whether there is a table in which some weighted volume has a direction."""
    bval, bvec = image.with_suffix(".bval"), image.with_suffix(".bvec")
    if not (bval.is_file() and bvec.is_file()):
        return False
    weighted = np.loadtxt(bval, ndmin=1) > B0_THRESHOLD
    return bool((np.linalg.norm(np.loadtxt(bvec, ndmin=2), axis=0)[weighted] > 0.5).any())


def _shape(image: Path) -> str:
    return " x ".join(map(str, nib.load(image).shape))


def _check_frames(source: Path, group: list[Instance], scan: Path, images: list[Path]) -> None:
    """Refuse a conversion that lost slices: frames of the files must be slices times volumes, or volumes (mosaic)."""
    whole = [image for image in images if image.stem.endswith("_ADC")] or images  # holds the derived volumes as well
    shapes = [(*nib.load(image).shape, 1)[:4] for image in whole]
    frames = sum(instance.frames for instance in group)
    mosaic = "MOSAIC" in group[0].image_type or frames == sum(shape[3] for shape in shapes)
    expected = sum(shape[3] * (1 if mosaic else shape[2]) for shape in shapes)
    if frames != expected:
        raise ValueError(
            f"{source}: series {group[0].number} has {frames} slices, but its scan {_shape(scan)} needs {expected}; "
            f"files are missing or double: export the series again"
        )
    numbers = sorted({instance.index for instance in group})
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    if 0 < missing < len(numbers):
        warnings.warn(
            f"series {group[0].number}: {missing} numbers between instances {numbers[0]} and {numbers[-1]} do not "
            f"occur; were all files exported?",
            stacklevel=2,
        )
    lost = shapes[0][3] - (*nib.load(scan).shape, 1)[3] if whole != images else 0
    if lost:
        logger.warning("series %d: %d derived volumes left out", group[0].number, lost)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.absolute())
    except OSError:  # file systems without links
        shutil.copyfile(source, target)


def _archive(path: Path) -> type | None:
    """Which reader opens an archive; None where it is none."""
    if zipfile.is_zipfile(path):
        return zipfile.ZipFile
    try:
        return tarfile.TarFile if tarfile.is_tarfile(path) else None
    except (EOFError, OSError, lzma.LZMAError, zlib.error):
        return tarfile.TarFile  # cut short: unpacking says so


def _unpack(source: Path, reader: type, folder: Path) -> list[Path]:
    """Copy the regular files of an archive to 000000, 000001, … in a new folder; names in it are not used."""
    folder.mkdir()
    paths = []
    try:
        for k, stream in enumerate(_members(source, reader)):
            paths.append(folder / f"{k:06d}")
            with stream, paths[-1].open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 22)
    except (
        EOFError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, NotImplementedError, RuntimeError,
    ) as e:  # fmt: skip
        raise ValueError(
            f"{source}: this archive is damaged or locked ({type(e).__name__}); copy it again, or unpack it"
        ) from None
    return paths


def _members(source: Path, reader: type) -> Iterator[BinaryIO]:
    if reader is zipfile.ZipFile:
        with zipfile.ZipFile(source) as archive:
            for name in archive.infolist():
                if not name.is_dir():
                    yield archive.open(name)
    else:
        with tarfile.open(source) as archive:
            for name in archive:
                if name.isreg():
                    yield archive.extractfile(name)

"""Files: gradient tables (FSL, MRtrix), NIfTI headers, lists of scans. What is written appears whole or not at all."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import NibabelWriter

from eqdmri_monai.frames import fsl_to_world, voxel_axes, world_to_fsl
from eqdmri_monai.gradients import GradientTable, check_table

# Keys of a scan that hold paths; "mrtrix" is a .b file in place of bval and bvec.
PATH_KEYS = ("image", "bval", "bvec", "mrtrix", "brain_mask", "label")
MAX_FORM_ANGLE = 1.0  # degrees between the axes of sform and qform


def read_fsl(bval: str | Path, bvec: str | Path, affine: np.ndarray, *, volumes: int | None = None) -> GradientTable:
    """Read FSL ``bval`` and ``bvec`` files into a table in the world frame.

    Numbers may be parted by blanks, tabs or commas, with any line ends; directions may be rows or columns.

    Parameters
    ----------
    bval, bvec : path
    affine : array, shape (4, 4)
        Original affine of the image that the files came with, mm.
    volumes : int
        Number of volumes of that image.

    Raises
    ------
    FileNotFoundError
        When a file is missing.
    ValueError
        When a file is not a table of numbers, or `check_table` refuses it.

    Source
    ------
    FSL FDT user guide; see `frames.fsl_to_world` for the frame.
    """
    values, rows = read_numbers(bval).flatten(), read_numbers(bvec)
    if rows.shape[0] == 3 and rows.shape[1] != 3:
        rows = rows.T
    if rows.shape[1] != 3:
        raise ValueError(f"{bvec}: {rows.shape[0]} x {rows.shape[1]} numbers; directions must be 3 rows or 3 columns")
    if len(rows) != len(values):
        raise ValueError(
            f"{bvec}: {len(rows)} directions but {bval} has {len(values)} b-values; they belong to different scans"
        )
    if rows.shape == (3, 3):
        raise ValueError(
            f"{bvec}: 3 directions; rows and columns cannot be told apart, and at least 6 directions are needed"
        )
    bvals = torch.from_numpy(values)
    unit = check_table(bvals, torch.from_numpy(rows), volumes=volumes, name=str(bvec))
    return GradientTable(bvals, fsl_to_world(unit, torch.as_tensor(np.array(affine))))


def read_mrtrix(path: str | Path, *, volumes: int | None = None) -> GradientTable:
    """Read an MRtrix ``.b`` file: one row "x y z b" for each volume, directions in the world frame.

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    ValueError
        When it does not have four columns, or `check_table` refuses it.

    Source
    ------
    MRtrix3 documentation, "Diffusion gradient scheme handling".
    """
    rows = read_numbers(path)
    if rows.shape[1] != 4:
        raise ValueError(f"{path}: {rows.shape[1]} columns; an MRtrix table has 4 (x y z b)")
    bvals = torch.from_numpy(rows[:, 3].copy())
    unit = check_table(bvals, torch.from_numpy(rows[:, :3].copy()), volumes=volumes, name=str(path))
    return GradientTable(bvals, unit)


def read_table(scan: Mapping, affine: np.ndarray, *, volumes: int | None = None) -> GradientTable:
    """Read the table of a scan from the files it names, else from files next to the image.

    Parameters
    ----------
    scan : mapping
        ``bval`` and ``bvec``, or ``mrtrix``; else ``image``, whose sidecars are looked for.
    affine : array, shape (4, 4)
        Original affine of the image, mm.
    volumes : int
        Number of volumes of the image.

    Raises
    ------
    FileNotFoundError
        When there is no table.
    ValueError
        When only one of bval and bvec is given, or the table is refused.
    """
    if scan.get("mrtrix"):
        return read_mrtrix(scan["mrtrix"], volumes=volumes)
    if bool(scan.get("bval")) != bool(scan.get("bvec")):
        raise ValueError(f"{scan.get('image')}: bval and bvec must be given together")
    if not scan.get("bval"):
        scan = find_sidecars(scan["image"])
        if "mrtrix" in scan:
            return read_mrtrix(scan["mrtrix"], volumes=volumes)
    return read_fsl(scan["bval"], scan["bvec"], affine, volumes=volumes)


def find_sidecars(image: str | Path) -> dict[str, Path]:
    """Find the table of an image by name: stem.bval + stem.bvec, stem.b, or bvals + bvecs in the same folder.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    image = Path(image)
    stem = image.parent / stem_of(image)
    for bval, bvec in (
        (f"{stem}.bval", f"{stem}.bvec"),
        (f"{stem}.bvals", f"{stem}.bvecs"),
        (image.parent / "bvals", image.parent / "bvecs"),
    ):
        if Path(bval).is_file() and Path(bvec).is_file():
            return {"bval": Path(bval), "bvec": Path(bvec)}
    if Path(f"{stem}.b").is_file():
        return {"mrtrix": Path(f"{stem}.b")}
    raise FileNotFoundError(
        f"{image}: no gradient table; put {stem.name}.bval and {stem.name}.bvec (or {stem.name}.b) next to it"
    )


def stem_of(path: str | Path) -> str:
    """File name without .nii or .nii.gz."""
    name = Path(path).name
    return name.removesuffix(".gz").removesuffix(".nii")


def read_numbers(path: str | Path) -> np.ndarray:
    """Read a text file of numbers, shape (rows, columns), float64.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is empty, holds something that is no number, or has rows of different lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name the gradient table of this scan")
    try:
        text = path.read_text(encoding="utf-8-sig").replace(",", " ")
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    except ValueError as e:  # UnicodeDecodeError is one too
        raise ValueError(f"{path}: not a table of numbers ({e})") from None
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(
            f"{path}: {len(rows)} rows of {sorted({len(row) for row in rows})} numbers; rows must be equally long"
        )
    return np.array(rows)


def write_fsl(table: GradientTable, affine: np.ndarray, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.bval and stem.bvec for an image of this affine; returns both paths."""
    bvecs = world_to_fsl(table.bvecs, torch.as_tensor(np.array(affine)))
    paths = Path(f"{stem}.bval"), Path(f"{stem}.bvec")
    with written_whole(paths[0]) as part:
        part.write_text(" ".join(f"{b:g}" for b in table.bvals.tolist()) + "\n")
    with written_whole(paths[1]) as part:
        part.write_text("\n".join(" ".join(f"{x:.8f}" for x in row) for row in bvecs.T.tolist()) + "\n")
    return paths


def check_nifti(path: str | Path, *, ndim: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Refuse a NIfTI file that cannot be read or whose header contradicts itself.

    Parameters
    ----------
    path : path
    ndim : int
        Number of axes that the image must have; 3 admits a fourth of length 1.

    Returns
    -------
    tuple of int
        Shape.
    array, shape (4, 4)
        Affine, mm.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is no NIfTI or is cut short, has another number of axes, a sheared or singular affine, or an
        sform and a qform that turn the voxel axes differently.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = nib.load(path)
        header = image.header
        sform, s_code = header.get_sform(coded=True)
        qform, q_code = header.get_qform(coded=True)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        AttributeError,
        OSError,
        EOFError,
        zlib.error,
    ) as e:
        raise ValueError(
            f"{path}: not a readable NIfTI file ({' '.join(str(e).split())}); copy or convert it again"
        ) from None
    shape = image.shape
    while ndim == 3 and len(shape) > 3 and shape[-1] == 1:  # a mask with one volume
        shape = shape[:-1]
    if len(shape) != ndim:
        kind = "a diffusion scan has 4 (x, y, z, volume)" if ndim == 4 else "a mask has 3"
        raise ValueError(f"{path}: {len(shape)} axes {shape}; {kind}")
    _check_length(path, int(np.prod(image.shape)) * header.get_data_dtype().itemsize + image.dataobj.offset)
    try:
        voxel_axes(torch.as_tensor(image.affine))
        if s_code > 0 and q_code > 0:
            cosine = (
                torch.trace(voxel_axes(torch.as_tensor(sform)).T @ voxel_axes(torch.as_tensor(qform))).item() - 1
            ) / 2
            angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            if angle > MAX_FORM_ANGLE:
                raise ValueError(
                    f"sform and qform turn the voxel axes differently ({angle:.0f} degrees); set both to the right one"
                )
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return shape, image.affine


def _check_length(path: Path, expected: int) -> None:
    """Refuse a file that ends before its last voxel."""
    length = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while block := stream.read(1 << 22):
                length += len(block)
    except (EOFError, OSError, zlib.error):
        raise ValueError(f"{path}: the file is cut short or damaged after {length} bytes; copy it again") from None
    if length < expected:
        raise ValueError(f"{path}: {length} bytes of {expected}; the file is cut short, copy it again")


def scan_list(
    dwi: str | None = None, datalist: str | None = None, section: str = "testing", **files: str | None
) -> list[dict]:
    """List scans for a MONAI data set, from one scan's path or from a JSON file.

    Parameters
    ----------
    dwi : path
        One scan; `files` may name its bval, bvec, mrtrix, brain_mask and label.
    datalist : path
        ``{"training": [{"image": …, "label": …}], "validation": […], "testing": […]}``, where each scan may also name
        bval, bvec, mrtrix and brain_mask. Paths are relative to the JSON file.
    section : str
        Which list to take.

    Returns
    -------
    list of dict
        Absolute paths as str.

    Raises
    ------
    FileNotFoundError
        When a file that is named does not exist.
    ValueError
        When neither or both of `dwi` and `datalist` are given, or the JSON file has not this form.
    """
    if (dwi is None) == (datalist is None):
        raise ValueError("name either one scan (--dwi scan.nii.gz) or a list of scans (--datalist scans.json)")
    if dwi is not None:
        scans, folder = [{"image": dwi, **{k: v for k, v in files.items() if v}}], Path.cwd()
    else:
        path = Path(datalist)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give a datalist JSON")
        try:
            scans = json.loads(path.read_text())[section]
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f'{path}: no list "{section}" in this JSON file ({type(e).__name__}: {e})') from None
        folder = path.parent
    resolved = []
    for scan in scans:
        if not isinstance(scan, dict) or "image" not in scan or set(scan) - set(PATH_KEYS):
            raise ValueError(
                f"{datalist or dwi}: a scan must be a mapping with image and any of {PATH_KEYS[1:]}, got {scan}"
            )
        scan = {key: str((folder / value).absolute()) for key, value in scan.items()}
        for key, value in scan.items():
            if not Path(value).is_file():
                raise FileNotFoundError(f"{value}: no such file ({key} of a scan in {datalist or 'the command line'})")
        resolved.append(scan)
    if not resolved:
        raise ValueError(f'{datalist}: the list "{section}" is empty')
    return resolved


def output_folder(path: str | Path) -> str:
    """Make a folder for results and see that files can be written there.

    Raises
    ------
    ValueError
        When the folder cannot be made or written to.
    """
    path = Path(path).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with written_whole(path / ".writable") as part:
            part.touch()
        (path / ".writable").unlink(missing_ok=True)  # another process may try at the same time
    except OSError as e:
        raise ValueError(f"{path}: cannot write results there ({e.strerror}); choose another output folder") from None
    return str(path)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to `path` on success and removed on failure."""
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array (X, Y, Z[, Q]) as NIfTI with this affine (mm)."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with written_whole(path) as part:
        nib.save(image, part)
    return Path(path)


class WholeNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer for `SaveImaged`; the file appears under its name only when it is whole."""

    def write(self, filename: str | Path, verbose: bool = False, **kwargs) -> None:
        """See `monai.data.NibabelWriter.write`."""
        with written_whole(filename) as part:
            super().write(part, verbose=verbose, **kwargs)


def same_grid(shape: Sequence[int], affine: np.ndarray, other: Sequence[int], other_affine: np.ndarray) -> bool:
    """Whether two images have the same voxels: equal shapes, and affines within 1 % of a voxel at every corner."""
    if tuple(shape) != tuple(other):
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    off = np.linalg.norm(((np.asarray(affine) - other_affine) @ corners)[:3], axis=0).max()
    return bool(off < 0.01 * np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).min())

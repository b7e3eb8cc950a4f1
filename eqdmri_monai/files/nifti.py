"""NIfTI files: whether they are whole and right, and writing them."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from eqdmri_monai.files.header import check_place, check_values, parse_header, shape_of
from eqdmri_monai.files.writing import written_whole

ENDINGS = {  # what to do with files of other names
    ".hdr": "convert the pair of .hdr and .img to one .nii file",
    ".img": "convert the pair of .hdr and .img to one .nii file",
    ".bz2": "decompress it",
    ".zst": "decompress it",
    ".nii": "rename it, in lower case",
    ".gz": "rename it, in lower case",
}


def check_nifti(path: str | Path, *, ndim: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Refuse a NIfTI file that is not whole or whose header contradicts itself; nothing is loaded.

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
        When the file is no NIfTI, shorter or longer than its header says, has another number of axes, is 0 in every
        voxel of a scan, or `header.check_values` or `header.check_place` refuse it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return _check(path, ndim)
    except EOFError:
        raise ValueError(f"{path}: the file is cut short; copy it again") from None
    except gzip.BadGzipFile as e:
        if "Not a gzipped file" in str(e):
            raise ValueError(
                f"{path}: the file is not compressed, or damaged; rename it to .nii or copy it again"
            ) from None
        raise ValueError(f"{path}: the file is damaged ({e}); copy it again") from None
    except zlib.error as e:
        raise ValueError(f"{path}: the file is damaged ({e}); copy it again") from None
    except OSError as e:
        raise ValueError(f"{path}: cannot be read ({e.strerror or e}); copy it again") from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def _check(path: Path, ndim: int) -> tuple[tuple[int, ...], np.ndarray]:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"its name must end in .nii or .nii.gz; {ENDINGS.get(path.suffix.lower(), 'convert it')}")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        start = stream.read(544)
        header = parse_header(start)
        shape = shape_of(header)
        offset = check_values(header)
        values = int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
        if ndim == 3 and len(shape) == 4 and shape[3] == 1:  # a mask with one volume
            shape = shape[:3]
        if len(shape) != ndim:
            kind = "a diffusion scan has 4 (x, y, z, volume)" if ndim == 4 else "a mask has 3"
            raise ValueError(f"{len(shape)} axes {shape}; {kind}")
        affine = check_place(header)
        any_value = _check_length(stream, start, offset, values)
    if ndim == 4 and not any_value:
        raise ValueError("every voxel is 0; this is no scan")
    return shape, affine


def _check_length(stream: BinaryIO, start: bytes, offset: int, values: int) -> bool:
    """Refuse a file that does not end with its last voxel; return whether any value is not 0."""
    done, any_value, block = len(start), any(start[offset:]), start
    while block and done <= offset + values:
        block = stream.read(1 << 22)
        any_value = any_value or bool(np.frombuffer(block, np.uint8)[max(offset - done, 0) :].any())
        done += len(block)
    if done < offset + values:
        raise ValueError(f"{done} bytes of {offset + values}; the file is cut short, copy it again")
    if done > offset + values:
        raise ValueError(
            f"more bytes than the {offset + values} that its header says, so volumes may be mixed up; convert it again"
        )
    return any_value


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array (X, Y, Z[, Q]) as NIfTI with this affine (mm)."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with written_whole(path) as part:
        nib.save(image, part)
    return Path(path)


def stem_of(path: str | Path) -> str:
    """File name without .nii or .nii.gz."""
    name = Path(path).name
    return name.removesuffix(".gz").removesuffix(".nii")


def same_grid(shape: Sequence[int], affine: np.ndarray, other: Sequence[int], other_affine: np.ndarray) -> bool:
    """Whether two images have the same voxels: equal shapes, and affines within 1 % of a voxel at every corner."""
    if tuple(shape) != tuple(other):
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    off = np.linalg.norm(((np.asarray(affine) - other_affine) @ corners)[:3], axis=0).max()
    return bool(off < 0.01 * np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).min())

"""NIfTI files: what their headers must say, and writing them."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.frames import voxel_axes

MAX_FORM_ANGLE = 1.0  # degrees between the axes of sform and qform


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

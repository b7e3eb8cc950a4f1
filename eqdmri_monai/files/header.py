"""What the header of a NIfTI file must say, so that each voxel gets the value, the size and the place that it has.

Headers are read as they stand in the file: libraries mend some of these faults without a word. Messages name no file;
`nifti.check_nifti` puts its name before them.
"""

import nibabel as nib
import numpy as np
import torch

from eqdmri_monai.frames import voxel_axes

MAX_FORM_ANGLE = 1.0  # degrees between the axes of sform and qform
SIZE_TOLERANCE = 0.01  # relative, between the voxel sizes of sform and pixdim
VOXEL_SIZES = 0.01, 20.0  # mm; a mouse's brain under a microscope, the thickest slices
UNITS = {1: "metres", 3: "micrometres"}  # xyzt_units, NIfTI-1 standard; 2 is mm and 0 says nothing
Header = nib.Nifti1Header  # and its subclass for NIfTI-2


def parse_header(start: bytes) -> Header:
    """Read the header of a NIfTI-1 or NIfTI-2 file from its first bytes (544 or more), mending nothing.

    Raises
    ------
    ValueError
        When they are none, or that of a pair of files.
    """
    if not start:
        raise ValueError("the file is empty; copy it again")
    if start[:2] == b"\x1f\x8b":
        raise ValueError("the file is compressed, so its name must end in .nii.gz; rename it")
    for kind, length, place in ((nib.Nifti1Header, 348, slice(344, 347)), (nib.Nifti2Header, 540, slice(4, 7))):
        if length in (int.from_bytes(start[:4], order) for order in ("little", "big")):
            if start[place] in (b"ni1", b"ni2"):
                raise ValueError("header of a pair of files (.hdr and .img); convert the pair to one .nii file")
            if len(start) < length + 4:
                raise ValueError("the file is cut short within its header; copy it again")
            if start[place] in (b"n+1", b"n+2"):
                return kind(start[:length], check=False)
    raise ValueError("not a readable NIfTI file; copy or convert it again")


def shape_of(header: Header) -> tuple[int, ...]:
    """Return the shape that a header says.

    Raises
    ------
    ValueError
        When it is none.
    """
    count, *sizes = (int(n) for n in header["dim"])
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        raise ValueError(f"the header says {count} axes of lengths {sizes[: max(count, 0)]}; convert the scan again")
    return tuple(sizes[:count])


def check_values(header: Header) -> int:
    """Refuse voxels whose values have no meaning as intensities; return how many bytes come before them.

    Raises
    ------
    ValueError
        When they are no real numbers, are scaled by a negative factor, lose their differences to an intercept, or begin
        inside of the header.
    """
    try:
        dtype = header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError):
        raise ValueError(
            f"voxels are of type {int(header['datatype'])}, which is not known; convert the scan"
        ) from None
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "colours (RGB)" if dtype.names else f"of type {dtype}"
        raise ValueError(f"voxels are {kind}; write magnitudes as real numbers")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope < 0 or np.isinf(slope):
        raise ValueError(f"voxels are scaled by {slope:g} (scl_slope); it must be positive, correct the header")
    if slope > 0 and not np.isfinite(inter):
        raise ValueError(f"voxels are shifted by {inter:g} (scl_inter), which is not finite; correct the header")
    if slope > 0 and abs(inter) * np.finfo(np.float32).eps > slope:
        raise ValueError(
            f"voxels are shifted by {inter:g} (scl_inter), in which differences of {slope:g} (scl_slope) are lost; "
            "correct the header"
        )
    offset, least = float(header["vox_offset"]), header.single_vox_offset
    if not least <= offset < 2**53:
        raise ValueError(f"voxels begin at byte {offset:g} (vox_offset), within the header; set it to {least} or more")
    return int(offset)


def check_place(header: Header) -> np.ndarray:
    """Refuse a header that leaves sizes or axes of voxels open, or contradicts itself; return its affine (4, 4), mm.

    Where neither sform nor qform is set, axes are those that FSL, SPM and nibabel take: x to the left.

    Raises
    ------
    ValueError
        When sizes are not in mm, out of all bounds, or sheared; or sform, qform and pixdim disagree.
    """
    unit = int(header["xyzt_units"]) & 7
    if unit in UNITS:
        raise ValueError(f"voxel sizes are in {UNITS[unit]} (xyzt_units); write them in mm")
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not {sform, qform} <= set(range(6)):
        raise ValueError(f"sform_code {sform} and qform_code {qform} must be 0 to 5; correct the header")
    pixdim = np.abs(header["pixdim"][1:4]) if sform else np.array(header["pixdim"][1:4])
    if not (pixdim > 0).all():
        raise ValueError(f"voxel sizes are {_listed(header['pixdim'][1:4])} mm (pixdim); correct the header")
    if qform:
        length = float(sum(float(header[f"quatern_{x}"]) ** 2 for x in "bcd"))
        if not length <= 1 + 1e-5:
            raise ValueError(f"the quaternion of the qform has length {length**0.5:.3g}, over 1; correct the header")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise ValueError(f"the affine is not finite: {affine[:3].tolist()}; correct the header")
    axes = voxel_axes(torch.as_tensor(affine))
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < VOXEL_SIZES[0] or sizes.max() > VOXEL_SIZES[1]:
        raise ValueError(f"voxels of {_listed(sizes)} mm are none of a scan; correct the header (its unit is mm)")
    if sform and np.abs(sizes / pixdim - 1).max() > SIZE_TOLERANCE:
        raise ValueError(
            f"voxels are {_listed(sizes)} mm by the sform and {_listed(pixdim)} mm by pixdim; correct the wrong one"
        )
    if sform and qform:
        cosine = (torch.trace(axes.T @ voxel_axes(torch.as_tensor(header.get_qform()))).item() - 1) / 2
        angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        if angle > MAX_FORM_ANGLE:
            raise ValueError(
                f"sform and qform turn the voxel axes differently ({angle:.0f} degrees); set both to the right one"
            )
    return affine


def _listed(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)

"""Frames: fsl (image axes with FSL's mirror rule), voxel (array axes i, j, k) and world (scanner RAS+ mm).

An affine maps voxel indices to world millimetres. Its columns are the voxel axes; their lengths are the voxel sizes.
"""

import torch
from torch import Tensor

# Largest cosine between two voxel axes that still counts as a right angle; NIfTI stores affines in float32.
MAX_SKEW = 1e-3


def voxel_axes(affine: Tensor) -> Tensor:
    """Return the directions of the voxel axes in the world, as the nearest orthogonal matrix.

    Parameters
    ----------
    affine : Tensor, shape (4, 4)
        Voxel to world, mm.

    Returns
    -------
    Tensor, shape (3, 3)
        Orthonormal columns; the determinant is -1 where the array is stored left-handed.

    Raises
    ------
    ValueError
        When the affine is singular or its voxel axes are not at right angles.

    Source
    ------
    Polar decomposition; Higham 1986, doi:10.1137/0907079.
    """
    columns = torch.as_tensor(affine, dtype=torch.float64)[:3, :3]
    sizes = columns.norm(dim=0)
    if not torch.isfinite(columns).all() or sizes.min() <= 0 or torch.linalg.det(columns / sizes).abs() < MAX_SKEW:
        raise ValueError(f"affine is singular or not finite: {columns.tolist()}; repair the header of the scan first")
    unit = columns / sizes
    skew = (unit.T @ unit - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if skew > MAX_SKEW:
        raise ValueError(
            f"affine has sheared voxel axes (cosine {skew:.3f} between two of them); resample the scan first"
        )
    u, _, vt = torch.linalg.svd(unit)
    return u @ vt


def fsl_to_world(bvecs: Tensor, affine: Tensor) -> Tensor:
    """Turn the directions of an FSL ``.bvec`` file into world directions.

    Parameters
    ----------
    bvecs : Tensor, shape (Q, 3)
        Unit rows, or zero where b = 0.
    affine : Tensor, shape (4, 4)
        Of the image that the file was written for, mm.

    Returns
    -------
    Tensor, shape (Q, 3)

    Source
    ------
    FSL FDT FAQ, "What conventions do the bvecs use?": along the image axes, x mirrored where det(affine) > 0.
    """
    axes = voxel_axes(affine)
    bvecs = bvecs.to(axes)
    if torch.linalg.det(axes) > 0:
        bvecs = bvecs * bvecs.new_tensor([-1.0, 1.0, 1.0])
    return bvecs @ axes.T


def world_to_fsl(directions: Tensor, affine: Tensor) -> Tensor:
    """Invert `fsl_to_world`: what an FSL ``.bvec`` file next to an image of this affine must hold, shape (Q, 3)."""
    axes = voxel_axes(affine)
    bvecs = directions.to(axes) @ axes
    if torch.linalg.det(axes) > 0:
        bvecs = bvecs * bvecs.new_tensor([-1.0, 1.0, 1.0])
    return bvecs


def world_to_voxel(directions: Tensor, affine: Tensor) -> Tensor:
    """Express world directions along the axes of the current array.

    Parameters
    ----------
    directions : Tensor, shape (..., 3)
        Directions or q-vectors in the world frame.
    affine : Tensor, shape (4, 4)
        The image's current affine, after every flip, crop, rotation and resampling.

    Returns
    -------
    Tensor, shape (..., 3)
    """
    axes = voxel_axes(affine)
    return directions.to(axes) @ axes


def voxel_to_world(directions: Tensor, affine: Tensor) -> Tensor:
    """Invert `world_to_voxel`, for vectors (..., 3) along the axes of an array, such as a network's output.

    Keeps the type and device of the vectors.
    """
    return directions @ voxel_axes(affine).to(directions).T


def tensor_to_world(tensor: Tensor, affine: Tensor) -> Tensor:
    """Turn tensors along the axes of an array into the world: R D Rᵀ, R the array's `voxel_axes`.

    A fit is in the frame of the directions that it was given: along the voxel axes with those of `world_to_voxel`, in
    the frame of the ``.bvec`` file with FSL's ``dtifit``.

    Parameters
    ----------
    tensor : Tensor, shape (..., 3, 3)
        Keeps its type and device.
    affine : Tensor, shape (4, 4)
        Of the array; of either handedness.

    Returns
    -------
    Tensor, shape (..., 3, 3)

    Source
    ------
    Alexander et al. 2001, doi:10.1109/42.963816, for a rigid transform.
    """
    axes = voxel_axes(affine).to(tensor)
    return axes @ tensor @ axes.T

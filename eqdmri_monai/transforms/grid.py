"""The grid that the network sees."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample, generate_spatial_bounding_box
from monai.utils import TraceKeys
from nibabel.orientations import io_orientation
from torch import Tensor

from eqdmri_monai.frames import voxel_axes
from eqdmri_monai.transforms.scan import file_of, warn_of

SLACK = 0.01  # voxels that the outermost centres may lie outside; far above rounding, far below what matters
CUT = 0.5 - 1e-3  # a voxel half in the mask is in it, whichever way its value is rounded
COARSE = 2.5  # times the voxels of the scan; beyond, interpolation leaves most of them out
MAX_VOXELS = 512**3  # of one volume, 0.5 GB; ten times a whole brain at 1 mm


class ResampleRASd(MapTransform, InvertibleTransform):
    """Resample a scan and its masks to one voxel size and axes to the right, front and top.

    Rounding errors of the affine cannot move this grid.
    The grid has the centre of the scan, the orthogonal axes nearest to its affine's, and as few voxels as reach the
    centres of its outermost voxels (to 1/100 of a voxel). So it follows the affine smoothly, and is the same for every
    storage order. With MONAI's `Orientationd` and `Spacingd` an affine changed by 1e-6 gave probabilities that differed
    by 0.6: the grid begins at a corner that the signs of rounding errors choose, its number of voxels and the voxels of
    masks round ties, and at 45 degrees the inverse mistakes one axis for another.

    Parameters
    ----------
    keys : keys
        The scan first, then what lies on its grid; what is missing is left out.
    spacing : three floats, optional
        Voxel sizes along these axes, mm. Left out, all three are the cube root of the volume of the scan's voxels, so
        that cubic voxels are cut and turned, but not interpolated.
    mode : sequence of str
        For each key "bilinear" or "nearest" as in MONAI, or "mask": linear, then 1 where it is a half or more.
    crop_to : str
        Key of a mask; the grid is cut to the box around it.
    margin : int
        Voxels by which that box is larger, where the grid goes on.

    Raises
    ------
    ValueError
        When spacing is not three positive numbers, or so small that a volume would have over 512³ voxels.

    Warns
    -----
    UserWarning
        When voxels become 2.5 times as large or larger.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | None,
        mode: Sequence[str],
        *,
        crop_to: str | None = None,
        margin: int = 0,
    ):
        super().__init__(keys, allow_missing_keys=True)
        self.spacing = None if spacing is None else _three_sizes(spacing)
        self.mode, self.crop_to, self.margin = mode, crop_to, margin
        self.resample = SpatialResample(padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return data with images (Q, X, Y, Z), float32, on the new grid."""
        d = dict(data)
        affine, shape = self._grid(d[self.first_key(d)])
        if self.crop_to:
            mask = self._resampled(d[self.crop_to], affine, shape, "mask")
            if not mask.any():
                raise ValueError(
                    f"{file_of(mask)}: no voxel of {_listed(mask.pixdim)} mm is half in {self.crop_to}; choose a "
                    "smaller spacing, or a larger mask"
                )
            box_start, box_end = generate_spatial_bounding_box(mask.as_tensor(), margin=self.margin, allow_smaller=True)
            affine[:3, 3] += affine[:3, :3] @ torch.tensor(box_start, dtype=torch.float64)
            shape = [end - start for start, end in zip(box_start, box_end, strict=True)]
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self._resampled(d[key], affine, shape, mode)
        return d

    def _resampled(self, image: MetaTensor, affine: Tensor, shape: Sequence[int], mode: str) -> MetaTensor:
        x = torch.empty(len(image), *shape, dtype=torch.float32)
        for i in range(0, len(image), 4):  # few at a time: they are interpolated in double precision
            part = self.resample(image[i : i + 4], affine, shape, mode="bilinear" if mode == "mask" else mode)
            x[i : i + 4] = part.as_tensor() >= CUT if mode == "mask" else part.as_tensor()
        return MetaTensor(x, meta=part.meta, applied_operations=part.applied_operations)

    def inverse(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return data on the scan's own grid, interpolated linearly."""
        d = dict(data)
        for key in self.key_iterator(d):
            own = d[key].applied_operations[-1][TraceKeys.EXTRA_INFO]["src_affine"]
            d[key] = self.resample.inverse(d[key])
            d[key].affine = own  # to the last digit
        return d

    def _grid(self, image: MetaTensor) -> tuple[Tensor, list[int]]:
        """Return the affine and the shape of the new grid."""
        affine = image.affine.to(torch.float64)
        world, sign = torch.as_tensor(io_orientation(affine.numpy())).T
        source = world.argsort()  # axis of the array that goes right, front, top
        steps, sizes = torch.tensor(image.shape[1:], dtype=torch.float64) - 1, affine[:3, :3].norm(dim=0)
        spacing = sizes.prod().pow(1 / 3).expand(3) if self.spacing is None else self.spacing
        shape = ((steps * sizes)[source] / spacing - SLACK).ceil().clamp(min=0) + 1
        if shape.prod() > MAX_VOXELS:
            raise ValueError(
                f"{file_of(image)}: {_listed(shape)} voxels at a spacing of {_listed(spacing)} mm; choose a "
                "larger one, or correct the voxel sizes"
            )
        if ((spacing > COARSE * sizes[source]) & (steps[source] > 0)).any():
            warn_of(
                image,
                f"{file_of(image)}: voxels of {_listed(sizes[source])} mm are resampled to {_listed(spacing)} mm, "
                "so most of them are not looked at; is this spacing meant?",
            )
        new = torch.eye(4, dtype=torch.float64)
        new[:3, :3] = (voxel_axes(affine) * sign)[:, source] * spacing
        new[:3, 3] = affine[:3, :3] @ (steps / 2) + affine[:3, 3] - new[:3, :3] @ ((shape - 1) / 2)
        return new, [int(n) for n in shape]


def _listed(numbers: Tensor) -> str:
    return " x ".join(f"{n:.4g}" for n in numbers.tolist())


def _three_sizes(spacing: Sequence[float]) -> Tensor:
    try:
        sizes = torch.tensor([float(s) for s in spacing], dtype=torch.float64)
    except (TypeError, ValueError):
        sizes = torch.zeros(0)
    if sizes.shape != (3,) or not (sizes.isfinite() & (sizes > 0)).all():
        raise ValueError(f"spacing must be three voxel sizes in mm, such as [2.0, 2.0, 2.0], got {spacing!r}")
    return sizes

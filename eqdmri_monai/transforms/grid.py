"""The grid that the network sees."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample
from monai.utils import TraceKeys
from nibabel.orientations import io_orientation
from torch import Tensor

from eqdmri_monai.frames import voxel_axes
from eqdmri_monai.transforms.scan import file_of

SLACK = 0.01  # voxels that the outermost centres may lie outside; far above rounding, far below what matters
CUT = 0.5 - 1e-3  # a voxel half in the mask is in it, whichever way its value is rounded
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
    spacing : three floats
        Voxel sizes along these axes, mm.
    mode : sequence of str
        For each key "bilinear" or "nearest" as in MONAI, or "mask": linear, then 1 where it is a half or more.

    Raises
    ------
    ValueError
        When spacing is not three positive numbers, or so small that a volume would have over 512³ voxels.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float], mode: Sequence[str]):
        super().__init__(keys, allow_missing_keys=True)
        self.spacing = _three_sizes(spacing)
        self.mode = mode
        self.resample = SpatialResample(padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Return data with images (Q, X, Y, Z), float32, on the new grid."""
        d, grid = dict(data), None
        for key, mode in self.key_iterator(d, self.mode):
            image = d[key]
            grid = self._grid(image) if grid is None else grid
            # a few volumes at a time: they are interpolated in double precision
            volumes = [
                self.resample(image[i : i + 4], *grid, mode="bilinear" if mode == "mask" else mode)
                for i in range(0, len(image), 4)
            ]
            x = torch.cat([v.as_tensor() for v in volumes])
            x = (x >= CUT).to(torch.float32) if mode == "mask" else x
            d[key] = MetaTensor(x, meta=volumes[0].meta, applied_operations=volumes[0].applied_operations)
        return d

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
        steps = torch.tensor(image.shape[1:], dtype=torch.float64) - 1
        axes, length = voxel_axes(affine), steps * affine[:3, :3].norm(dim=0)  # length: mm between outermost centres
        world, sign = torch.as_tensor(io_orientation(affine.numpy())).T
        source = world.argsort()  # axis of the array that goes right, front, top
        shape = (length[source] / self.spacing - SLACK).ceil().clamp(min=0) + 1
        if shape.prod() > MAX_VOXELS:
            raise ValueError(
                f"{file_of(image)}: {' x '.join(f'{n:.0f}' for n in shape)} voxels at a spacing of "
                f"{[round(s, 3) for s in self.spacing.tolist()]} mm; choose a larger one, or correct the voxel sizes"
            )
        new = torch.eye(4, dtype=torch.float64)
        new[:3, :3] = (axes * sign)[:, source] * self.spacing
        new[:3, 3] = affine[:3, :3] @ (steps / 2) + affine[:3, 3] - new[:3, :3] @ ((shape - 1) / 2)
        return new, [int(n) for n in shape]


def _three_sizes(spacing: Sequence[float]) -> Tensor:
    try:
        sizes = torch.tensor([float(s) for s in spacing], dtype=torch.float64)
    except (TypeError, ValueError):
        sizes = torch.zeros(0)
    if sizes.shape != (3,) or not (sizes.isfinite() & (sizes > 0)).all():
        raise ValueError(f"spacing must be three voxel sizes in mm, such as [2.0, 2.0, 2.0], got {spacing!r}")
    return sizes

"""Whether the intensities of a scan are those of one."""

from collections.abc import Hashable, Mapping
from math import isfinite

import numpy as np
import torch
from monai.transforms import MapTransform

from eqdmri_monai.transforms.scan import file_of, table_of, warn_of

# A voxel with so much of the variance of its volume is none of a head, and all others are alike beside it.
MAX_SHARE, MIN_VOXELS = 0.1, 1000
MIN_LIKENESS = 0.1  # correlation of neighbouring voxels of the b0: 0.8 to 0.97 in scans, 0 in noise


class CheckSignald(MapTransform):
    """Refuse volumes that nothing can be read from, and warn where intensities are not those of a scan.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) with a gradient table, as they were loaded.

    Raises
    ------
    ValueError
        When a value is not finite, a volume is constant or not positive on average, or one voxel outweighs a volume.

    Warns
    -----
    UserWarning
        When neighbouring voxels of the b0 have nothing in common, or weighted volumes are brighter than the b0.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        for key in self.key_iterator(dict(data)):
            image, table = data[key], table_of(data[key])
            means = np.array([_mean(v, f"{file_of(image)}: volume {i}") for i, v in enumerate(image.as_tensor())])
            b0 = table.b0_mask.numpy()
            if means[~b0].mean() > means[b0].mean():
                warn_of(
                    image,
                    f"{file_of(image)}: weighted volumes are brighter than the b0 (mean {means[~b0].mean():.4g} and "
                    f"{means[b0].mean():.4g}); see whether the volumes have the order of the table",
                )
            if _likeness(image[int(np.flatnonzero(b0)[0])].numpy()) < MIN_LIKENESS:
                warn_of(
                    image, f"{file_of(image)}: neighbouring voxels of the b0 have nothing in common; is this a scan?"
                )
        return dict(data)


def _mean(volume: torch.Tensor, name: str) -> float:
    """Return the mean of a volume that something can be read from."""
    low, high = (float(v) for v in torch.aminmax(volume))
    if not (isfinite(low) and isfinite(high)):
        wrong = int((~torch.isfinite(volume)).sum())
        raise ValueError(f"{name} has {wrong} voxels that are not finite; repair the scan first")
    if low == high:
        raise ValueError(f"{name} is {low:g} in every voxel; take it out of scan and table")
    variance, mean = (float(v) for v in torch.var_mean(volume.double(), correction=0))
    share = max(high - mean, mean - low) ** 2 / (variance * volume.numel())
    if share > MAX_SHARE and volume.numel() >= MIN_VOXELS:
        value = high if high - mean > mean - low else low
        voxel = tuple(int(k) for k in (volume == value).nonzero()[0])
        raise ValueError(
            f"{name} is {value:g} in voxel {voxel}, which has {100 * share:.0f} % of its variance; repair the scan"
        )
    if mean <= 0:
        raise ValueError(f"{name} is {mean:g} on average, but magnitudes are positive; convert the scan again")
    return mean


def _likeness(volume: np.ndarray) -> float:
    """Correlation of neighbours along the longest axis."""
    along = np.moveaxis(volume, int(np.argmax(volume.shape)), 0)
    if len(along) < 2 or along[1:].std() == 0 or along[:-1].std() == 0:
        return 1.0
    return float(np.corrcoef(along[1:].ravel(), along[:-1].ravel())[0, 1])

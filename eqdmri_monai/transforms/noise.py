"""Noise to learn from."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from eqdmri_monai.nn.scale_space import blur
from eqdmri_monai.transforms.scan import table_of, with_volumes

LEAST_BLUR = 0.2  # voxels; less changes nothing


class RandLogNoised(RandomizableTransform, MapTransform):
    """Add Rician noise to a scan of logarithms, of a random level, and in part alike in neighbouring voxels.

    Scanners that interpolate or filter give noise that neighbours share; who has seen white noise alone takes it for
    anatomy.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) after `LogSignald`; 0 outside the brain.
    prob : float
    least, most : float
        Bounds of the standard deviation, as a share of the mean b0 of the brain; evenly over its logarithm.
    widest : float
        Bound of the width along each axis, in voxels, of the Gaussian that noise is blurred by.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, *, least: float = 0.01, most: float = 0.1, widest: float = 1.2
    ):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.least, self.most, self.widest = least, most, widest

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with noise."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            image = d[key]
            log_signal = image.as_tensor()
            level = np.exp(self.R.uniform(np.log(self.least), np.log(self.most)))
            widths = self.R.uniform(0, self.widest, 3)
            real, imaginary = (level * self.noise(log_signal.shape, widths).to(log_signal) for _ in range(2))
            noisy = torch.hypot(log_signal.exp() + real, imaginary).log()
            d[key] = with_volumes(image, torch.where(log_signal.any(dim=0), noisy, log_signal), table_of(image))
        return d

    def noise(self, shape: tuple[int, ...], widths: np.ndarray) -> torch.Tensor:
        """Return noise of standard deviation 1, blurred by these widths in voxels."""
        noise = blur(torch.from_numpy(self.R.standard_normal(shape))[None], np.maximum(widths, LEAST_BLUR))[0]
        return noise / noise.std()

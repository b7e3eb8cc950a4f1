"""Which volumes of a scan a network sees."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.transforms.scan import file_of, table_of, with_volumes


class AverageB0d(MapTransform):
    """Replace all volumes of b <= 50 by their mean, which becomes the first volume.

    Source
    ------
    Müller et al., section 4.2.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with images (1 + weighted volumes, X, Y, Z).

        Raises
        ------
        ValueError
            When an image has no b0.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            b0 = table.b0_mask
            if not b0.any():
                raise ValueError(f"{file_of(image)}: no volume with b <= 50 s/mm²; at least one b0 is needed")
            d[key] = with_volumes(
                image,
                torch.cat([image[b0].mean(0, keepdim=True), image[~b0]]),
                GradientTable.from_rows(torch.cat([torch.zeros(1, 4), table[~b0].rows])),
            )
        return d


class RandSubsampleVolumesd(RandomizableTransform, MapTransform):
    """Keep b0 and a random subset of the other volumes, so that a network meets many gradient schemes.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    minimum, maximum : int
        Bounds of the number of weighted volumes that are kept (all, where the scan has fewer).
    """

    def __init__(self, keys: KeysCollection, *, minimum: int, maximum: int):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.minimum, self.maximum = minimum, maximum

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with fewer volumes."""
        d = dict(data)
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            weighted = (~table.b0_mask).nonzero().flatten().numpy()
            count = min(int(self.R.randint(self.minimum, self.maximum + 1)), len(weighted))
            keep = np.sort(np.concatenate([[0], self.R.choice(weighted, count, replace=False)]))
            d[key] = with_volumes(image, image.as_tensor()[keep], table[torch.from_numpy(keep)])
        return d

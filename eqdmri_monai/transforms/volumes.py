"""Which volumes of a scan a network sees."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from eqdmri_monai.gradients import MIN_DIRECTIONS, GradientTable
from eqdmri_monai.tensors import condition_number
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
            plain, weighted = image.as_tensor(), (~b0).nonzero().flatten().tolist()
            volumes = torch.empty(1 + len(weighted), *plain.shape[1:], dtype=plain.dtype)
            volumes[0] = plain[b0].mean(0)
            for k, i in enumerate(weighted, start=1):
                volumes[k] = plain[i]
            rows = torch.cat([torch.zeros(1, 4), table[~b0].rows])
            d[key] = with_volumes(image, volumes, GradientTable.from_rows(rows))
        return d


class RandSubsampleVolumesd(RandomizableTransform, MapTransform):
    """Keep b0 and a random subset of the other volumes, so that a network meets many gradient schemes.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    minimum, maximum : int
        Bounds of the number of weighted volumes that are kept (all, where the scan has fewer).
    choices : int
        With more than one, so many subsets are drawn, and that is taken which determines a tensor best: for networks
        that begin with a fit.
    """

    def __init__(self, keys: KeysCollection, *, minimum: int, maximum: int, choices: int = 1):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.minimum, self.maximum, self.choices = minimum, maximum, choices

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with fewer volumes."""
        d = dict(data)
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            weighted = (~table.b0_mask).nonzero().flatten().numpy()
            count = min(int(self.R.randint(self.minimum, self.maximum + 1)), len(weighted))
            subsets = [self.R.choice(weighted, count, replace=False) for _ in range(self.choices)]
            if len(subsets) > 1:
                subsets.sort(key=lambda subset: condition_number(table.q[subset]))
            keep = np.sort(np.concatenate([[0], subsets[0]]))
            d[key] = with_volumes(image, image.as_tensor()[keep], table[torch.from_numpy(keep)])
        return d


class RandSplitVolumesd(RandomizableTransform, MapTransform):
    """Part a scan in two: well-spread directions that a network is given, and the rest, which its truth is made of.

    The b0 goes to both. Of some random choices the one is taken whose two parts determine a tensor best, by the larger
    of their condition numbers (of the six squares of a direction), so that choices differ and none is bad.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    rest_key : str
        Where the b0 and the other volumes go.
    minimum, maximum : int
        Bounds of the number of weighted volumes for the network; at least six are left for the rest.
    choices : int
        How many are drawn.
    seed : int
        Makes the same choice in each call, for validation; drawn anew where it is left out.

    Source
    ------
    Condition number of a scheme: Skare et al. 2000, doi:10.1006/jmre.2000.2209.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rest_key: str = "rest",
        *,
        minimum: int = 6,
        maximum: int = 6,
        choices: int = 20,
        seed: int | None = None,
    ):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.rest_key, self.minimum, self.maximum = rest_key, minimum, maximum
        self.choices, self.seed = choices, seed

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with both parts.

        Raises
        ------
        ValueError
            When the scan has too few directions.
        """
        if self.seed is not None:
            self.set_random_state(seed=self.seed)
        d = dict(data)
        image, table = d[self.keys[0]], table_of(d[self.keys[0]])
        weighted = (~table.b0_mask).nonzero().flatten().numpy()
        most = min(self.maximum, len(weighted) - MIN_DIRECTIONS)
        if most < self.minimum:
            raise ValueError(
                f"{file_of(image)}: {len(weighted)} directions are less than {self.minimum} for the network and "
                f"{MIN_DIRECTIONS} for its truth"
            )
        count, best = int(self.R.randint(self.minimum, most + 1)), (np.inf, None)
        directions = table.bvecs[torch.from_numpy(weighted)]
        for _ in range(self.choices):
            order = self.R.permutation(len(weighted))
            worst = max(condition_number(directions[part]) for part in (order[:count], order[count:]))
            best = min(best, (worst, tuple(order)), key=lambda choice: choice[0])
        order = np.array(best[1])
        for key, part in ((self.keys[0], order[:count]), (self.rest_key, order[count:])):
            keep = np.concatenate([[0], np.sort(weighted[part])])
            d[key] = with_volumes(image, image.as_tensor()[keep], table[torch.from_numpy(keep)])
        return d

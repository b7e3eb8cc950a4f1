"""Normalisation of intensities: by shell, or the paper's by channel."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from eqdmri_monai.gradients import shells
from eqdmri_monai.transforms.scan import file_of, table_of, with_volumes

CONSTANT = 1e-5  # of the mean: what interpolation in single precision makes of equal values


class NormalizeShellsd(MapTransform):
    """Give each shell mean 0 and standard deviation 1 inside the brain, and 0 outside.

    The two numbers are taken over all voxels of the brain and all volumes of a shell, so that they do not depend on the
    order, the sign or the frame of the directions.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z).
    mask_key : str
        Brain mask (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with normalised images.

        Raises
        ------
        ValueError
            When a shell is constant inside the brain.
        """
        d = dict(data)
        brain = d[self.mask_key][0] > 0.5
        brain = brain.as_tensor() if isinstance(brain, MetaTensor) else brain
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            shell = shells(table.bvals)
            out = torch.zeros_like(image.as_tensor())
            for s in shell.unique():
                volumes = (shell == s).nonzero().flatten().tolist()
                deviation, mean = torch.std_mean(
                    torch.cat([image.as_tensor()[i][brain] for i in volumes]).double(), correction=0
                )
                if deviation <= CONSTANT * mean.abs():
                    raise ValueError(
                        f"{file_of(image)}: the volumes of one shell are constant inside the brain; check the "
                        f"scan and its mask"
                    )
                for i in volumes:
                    out[i] = (image.as_tensor()[i] - mean.float()) / deviation.float() * brain
            d[key] = with_volumes(image, out, table)
        return d


class LogSignald(MapTransform):
    """Take the logarithm of the signal over the mean b0 of the brain, and 0 outside: what a tensor is fitted to.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) whose first volume is the b0.
    mask_key : str
        Brain mask (1, X, Y, Z).
    """

    LOWEST = 0.01  # of the mean b0: below the noise of any scan, so that no voxel of 0 becomes infinite

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with logarithms.

        Raises
        ------
        ValueError
            When the b0 is not positive on average.
        """
        d = dict(data)
        brain = torch.as_tensor(d[self.mask_key])[0] > 0.5
        for key in self.key_iterator(d):
            image = d[key]
            signal = image.as_tensor()
            mean = signal[0][brain].mean()
            if not mean > 0:
                raise ValueError(f"{file_of(image)}: the b0 is {mean:g} on average inside the brain; check the scan")
            d[key] = with_volumes(image, (signal / mean).clamp(min=self.LOWEST).log() * brain, table_of(image))
        return d


class NormalizeChannelsd(MapTransform):
    """The paper's normalisation: divide each volume by its mean over the data set, then the scan by its own mean.

    It ties a model to one order of one gradient scheme; it is here to reproduce the paper.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z).
    means : sequence of float
        Mean of each volume over all scans of the data set.

    Source
    ------
    Müller et al., section 4.1.
    """

    def __init__(self, keys: KeysCollection, means: Sequence[float]):
        super().__init__(keys)
        self.means = torch.as_tensor(means, dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with normalised images.

        Raises
        ------
        ValueError
            When the number of means is not the number of volumes, or the scan's mean is 0.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if len(self.means) != image.shape[0]:
                raise ValueError(
                    f"{file_of(image)}: {image.shape[0]} volumes but {len(self.means)} channel means; they "
                    f"belong to another scheme"
                )
            out = image.as_tensor() / self.means[:, None, None, None]
            if out.mean() == 0:
                raise ValueError(f"{file_of(image)}: the mean intensity is 0; check the scan")
            d[key] = with_volumes(image, out / out.mean(), table_of(image))
        return d

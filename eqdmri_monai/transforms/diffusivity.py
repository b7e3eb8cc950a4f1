"""Signals as apparent diffusivities."""

import math
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.gradients import B_UNIT
from eqdmri_monai.transforms.invariants import local_mean
from eqdmri_monai.transforms.scan import table_of, with_volumes


class ApparentDiffusivityd(MapTransform):
    """Replace each weighted volume by its apparent diffusivity -log(S / S0) / b, which scanners and b-values share.

    Volumes become (D - 1.0 µm²/ms) / 0.5, where D is kept within 0 and 4; b0 is brought to mean 0 and deviation 1 in
    the brain, or in a Gaussian neighbourhood; outside the brain all is 0.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) after `AverageB0d`.
    mask_key : str
        Brain mask (1, X, Y, Z).
    around : float
        Width of the neighbourhood in mm (standard deviation); the whole brain where left out. Coils then matter less.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask", *, around: float | None = None):
        super().__init__(keys)
        self.mask_key, self.around = mask_key, around

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with images of diffusivities."""
        d = dict(data)
        brain = np.asarray(d[self.mask_key][0]) > 0.5
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            values, b0 = image.as_tensor(), image.as_tensor()[0]
            ratio = (values[1:] / b0.clamp(min=1e-6)).clamp(math.exp(-8), 1)
            diffusivity = -ratio.log() / (table.bvals[1:] / B_UNIT).to(values)[:, None, None, None]
            weighted = (diffusivity.clamp(0, 4) - 1.0) / 0.5
            inside = b0.numpy()[brain]
            level, scatter = inside.mean(), inside.std()
            if self.around is not None:
                sigma = self.around / image.affine[:3, :3].norm(dim=0).numpy()
                level = local_mean(b0.numpy(), brain, sigma)
                scatter = np.sqrt(local_mean((b0.numpy() - level) ** 2, brain, sigma)) + 0.05 * inside.mean()
            first = torch.from_numpy((b0.numpy() - level) / scatter).to(values)
            d[key] = with_volumes(image, torch.cat([first[None], weighted]) * torch.from_numpy(brain), table)
        return d

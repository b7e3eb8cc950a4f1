"""Where the brain is."""

from collections.abc import Hashable, Iterator, Mapping

import numpy as np
import torch
from dipy.segment.mask import median_otsu
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.transforms.scan import file_of, warn_of, with_volumes

MIN_ML = 10.0  # ml; a single slice through a head has 30


class BrainMaskd(MapTransform):
    """See that there is a brain mask: the one given, else dipy's `median_otsu` of the b0.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    mask_key : str
        Where the mask is, or goes.
    median_radius, numpass : int
        See `dipy.segment.mask.median_otsu`.

    Raises
    ------
    ValueError
        When the mask is empty or not finite.

    Warns
    -----
    UserWarning
        When it is everywhere, smaller than 10 ml, or the b0 is brighter outside.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask", *, median_radius: int = 2, numpass: int = 2):
        super().__init__(keys)
        self.mask_key, self.median_radius, self.numpass = mask_key, median_radius, numpass

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with a mask (1, X, Y, Z), float32, on the image's grid; its meta names its file ("made_of")."""
        d = dict(data)
        image = d[self.keys[0]]
        given = d.get(self.mask_key) is not None
        if not given:
            b0 = image[0].numpy().astype(np.float32)
            _, mask = median_otsu(b0, median_radius=self.median_radius, numpass=self.numpass, finalize_mask=True)
            d[self.mask_key] = with_volumes(image, torch.from_numpy(mask[None].astype(np.float32)))
        mask = d[self.mask_key]
        if mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{file_of(mask)}: brain mask {tuple(mask.shape[1:])} for a scan {tuple(image.shape[1:])}; resample it"
            )
        if not torch.isfinite(torch.as_tensor(mask)).all():
            raise ValueError(f"{file_of(mask)}: the brain mask has values that are not finite; give one of 0 and 1")
        brain = (mask > 0.5).to(torch.float32)
        if not brain.any():
            raise ValueError(f"{file_of(mask)}: the brain mask is empty; give one as brain_mask")
        for doubt in _doubts(image[0].as_tensor(), torch.as_tensor(brain)[0] > 0, image.affine):
            warn_of(image, f"{file_of(mask)}: {doubt}; look at the brain in the picture, or give one as brain_mask")
        d[self.mask_key] = with_volumes(image, brain)  # the scan's affine to the last digit, and its name for results
        d[self.mask_key].meta["made_of"] = file_of(mask) if given else ""
        return d


def _doubts(b0: torch.Tensor, brain: torch.Tensor, affine: torch.Tensor) -> Iterator[str]:
    ml = float(brain.sum() * torch.linalg.det(affine[:3, :3]).abs() / 1000)
    if ml < MIN_ML:
        yield f"the brain has only {ml:.2g} ml"
    if brain.all():
        yield "the brain mask is the whole image"
    elif b0[brain].mean() < b0[~brain].mean():
        yield "the b0 is brighter outside of the brain than inside"

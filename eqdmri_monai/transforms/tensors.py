"""Diffusion tensors as images: fitted to a scan."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.tensors import fit_tensor
from eqdmri_monai.transforms.scan import table_of, with_volumes


class FitTensord(MapTransform):
    """Fit diffusion tensors by weighted least squares, along the axes of the array as it is now.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `LogSignald`.
    tensor_key : str
        Where the tensors (6, X, Y, Z) go: xx xy xz yy yz zz, µm²/ms.
    """

    def __init__(self, keys: KeysCollection, tensor_key: str):
        super().__init__(keys)
        self.tensor_key = tensor_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with tensors."""
        d = dict(data)
        image = d[self.keys[0]]
        q = world_to_voxel(table_of(image).q, image.affine).to(torch.float32)
        tensor, _ = fit_tensor(image.as_tensor()[None].float(), q)
        d[self.tensor_key] = with_volumes(image, tensor[0])
        return d

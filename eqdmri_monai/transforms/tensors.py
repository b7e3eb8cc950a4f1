"""Diffusion tensors as images: fitted to a scan, turned to the world, and the maps made of them."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.frames import tensor_to_world, world_to_voxel
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.tensors import fit_tensor, fractional_anisotropy, mean_diffusivity, principal_direction
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


class TensorToWorldd(MapTransform):
    """Turn tensors from the axes of the array to the world, where a change of grid leaves them as they are.

    Parameters
    ----------
    keys : keys
        Tensors (6, X, Y, Z), xx xy xz yy yz zz; the data must also hold ``image`` on the same grid.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with turned tensors."""
        d = dict(data)
        for key in self.key_iterator(d):
            tensor = d[key]
            matrix = symmetric_matrix(torch.as_tensor(tensor)[None])
            d[key] = with_volumes(tensor, symmetric_components(tensor_to_world(matrix, d["image"].affine.cpu()))[0])
        return d


class TensorMapsd(MapTransform):
    """Make the maps of tensors: ``tensor`` and ``md`` in mm²/s, ``fa``, and ``v1``, the principal direction.

    Parameters
    ----------
    keys : keys
        One image of tensors (6, X, Y, Z), xx xy xz yy yz zz, µm²/ms, 0 where there is none.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with the maps (6, 1, 1 and 3 volumes), in the frame of the tensors."""
        d = dict(data)
        tensor = torch.as_tensor(d[self.keys[0]])[None]
        somewhere = tensor.any(dim=1)
        maps = {
            "tensor": 1e-3 * tensor[0],
            "md": 1e-3 * mean_diffusivity(tensor),
            "fa": fractional_anisotropy(tensor).clamp(max=1) * somewhere,
            "v1": (principal_direction(tensor) * somewhere[:, None])[0],
        }
        return d | {name: with_volumes(d[self.keys[0]], value) for name, value in maps.items()}

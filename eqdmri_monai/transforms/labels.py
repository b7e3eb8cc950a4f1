"""Labels of a task."""

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.transforms.scan import file_of


class CheckLabeld(MapTransform):
    """Refuse label images that do not fit a network's outputs.

    Parameters
    ----------
    keys : keys
        Label images.
    outputs : int
        Number of outputs of the network: each is one class, told from the rest.

    Raises
    ------
    ValueError
        When there is none, a label has other values than 0 and 1, or another number of channels than the network has
        outputs.
    """

    def __init__(self, keys: KeysCollection, outputs: int = 1):
        super().__init__(keys)
        self.outputs = outputs

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        for key in self.keys:
            if key not in data:
                raise ValueError(f"{file_of(data['image'])}: no {key}; name one for each scan of this list")
            label = data[key]
            values = torch.as_tensor(label).unique()
            if label.shape[0] != self.outputs or not ((values == 0) | (values == 1)).all():
                shown = [round(v, 3) for v in values[:6].tolist()]
                raise ValueError(
                    f"{file_of(label)}: label of {label.shape[0]} channels with values {shown}; "
                    f"the network has {self.outputs} outputs and needs as many channels of 0 and 1"
                )
        return dict(data)

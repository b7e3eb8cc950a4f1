"""Normalisation of feature maps, by e3nn: the mean square of each copy of an irrep becomes 1, directions stay."""

from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import nn

from eqdmri_monai.nn.channels_first import ChannelsFirst


def norm_layer(name: str, irreps: o3.Irreps | str) -> nn.Module:
    """Return the normalisation called "batch" or "instance": e3nn's, by the mean square of each copy of an irrep.

    Raises
    ------
    ValueError
        When the name is unknown.
    """
    if name not in ("batch", "instance"):
        raise ValueError(f'normalization must be "batch", "instance" or none, got {name!r}')
    return ChannelsFirst(e3nn_nn.BatchNorm(irreps, instance=name == "instance", normalization="component"))

"""Ordinary convolutional network on the volumes as channels: the reference that is not equivariant."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


class PlainCNN(nn.Module):
    """conv3d and ReLU, with a bias in every layer; ignores the gradient directions.

    Parameters
    ----------
    channels : sequence of int
        Of the input (the number of volumes) and of each layer's output.
    kernel_size : int
        Voxels along each axis, odd.

    Source
    ------
    Müller et al., Table 5.
    """

    def __init__(self, channels: Sequence[int], *, kernel_size: int = 5):
        super().__init__()
        layers = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv3d(inputs, outputs, kernel_size, padding=kernel_size // 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """Return logits (B, channels[-1], X, Y, Z) of an image (B, Q, X, Y, Z); q is taken and not used."""
        return self.layers(image)

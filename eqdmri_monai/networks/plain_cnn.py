"""Ordinary convolutional network on the volumes as channels: the reference that is not equivariant."""

import itertools
from collections.abc import Sequence

from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn.receptive_field import ReceptiveField, chain


class PlainCNN(nn.Module):
    """conv3d and ReLU, with a bias in every layer; ignores the gradient directions.

    Parameters
    ----------
    channels : sequence of int
        Of the input (the number of volumes) and of each layer's output.
    kernel_size : int
        Voxels along each axis, odd.

    Raises
    ------
    ValueError
        When the kernel size is even.

    Source
    ------
    Müller et al., Table 5.
    """

    def __init__(self, channels: Sequence[int], *, kernel_size: int = 5):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the output is as large as the image, got {kernel_size}")
        layers = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv3d(inputs, outputs, kernel_size, padding=kernel_size // 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.channels, self.irreps_out = channels[0], o3.Irreps([(channels[-1], (0, 1))])

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain(self.layers)

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """Return logits (B, channels[-1], X, Y, Z) of an image (B, Q, X, Y, Z); q is taken and not used.

        Raises
        ------
        ValueError
            When the image has another number of volumes than the network was made for.
        """
        if image.shape[1] != self.channels:
            raise ValueError(
                f"an ordinary network takes {self.channels} volumes of one scheme but the scan has {image.shape[1]}; "
                "change the first of its channels"
            )
        return self.layers(image)

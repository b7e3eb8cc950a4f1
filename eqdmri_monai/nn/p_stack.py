"""The stack of layers over p-space alone."""

import itertools
from collections.abc import Sequence
from functools import partial

from e3nn import o3
from e3nn.nn import Dropout
from torch import Tensor, nn

from eqdmri_monai.bases import Radial
from eqdmri_monai.nn.channels_first import ChannelsFirst
from eqdmri_monai.nn.nonlinearity import nonlinear_layer
from eqdmri_monai.nn.normalization import norm_layer
from eqdmri_monai.nn.p_conv import PConv
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.recompute import run


class PStack(nn.Sequential):
    """`PConv` between each two types, with a nonlinearity after all but the last.

    Parameters
    ----------
    irreps : sequence of o3.Irreps
        Types of the input, after each layer, and of the output.
    kernel_size, spacing, radial
        As in `PConv`.
    nonlinearity : str
        "gate", "norm", "squash" or "tensor product".
    normalization : str or None
        "batch" or "instance", before each nonlinearity; none if left out. Statistics are over the whole array.
    dropout : float
        Probability with which a copy of an irrep is left out after a nonlinearity, in training.
    recompute : bool
        Keep the input of each layer alone and recompute the rest in the backward pass (a batch normalisation then
        counts each batch twice in its running statistics).

    Raises
    ------
    ValueError
        When an option is none of those named.

    Source
    ------
    Müller et al., eq. 2 and 23, "p-layers"; 4.3, checkpointing.
    """

    def __init__(
        self,
        irreps: Sequence[o3.Irreps | str],
        *,
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        radial: Radial = Radial(),
        nonlinearity: str = "gate",
        normalization: str | None = None,
        dropout: float = 0.0,
        recompute: bool = False,
    ):
        conv = partial(PConv, kernel_size=kernel_size, spacing=spacing, radial=radial)
        layers = []
        for irreps_in, irreps_hidden in itertools.pairwise(irreps[:-1]):
            act = nonlinear_layer(nonlinearity, irreps_hidden)
            layers.append(conv(irreps_in, act.irreps_in))
            if normalization is not None:
                layers.append(norm_layer(normalization, act.irreps_in))
            layers.append(act)
            if dropout:
                layers.append(ChannelsFirst(Dropout(irreps_hidden, dropout)))
        super().__init__(*layers, conv(irreps[-2], irreps[-1]))
        self.irreps_in, self.irreps_out = o3.Irreps(irreps[0]), o3.Irreps(irreps[-1])
        self.recompute = recompute

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return how far it sees; None with instance normalisation, which sees the whole array."""
        return chain(self)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, X, Y, Z)

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
        """
        layers = list(self)
        starts = [i for i, layer in enumerate(layers) if isinstance(layer, PConv)]
        for start, end in itertools.pairwise([*starts, len(layers)]):
            x = run(nn.Sequential(*layers[start:end]), x, recompute=self.recompute)
        return x

"""The 3D Steerable CNN: an ordinary CNN for volumes whose features are scalar, vector and tensor fields."""

from collections.abc import Sequence
from functools import partial

from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.nn import Gate, Linear
from eqdmri_monai.nn.irreps import parse_irreps
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.steerable_conv import SteerableConv3d


def field_type(fields: Sequence[int]) -> o3.Irreps:
    """Return the irreps of (n0, n1, n2, ...) fields of degree 0, 1, 2, ..."""
    return o3.Irreps([(n, (l, 1)) for l, n in enumerate(fields) if n])


class ResidualBlock(nn.Module):
    """Two gated convolutions, with the input added before the second gate.

    Parameters
    ----------
    irreps_in, irreps_out : o3.Irreps
    stride : int
        Of the first convolution; the input is thinned out likewise.
    kernel_size, limits
        As in `SteerableConv3d`.

    Source
    ------
    Weiler et al. 2018, 4.3; He et al. 2016.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        *,
        stride: int = 1,
        kernel_size: int = 5,
        limits: Sequence[int] | None = None,
    ):
        super().__init__()
        conv, gate = partial(SteerableConv3d, kernel_size=kernel_size, limits=limits), Gate(irreps_out)
        self.stride, self.irreps_in, self.irreps_out = stride, o3.Irreps(irreps_in), gate.irreps_out
        self.branch = nn.Sequential(
            conv(irreps_in, gate.irreps_in, stride=stride),
            gate,
            conv(irreps_out, gate.irreps_in),
        )
        self.shortcut, self.gate = Linear(irreps_in, gate.irreps_in), gate

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain(self.branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, irreps_out.dim, X', Y', Z') of (B, irreps_in.dim, X, Y, Z)."""
        kept = x[..., :: self.stride, :: self.stride, :: self.stride]
        return self.gate(0.5**0.5 * (self.branch(x) + self.shortcut(kept)))


class GlobalMean(nn.Module):
    """Mean over all voxels."""

    receptive_field = None  # the whole array

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C) of (B, C, X, Y, Z)."""
        return x.mean(dim=(-3, -2, -1))


class SteerableCNN3d(nn.Sequential):
    """Volumes as scalar channels in; a map of any type, or one class for the whole volume, out.

    Measured (scripts/tetris.py, 3 seeds; eight shapes learned in one orientation): with 1718 parameters 100 % are
    recognised in all 24 orientations of the grid, by an ordinary CNN with 2540 parameters 23 to 26 %; at random
    rotations of blurred shapes 58 to 61 % (88 % as trained), against 18 to 24 % (75 to 100 %).

    Parameters
    ----------
    in_channels : int
        Scalars of each voxel, 1 or more.
    fields : sequence of (n0, n1, n2, n3)
        Fields of degree 0 to 3 after each layer.
    irreps_out : o3.Irreps
        Type of the output map; ``8x0e`` are 8 classes.
    whole : bool
        Predict for the volume as a whole: the mean over voxels of the last features, then a linear layer; both
        features and output must be scalars alone.
    residual : bool
        Residual blocks of two convolutions for all layers but the first.
    strides : sequence of int
        Of each layer; 1 if left out.
    kernel_size, limits
        As in `SteerableConv3d`.

    Raises
    ------
    ValueError
        When `irreps_out` has odd labels, no filter leads to a type, or `whole` meets a degree above 0.

    Source
    ------
    Weiler et al. 2018.
    """

    def __init__(
        self,
        in_channels: int = 1,
        fields: Sequence[Sequence[int]] = ((8, 4, 2, 1), (8, 4, 2, 1)),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        whole: bool = False,
        residual: bool = False,
        strides: Sequence[int] | None = None,
        kernel_size: int = 5,
        limits: Sequence[int] | None = None,
    ):
        strides = [1] * len(fields) if strides is None else strides
        conv, layers = partial(SteerableConv3d, kernel_size=kernel_size, limits=limits), []
        irreps = self_in = o3.Irreps([(in_channels, (0, 1))])
        for i, (numbers, stride) in enumerate(zip(fields, strides, strict=True)):
            hidden = field_type(numbers)
            if residual and i:
                layers.append(ResidualBlock(irreps, hidden, stride=stride, kernel_size=kernel_size, limits=limits))
            else:
                gate = Gate(hidden)
                layers += [conv(irreps, gate.irreps_in, stride=stride), gate]
            irreps = hidden
        irreps_out = parse_irreps(irreps_out, "irreps_out")
        if whole:
            if irreps.lmax > 0 or irreps_out.lmax > 0:
                raise ValueError(
                    f"whole maps scalars to scalars, got {irreps} to {irreps_out}; end fields with (n0,) and choose "
                    'irreps_out such as "8x0e"'
                )
            layers += [GlobalMean(), nn.Linear(irreps.dim, irreps_out.dim)]
        else:
            layers.append(conv(irreps, irreps_out))
        super().__init__(*layers)
        self.irreps_in, self.irreps_out = self_in, irreps_out

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return how far it sees; None with `whole`."""
        return chain(self)

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, in_channels, X, Y, Z)
        q : Tensor
            Taken and not used: directions of gradients mean nothing to scalar channels.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X', Y', Z')
            (B, irreps_out.dim) with `whole`.
        """
        return super().forward(image)

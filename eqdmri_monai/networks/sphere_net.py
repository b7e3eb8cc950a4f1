"""Spherical convolutions in each voxel, then layers over voxels: the way by harmonics of the q-shells."""

import itertools
from collections.abc import Sequence

from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import Radial
from eqdmri_monai.networks.pq_net import check_scheme
from eqdmri_monai.nn import Gate, PStack
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.sphere_conv import ShellHarmonics, SphereConv, SpherePower


class SphereNet(nn.Module):
    """Voxelwise prediction from a diffusion scan, equivariant under joint rotations of voxels and q-vectors.

    `ShellHarmonics`; a `SphereConv` to the rotations and on among them for each entry of `channels`, with gates; their
    `SpherePower`; a `PStack` through `irreps_p` to `irreps_out`. Any scheme will do whose shells have enough directions
    for lmax.

    Parameters
    ----------
    channels : sequence of int
        Functions on the rotations after each spherical layer.
    irreps_p : sequence of o3.Irreps
        Types after each p layer but the last.
    irreps_out : o3.Irreps
        Type of the logits.
    lmax : int
        Largest degree in a voxel: 2, 4 and 6 take 6, 15 and 28 directions a shell where `even`, with room for noise.
    even : bool
        Even degrees alone, as diffusion signals have.
    kernel_size : int
        Voxels along each axis, odd.
    spacing : three floats
        Voxel sizes in mm that the network is made for.
    radial : Radial
        Radial functions of all layers.
    penalty
        As in `ShellHarmonics`.
    nonlinearity, normalization, dropout, recompute
        As in `PStack`.

    Raises
    ------
    ValueError
        When there is no spherical layer, or an option is none of those named.

    Source
    ------
    Cohen et al. 2018 in the voxel, Weiler et al. 2018 between voxels.
    """

    def __init__(
        self,
        channels: Sequence[int] = (4, 4),
        irreps_p: Sequence[o3.Irreps | str] = ("20x0e+5x1e", "10x0e+3x1e", "5x0e+2x1e"),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        lmax: int = 2,
        even: bool = True,
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial: Radial = Radial(),
        penalty: float = 0.006,
        nonlinearity: str = "gate",
        normalization: str | None = None,
        dropout: float = 0.0,
        recompute: bool = False,
    ):
        super().__init__()
        self.q_max = radial.q_max
        if not channels:
            raise ValueError("channels must name at least one spherical layer, got an empty list")
        self.irreps_in, self.irreps_out = o3.Irreps("0e"), parse_irreps(irreps_out, "irreps_out")
        self.harmonics = ShellHarmonics(lmax, even=even, radial=radial, penalty=penalty)
        self.sphere_layers = nn.Sequential()
        for i, (a, b) in enumerate(itertools.pairwise((radial.num_q, *channels))):
            gate = Gate(o3.Irreps([(b * (2 * l + 1), (l, 1)) for l in self.harmonics.degrees]))
            conv = SphereConv(a, b, lmax, even=even, rotations_in=i > 0, rotations_out=True, gates=gate.num_gates)
            self.sphere_layers.extend([conv, gate])
        self.power = SpherePower(channels[-1], lmax, even=even)
        self.p_layers = PStack(
            [self.power.irreps_out, *parse_irreps_list(irreps_p, "irreps_p"), self.irreps_out], kernel_size=kernel_size,
            spacing=spacing, radial=radial, nonlinearity=nonlinearity, normalization=normalization, dropout=dropout,
            recompute=recompute,
        )  # fmt: skip

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return how far it sees; None with instance normalisation, which sees the whole array."""
        return chain(self.p_layers)

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            q-vectors along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Logits.

        Raises
        ------
        ValueError
            See `check_scheme` and `ShellHarmonics.matrix`.
        """
        x, q = check_scheme(image, q, self.irreps_in)
        return self.p_layers(self.power(self.sphere_layers(self.harmonics(x[:, 0], q.to(x.dtype)))))

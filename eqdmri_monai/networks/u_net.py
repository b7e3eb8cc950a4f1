"""A U-shaped network: layers over p on several grids, so that a voxel is judged by what lies around it."""

import itertools
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.nn import Downsample, PConv, Upsample, nonlinear_layer
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.recompute import run


class PQUNet(nn.Module):
    """Voxelwise prediction from a diffusion scan on several grids, equivariant as `PQNet` is.

    Layers over p and q, and the sum over q, on the scan's grid; a `PConv` and gate on each of the grids, every one
    twice as coarse as the one before; then back, where each grid also gets what the coarser one found. The grids lie
    symmetrically about the array's centre, so that quarter turns of the array commute exactly; translations by fewer
    voxels than the coarsest grid's do so up to what its low-pass leaves.

    Parameters
    ----------
    irreps_pq : sequence of o3.Irreps
        Types after each pq layer.
    irreps_levels : sequence of o3.Irreps
        Types on each grid, the finest first.
    irreps_out : o3.Irreps
        Type of the logits.
    kernel_size : int
        Voxels of each grid along each axis, odd.
    spacing : three floats
        Voxel sizes in mm that the network is made for.
    radial : Radial
        Radial functions of all layers.
    antipodal, chunk, recompute
        As in `PQNet`.

    Raises
    ------
    ValueError
        When there are fewer than two grids, or an option is none of those named.

    Source
    ------
    Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28; layers: Müller et al., section 4.2.
    """

    def __init__(
        self,
        irreps_pq: Sequence[o3.Irreps | str] = ("7x0e+4x1e",),
        irreps_levels: Sequence[o3.Irreps | str] = ("12x0e+4x1e", "16x0e+6x1e", "20x0e+8x1e"),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial: Radial = Radial(),
        antipodal: bool = True,
        chunk: int = 4,
        recompute: bool = False,
    ):
        super().__init__()
        self.q_max = radial.q_max
        levels = parse_irreps_list(irreps_levels, "irreps_levels")
        if len(levels) < 2:
            raise ValueError(f"irreps_levels must name the types on two grids or more, got {len(levels)}")
        self.irreps_out, self.recompute = parse_irreps(irreps_out, "irreps_out"), recompute
        gates = [nonlinear_layer("gate", irreps) for irreps in levels]
        self.stem = PQNet(
            irreps_pq, [], gates[0].irreps_in, kernel_size=kernel_size, spacing=spacing, radial=radial,
            antipodal=antipodal, chunk=chunk, recompute=recompute,
        )  # fmt: skip
        self.irreps_in = self.stem.irreps_in
        self.stem_gate = gates[0]

        def conv(irreps_in: o3.Irreps, irreps_hidden: o3.Irreps, level: int) -> nn.Sequential:
            act = nonlinear_layer("gate", irreps_hidden)
            voxel = [size * 2**level for size in spacing]
            p_conv = PConv(irreps_in, act.irreps_in, kernel_size=kernel_size, spacing=voxel, radial=radial)
            return nn.Sequential(p_conv, act)

        pairs = list(itertools.pairwise(levels))
        self.down = nn.ModuleList(conv(fine, coarse, k) for k, (fine, coarse) in enumerate(pairs, start=1))
        self.up = nn.ModuleList(conv(fine + coarse, fine, k) for k, (fine, coarse) in enumerate(pairs))
        self.out = PConv(levels[0], self.irreps_out, kernel_size=kernel_size, spacing=spacing, radial=radial)
        self.coarser, self.finer = Downsample(2), Upsample(2)

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return how far it sees: by way of the coarsest grid."""
        there = [layer for down in self.down for layer in (self.coarser, down)]
        back = [layer for up in reversed(self.up) for layer in (self.finer, up)]
        return chain([self.stem, *there, *back, self.out])

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Axes of more than 2**(grids - 1) voxels.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            q-vectors along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Logits.

        Raises
        ------
        ValueError
            As `PQNet`; besides, when an axis is too short for the coarsest grid.
        """
        maps = [self.stem_gate(self.stem(image, q))]
        for layer in self.down:
            maps.append(run(layer, self.coarser(maps[-1]), recompute=self.recompute))
        y = maps.pop()
        for layer in reversed(self.up):
            x = maps.pop()
            y = torch.cat([x, self.finer(y, x.shape[-3:])], dim=1)
            y = run(layer, y, recompute=self.recompute)
        return self.out(y)

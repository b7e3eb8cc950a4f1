"""U-shaped networks: layers over p on several grids, so that a voxel is judged by what lies around it."""

import itertools
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.radial import Radial
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.nn import CartesianToIrreps, Downsample, PConv, Upsample, nonlinear_layer
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.recompute import run
from eqdmri_monai.tensors import fit_tensor, shrunk


class PUNet(nn.Module):
    """Layers over p on several grids, each twice as coarse as the one before, and back.

    A `PConv` and gate on each grid on the way down; on the way up each grid also gets what the coarser one found. The
    grids lie symmetrically about the array's centre, so that quarter turns of the array commute exactly; translations
    by fewer voxels than the coarsest grid's do so up to what its low-pass leaves.

    Parameters
    ----------
    irreps_levels : sequence of o3.Irreps
        Types on each grid, the finest first; the first is that of the input.
    irreps_out : o3.Irreps
    kernel_size : int
        Voxels of each grid along each axis, odd.
    spacing : three floats
        Voxel sizes in mm of the finest grid.
    radial : Radial
        Radial functions of all layers.
    recompute : bool
        As in `PQNet`.

    Raises
    ------
    ValueError
        When there are fewer than two grids.

    Source
    ------
    Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28; layers: Müller et al., section 4.2.
    """

    def __init__(
        self,
        irreps_levels: Sequence[o3.Irreps | str],
        irreps_out: o3.Irreps | str,
        *,
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial: Radial = Radial(),
        recompute: bool = False,
    ):
        super().__init__()
        levels = parse_irreps_list(irreps_levels, "irreps_levels")
        if len(levels) < 2:
            raise ValueError(f"irreps_levels must name the types on two grids or more, got {len(levels)}")
        self.irreps_out, self.recompute = parse_irreps(irreps_out, "irreps_out"), recompute

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
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees: by way of the coarsest grid."""
        there = [layer for down in self.down for layer in (self.coarser, down)]
        back = [layer for up in reversed(self.up) for layer in (self.finer, up)]
        return chain([*there, *back, self.out])

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_levels[0].dim, X, Y, Z)
            Axes of more than 2**(grids - 1) voxels.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)

        Raises
        ------
        ValueError
            When an axis is too short for the coarsest grid.
        """
        maps = [x]
        for layer in self.down:
            maps.append(run(layer, self.coarser(maps[-1]), recompute=self.recompute))
        y = maps.pop()
        for layer in reversed(self.up):
            x = maps.pop()
            y = torch.cat([x, self.finer(y, x.shape[-3:])], dim=1)
            y = run(layer, y, recompute=self.recompute)
        return self.out(y)


class PQUNet(nn.Module):
    """Voxelwise prediction from a diffusion scan on several grids, equivariant as `PQNet` is.

    Layers over p and q, and the sum over q, on the scan's grid; then a `PUNet`.

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
        common = {"kernel_size": kernel_size, "spacing": spacing, "radial": radial, "recompute": recompute}
        self.grids = PUNet(irreps_levels, irreps_out, **common)
        self.irreps_out = self.grids.irreps_out
        self.stem_gate = nonlinear_layer("gate", o3.Irreps(irreps_levels[0]))
        self.stem = PQNet(irreps_pq, [], self.stem_gate.irreps_in, antipodal=antipodal, chunk=chunk, **common)
        self.irreps_in = self.stem.irreps_in

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees: by way of the coarsest grid."""
        return chain([self.stem, self.grids])

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
        return self.grids(self.stem_gate(self.stem(image, q)))


class TensorUNet(nn.Module):
    """Voxelwise prediction from b0 and the tensor that fits the signal, on several grids; equivariant as `PQNet` is.

    The fit takes the volumes together, whatever their number and directions, and turns with them; it costs next to
    nothing, so that all layers lie over p. What a tensor does not hold, such as crossings, is lost.

    Parameters
    ----------
    irreps_levels : sequence of o3.Irreps
        Types on each grid, the finest first.
    irreps_out : o3.Irreps
        Type of the logits.
    kernel_size : int
        Voxels of each grid along each axis, odd.
    spacing : three floats
        Voxel sizes in mm that the network is made for.
    recompute : bool
        As in `PQNet`.

    Raises
    ------
    ValueError
        As `PUNet`.
    """

    # Maps of about 0 ± 1 in a brain; a tensor of a larger norm than any tissue's or fluid's is shrunk to that.
    MEAN, SCATTER, LARGEST = 1.0, 0.5, 6.0  # µm²/ms

    def __init__(
        self,
        irreps_levels: Sequence[o3.Irreps | str] = ("5x0e+1x2e", "16x0e+4x2e", "24x0e+6x2e", "32x0e+8x2e"),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        kernel_size: int = 3,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        recompute: bool = False,
    ):
        super().__init__()
        self.grids = PUNet(irreps_levels, irreps_out, kernel_size=kernel_size, spacing=spacing, recompute=recompute)
        self.irreps_out = self.grids.irreps_out
        self.to_irreps = CartesianToIrreps(["symmetric"])
        self.stem_gate = nonlinear_layer("gate", o3.Irreps(irreps_levels[0]))
        irreps = o3.Irreps("1x0e") + self.to_irreps.irreps_out
        self.stem = PConv(irreps, self.stem_gate.irreps_in, kernel_size=kernel_size, spacing=spacing)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees: by way of the coarsest grid."""
        return chain([self.stem, self.grids])

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Logarithm of the signal over one number for the whole scan, as `LogSignald` gives it; 0 outside the brain.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Logits.

        Raises
        ------
        ValueError
            When the q-vectors do not determine a tensor, or an axis is too short for the coarsest grid.
        """
        return self.grids(self.stem_gate(self.stem(self.fit(image, q))))

    def fit(self, image: Tensor, q: Tensor) -> Tensor:
        """Return log b0 and the tensor as a feature map of 1x0e+1x0e+1x2e, about 0 ± 1 in a brain."""
        tensor, log_s0 = fit_tensor(image, (q[0] if q.ndim == 3 else q).to(image), weighted=False)
        tensor = shrunk(tensor, self.LARGEST)
        mean = self.MEAN * tensor.new_tensor([1, 0, 0, 1, 0, 1])[:, None, None, None]
        tensor = (tensor - mean) / self.SCATTER * image.any(dim=1, keepdim=True)
        return torch.cat([log_s0[:, None] / self.SCATTER, self.to_irreps(tensor)], dim=1)

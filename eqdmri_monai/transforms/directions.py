"""A scan as if it had been measured along other directions, for networks that are made for one gradient scheme."""

import itertools
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from e3nn import o3
from monai.config import KeysCollection
from monai.transforms import MapTransform

from eqdmri_monai.frames import voxel_to_world, world_to_voxel
from eqdmri_monai.gradients import GradientTable, shells
from eqdmri_monai.transforms.scan import table_of, with_volumes


def icosahedron_edges() -> torch.Tensor:
    """Return the 15 axes through opposite edges of an icosahedron, unit, (15, 3): no two closer than 36 degrees."""
    golden = (1 + 5**0.5) / 2
    cyclic = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    signs = [(1, s, t) for s, t in itertools.product((1, -1), repeat=2)]
    edges = [np.eye(3)[k] for k in range(3)]
    edges += [np.array([1, s * golden, t / golden])[list(c)] / 2 for c in cyclic for _, s, t in signs]
    return torch.from_numpy(np.stack(edges))


class ResampleDirectionsd(MapTransform):
    """Replace a scan by its b0 and 15 volumes along fixed axes of the voxel grid, by spherical harmonics of one shell.

    The shell is the one of most volumes, the weakest of several; it keeps its b-value. Harmonics go up to degree 4, or
    2 where there are fewer than 15 directions.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) after `AverageB0d`.
    smoothness : float
        Weight of the Laplace–Beltrami penalty.

    Source
    ------
    Descoteaux et al. 2007, doi:10.1002/mrm.21277, with their weight.
    """

    def __init__(self, keys: KeysCollection, smoothness: float = 0.006):
        super().__init__(keys)
        self.smoothness = smoothness

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with images (16, X, Y, Z) and their tables."""
        d = dict(data)
        for key in self.key_iterator(d):
            image, table = d[key], table_of(d[key])
            shell = shells(table.bvals)
            counts = torch.bincount(shell[~table.b0_mask])
            volumes = (shell == int(counts.argmax())).nonzero().flatten()
            edges = icosahedron_edges()
            directions = world_to_voxel(table.bvecs[volumes], image.affine)
            matrix = self.matrix(directions, edges).to(image.dtype)
            values = image.as_tensor()
            weighted = torch.einsum("oq,qxyz->oxyz", matrix.to(values.device), values[volumes])
            bvecs = torch.cat([torch.zeros(1, 3, dtype=torch.float64), voxel_to_world(edges, image.affine)])
            bvals = torch.cat([torch.zeros(1), table.bvals[volumes].mean().expand(len(edges))]).to(torch.float64)
            b0 = values[table.b0_mask].mean(0, keepdim=True)
            d[key] = with_volumes(image, torch.cat([b0, weighted]), GradientTable(bvals, bvecs))
        return d

    def matrix(self, measured: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return what takes values along directions (Q, 3) to those along others (N, 3), shape (N, Q)."""
        degrees = [0, 2, 4] if len(measured) >= 15 else [0, 2]

        def harmonics(x: torch.Tensor) -> torch.Tensor:
            return o3.spherical_harmonics(degrees, x.to(torch.float64), normalize=True, normalization="integral")

        penalty = torch.cat([torch.full((2 * l + 1,), float(l * (l + 1)) ** 2) for l in degrees]).to(torch.float64)
        B = harmonics(measured)
        return harmonics(wanted) @ torch.linalg.solve(B.T @ B + self.smoothness * torch.diag(penalty), B.T)

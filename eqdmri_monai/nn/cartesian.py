"""Vectors and tensors in x, y, z as inputs and outputs of equivariant layers: to the types of feature maps and back.

A 3 × 3 tensor is one scalar (its trace), one vector (its antisymmetric part) and one l = 2 (its symmetric traceless
part). Components are ordered

    scalar      1
    vector      x y z
    symmetric   xx xy xz yy yz zz                the order of FSL's ``dtifit --save_tensor``
    tensor      xx xy xz yx yy yz zx zy zz       row by row

where xy of a symmetric tensor stands for yx too. Other orders of the six are xx xy yy xz yz zz in dipy's
`lower_triangular` and in NIfTI's symmetric matrices, xx yy zz xy xz yz in MRtrix.
"""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import coupling
from eqdmri_monai.frames import tensor_to_world

# Entries of a row-by-row 3 × 3 matrix that are the six of a symmetric one, and where each of the nine is among the six.
UPPER = [0, 1, 2, 4, 5, 8]
SQUARE = [0, 1, 2, 1, 3, 4, 2, 4, 5]

DEGREES = {"scalar": [0], "vector": [1], "symmetric": [0, 2], "tensor": [0, 1, 2]}


class CartesianToIrreps(nn.Module):
    """Decompose Cartesian quantities into one feature map, sorted by degree as `Gate` wants it.

    Norms are kept: the square sum of the output is that of all entries of the input, xy of a symmetric tensor twice.

    Parameters
    ----------
    kinds : sequence of str
        "scalar", "vector", "symmetric" or "tensor" for each quantity, in the order in which their components are
        stacked; ``["vector", "symmetric"]`` has 3 + 6 components and becomes ``1x0e+1x1e+1x2e``.

    Attributes
    ----------
    irreps_out : o3.Irreps
        Within a degree, in the order of `kinds`.

    Raises
    ------
    ValueError
        When a kind is unknown or there is none.

    Source
    ------
    Müller et al., appendix C; the same numbers as `e3nn.io.CartesianTensor`.
    """

    def __init__(self, kinds: Sequence[str]):
        super().__init__()
        self.irreps_out, matrix, _ = _matrices(kinds)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, components, ...)
            Along the voxel axes.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, ...)
        """
        return torch.einsum("oc,bc...->bo...", self.matrix.to(x.dtype), x)


class IrrepsToCartesian(nn.Module):
    """Compose Cartesian quantities from a feature map: the inverse of `CartesianToIrreps`.

    Parameters
    ----------
    kinds : sequence of str
        As in `CartesianToIrreps`.

    Attributes
    ----------
    irreps_in : o3.Irreps
        What the layer or network before must give as its `irreps_out`.

    Raises
    ------
    ValueError
        When a kind is unknown or there is none.

    Source
    ------
    Müller et al., appendix C.
    """

    def __init__(self, kinds: Sequence[str]):
        super().__init__()
        self.irreps_in, _, matrix = _matrices(kinds)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, irreps_in.dim, ...)

        Returns
        -------
        Tensor, shape (B, components, ...)
            Along the voxel axes.
        """
        return torch.einsum("ci,bi...->bc...", self.matrix.to(x.dtype), x)


class TensorHead(nn.Module):
    """Diffusion tensors from the output of a network with ``irreps_out="1x0e+1x2e"``.

    Nothing is learned here. Units are those of the targets; µm²/ms makes values of about 1. Eigenvalues may be
    negative, as those of a fit to noise may be. The network needs `q_space` among its bases: one layer of TP±1 alone
    sees no anisotropy where the signal is the same in neighbouring voxels.

    Attributes
    ----------
    irreps_in : o3.Irreps
        1x0e+1x2e.

    Source
    ------
    Müller et al., appendix C.
    """

    def __init__(self):
        super().__init__()
        self.to_cartesian = IrrepsToCartesian(["symmetric"])
        self.irreps_in = self.to_cartesian.irreps_in

    def forward(self, x: Tensor, affine: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor, shape (B, 6, X, Y, Z)
        affine : Tensor, shape (4, 4)
            Of the array that the network was given.

        Returns
        -------
        Tensor, shape (B, 6, X, Y, Z)
            Components xx xy xz yy yz zz in the world frame; along the voxel axes without an affine.
        """
        tensor = self.to_cartesian(x)
        if affine is None:
            return tensor
        return symmetric_components(tensor_to_world(symmetric_matrix(tensor), affine))


def symmetric_matrix(components: Tensor) -> Tensor:
    """Return symmetric tensors (B, 6, ...), ordered xx xy xz yy yz zz, as matrices (B, ..., 3, 3)."""
    return components[:, SQUARE].movedim(1, -1).unflatten(-1, (3, 3))


def symmetric_components(matrix: Tensor) -> Tensor:
    """Return symmetric matrices (B, ..., 3, 3) as components (B, 6, ...), ordered xx xy xz yy yz zz."""
    return matrix.flatten(-2)[..., UPPER].movedim(-1, 1)


def _matrices(kinds: Sequence[str]) -> tuple[o3.Irreps, Tensor, Tensor]:
    """Return the type, and the matrices (irreps.dim, components) to it and (components, irreps.dim) back."""
    if isinstance(kinds, str) or not kinds or not set(kinds) <= DEGREES.keys():
        raise ValueError(f"kinds must be a list of {', '.join(map(repr, DEGREES))}, got {kinds!r}")
    blocks = [_block(kind) for kind in kinds]
    degrees = [l for kind in kinds for l in DEGREES[kind]]
    order = torch.tensor([l for l in degrees for _ in range(2 * l + 1)]).argsort(stable=True)
    irreps = o3.Irreps([(1, (l, 1)) for l in sorted(degrees)]).simplify()
    there, back = (torch.block_diag(*parts).to(torch.get_default_dtype()) for parts in zip(*blocks, strict=True))
    return irreps, there[order], back[:, order]


def _block(kind: str) -> tuple[Tensor, Tensor]:
    """Return the same two matrices, float64, for one quantity."""
    if DEGREES[kind] in ([0], [1]):
        return (torch.eye(2 * DEGREES[kind][0] + 1, dtype=torch.float64),) * 2
    rows = torch.cat([coupling(1, 1, l).flatten(1) for l in DEGREES[kind]])  # orthonormal, one column for each entry
    if kind == "tensor":
        return rows, rows.T
    times = torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0, 1.0], dtype=torch.float64)  # xy stands for xy and yx
    return rows[:, UPPER] * times, rows[:, UPPER].T

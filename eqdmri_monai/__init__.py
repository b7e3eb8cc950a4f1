"""Segmentation of diffusion MRI with networks equivariant under SE(3) acting on voxels and q-vectors together.

Frames
    world: scanner RAS+, mm. voxel: the array's own axes x, y, z = i, j, k (nibabel's order). fsl: the image axes of
    the file that a ``.bvec`` came with, x mirrored where det(affine) > 0. Directions enter once, are turned to the
    world with the file's original affine, and stay there; the last step before a network turns them along the current
    voxel axes.

Tables
    Rows are volumes. ``bvals`` (Q,) in s/mm²; ``bvecs`` (Q, 3) unit, zero at b <= 50. ``q = sqrt(b / 1000) · bvec``.
    A shell is a group of volumes whose b-values agree within 5 % or 50 s/mm²; lengths are the mean of their shell.

Tensors
    Scans are ``image (B, Q, X, Y, Z)``, volumes on MONAI's channel axis, with ``q (B, Q, 3)`` or ``(Q, 3)``; all items
    of a batch share one table. Feature maps are ``(B, irreps.dim, Q, X, Y, Z)`` over p and q, ``(B, irreps.dim, X, Y,
    Z)`` over p. Networks are called ``network(image, q)`` and return logits ``(B, C, X, Y, Z)``.

Types
    e3nn's irreps with even labels (``7x0e+4x1e``): rotations without mirrors. l = 1 is ordered x, y, z.

Filters
    A basis is a family of filters (`bases.FilterBasis`), a `bases.Radial` says which radial functions they are made of;
    both are values. `kernel` is the filter law at any offsets, `lattice` the offsets of a kernel's voxels, and
    `grid_kernel` the weight of one plain convolution, self-connection included.

Rooms
    ``frames``, ``gradients``, ``symmetry``, ``bases``, ``nn`` and ``networks`` compute, with torch and e3nn alone.
    Files, MONAI and reports come after them; ``tests/test_layout.py`` has the whole order.

In einsum and comments: b batch, i o components in and out, q r volumes out and in, s t shells out and in, x y z voxels,
k radial functions, f filter paths, m components of a harmonic over q, n offsets, u v copies.
"""

__version__ = "0.1.0"

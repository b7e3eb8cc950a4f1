"""The whole network: layers over p and q, a sum over q, layers over p."""

import itertools
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eqdmri_monai.bases.filters import FilterBasis, tp1
from eqdmri_monai.nn import Gate, PConv, PQConv, QLengthPool


class PQNet(nn.Module):
    """Voxelwise prediction from a diffusion scan, equivariant under joint rotations of voxels and q-vectors.

    `PQConv` + `Gate` for each entry of `irreps_pq`; `QLengthPool`; `PConv` + `Gate` for each entry of `irreps_p`; a
    last `PConv` to `irreps_out`. The last pq layer is computed for a few q_out at a time and summed at once.

    Parameters
    ----------
    irreps_pq : sequence of o3.Irreps
        Types after each pq layer.
    irreps_p : sequence of o3.Irreps
        Types after each p layer but the last.
    irreps_out : o3.Irreps
        Type of the logits.
    bases : sequence of FilterBasis
        Filters of the pq layers.
    kernel_size : int
        Voxels along each axis, odd.
    spacing : three floats
        Voxel sizes in mm that the network is made for.
    radial_p : str
        "cosine", "Gaussian", or either with "+fc".
    num_radial_p, num_radial_q, num_radial_reduction : int
        Number of bumps over |Δp|, over q-lengths in the pq layers, and in the sum over q.
    q_max : float
        sqrt(b / 1000) of the strongest weighting that the network is made for.
    antipodal : bool
        Count every volume at q and at -q, so that the sign of a gradient cannot matter.
    q : Tensor, shape (Q, 3)
        Scheme for calls without one, in the voxel frame.
    chunk : int
        Number of q_out that are computed at a time.
    recompute : bool
        Recompute each chunk in the backward pass, so that memory does not grow with Q.

    Source
    ------
    Müller et al., section 4.2, late q-reduction.
    """

    def __init__(
        self,
        irreps_pq: Sequence[o3.Irreps | str] = ("7x0e+4x1e",),
        irreps_p: Sequence[o3.Irreps | str] = ("20x0e+5x1e", "10x0e+3x1e", "5x0e+2x1e"),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        bases: Sequence[FilterBasis] = (tp1,),
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial_p: str = "cosine+fc",
        num_radial_p: int = 3,
        num_radial_q: int = 3,
        num_radial_reduction: int = 3,
        q_max: float = 1.75,
        antipodal: bool = True,
        q: Sequence[Sequence[float]] | Tensor | None = None,
        chunk: int = 4,
        recompute: bool = False,
    ):
        super().__init__()
        self.chunk, self.recompute = chunk, recompute
        self.q = None if q is None else torch.as_tensor(q, dtype=torch.get_default_dtype())
        p_options = {
            "kernel_size": kernel_size,
            "spacing": spacing,
            "radial": radial_p,
            "num_radial": num_radial_p,
        }
        self.pq_convs, self.pq_gates = nn.ModuleList(), nn.ModuleList()
        irreps = o3.Irreps("0e")
        for irreps_hidden in irreps_pq:
            gate = Gate(irreps_hidden)
            conv = PQConv(
                irreps, gate.irreps_in, bases=bases, kernel_size=kernel_size, spacing=spacing, radial_p=radial_p,
                num_radial_p=num_radial_p, num_radial_q_in=num_radial_q, num_radial_q_out=num_radial_q, q_max=q_max,
                antipodal=antipodal,
            )  # fmt: skip
            self.pq_convs.append(conv)
            self.pq_gates.append(gate)
            irreps = gate.irreps_out
        self.pool = QLengthPool(irreps, num_radial=num_radial_reduction, q_max=q_max)
        self.irreps_out = o3.Irreps(irreps_out)
        self.p_layers = p_stack([irreps, *irreps_p, irreps_out], **p_options)

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
            When q is missing, differs within the batch, or has another number of volumes than the image.
        """
        q = check_scheme(image, self.q if q is None else q)
        x = image[:, None]  # [b, i, q, x, y, z]
        for conv, gate in zip(self.pq_convs[:-1], self.pq_gates[:-1], strict=True):
            x = gate(conv(x, q, chunk=self.chunk))
        return self.p_layers(self._last_pq_layer_and_pool(x, q))

    def _last_pq_layer_and_pool(self, x: Tensor, q: Tensor) -> Tensor:
        conv, gate = self.pq_convs[-1], self.pq_gates[-1]
        prepared = conv.prepare(x, q)
        coefficients = self.pool.coefficients(prepared.mixing.sampling_out)

        def pooled(index: Tensor) -> Tensor:
            maps = conv.convolve(prepared, index)
            return sum(torch.einsum("iq,biqxyz->bixyz", coefficients[:, index] / len(maps), gate(y)) for y in maps)

        total = 0.0
        for index in prepared.mixing.chunks(self.chunk):
            if self.recompute and torch.is_grad_enabled():
                total = total + checkpoint(pooled, index, use_reentrant=False)
            else:
                total = total + pooled(index)
        return total


def p_stack(irreps: Sequence[o3.Irreps | str], **options) -> nn.Sequential:
    """`PConv` between each two types, with a `Gate` after all but the last; options go to `PConv`."""
    layers = []
    for irreps_in, irreps_hidden in itertools.pairwise(irreps[:-1]):
        gate = Gate(irreps_hidden)
        layers += [PConv(irreps_in, gate.irreps_in, **options), gate]
    return nn.Sequential(*layers, PConv(irreps[-2], irreps[-1], **options))


def check_scheme(image: Tensor, q: Tensor | None) -> Tensor:
    """Return the one set of q-vectors (Q, 3) of a batch, on the image's device.

    Raises
    ------
    ValueError
        When q is missing, differs within the batch, or has another number of volumes than the image (B, Q, X, Y, Z).
    """
    if image.ndim != 5:
        raise ValueError(f"image must be (B, Q, X, Y, Z), got {tuple(image.shape)}")
    if q is None:
        raise ValueError("the network needs the q-vectors of this scan: call network(image, q)")
    if q.ndim == 3:
        if not torch.equal(q, q[:1].expand_as(q)):
            raise ValueError("all items of a batch must have the same q-vectors; batch crops of one scan only")
        q = q[0]
    if q.shape != (image.shape[1], 3):
        raise ValueError(f"q has shape {tuple(q.shape)} but the image has {image.shape[1]} volumes")
    return q.to(image.device)

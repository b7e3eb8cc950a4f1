"""The whole network: layers over p and q, a sum over q, layers over p."""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, Radial, tp1
from eqdmri_monai.nn import PQConv, PStack, QLengthPool, QMean, nonlinear_layer
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.recompute import run, streamed_sum


class PQNet(nn.Module):
    """Voxelwise prediction from a diffusion scan, equivariant under joint rotations of voxels and q-vectors.

    `PQConv` and a nonlinearity for each entry of `irreps_pq`; `QLengthPool`; a `PStack` through `irreps_p` to
    `irreps_out`. The last pq layer is computed for a few q_out at a time and summed at once.

    Parameters
    ----------
    irreps_pq : sequence of o3.Irreps
        Types after each pq layer.
    irreps_p : sequence of o3.Irreps
        Types after each p layer but the last.
    irreps_out : o3.Irreps
        Type of the logits.
    irreps_in : o3.Irreps
        Type of a volume's values; a diffusion scan's are scalars.
    bases : sequence of FilterBasis and DifferenceBasis
        Filters of the pq layers.
    kernel_size : int
        Voxels along each axis, odd.
    spacing : three floats
        Voxel sizes in mm that the network is made for.
    radial : Radial
        Radial functions of all layers.
    reduction : str
        "length", a learned function of q-length, or "mean".
    nonlinearity, normalization, dropout
        As in `PStack`. Normalisation and dropout are in the p layers alone: where q-space is streamed, no layer sees
        all of it.
    antipodal : bool
        Count every volume at q and at -q, so that the sign of a gradient cannot matter.
    q : Tensor, shape (Q, 3)
        Scheme for calls without one, in the voxel frame.
    chunk : int
        Number of q_out that are computed at a time.
    recompute : bool
        Recompute each layer, and each chunk of the last pq layer, in the backward pass: memory does not grow with Q
        where there is one pq layer.

    Raises
    ------
    ValueError
        When an option is none of those named, or does not fit the others.

    Source
    ------
    Müller et al., section 4.2, late q-reduction; 4.3, checkpointing.
    """

    def __init__(
        self,
        irreps_pq: Sequence[o3.Irreps | str] = ("7x0e+4x1e",),
        irreps_p: Sequence[o3.Irreps | str] = ("20x0e+5x1e", "10x0e+3x1e", "5x0e+2x1e"),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        irreps_in: o3.Irreps | str = "1x0e",
        bases: Sequence[FilterBasis | DifferenceBasis] = (tp1,),
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial: Radial = Radial(),
        reduction: str = "length",
        nonlinearity: str = "gate",
        normalization: str | None = None,
        dropout: float = 0.0,
        antipodal: bool = True,
        q: Sequence[Sequence[float]] | Tensor | None = None,
        chunk: int = 4,
        recompute: bool = False,
    ):
        super().__init__()
        self.q_max = radial.q_max
        if not irreps_pq:
            raise ValueError("irreps_pq must name the type after at least one pq layer, got an empty list")
        if reduction not in ("length", "mean"):
            raise ValueError(f'reduction must be "length" or "mean", got {reduction!r}')
        self.chunk, self.recompute = chunk, recompute
        self.q = None if q is None else torch.as_tensor(q, dtype=torch.get_default_dtype())
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in, "irreps_in"), parse_irreps(irreps_out, "irreps_out")
        irreps_pq, irreps_p = parse_irreps_list(irreps_pq, "irreps_pq"), parse_irreps_list(irreps_p, "irreps_p")
        self.pq_convs, self.pq_nonlinearities = nn.ModuleList(), nn.ModuleList()
        irreps = self.irreps_in
        for irreps_hidden in irreps_pq:
            act = nonlinear_layer(nonlinearity, irreps_hidden)
            conv = PQConv(
                irreps, act.irreps_in, bases=bases, kernel_size=kernel_size, spacing=spacing, radial=radial,
                antipodal=antipodal,
            )  # fmt: skip
            self.pq_convs.append(conv)
            self.pq_nonlinearities.append(act)
            irreps = act.irreps_out
        self.pool = QLengthPool(irreps, radial=radial) if reduction == "length" else QMean()
        self.p_layers = PStack(
            [irreps, *irreps_p, irreps_out], kernel_size=kernel_size, spacing=spacing, radial=radial,
            nonlinearity=nonlinearity, normalization=normalization, dropout=dropout, recompute=recompute,
        )  # fmt: skip

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return how far it sees; None with instance normalisation, which sees the whole array."""
        return chain([*self.pq_convs, self.p_layers])

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            (B, irreps_in.dim, Q, X, Y, Z) where the values are no scalars.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            q-vectors along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Logits.

        Raises
        ------
        ValueError
            When the image has another shape, or when q is missing, differs within the batch, or has another number of
            volumes than the image.
        """
        x, q = check_scheme(image, self.q if q is None else q, self.irreps_in)
        for conv, act in zip(self.pq_convs[:-1], self.pq_nonlinearities[:-1], strict=True):
            x = run(lambda x, conv=conv, act=act: act(conv(x, q, chunk=self.chunk)), x, recompute=self.recompute)
        return self.p_layers(self._last_pq_layer_and_pool(x, q))

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what `torch.jit.script` compiles in place of this network; see `plain_pq_net.plain_form`."""
        from eqdmri_monai.networks.plain_pq_net import plain_form  # it is made of this class

        return plain_form(self)

    def _last_pq_layer_and_pool(self, x: Tensor, q: Tensor) -> Tensor:
        conv, act = self.pq_convs[-1], self.pq_nonlinearities[-1]
        prepared = conv.prepare(x, q)
        coefficients = self.pool.coefficients(prepared.plan.sampling_out)

        def gated_sum(coefficients: Tensor, *maps: Tensor) -> Tensor:
            return sum(torch.einsum("iq,biqxyz->bixyz", coefficients / len(maps), act(y)) for y in maps)

        def pooled(index: Tensor, coefficients: Tensor, *tensors: Tensor) -> Tensor:
            # what the gate computes costs less time to find again than memory to keep
            maps = conv.convolve(prepared.with_tensors(tensors), index)
            return run(gated_sum, coefficients[:, index], *maps, recompute=not self.recompute)

        chunks, tensors = list(prepared.plan.chunks(self.chunk)), [coefficients, *prepared.tensors()]
        if not self.recompute:
            return sum(pooled(index, *tensors) for index in chunks)
        return streamed_sum(pooled, chunks, tensors, [*act.parameters(), *conv.parameters()])


def check_scheme(image: Tensor, q: Tensor | None, irreps_in: o3.Irreps) -> tuple[Tensor, Tensor]:
    """Return the image as a feature map (B, irreps_in.dim, Q, X, Y, Z), and the one set of q-vectors (Q, 3) of a batch.

    Raises
    ------
    ValueError
        When q is missing, differs within the batch, or has another number of volumes than the image, or when the
        image is neither such a map nor, for scalars, (B, Q, X, Y, Z).
    """
    if image.ndim == 5 and irreps_in == o3.Irreps("0e"):
        image = image[:, None]
    if image.ndim != 6 or image.shape[1] != irreps_in.dim:
        shape = "(B, Q, X, Y, Z)" if irreps_in.dim == 1 else f"(B, {irreps_in.dim}, Q, X, Y, Z)"
        raise ValueError(f"image must be {shape}, got {tuple(image.shape)}")
    if q is None:
        raise ValueError("the network needs the q-vectors of this scan: call network(image, q)")
    if q.ndim == 3:
        if not torch.equal(q, q[:1].expand_as(q)):
            raise ValueError("all items of a batch must have the same q-vectors; batch crops of one scan only")
        q = q[0]
    if q.shape != (image.shape[2], 3):
        raise ValueError(f"q has shape {tuple(q.shape)} but the image has {image.shape[2]} volumes")
    return image, q.to(image.device)

"""The network that thins out q-space from layer to layer, until only q = 0 is left."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, Radial, tp1
from eqdmri_monai.gradients import QSampling, spread_subset
from eqdmri_monai.networks.pq_net import check_scheme
from eqdmri_monai.nn import PQConv, PStack, nonlinear_layer
from eqdmri_monai.nn.irreps import parse_irreps, parse_irreps_list
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.recompute import run


class GradualPQNet(nn.Module):
    """Voxelwise prediction from a diffusion scan, with gradual q-reduction.

    Each pq layer is evaluated at fewer q-vectors than it reads, chosen from the scan's own by `spread_subset`; the
    reduction layer at q = 0 alone. Every layer but the last p layer is followed by a nonlinearity.

    Parameters
    ----------
    irreps_pq : sequence of o3.Irreps
        Types after each pq layer.
    q_counts : sequence of int
        Number of q-vectors after each pq layer, b0 included; never rising.
    irreps_reduction : o3.Irreps
        Type after the reduction.
    num_q : sequence of int
        Number of functions over the q-lengths of the input and of each pq layer's output; that of `radial` is not used.
    irreps_p, irreps_out, and all other options
        As in `PQNet`. There is no scheme of its own, since no layer streams over q_out and `fold` fixes one.

    Raises
    ------
    ValueError
        When the lists do not fit each other, or an option is none of those named.

    Source
    ------
    Müller et al., section 4.2, gradual q-reduction, and Table 4. The reduction has no fully connected network.
    """

    def __init__(
        self,
        irreps_pq: Sequence[o3.Irreps | str] = ("15x0e+7x1e",),
        q_counts: Sequence[int] = (7,),
        irreps_reduction: o3.Irreps | str = "70x0e+10x1e",
        irreps_p: Sequence[o3.Irreps | str] = ("20x0e+5x1e",),
        irreps_out: o3.Irreps | str = "1x0e",
        *,
        irreps_in: o3.Irreps | str = "1x0e",
        bases: Sequence[FilterBasis | DifferenceBasis] = (tp1,),
        kernel_size: int = 5,
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        radial: Radial = Radial(),
        num_q: Sequence[int] = (3, 2),
        nonlinearity: str = "gate",
        normalization: str | None = None,
        dropout: float = 0.0,
        antipodal: bool = True,
        recompute: bool = False,
    ):
        super().__init__()
        self.q_max = radial.q_max
        if not len(irreps_pq) == len(q_counts) == len(num_q) - 1:
            raise ValueError(
                f"q_counts and num_q must have {len(irreps_pq)} and {len(irreps_pq) + 1} entries for {len(irreps_pq)} "
                f"pq layers, got {len(q_counts)} and {len(num_q)}"
            )
        self.q_counts, self.recompute = tuple(q_counts), recompute
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in, "irreps_in"), parse_irreps(irreps_out, "irreps_out")
        irreps_pq, irreps_p = parse_irreps_list(irreps_pq, "irreps_pq"), parse_irreps_list(irreps_p, "irreps_p")
        self.pq_convs, self.pq_nonlinearities = nn.ModuleList(), nn.ModuleList()
        irreps = self.irreps_in
        bumps = [radial.p] * len(irreps_pq) + [radial.p.partition("+")[0]]
        for irreps_hidden, p, n_in, n_out in zip(
            [*irreps_pq, parse_irreps(irreps_reduction, "irreps_reduction")], bumps, num_q, [*num_q[1:], 1], strict=True
        ):
            act = nonlinear_layer(nonlinearity, irreps_hidden)
            conv = PQConv(
                irreps, act.irreps_in, bases=bases, kernel_size=kernel_size, spacing=spacing,
                radial=replace(radial, p=p, num_q=n_in, num_q_out=n_out), antipodal=antipodal,
            )  # fmt: skip
            self.pq_convs.append(conv)
            self.pq_nonlinearities.append(act)
            irreps = act.irreps_out
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
            When the image has another shape, or when q is missing, differs within the batch, has another number of
            volumes than the image, or too few.
        """
        x, q = check_scheme(image, q, self.irreps_in)
        q = QSampling.of(q).q  # else the mean length of a shell's subset would differ from the shell's
        if len(q) < max(self.q_counts, default=1):
            raise ValueError(
                f"q_counts asks for {max(self.q_counts)} q-vectors but the scan has {len(q)}; lower q_counts"
            )
        for conv, act, count in zip(self.pq_convs, self.pq_nonlinearities, [*self.q_counts, None], strict=True):
            q_out = torch.zeros_like(q[:1]) if count is None else q[spread_subset(q, count)]

            def layer(x: Tensor, conv=conv, act=act, q=q, q_out=q_out) -> Tensor:
                return act(conv(x, q, q_out))

            x, q = run(layer, x, recompute=self.recompute), q_out
        return self.p_layers(x[:, :, 0])  # at +0; -0 is the same

"""Diffusion tensors from few directions: a fit to the signal, and what a network adds to it."""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import pad

from eqdmri_monai.bases import FilterBasis, q_space, tp1
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.nn import CartesianToIrreps, IrrepsToCartesian
from eqdmri_monai.nn.p_stack import PStack
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.tensors import fit_tensor


class TensorNet(nn.Module):
    """The tensor that fits the signal, plus a correction: p layers over the fit, and what pq layers see in the volumes.

    It commutes with rotations as the networks that it is made of; it starts as the fit with a small correction.

    Parameters
    ----------
    irreps_pq : sequence of o3.Irreps
        As in `PQNet`; none for a correction from the fit alone.
    irreps_features : o3.Irreps
        What the pq layers hand over.
    irreps_p : sequence of o3.Irreps
        After each p layer but the last.
    bases, kernel_size, spacing
        As in `PQNet`; p layers count in voxels, so that cubic voxels of all sizes are alike to them. TP±1 alone sees no
        anisotropy where neighbouring voxels are alike: q-space must be among the bases.

    Source
    ------
    Müller et al., appendix C, for tensors as outputs; the fit as a part of the network is ours.
    """

    START = 0.1  # µm²/ms, of the correction of an untrained network

    def __init__(
        self,
        irreps_pq: Sequence[o3.Irreps | str] = (),
        irreps_features: o3.Irreps | str = "6x0e+2x1e+4x2e",
        irreps_p: Sequence[o3.Irreps | str] = ("10x0e+6x2e", "10x0e+6x2e"),
        *,
        bases: Sequence[FilterBasis] = (tp1, q_space),
        kernel_size: int = 3,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ):
        super().__init__()
        common = {"kernel_size": kernel_size, "spacing": spacing}
        self.to_irreps, self.to_tensor = CartesianToIrreps(["symmetric"]), IrrepsToCartesian(["symmetric"])
        self.volumes = PQNet(irreps_pq, (), irreps_features, bases=bases, **common) if irreps_pq else None
        features = o3.Irreps("1x0e") + self.to_irreps.irreps_out + (o3.Irreps(irreps_features) if irreps_pq else "")
        self.correction = PStack([features, *irreps_p, self.to_tensor.irreps_in], **common)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain([self.correction] if self.volumes is None else [self.volumes, self.correction])

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Logarithm of the signal over one number for the whole scan, as `LogSignald` gives it.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, 6, X, Y, Z)
            xx xy xz yy yz zz along the voxel axes, µm²/ms.
        """
        tensor, log_s0 = fit_tensor(image, q[0] if q.ndim == 3 else q)
        x = torch.cat([log_s0[:, None], self.to_irreps(tensor)], dim=1)
        if self.volumes is not None:
            x = torch.cat([x, self.volumes(image, q)], dim=1)
        return tensor + self.START * self.to_tensor(self.correction(x))


class PlainTensorNet(nn.Module):
    """`TensorNet` with any network, which does not turn, in the place of equivariant layers; to compare with.

    Parameters
    ----------
    correction : nn.Module
        From log S0 and six components (B, 7, X, Y, Z) to six (B, 6, X, Y, Z).
    multiple : int
        Of voxels, to which arrays are filled up with 0 for it: 2 for each time that it halves them.
    """

    def __init__(self, correction: nn.Module, *, multiple: int = 1):
        super().__init__()
        self.correction, self.multiple = correction, multiple

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """Return tensors (B, 6, X, Y, Z) of an image (B, Q, X, Y, Z) and q-vectors, as `TensorNet` does."""
        tensor, log_s0 = fit_tensor(image, q[0] if q.ndim == 3 else q)
        x, sizes = torch.cat([log_s0[:, None], tensor], dim=1), tensor.shape[2:]
        x = pad(x, [n for size in reversed(sizes) for n in (0, -size % self.multiple)])
        return tensor + TensorNet.START * self.correction(x)[..., : sizes[0], : sizes[1], : sizes[2]]

"""e3nn's layers on our feature maps: e3nn has components on the last axis, images have them on the first."""

from torch import Tensor, nn

from eqdmri_monai.nn.receptive_field import VOXELWISE, ReceptiveField


class ChannelsFirst(nn.Module):
    """Apply a module of e3nn, which takes components on the last axis, to feature maps (B, irreps.dim, ...).

    With `e3nn.nn.BatchNorm` and `e3nn.nn.Dropout` this is batch or instance normalisation that keeps equivariance, and
    dropout of whole copies of an irrep.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Return None with instance normalisation, whose statistics are over the whole array."""
        return None if getattr(self.module, "instance", False) else VOXELWISE

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's values, channels first."""
        return self.module(x.movedim(1, -1)).movedim(-1, 1)

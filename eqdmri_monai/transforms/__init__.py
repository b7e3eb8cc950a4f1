"""MONAI dictionary transforms for diffusion scans."""

from eqdmri_monai.transforms.brain import BrainMaskd
from eqdmri_monai.transforms.labels import CheckLabeld
from eqdmri_monai.transforms.normalization import NormalizeChannelsd, NormalizeShellsd
from eqdmri_monai.transforms.scan import CheckScand, LoadGradientsd, WriteQd
from eqdmri_monai.transforms.volumes import AverageB0d, RandSubsampleVolumesd

__all__ = [
    "AverageB0d",
    "BrainMaskd",
    "CheckLabeld",
    "CheckScand",
    "LoadGradientsd",
    "NormalizeChannelsd",
    "NormalizeShellsd",
    "RandSubsampleVolumesd",
    "WriteQd",
]

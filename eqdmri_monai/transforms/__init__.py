"""MONAI dictionary transforms for diffusion scans and tractograms."""

from eqdmri_monai.transforms.brain import BrainMaskd
from eqdmri_monai.transforms.diffusivity import ApparentDiffusivityd
from eqdmri_monai.transforms.directions import ResampleDirectionsd
from eqdmri_monai.transforms.grid import ResampleRASd
from eqdmri_monai.transforms.invariants import InvariantFeaturesd, InvariantMapsd
from eqdmri_monai.transforms.labels import CheckLabeld
from eqdmri_monai.transforms.noise import RandLogNoised
from eqdmri_monai.transforms.normalization import LogSignald, NormalizeChannelsd, NormalizeShellsd
from eqdmri_monai.transforms.output import CheckFinited, SaveTogether
from eqdmri_monai.transforms.scan import CheckScand, LoadGradientsd, WriteQd
from eqdmri_monai.transforms.signal import CheckSignald
from eqdmri_monai.transforms.streamlines import (
    LoadTractogramd,
    RandDropBundlesd,
    RandSpliceStreamlinesd,
    RandStretchStreamlinesd,
    RandTruncateStreamlinesd,
    ResampleStreamlinesd,
)
from eqdmri_monai.transforms.tensors import FitTensord, TensorMapsd, TensorToWorldd
from eqdmri_monai.transforms.volumes import AverageB0d, RandSplitVolumesd, RandSubsampleVolumesd

__all__ = [
    "ApparentDiffusivityd",
    "AverageB0d",
    "BrainMaskd",
    "CheckFinited",
    "CheckLabeld",
    "CheckScand",
    "CheckSignald",
    "FitTensord",
    "InvariantFeaturesd",
    "InvariantMapsd",
    "LoadGradientsd",
    "LoadTractogramd",
    "LogSignald",
    "NormalizeChannelsd",
    "NormalizeShellsd",
    "RandDropBundlesd",
    "RandLogNoised",
    "RandSpliceStreamlinesd",
    "RandSplitVolumesd",
    "RandStretchStreamlinesd",
    "RandSubsampleVolumesd",
    "RandTruncateStreamlinesd",
    "ResampleDirectionsd",
    "ResampleRASd",
    "ResampleStreamlinesd",
    "SaveTogether",
    "TensorMapsd",
    "TensorToWorldd",
    "WriteQd",
]

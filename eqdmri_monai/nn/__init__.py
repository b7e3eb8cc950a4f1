"""Equivariant layers. Feature maps are (B, irreps.dim, Q, X, Y, Z) over p and q, (B, irreps.dim, X, Y, Z) over p,
(B, irreps.dim, N) on points."""

from eqdmri_monai.nn.cartesian import CartesianToIrreps, IrrepsToCartesian, TensorHead
from eqdmri_monai.nn.channels_first import ChannelsFirst
from eqdmri_monai.nn.gate import Gate
from eqdmri_monai.nn.lie_conv import LieConv
from eqdmri_monai.nn.linear import Linear
from eqdmri_monai.nn.nonlinearity import NormNonlinearity, TensorProductNonlinearity, nonlinear_layer
from eqdmri_monai.nn.normalization import norm_layer
from eqdmri_monai.nn.p_conv import PConv
from eqdmri_monai.nn.p_stack import PStack
from eqdmri_monai.nn.point_conv import PointConv
from eqdmri_monai.nn.pq_conv import PQConv
from eqdmri_monai.nn.q_reduction import QLengthPool, QMean
from eqdmri_monai.nn.resample import Downsample, Upsample
from eqdmri_monai.nn.sphere_conv import ShellHarmonics, SphereConv, SpherePower

__all__ = [
    "CartesianToIrreps",
    "ChannelsFirst",
    "Downsample",
    "Gate",
    "IrrepsToCartesian",
    "LieConv",
    "Linear",
    "NormNonlinearity",
    "PConv",
    "PQConv",
    "PStack",
    "PointConv",
    "QLengthPool",
    "QMean",
    "ShellHarmonics",
    "SphereConv",
    "SpherePower",
    "TensorHead",
    "TensorProductNonlinearity",
    "Upsample",
    "nonlinear_layer",
    "norm_layer",
]

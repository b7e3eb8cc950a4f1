"""Whole models: for scans, called ``network(image, q)``, and for points, called with positions. All return logits."""

from eqdmri_monai.networks.folded import FoldedNet, fold, fold_steerable
from eqdmri_monai.networks.gradual_pq_net import GradualPQNet
from eqdmri_monai.networks.invariant_forest import InvariantForest
from eqdmri_monai.networks.lie_resnet import LieResNet
from eqdmri_monai.networks.plain_cnn import PlainCNN
from eqdmri_monai.networks.point_net import PointNet
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.networks.sphere_net import SphereNet
from eqdmri_monai.networks.steerable_cnn import SteerableCNN3d
from eqdmri_monai.networks.streamline_net import StreamlineNet
from eqdmri_monai.networks.tensor_mean_net import TensorMeanNet
from eqdmri_monai.networks.tensor_net import PlainTensorNet, TensorNet
from eqdmri_monai.networks.u_net import PQUNet, PUNet, TensorUNet

__all__ = [
    "FoldedNet",
    "GradualPQNet",
    "InvariantForest",
    "LieResNet",
    "PQNet",
    "PQUNet",
    "PUNet",
    "PlainCNN",
    "PlainTensorNet",
    "PointNet",
    "SphereNet",
    "SteerableCNN3d",
    "StreamlineNet",
    "TensorMeanNet",
    "TensorNet",
    "TensorUNet",
    "fold",
    "fold_steerable",
]

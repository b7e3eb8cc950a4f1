"""Whole models. Each is called ``network(image, q)`` and returns logits."""

from eqdmri_monai.networks.folded import FoldedNet, fold, fold_steerable
from eqdmri_monai.networks.gradual_pq_net import GradualPQNet
from eqdmri_monai.networks.plain_cnn import PlainCNN
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.networks.steerable_cnn import SteerableCNN3d

__all__ = [
    "FoldedNet",
    "GradualPQNet",
    "PQNet",
    "PlainCNN",
    "SteerableCNN3d",
    "fold",
    "fold_steerable",
]

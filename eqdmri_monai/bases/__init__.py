"""Functions that filters are made of. All are fixed but radial ones that are learned or followed by a network."""

from eqdmri_monai.bases.filters import DifferenceBasis, FilterBasis, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.bases.radial import Cosine, Gaussian, Radial, RadialNetwork

__all__ = [
    "Cosine",
    "DifferenceBasis",
    "FilterBasis",
    "Gaussian",
    "Radial",
    "RadialNetwork",
    "p_space",
    "pq_diff",
    "q_space",
    "tp",
    "tp1",
    "tp_vec",
]

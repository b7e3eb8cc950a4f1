"""Fixed functions that filters are made of; no parameters but those of the radial network."""

from eqdmri_monai.bases.filters import DifferenceBasis, FilterBasis, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.bases.radial import Cosine, Gaussian, RadialNetwork

__all__ = [
    "Cosine",
    "DifferenceBasis",
    "FilterBasis",
    "Gaussian",
    "RadialNetwork",
    "p_space",
    "pq_diff",
    "q_space",
    "tp",
    "tp1",
    "tp_vec",
]

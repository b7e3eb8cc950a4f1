"""Functions that filters are made of. All are fixed but radial ones that are learned or followed by a network."""

from eqdmri_monai.bases.filters import DifferenceBasis, FilterBasis, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.bases.radial import Cosine, Gaussian, RadialNetwork, radial_basis

__all__ = [
    "Cosine",
    "DifferenceBasis",
    "FilterBasis",
    "Gaussian",
    "RadialNetwork",
    "p_space",
    "pq_diff",
    "q_space",
    "radial_basis",
    "tp",
    "tp1",
    "tp_vec",
]

"""Fixed functions that filters are made of; no parameters but those of the radial network."""

from eqdmri_monai.bases.filters import FilterBasis, p_space, q_space, tp, tp1, tp_vec
from eqdmri_monai.bases.radial import Cosine, Gaussian, RadialNetwork

__all__ = ["Cosine", "FilterBasis", "Gaussian", "RadialNetwork", "p_space", "q_space", "tp", "tp1", "tp_vec"]

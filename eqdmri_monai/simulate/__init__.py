"""Simulated scans and implanted lesions."""

from eqdmri_monai.simulate.lesions import LesionEffect, components, implant, lesion_weight, pieces
from eqdmri_monai.simulate.phantom import Phantom, make_phantom, single_shell

__all__ = [
    "LesionEffect",
    "Phantom",
    "components",
    "implant",
    "lesion_weight",
    "make_phantom",
    "pieces",
    "single_shell",
]

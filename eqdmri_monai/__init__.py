"""Equivariant segmentation of diffusion MRI, inside MONAI."""

__version__ = "0.1.0"

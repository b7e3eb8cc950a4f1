"""Diffusion signal of mixed compartments, and the noise of magnitude images. Arrays are numpy, axes x, y, z first."""

import numpy as np

# Diffusivities, mm²/s. Fibres: along and across, Pierpaoli et al. 1996, Radiology 201; grey matter and fluid: typical
# of living brain at body temperature (fluid: Mills 1973, water at 37 °C).
FIBRE = (1.7e-3, 0.3e-3)
GREY_MATTER = 0.8e-3
FLUID = 3.0e-3


def fibre_tensor(direction: np.ndarray, along: np.ndarray | float, across: np.ndarray | float) -> np.ndarray:
    """Return axially symmetric diffusion tensors (..., 3, 3), mm²/s, of unit directions (..., 3)."""
    along, across = np.asarray(along)[..., None, None], np.asarray(across)[..., None, None]
    return across * np.eye(3) + (along - across) * direction[..., :, None] * direction[..., None, :]


def tensor_signal(tensor: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """Attenuation ``exp(-b gᵀ D g)`` of diffusion tensors.

    Parameters
    ----------
    tensor : array, shape (..., 3, 3)
        mm²/s.
    bvals : array, shape (Q,)
        s/mm².
    bvecs : array, shape (Q, 3)
        Same frame as the tensors.

    Returns
    -------
    array, shape (..., Q)

    Source
    ------
    Basser et al. 1994, doi:10.1016/S0006-3495(94)80775-1.
    """
    b_matrix = (bvals[:, None, None] * bvecs[:, :, None] * bvecs[:, None, :]).reshape(len(bvals), 9)
    return np.exp(-tensor.reshape(*tensor.shape[:-2], 9) @ b_matrix.T)


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of a signal with complex Gaussian noise of standard deviation sigma; keeps its type."""
    sigma = signal.dtype.type(sigma)
    real = signal + sigma * rng.standard_normal(signal.shape, signal.dtype)
    return np.hypot(real, sigma * rng.standard_normal(signal.shape, signal.dtype))

"""Angular functions: real spherical harmonics and Clebsch-Gordan couplings, both from e3nn.

Harmonics have e3nn's "component" normalisation (mean square 1 over the sphere, for each component); the couplings have
the matching one, so that products of unit-variance features have unit variance.
"""

import math
from functools import cache

import torch
from e3nn import o3
from torch import Tensor

# Offsets shorter than this count as zero. Directions in files carry four to six digits.
ZERO_OFFSET = 1e-3


def harmonics(lmax: int, vector: Tensor) -> Tensor:
    """Real spherical harmonics of the directions of vectors, all degrees from 0 to lmax side by side.

    Parameters
    ----------
    lmax : int
    vector : Tensor, shape (..., 3)
        Of any length; at zero length the harmonics are 0 for l > 0 and 1 for l = 0.

    Returns
    -------
    Tensor, shape (..., (lmax + 1)²)

    Source
    ------
    Müller et al., eq. 18, 19 and 20, which differ in the vector only; the value at zero is e3nn's.
    """
    length = vector.norm(dim=-1, keepdim=True)
    unit = torch.where(length > ZERO_OFFSET, vector / length.clamp(min=ZERO_OFFSET), torch.zeros_like(vector))
    return o3.spherical_harmonics(list(range(lmax + 1)), unit, normalize=False, normalization="component")


def degree_slice(l: int) -> slice:
    """Where degree l lies in what `harmonics` returns."""
    return slice(l**2, (l + 1) ** 2)


@cache
def coupling(l1: int, l2: int, l_out: int) -> Tensor:
    """Clebsch-Gordan coefficients, shape (2 l_out + 1, 2 l1 + 1, 2 l2 + 1), float64.

    ``coupling @ x @ y`` of two tensors with unit-variance components has unit-variance components.

    Source
    ------
    Müller et al., eq. 33; e3nn's 3j symbols times sqrt(2 l_out + 1).
    """
    return o3.wigner_3j(l1, l2, l_out, dtype=torch.float64).permute(2, 0, 1) * math.sqrt(2 * l_out + 1)


def triangle(l1: int, l2: int) -> range:
    """Degrees that two tensors of degrees l1 and l2 couple to (Müller et al., eq. 34)."""
    return range(abs(l1 - l2), l1 + l2 + 1)

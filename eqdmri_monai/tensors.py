"""Diffusion tensors: their fit to a signal, and what they measure.

Components are ordered xx xy xz yy yz zz along the axis after the batch and count in µm²/ms, as q counts in
sqrt(b / 1000 s/mm²): log S = log S0 - qᵀ D q. They lie in the frame of the q-vectors.
"""

import torch
from torch import Tensor

# How often each of the six components stands in the matrix.
TIMES = (1.0, 2.0, 2.0, 1.0, 2.0, 1.0)


def q_squares(q: Tensor) -> Tensor:
    """Return what each component is multiplied with in qᵀ D q, shape (Q, 6), of q-vectors (Q, 3)."""
    x, y, z = q.unbind(-1)
    return torch.stack([x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z], dim=-1)


def fit_tensor(log_signal: Tensor, q: Tensor, *, weighted: bool = True) -> tuple[Tensor, Tensor]:
    """Fit diffusion tensors to the logarithm of a signal by least squares.

    Weighted, each volume counts by the square of the signal that the ordinary fit expects there, which is the inverse
    variance of its logarithm. With six directions and one b0 both give the one tensor that fits exactly.

    Parameters
    ----------
    log_signal : Tensor, shape (B, Q, ...)
    q : Tensor, shape (Q, 3)

    Returns
    -------
    Tensor, shape (B, 6, ...)
        Tensors; eigenvalues may be negative.
    Tensor, shape (B, ...)
        log S0.

    Raises
    ------
    ValueError
        When the q-vectors do not determine a tensor.

    Source
    ------
    Basser et al. 1994, doi:10.1006/jmrb.1994.1037; weights: Salvador et al. 2005, doi:10.1002/hbm.20076; dipy's "WLS".
    """
    design = torch.cat([-q_squares(q), torch.ones_like(q[:, :1])], dim=1)  # [q, 7]
    if torch.linalg.matrix_rank(design, rtol=1e-4) < 7:
        raise ValueError(f"{len(q)} q-vectors do not determine a tensor; it needs b0 and six directions in space")
    y = log_signal.movedim(1, -1)  # [b, ..., q]
    solution = y @ torch.linalg.pinv(design).T
    if weighted and len(q) > 7:
        w = torch.exp(2 * (solution @ design.T - y.amax(-1, keepdim=True)))  # a common factor changes nothing
        normal = torch.einsum("...q,qi,qj->...ij", w, design, design)
        solution = torch.linalg.solve(normal, torch.einsum("...q,qi,...q->...i", w, design, y))
    solution = solution.movedim(-1, 1)
    return solution[:, :6], solution[:, 6]


def condition_number(q: Tensor) -> float:
    """Return how badly q-vectors (Q, 3) determine a tensor: the condition number of the squares of what is in a signal.

    Source
    ------
    Skare et al. 2000, doi:10.1006/jmre.2000.2209.
    """
    return float(torch.linalg.cond(q_squares(q)))


def shrunk(tensor: Tensor, largest: float) -> Tensor:
    """Return tensors (B, 6, ...) of this norm at most; unlike bounds of components, alike in all frames."""
    return tensor * (largest / squared_norm(tensor).clamp(min=largest**2).sqrt())[:, None]


def mean_diffusivity(tensor: Tensor) -> Tensor:
    """Mean of the eigenvalues, shape (B, ...), of tensors (B, 6, ...)."""
    return (tensor[:, 0] + tensor[:, 3] + tensor[:, 5]) / 3


def deviator(tensor: Tensor) -> Tensor:
    """Anisotropic part, traceless, of tensors (B, 6, ...)."""
    isotropic = tensor.new_tensor([1, 0, 0, 1, 0, 1]).reshape(6, *(tensor.ndim - 2) * (1,))
    return tensor - mean_diffusivity(tensor)[:, None] * isotropic


def product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of all entries of the matrices, shape (B, ...), of tensors (B, 6, ...)."""
    return torch.einsum("bc...,bc...,c->b...", a, b, a.new_tensor(TIMES))


def squared_norm(tensor: Tensor) -> Tensor:
    """Squared Frobenius norm, shape (B, ...), of tensors (B, 6, ...): the sum of the squared eigenvalues."""
    return product(tensor, tensor)


def fractional_anisotropy(tensor: Tensor) -> Tensor:
    """Fractional anisotropy, shape (B, ...), of tensors (B, 6, ...); 0 for no diffusion, up to 1 for positive ones.

    Source
    ------
    Basser and Pierpaoli 1996, doi:10.1006/jmrb.1996.0086.
    """
    norm = squared_norm(tensor)
    deviation = norm - 3 * mean_diffusivity(tensor).square()
    square = 1.5 * deviation / norm.clamp(min=1e-12)
    return square.clamp(min=1e-20).sqrt()  # at 0 the root has no gradient


def principal_direction(tensor: Tensor) -> Tensor:
    """Eigenvectors of the largest eigenvalue, unit, of either sign, shape (B, 3, ...), of tensors (B, 6, ...)."""
    matrix = tensor.movedim(1, -1)[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
    return torch.linalg.eigh(matrix).eigenvectors[..., -1].movedim(-1, 1)

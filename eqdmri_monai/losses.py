"""Losses that count inside a mask only. The mask comes as the last channel of the target."""

from math import sqrt

import torch
from torch import Tensor, nn

from eqdmri_monai.tensors import deviator, fractional_anisotropy, mean_diffusivity, product, squared_norm


class MaskedBCELoss(nn.Module):
    r"""Binary cross-entropy :math:`-\frac{1}{\sum m} \sum m \, (w \, t \log p + (1 - t) \log (1 - p))` in the brain.

    MONAI's `MaskedLoss` multiplies logits by the mask, which counts every voxel outside as log 2; this one leaves them
    out. The mask comes as the last channel of the target, because MONAI's trainer passes a loss two arguments.

    Parameters
    ----------
    positive_weight : float
        Weight w of positive voxels; the paper takes negatives / positives of the training set.

    Source
    ------
    Müller et al., section 4.3.
    """

    def __init__(self, positive_weight: float = 1.0):
        super().__init__()
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """
        Parameters
        ----------
        logits : Tensor, shape (B, C, X, Y, Z)
        target : Tensor, shape (B, C + 1, X, Y, Z)
            C labels of 0 and 1, then the mask.

        Returns
        -------
        Tensor, scalar

        Raises
        ------
        ValueError
            When the shapes do not fit.
        """
        if target.shape[1] != logits.shape[1] + 1 or target.shape[2:] != logits.shape[2:]:
            raise ValueError(
                f"logits {tuple(logits.shape)} need a target of {logits.shape[1]} labels and a mask, got "
                f"{tuple(target.shape)}"
            )
        label, mask = target[:, :-1], target[:, -1:]
        weight = mask * torch.where(label > 0.5, self.positive_weight, 1.0)
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), label.float(), weight.float(), reduction="sum"
        )
        return loss / (mask.sum() * logits.shape[1]).clamp(min=1)


class MaskedTensorLoss(nn.Module):
    r"""How far tensors are from their truth in the brain: in size, shape, and amount of anisotropy, each for itself.

    The mean of :math:`\sqrt{3} |MD(D) - MD(T)| + \|T'\| (1 - \cos(D', T')) + λ |FA(D) - FA(T)|` for tensors D
    and their truth T, with D' and T' their anisotropic parts and the cosine of their Frobenius product. A norm of D - T
    would lead to too little anisotropy, as every mean of unlike tensors has; the cosine does not know how long D' is.

    Parameters
    ----------
    anisotropy : float
        λ, µm²/ms.
    """

    EPSILON = 0.01  # µm²/ms, far below the error of a fit: where a tensor is isotropic its cosine has no gradient

    def __init__(self, anisotropy: float = 1.0):
        super().__init__()
        self.anisotropy = anisotropy

    def forward(self, tensor: Tensor, target: Tensor) -> Tensor:
        """
        Parameters
        ----------
        tensor : Tensor, shape (B, 6, X, Y, Z)
            xx xy xz yy yz zz, µm²/ms.
        target : Tensor, shape (B, 7, X, Y, Z)
            True tensors, then the mask.

        Returns
        -------
        Tensor, scalar
        """
        tensor, truth, mask = tensor.float(), target[:, :6].float(), target[:, 6]
        size = (mean_diffusivity(tensor) - mean_diffusivity(truth)).abs()
        a, b = deviator(tensor), deviator(truth)
        lengths = [(squared_norm(x) + self.EPSILON**2).sqrt() for x in (a, b)]
        shape = lengths[1] - product(a, b) / lengths[0]
        amount = (fractional_anisotropy(tensor) - fractional_anisotropy(truth)).abs()
        return ((sqrt(3) * size + shape + self.anisotropy * amount) * mask).sum() / mask.sum().clamp(min=1)

"""Convolution over a voxel grid with one dense weight: the lattice of its taps, and the fastest way to apply it."""

import torch
from torch import Tensor, nn

from eqdmri_monai.nn.fourier_conv import fourier_conv, is_faster, spectrum, transform


def kernel_lattice(kernel_size: int, spacing: tuple[float, float, float]) -> tuple[Tensor, float]:
    """Return the offsets Δp = p_out - p_in of a kernel's taps, shape (kernel_size³, 3), and the kernel's radius.

    conv3d correlates: tap t reads the input at p_out + t, so its Δp is -t.

    Raises
    ------
    ValueError
        When the kernel size is even or a spacing is not positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that it has a centre, got {kernel_size}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive lengths, got {tuple(spacing)}")
    reach = kernel_size // 2
    taps = torch.arange(-reach, reach + 1, dtype=torch.get_default_dtype())
    lattice = -torch.cartesian_prod(taps, taps, taps) * torch.tensor(spacing, dtype=taps.dtype)
    return lattice, max(reach, 1) * max(spacing)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """Convolve with zeros outside the array, output as large as the input where the stride is 1.

    Few channels make the gradient of the weight slow in the plain memory format (8 to 23 channels, 24³ voxels, one
    core, fp32: 14.7 ms, in channels-last 7.1 ms). What follows a convolution is faster in the plain format.
    """
    if torch.is_grad_enabled():
        x = x.contiguous(memory_format=torch.channels_last_3d)
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    else:
        x = x.contiguous()
    return nn.functional.conv3d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2).contiguous()


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None, *, kernel_size: int) -> Tensor:
    """Convolve as `conv3d` does or, where that is faster, as `fourier_conv` does.

    Parameters
    ----------
    x : Tensor, shape (N, I, X, Y, Z)
        Outside the array it counts as 0.
    kernel : Tensor, shape (O, I, k, k, k)
        A weight, or what `shared_kernel` makes of it.
    bias : Tensor, shape (O,)
    kernel_size : int
        k.

    Returns
    -------
    Tensor, shape (N, O, X, Y, Z)
    """
    if kernel.ndim == 5 and not is_faster(kernel, x.shape[2:]):
        return conv3d(x, kernel, bias)
    t = transform(*x.shape[2:4], kernel_size, kernel.dtype, kernel.device)
    y = fourier_conv(x, kernel, t, kernel_size // 2)
    return y if bias is None else y.add_(bias[:, None, None, None])


def shared_kernel(weight: Tensor, size: torch.Size) -> Tensor:
    """Return a weight as it is `convolve`d fastest with many arrays of size X, Y, Z: itself, or its `spectrum`."""
    if not is_faster(weight, size):
        return weight
    return spectrum(weight, transform(*size[:2], weight.shape[-1], weight.dtype, weight.device))

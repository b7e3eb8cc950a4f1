"""Convolution over x and y in Fourier space and over z directly, by matrix products: on CPUs faster than conv3d.

A 5³ kernel between few channels takes 125 multiplications for each pair of channels and voxel. In Fourier space along
two axes 5 are left, of complex numbers, and for axes of some tens of voxels the discrete Fourier transform is a
product with a small matrix, which CPUs do at their full rate: 8 to 23 channels, 24³ voxels, one core: 2.9 ms, and
6.7 ms by conv3d. Results differ by rounding alone. Under autocast conv3d is used: transforms in bfloat16 would double
its error, and in single precision they cost what is gained.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.overrides import handle_torch_function, has_torch_function_unary

# Multiply-adds of the small products here, and of what stands around them, take so much longer than those of conv3d
# (one core, AVX-512): a 5³ kernel of 8 to 80 channels takes 0.4 to 0.7 of conv3d's time here, a 3³ kernel 1.0 to 1.5.
HANDICAP = 3.5
BLOCK = 2**22  # most numbers of a kernel, and of what it is multiplied with, at a time
SLICES = 32  # most slices along z at a time


@dataclass(frozen=True)
class Transform:
    """Discrete Fourier transform of a plane of zero-padded voxels, as real matrices.

    Real and imaginary parts stand side by side; x has half a spectrum, since voxels are real. A period is as long as
    the plane and half a kernel, so that what wraps around falls on zeros.

    Parameters
    ----------
    to_x : Tensor, shape (2 F_x, X)
        Rows (frequency, part).
    to_y : Tensor, shape (2 F_y, 2 Y)
        Rows (frequency, part), columns (part, y).
    kernel_x, kernel_y : Tensor, shape (F_x, k), (F_y, k), complex
        Of the taps of a kernel.
    from_y : Tensor, shape (2 Y, 2 F_y)
        Rows (part, y), columns (frequency, part).
    from_x : Tensor, shape (X, 2 F_x)
    """

    to_x: Tensor
    to_y: Tensor
    kernel_x: Tensor
    kernel_y: Tensor
    from_y: Tensor
    from_x: Tensor

    def part(self, start: int, stop: int) -> "Transform":
        """Return the transform to some of the frequencies along x."""
        f, both = slice(start, stop), slice(2 * start, 2 * stop)
        return replace(self, to_x=self.to_x[both], kernel_x=self.kernel_x[f], from_x=self.from_x[:, both])


@cache
def transform(x: int, y: int, kernel_size: int, dtype: torch.dtype, device: torch.device) -> Transform:
    """Return the matrices for planes of x · y voxels and a kernel."""
    reach = kernel_size // 2
    (n_x, n_y), taps = (x + reach, y + reach), torch.arange(-reach, reach + 1)
    half, full = torch.arange(n_x // 2 + 1), torch.arange(n_y)

    def waves(frequency: Tensor, position: Tensor, period: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi / period * (frequency[:, None] * position % period).double()
        return angle.cos(), angle.sin()

    cos_x, sin_x = waves(half, torch.arange(x), n_x)
    cos_y, sin_y = waves(full, torch.arange(y), n_y)
    twice = torch.full((len(half),), 2.0, dtype=torch.float64)  # the other half of the spectrum is the conjugate
    twice[0] = 1.0
    if n_x % 2 == 0:
        twice[-1] = 1.0
    to_x = torch.stack([cos_x, -sin_x], 1).flatten(0, 1)
    to_y = torch.stack([torch.stack([cos_y, sin_y], 1), torch.stack([-sin_y, cos_y], 1)], 1)  # [f, part, part, y]
    from_y = torch.stack([torch.stack([cos_y.T, -sin_y.T], 2), torch.stack([sin_y.T, cos_y.T], 2)]) / n_y
    from_x = (torch.stack([cos_x, -sin_x], 1) * twice[:, None, None] / n_x).flatten(0, 1).T
    kernels = [torch.complex(*waves(f, taps, n)) for f, n in ((half, n_x), (full, n_y))]
    to_complex = torch.promote_types(dtype, torch.complex64)
    return Transform(
        *(m.to(device, dtype).contiguous() for m in (to_x, to_y.flatten(2).flatten(0, 1))),
        *(m.to(device, to_complex) for m in kernels),
        *(m.to(device, dtype).contiguous() for m in (from_y.flatten(2).flatten(0, 1), from_x)),
    )


def spectrum(weight: Tensor, t: Transform) -> Tensor:
    """Transform a conv3d weight (O, I, k, k, k); returns (F, 2 O, 2 k I), columns (part, tap, channel)."""
    return _Spectrum.apply(weight, t)


class _Spectrum(torch.autograd.Function):
    """Written out for its memory: a spectrum is five to ten times as large as its weight."""

    @staticmethod
    def forward(ctx, weight: Tensor, t: Transform) -> Tensor:
        ctx.transform, ctx.shape = t, weight.shape
        o, i, k = weight.shape[:3]
        w = torch.einsum("fx,oixyz->foiyz", t.kernel_x, weight.to(t.kernel_x.dtype))
        w = torch.einsum("gy,foiyz->fgozi", t.kernel_y, w)
        kernel = weight.new_empty((len(t.kernel_x), len(t.kernel_y), 2, o, 2, k, i))  # as a tuple, as MONAI wants it
        kernel[:, :, 0, :, 0] = kernel[:, :, 1, :, 1] = w.real
        kernel[:, :, 1, :, 0] = w.imag
        torch.neg(w.imag, out=kernel[:, :, 0, :, 1])
        return kernel.view(-1, 2 * o, 2 * k * i)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        return _spectrum_adjoint(gradient, ctx.transform, ctx.shape), None


def _spectrum_adjoint(gradient: Tensor, t: Transform, shape: torch.Size) -> Tensor:
    o, i, k = shape[:3]
    g = gradient.reshape(len(t.kernel_x), len(t.kernel_y), 2, o, 2, k, i)
    g = torch.complex(g[:, :, 0, :, 0] + g[:, :, 1, :, 1], g[:, :, 1, :, 0] - g[:, :, 0, :, 1])
    w = torch.einsum("gy,fgozi->foiyz", t.kernel_y.conj(), g)
    return torch.einsum("fx,foiyz->oixyz", t.kernel_x.conj(), w).real


def fourier_conv(x: Tensor, kernel: Tensor, t: Transform, reach: int) -> Tensor:
    """Convolve an array with a weight or its spectrum; a MetaTensor stays one, as in conv3d.

    Parameters
    ----------
    x : Tensor, shape (N, I, X, Y, Z)
        Outside the array it counts as 0.
    kernel : Tensor, shape (O, I, k, k, k) or (F, 2 O, 2 k I)
        A weight, or its `spectrum` where many arrays share it.
    t : Transform
        For planes of X · Y voxels.
    reach : int
        k // 2.

    Returns
    -------
    Tensor, shape (N, O, X, Y, Z)
    """
    if has_torch_function_unary(x):
        return handle_torch_function(fourier_conv, (x,), x, kernel, t, reach)
    return _FourierConv.apply(x.as_subclass(Tensor), kernel, t, reach)


class _FourierConv(torch.autograd.Function):
    """Convolve some frequencies, items and slices at a time; keeps the array and the kernel alone."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, t: Transform, reach: int) -> Tensor:
        """See `fourier_conv`."""
        ctx.save_for_backward(x, kernel)
        ctx.transform, ctx.reach = t, reach
        channels = len(kernel) if kernel.ndim == 5 else kernel.shape[1] // 2
        padded, y = pad(x, (reach, reach)), x.new_empty((len(x), channels, *x.shape[2:]))
        for n, (t_part, part) in enumerate(_kernel_parts(kernel, t, reach, x.shape[1])):
            for items, z in _blocks(x, part):
                here, there = y[items, ..., z], padded[items, ..., z.start : z.stop + 2 * reach]
                new = _from_spectrum(part @ _taps(_to_spectrum(there, t_part), reach), t_part, here.shape)
                here.add_(new) if n else here.copy_(new)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        """Return the gradients of the array and of the kernel."""
        (x, kernel), t, reach = ctx.saved_tensors, ctx.transform, ctx.reach
        need_x, need_kernel = ctx.needs_input_grad[:2]
        padded = pad(x, (reach, reach))
        for_x, for_kernel = torch.zeros_like(padded) if need_x else None, []
        for t_part, part in _kernel_parts(kernel, t, reach, x.shape[1]):
            for_part = torch.zeros_like(part) if need_kernel else None
            for items, z in _blocks(x, part):
                here = items, ..., slice(z.start, z.stop + 2 * reach)
                upstream = _from_spectrum_adjoint(gradient[items, ..., z], t_part)
                if need_x:
                    taps = part.transpose(1, 2) @ upstream
                    for_x[here] += _to_spectrum_adjoint(taps, t_part, reach, padded[here].shape)
                if need_kernel:
                    taps = _taps(_to_spectrum(padded[here], t_part), reach)
                    for_part.baddbmm_(upstream, taps.transpose(1, 2))
            if need_kernel:
                for_kernel.append(for_part if kernel.ndim == 3 else _spectrum_adjoint(for_part, t_part, kernel.shape))
        if need_x:
            for_x = for_x[..., reach : reach + x.shape[-1]]
        if need_kernel:
            for_kernel = torch.cat(for_kernel) if kernel.ndim == 3 else sum(for_kernel)
        return for_x, for_kernel if need_kernel else None, None, None


def _kernel_parts(kernel: Tensor, t: Transform, reach: int, channels: int) -> Iterator[tuple[Transform, Tensor]]:
    """Yield the spectrum for a few frequencies along x at a time, at most `BLOCK` numbers where that can be."""
    rows = 2 * len(kernel) if kernel.ndim == 5 else kernel.shape[1]
    n_x, n_y = len(t.kernel_x), len(t.kernel_y)
    step = max(1, BLOCK // (n_y * rows * 2 * (2 * reach + 1) * channels))
    step = math.ceil(n_x / math.ceil(n_x / step))
    for start in range(0, n_x, step):
        part = t.part(start, start + step)
        yield part, spectrum(kernel, part) if kernel.ndim == 5 else kernel[start * n_y : (start + step) * n_y]


def _blocks(x: Tensor, kernel: Tensor) -> list[tuple[slice, slice]]:
    """List ranges of items and of z whose taps are at most `BLOCK` numbers each."""
    n, z = len(x), x.shape[-1]
    depth = min(z, SLICES)
    items = max(1, BLOCK // (len(kernel) * kernel.shape[2] * depth))
    return [
        (slice(i, min(i + items, n)), slice(k, min(k + depth, z)))
        for i in range(0, n, items)
        for k in range(0, z, depth)
    ]


def _to_spectrum(x: Tensor, t: Transform) -> Tensor:
    """(N, I, X, Y, Z) -> (F, 2, I, N, Z)."""
    n, i, size_x, size_y, z = x.shape
    x = x.permute(2, 3, 1, 0, 4).reshape(size_x, -1)
    x = (t.to_x @ x).view(-1, 2 * size_y, i * n * z)
    return (t.to_y @ x).view(-1, 2, i, n, z)


def _taps(x: Tensor, reach: int) -> Tensor:
    """(F, 2, I, N, Z + 2 reach) -> (F, 2 k I, N Z): what each tap along z reads."""
    z = x.shape[-1] - 2 * reach
    return torch.stack([x[..., d : d + z] for d in range(2 * reach + 1)], 2).flatten(1, 3).flatten(2)


def _to_spectrum_adjoint(taps: Tensor, t: Transform, reach: int, shape: torch.Size) -> Tensor:
    """Gradient of `_taps` and `_to_spectrum` together, of this shape."""
    n, i, size_x, size_y, z = shape
    taps = taps.view(len(taps), 2, 2 * reach + 1, i, n, z - 2 * reach)
    x = taps.new_zeros(len(taps), 2, i, n, z)
    for d in range(2 * reach + 1):
        x[..., d : d + z - 2 * reach] += taps[:, :, d]
    x = t.to_y.T @ x.view(-1, len(t.to_y), i * n * z)
    return (t.to_x.T @ x.view(len(t.to_x), -1)).view(size_x, size_y, i, n, z).permute(3, 2, 0, 1, 4)


def _from_spectrum(y: Tensor, t: Transform, shape: torch.Size) -> Tensor:
    """(F, 2 O, N Z) -> (N, O, X, Y, Z)."""
    n, o, size_x, size_y, z = shape
    y = t.from_y @ y.view(-1, len(t.to_y), o * n * z)
    return (t.from_x @ y.view(len(t.to_x), -1)).view(size_x, size_y, o, n, z).permute(3, 2, 0, 1, 4)


def _from_spectrum_adjoint(y: Tensor, t: Transform) -> Tensor:
    n, o, size_x, size_y, z = y.shape
    y = y.permute(2, 3, 1, 0, 4).reshape(size_x, -1)
    y = (t.from_x.T @ y).view(-1, 2 * size_y, o * n * z)
    return (t.from_y.T @ y).view(-1, 2 * o, n * z)


def is_faster(weight: Tensor, size: torch.Size) -> bool:
    """Count multiply-adds: whether an array (X, Y, Z) is convolved faster here than by conv3d."""
    exact = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if weight.device.type != "cpu" or not exact:
        return False
    (o, i, k), (x, y, _) = weight.shape[:3], size
    frequencies = ((x + k // 2) // 2 + 1) * (y + k // 2) / (x * y)  # for each voxel
    transforms = (i + o) * (x + 4 * frequencies * y)
    direct = i * 16 * math.ceil(o / 16) * k**3  # conv3d fills blocks of 16 channels
    return HANDICAP * (transforms + 4 * frequencies * i * o * k) < direct

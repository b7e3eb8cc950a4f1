"""How far a network sees, and by which steps it may be shifted: what windows over an array need to know."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, hypot, lcm

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ReceptiveField:
    """What a layer or a network reads around each voxel of its output; three numbers each, for the axes.

    A network of layers states its own as ``receptive_field``, by `chain`. Where arrays are cut, windows that begin at
    multiples of the stride, and whose lengths differ from the array's by multiples of it, have coarse grids that lie in
    place; what is more than the halo from a cut is then right.

    Parameters
    ----------
    reach : three floats
        To each side, in voxels of the input.
    factor : three fractions
        Voxels of the input for each voxel of the output: 2 where a layer thins out, 1/2 where it fills in.
    stride : three ints
        The coarsest grid on the way, in voxels of the input.
    tail : three floats
        How far a layer whose weights have no end, such as a Gaussian, sees besides, but for 1e-5 of what it sees. Tails
        add up as the widths of Gaussians do.
    """

    reach: tuple[float, float, float]
    factor: tuple[Fraction, Fraction, Fraction] = (Fraction(1),) * 3
    stride: tuple[int, int, int] = (1, 1, 1)
    tail: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of_kernel(cls, size: int, stride: int = 1) -> "ReceptiveField":
        """Return that of a convolution with an odd kernel."""
        return cls(3 * (float(size // 2),), 3 * (Fraction(stride),), 3 * (stride,))

    @classmethod
    def of_resampling(cls, tail: Sequence[float], factor: Sequence[Fraction]) -> "ReceptiveField":
        """Return that of a layer whose output lies on another grid; tail in voxels of its input."""
        return cls((0.0, 0.0, 0.0), tuple(factor), tuple(max(1, int(f)) for f in factor), tuple(map(float, tail)))

    @property
    def halo(self) -> tuple[int, int, int]:
        """Return the whole voxels that are seen to each side."""
        return tuple(floor(r + t) for r, t in zip(self.reach, self.tail, strict=True))

    def then(self, following: "ReceptiveField") -> "ReceptiveField":
        """Return that of this layer and the following one."""
        strides = [max(1, int(f * t)) for f, t in zip(self.factor, following.stride, strict=True)]
        return ReceptiveField(
            tuple(a + float(f) * b for a, f, b in zip(self.reach, self.factor, following.reach, strict=True)),
            tuple(f * g for f, g in zip(self.factor, following.factor, strict=True)),
            tuple(map(lcm, self.stride, strides)),
            tuple(hypot(a, f * b) for a, f, b in zip(self.tail, self.factor, following.tail, strict=True)),
        )


VOXELWISE = ReceptiveField((0.0, 0.0, 0.0))


def chain(layers: Iterable[nn.Module]) -> ReceptiveField | None:
    """Return the receptive field of layers one after another, or None where one of them sees the whole array.

    Layers state it as ``receptive_field``; of torch's own, `Conv3d` and `Sequential` are known, and all others count as
    voxelwise. Of layers side by side give the one that sees farthest.
    """
    field = VOXELWISE
    for layer in layers:
        following = _field_of(layer)
        if following is None:
            return None
        field = field.then(following)
    return field


def _field_of(layer: nn.Module) -> ReceptiveField | None:
    if hasattr(layer, "receptive_field"):
        return layer.receptive_field
    if isinstance(layer, nn.Sequential):
        return chain(layer)
    if isinstance(layer, nn.Conv3d):
        reach = (d * (k // 2) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return ReceptiveField(tuple(map(float, reach)), tuple(map(Fraction, layer.stride)), layer.stride)
    return VOXELWISE


def whole_array_layer(network: Callable[..., Tensor]) -> str | None:
    """Name a layer that reads the whole array, such as a mean or statistics over it; None where none is known to."""
    for module in network.modules() if isinstance(network, nn.Module) else []:
        normalizes = isinstance(module, nn.InstanceNorm3d | nn.BatchNorm3d) and not module.track_running_stats
        if normalizes or isinstance(module, nn.GroupNorm | nn.AdaptiveAvgPool3d | nn.AdaptiveMaxPool3d):
            return type(module).__name__
        if getattr(module, "instance", False):  # e3nn's BatchNorm
            return "instance normalisation"
    return None


def measured_halo(
    network: Callable[..., Tensor], image: Tensor, q: Tensor | None = None, *, stride: int = 1, tolerance: float = 1e-6
) -> int:
    """Find how many voxels a network sees to each side, from the gradient of its answer in the middle of an image.

    For networks that do not say so themselves; give the result to `inferers.QSlidingWindowInferer` as halo.

    Parameters
    ----------
    network : callable
        Called as ``network(image, q)``, or with the image alone where there is no q; in evaluation mode.
    image : Tensor, shape (1, Q, X, Y, Z)
        Larger than what the network sees; float64 keeps rounding apart from what is seen.
    q : Tensor, shape (Q, 3)
    stride : int
        Voxels of its coarsest grid: as many neighbouring answers are looked at, since they see differently far.
    tolerance : float
        Share of the gradient, summed over all voxels, that may lie outside.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        When the network sees all of the image.
    """
    x = image.detach().clone().requires_grad_()
    logits, halo = network(x) if q is None else network(x, q), 0
    for step in range(stride):
        centre = [n // 2 + step for n in x.shape[2:]]
        (gradient,) = torch.autograd.grad(logits[(0, slice(None), *centre)].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(0)
        for axis, middle in enumerate(centre):
            profile = seen.sum([a for a in range(3) if a != axis])
            distance = (torch.arange(len(profile), device=x.device) - middle).abs()
            outside = [float(profile[distance > d].sum()) for d in range(len(profile))]
            reach = next(d for d, rest in enumerate(outside) if rest <= tolerance * float(profile.sum()))
            if reach >= min(middle, len(profile) - 1 - middle):
                raise ValueError(f"the network sees all of {len(profile)} voxels; measure in a larger image")
            halo = max(halo, reach)
    return halo

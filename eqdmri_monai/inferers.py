"""Sliding windows for networks that are called with an image and its q-vectors.

Near a window's border a network sees zeros in place of the scan, so its answer is wrong within a halo, the distance
that it sees; at the scan's own border the zeros are there in one pass over the whole scan too. Windows here overlap by
two halos, and each gives what lies inside; they begin at multiples of the network's stride, so that its coarse grids
lie where they lie in one pass. The result is that of one pass, from less memory.

A network says how far it sees and what its stride is by its attribute ``receptive_field`` (all networks of this project
do), or the inferer is told. Windows of a network of which nothing is known are blended as MONAI does, with a warning.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import BlendMode, ensure_tuple_rep
from torch import Tensor, nn

from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.nn.receptive_field import whole_array_layer


class QSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer`, handing each window the q-vectors of its own scan, with the result of one pass.

    An explicit q wins; else q is made of ``inputs.meta["gradients"]`` and the current affine.

    Windows are as few as `roi_size` allows and no larger than their number demands. Of those that are 0 in every voxel,
    such as air around a brain, one is computed for all.

    Parameters
    ----------
    roi_size : int or three int
        Largest window in voxels; -1 or more than the scan has: the whole axis.
    sw_batch_size : int
        Windows that are computed at a time.
    halo : int or three int
        Voxels that the network sees to each side, for a network that does not say so itself. For one that does: less is
        faster, and then approximate.
    stride : int or three int
        Voxels of the network's coarsest grid, for a network that does not say so itself; MONAI's UNet with strides
        (2, 2) has 4. Arrays are padded with zeros to a multiple of it, as many networks demand, and the answer is cut
        back.
    overlap : float
        Share of a window that its neighbour shares, where the halo is not known; as in `SlidingWindowInferer`, whose
        Gaussian blending is used then.
    with_q : bool
        False for a network that is called with the image alone, as MONAI's are; q is not needed then.
    sw_device, device, progress
        As in `SlidingWindowInferer`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        *,
        halo: Sequence[int] | int | None = None,
        stride: Sequence[int] | int | None = None,
        overlap: float = 0.5,
        with_q: bool = True,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ):
        super().__init__(
            roi_size,
            sw_batch_size,
            overlap,
            mode="gaussian",
            sw_device=sw_device,
            device=device,
            progress=progress,
            with_coord=True,
        )
        self.with_q = with_q
        self.halo = None if halo is None else ensure_tuple_rep(halo, 3)
        self.stride = None if stride is None else ensure_tuple_rep(stride, 3)

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args,
        q: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """
        Parameters
        ----------
        inputs : Tensor, shape (B, Q, X, Y, Z)
        network : callable
            Called as ``network(windows, q)``, with q (windows, Q, 3), or with the windows alone.
        q : Tensor, shape (B, Q, 3), (1, Q, 3) or (Q, 3)
            Along the voxel axes.

        Returns
        -------
        Tensor, shape (B, C, X, Y, Z)

        Raises
        ------
        ValueError
            When there is no q, or not one set for each item of the batch; when windows are no larger than two halos, or
            the halo is given and the stride not known, or no halo can be enough; when the network cannot take an array
            of this size, or answers with another size.
        """
        if self.with_q:
            q = self._q_of(inputs) if q is None else torch.as_tensor(q)
            q = (q[None] if q.ndim == 2 else q).to(inputs.device, torch.float32)
            if len(q) not in (1, len(inputs)):
                raise ValueError(f"q has {len(q)} sets of q-vectors for a batch of {len(inputs)}")
            q = q.expand(len(inputs), -1, -1)

        size = inputs.shape[2:]
        lacking = [-n % s for n, s in zip(size, self.stride or (1, 1, 1), strict=True)]
        pad = [side for n in reversed(lacking) for side in (n // 2, n - n // 2)]
        padded = nn.functional.pad(inputs, pad) if any(pad) else inputs

        whole = all(w <= 0 or w >= n for w, n in zip(ensure_tuple_rep(self.roi_size, 3), padded.shape[2:], strict=True))
        halo, stride = self._halo_and_stride(network, one_pass=whole)
        if not halo and not whole:
            layer = whole_array_layer(network)
            reason = f"its {layer} sees the whole array" if layer else "how far the network sees is not known"
            _warn_of(inputs, f"windows are blended, which is not the answer of one pass (window -1): {reason}")

        def answer(scan: int, x: Tensor) -> Tensor:
            own_q = [q[len(x) * [scan]].to(x.device)] if self.with_q else []
            advice = "" if stride else "; give the inferer its stride, to a multiple of which arrays are then padded"
            try:
                y = network(x, *own_q, *args, **kwargs)
            except RuntimeError as e:
                if "must match" not in str(e):
                    raise
                raise ValueError(f"the network cannot take {tuple(x.shape[2:])} voxels ({e}){advice}") from e
            if y.shape[2:] != x.shape[2:]:
                raise ValueError(f"the network answers {tuple(x.shape[2:])} voxels with {tuple(y.shape[2:])}{advice}")
            return y

        y = self._windowed(padded, answer, halo, stride)
        x0, y0, z0 = (n // 2 for n in lacking)
        return y[:, :, x0 : x0 + size[0], y0 : y0 + size[1], z0 : z0 + size[2]] if any(pad) else y

    def _windowed(
        self, inputs: Tensor, answer: Callable[[int, Tensor], Tensor], halo: tuple | None, stride: tuple | None
    ) -> Tensor:
        """Put together what `answer` gives for windows (N, Q, X, Y, Z) of a scan, each time it is called."""
        size, roi_size, tuned = tuple(inputs.shape[2:]), ensure_tuple_rep(self.roi_size, 3), copy.copy(self)
        if halo:
            plan = [_window(*axis) for axis in zip(roi_size, size, halo, stride, strict=True)]
            tuned.roi_size = [w for w, _ in plan]
            # MONAI goes on by int(window * (1 - overlap)) voxels; the half keeps rounding from taking one off
            tuned.overlap = [max(1 - (step + 0.5) / w, 0) for w, step in plan]
            tuned.mode = BlendMode.CONSTANT
        elif stride:
            tuned.roi_size = [max(w // s, 1) * s if w > 0 else w for w, s in zip(roi_size, stride, strict=True)]
        answers_to_zeros = {}  # of each scan

        def predict(windows: Tensor, slices) -> Tensor:
            scans, answers = [s[0].start for s in slices], {}
            for scan in sorted(set(scans)):
                here = [k for k in range(len(windows)) if scans[k] == scan]
                computed = [k for k in here if windows[k].any()]
                if computed:
                    answers |= dict(zip(computed, answer(scan, windows[computed]), strict=True))
                zeros = [k for k in here if k not in answers]
                if zeros and scan not in answers_to_zeros:
                    answers_to_zeros[scan] = answer(scan, windows[zeros[:1]])[0]
                answers |= {k: answers_to_zeros[scan] for k in zeros}
            y = torch.stack([answers[k] for k in range(len(windows))])
            if not halo:
                return y
            inside = torch.stack([_inside(s[2:], size, halo) for s in slices]).to(y)
            return torch.cat([y * inside, inside], dim=1)

        y = SlidingWindowInferer.__call__(tuned, inputs, predict)
        return y[:, :-1] / y[:, -1:] if halo else y

    def _halo_and_stride(self, network: Callable[..., Tensor], *, one_pass: bool) -> tuple[tuple | None, tuple | None]:
        """Return those given, else those of the network; None where they are not known, and windows are blended."""
        field = getattr(network, "receptive_field", None)
        halo = self.halo or (field and field.halo)
        stride = self.stride or (field and field.stride)
        if one_pass:
            return (halo, stride) if halo and stride else (None, stride)
        whole = whole_array_layer(network)
        if halo and whole:
            raise ValueError(
                f"no halo is enough for this network, whose {whole} sees the whole array; leave halo out, to blend "
                "windows, or take batch normalisation"
            )
        if halo and not stride:
            raise ValueError("halo is given but stride is not; give both (stride 1 where no layer has one)")
        return halo, stride

    def _q_of(self, inputs: Tensor) -> Tensor:
        if not isinstance(inputs, MetaTensor) or "gradients" not in inputs.meta:
            raise ValueError(
                "the network needs q-vectors: pass q, or an image whose meta holds its gradient table (LoadGradientsd)"
            )
        rows = torch.as_tensor(inputs.meta["gradients"]).cpu()
        rows = rows.expand(len(inputs), -1, -1) if rows.ndim == 2 else rows
        affine = inputs.affine.expand(len(inputs), -1, -1) if inputs.affine.ndim == 2 else inputs.affine
        return torch.stack(
            [world_to_voxel(GradientTable.from_rows(r).q, a.cpu()) for r, a in zip(rows, affine, strict=True)]
        )


class PrecisionInferer(Inferer):
    """Another inferer, with the network in bfloat16 or not, on any device; the answer is fp32 again.

    In place of the option `amp` of MONAI's engines, which asks for CUDA's autocast whatever the device is, so that it
    does nothing on a CPU, and scales gradients, which bfloat16 does not need.

    Parameters
    ----------
    inferer : callable
    bfloat16 : bool
        See `precision.bfloat16_where_fast`.
    """

    def __init__(self, inferer: Callable[..., Tensor], *, bfloat16: bool):
        super().__init__()
        self.inferer, self.bfloat16 = inferer, bfloat16

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args, **kwargs) -> Tensor:
        """Call the other inferer with the same."""
        if not self.bfloat16:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return self.inferer(inputs, network, *args, **kwargs).float()


class ImageInferer(Inferer):
    """Another inferer, called with the image and its q-vectors alone.

    For MONAI Deploy, which hands an inferer all tensors that preprocessing leaves, masks among them.

    Parameters
    ----------
    inferer : callable
    """

    def __init__(self, inferer: Callable[..., Tensor]):
        super().__init__()
        self.inferer = inferer

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args, q: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Call the other inferer with inputs, network and q."""
        return self.inferer(inputs, network, q=q)


def _window(largest: int, size: int, halo: int, stride: int) -> tuple[int, int]:
    """Return the length of windows, of at most `largest`, that cover `size` voxels in the fewest steps, and the step.

    Steps are multiples of the stride, and so is what a window is shorter than the array. As in MONAI, 0 or less means
    the whole axis.
    """
    if largest <= 0 or largest >= size:
        return size, size
    window = largest - (largest - size) % stride

    def step(window: int) -> int:
        return (window - 2 * halo) // stride * stride

    if step(window) <= 0:
        raise ValueError(
            f"windows of {largest} voxels are too small: the network sees {halo} to each side, so they must be larger "
            f"than {2 * halo + 2 * stride - 2}"
        )
    count = math.ceil((size - window) / step(window))
    while step(window - stride) > 0 and math.ceil((size - window + stride) / step(window - stride)) == count:
        window -= stride
    return window, step(window)


def _inside(window: Sequence[slice], size: Sequence[int], halo: Sequence[int]) -> Tensor:
    """Return 1 where a window's answer is right, and 0 in its halo; shape (1, X, Y, Z)."""
    inside = torch.zeros(1, *(s.stop - s.start for s in window))
    x, y, z = (
        slice(h if s.start > 0 else 0, s.stop - s.start - (h if s.stop < n else 0))
        for s, n, h in zip(window, size, halo, strict=True)
    )
    inside[:, x, y, z] = 1
    return inside


def _warn_of(batch: Tensor, sentence: str) -> None:
    """Warn, and keep the sentence for the record of each scan; see `transforms.scan.warn_of`."""
    warnings.warn(sentence, stacklevel=4)
    if isinstance(batch, MetaTensor):
        said = batch.meta.get("warnings", len(batch) * [""])
        batch.meta["warnings"] = ["\n".join(filter(None, (earlier, sentence))) for earlier in said]

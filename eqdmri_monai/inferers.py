"""Sliding windows for networks that are called with an image and its q-vectors.

Near a window's border a network sees zeros in place of the scan, so its answer is wrong within a halo, the distance
that it sees; at the scan's own border the zeros are there in one pass over the whole scan too. Windows here overlap by
two halos, and each gives what lies inside: the result is that of one pass, from less memory.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.gradients import GradientTable


class QSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer`, handing each window the q-vectors of its own scan, with the result of one pass.

    An explicit q wins; else q is made of ``inputs.meta["gradients"]`` and the current affine.

    Windows are as few as `roi_size` allows and no larger than their number demands. One that is 0 in every voxel, such
    as air around a brain, is not computed: it gets the network's answer to zeros far from any border, which is one
    number for each channel. One pass gives that there too, but for a halo at the border of the scan.

    Parameters
    ----------
    roi_size : int or three int
        Largest window in voxels; -1 or more than the scan has: the whole axis.
    sw_batch_size : int
        Windows that are computed at a time.
    halo : int
        Voxels that the network sees to each side; found by `halo_of` where it is not given.
    sw_device, device, progress
        As in `SlidingWindowInferer`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        *,
        halo: int | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ):
        super().__init__(
            roi_size, sw_batch_size, sw_device=sw_device, device=device, progress=progress, with_coord=True
        )
        self.halo = halo

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args, q: Tensor | None = None, **kwargs
    ) -> Tensor:
        """
        Parameters
        ----------
        inputs : Tensor, shape (B, Q, X, Y, Z)
        network : callable
            Called as ``network(windows, q)``, with q (windows, Q, 3).
        q : Tensor, shape (B, Q, 3), (1, Q, 3) or (Q, 3)
            Along the voxel axes.

        Returns
        -------
        Tensor, shape (B, C, X, Y, Z)

        Raises
        ------
        ValueError
            When there is no q, or not one set for each item of the batch; when windows are no larger than two halos, or
            the halo is not known.
        """
        q = self._q_of(inputs) if q is None else torch.as_tensor(q)
        q = (q[None] if q.ndim == 2 else q).to(inputs.device, torch.float32)
        if len(q) not in (1, len(inputs)):
            raise ValueError(f"q has {len(q)} sets of q-vectors for a batch of {len(inputs)}")
        q = q.expand(len(inputs), -1, -1)

        size = inputs.shape[2:]
        largest = [n if w <= 0 else min(w, n) for w, n in zip(ensure_tuple_rep(self.roi_size, 3), size, strict=True)]
        one_pass = largest == list(size)
        halo = 0 if one_pass else halo_of(network) if self.halo is None else self.halo
        roi = [_window(w, n, halo) for w, n in zip(largest, size, strict=True)]
        to_zeros = {}  # scan: the answer to zeros, far from borders

        def predict(windows: Tensor, slices, *args, **kwargs) -> Tensor:
            def answer(scan: int, x: Tensor) -> Tensor:
                return network(x, q[len(x) * [scan]].to(x.device), *args, **kwargs)

            scans, answers = [s[0].start for s in slices], {}
            for scan in sorted(set(scans)):
                here = [k for k in range(len(windows)) if scans[k] == scan]
                computed = [k for k in here if one_pass or windows[k].any()]
                if computed:
                    answers |= dict(zip(computed, answer(scan, windows[computed]), strict=True))
                skipped = [k for k in here if k not in answers]
                if skipped and scan not in to_zeros:
                    zeros = windows.new_zeros(1, windows.shape[1], *3 * (2 * halo + 1,))
                    to_zeros[scan] = answer(scan, zeros)[0, :, halo, halo, halo, None, None, None]
                answers |= {k: to_zeros[scan].expand(-1, *roi) for k in skipped}
            y = torch.stack([answers[k] for k in range(len(windows))])
            inside = torch.stack([_inside(s[2:], size, halo) for s in slices]).to(y)
            return torch.cat([y * inside, inside], dim=1)

        tuned = copy.copy(self)
        tuned.roi_size = roi
        # MONAI goes on by int(roi * (1 - overlap)) voxels; the half keeps rounding from taking one off
        tuned.overlap = [max(2 * halo - 0.5, 0) / w if w < n else 0 for w, n in zip(roi, size, strict=True)]
        summed = SlidingWindowInferer.__call__(tuned, inputs, predict, *args, **kwargs)
        return summed[:, :-1] / summed[:, -1:]

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


def _window(largest: int, size: int, halo: int) -> int:
    """Return the length of windows, of at most `largest`, that cover `size` voxels in the fewest steps."""
    if largest == size:
        return size
    if largest <= 2 * halo:
        raise ValueError(
            f"windows of {largest} voxels are no larger than two halos of {halo}, where they are wrong; use larger ones"
        )
    steps = math.ceil((size - 2 * halo) / (largest - 2 * halo))
    return math.ceil((size - 2 * halo) / steps) + 2 * halo


def _inside(window: Sequence[slice], size: Sequence[int], halo: int) -> Tensor:
    """Return 1 where a window's answer is right, and 0 in its halo; shape (1, X, Y, Z)."""
    inside = torch.zeros(1, *(s.stop - s.start for s in window))
    x, y, z = (
        slice(halo if s.start > 0 else 0, s.stop - s.start - (halo if s.stop < n else 0))
        for s, n in zip(window, size, strict=True)
    )
    inside[:, x, y, z] = 1
    return inside


def halo_of(network: nn.Module) -> int:
    """Return how many voxels a network sees to each side: the sum of the reaches of its convolutions.

    Right for layers one after another, and safe for parallel ones; strides and pooling are not known here.

    Raises
    ------
    ValueError
        When the network is no module or has no convolution.
    """
    modules = network.modules() if isinstance(network, nn.Module) else []
    reaches = [
        int((torch.tensor(m.kernel_size) // 2 * torch.tensor(getattr(m, "dilation", 1))).max())
        for m in modules
        if hasattr(m, "kernel_size")
    ]
    if not reaches:
        raise ValueError("how far this network sees is not known; give halo, the voxels that it sees to each side")
    return sum(reaches)

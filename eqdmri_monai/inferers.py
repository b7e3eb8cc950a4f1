"""Sliding windows for networks that are called with an image and its q-vectors."""

from collections.abc import Callable

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from eqdmri_monai.frames import world_to_voxel


class QSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer`, handing each window the q-vectors of its own scan.

    An explicit q wins; else q is made of ``inputs.meta["q_world"]`` and the current affine. Constructor arguments are
    those of `SlidingWindowInferer`.
    """

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
            When there is no q, or not one set for each item of the batch.
        """
        q = self._q_of(inputs) if q is None else torch.as_tensor(q)
        q = (q[None] if q.ndim == 2 else q).to(inputs.device, torch.float32)
        if len(q) not in (1, len(inputs)):
            raise ValueError(f"q has {len(q)} sets of q-vectors for a batch of {len(inputs)}")
        q = q.expand(len(inputs), -1, -1)

        def predict(windows: Tensor, slices, *args, **kwargs) -> Tensor:
            scan = [s[0].start for s in slices]
            if len(set(scan)) == 1:
                return network(windows, q[scan], *args, **kwargs)
            return torch.cat(
                [network(w[None], q[i : i + 1], *args, **kwargs) for w, i in zip(windows, scan, strict=True)]
            )

        with_coord, self.with_coord = self.with_coord, True
        try:
            return super().__call__(inputs, predict, *args, **kwargs)
        finally:
            self.with_coord = with_coord

    def _q_of(self, inputs: Tensor) -> Tensor:
        if not isinstance(inputs, MetaTensor) or "q_world" not in inputs.meta:
            raise ValueError(
                "the network needs q-vectors: pass q, or an image whose meta holds q_world (LoadGradientsd)"
            )
        world = torch.as_tensor(inputs.meta["q_world"])
        world = world.expand(len(inputs), -1, -1) if world.ndim == 2 else world
        affine = inputs.affine.expand(len(inputs), -1, -1) if inputs.affine.ndim == 2 else inputs.affine
        return torch.stack([world_to_voxel(w.cpu(), a.cpu()) for w, a in zip(world, affine, strict=True)])

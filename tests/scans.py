"""Images with a gradient table, for tests of transforms."""

import torch
from monai.data import MetaTensor
from torch import Tensor

from eqdmri_monai.gradients import B_UNIT, GradientTable


def table_from(q: Tensor) -> GradientTable:
    """Return the table of q-vectors (Q, 3)."""
    length = q.norm(dim=1)
    return GradientTable(B_UNIT * length**2, q / length.clamp(min=1e-12)[:, None])


def image_from(q: Tensor, affine: Tensor | None = None, size: int = 6) -> MetaTensor:
    """Return random volumes (Q, size, size, size) with the table of these q-vectors."""
    volumes = torch.rand(len(q), size, size, size, dtype=torch.float32) + 0.5
    meta = {"gradients": table_from(q).rows.numpy()}
    return MetaTensor(volumes, affine=torch.eye(4) if affine is None else affine, meta=meta)

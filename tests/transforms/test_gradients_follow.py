"""Gradients follow the data through MONAI's spatial transforms."""

import numpy as np
import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from monai.transforms import (
    Affined,
    CenterSpatialCropd,
    Compose,
    Flipd,
    Orientationd,
    RandAffined,
    RandRotate90d,
    Rotate90d,
    Rotated,
    Spacingd,
    Zoomd,
)

from eqdmri_monai.frames import fsl_to_world, world_to_fsl, world_to_voxel
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.phantom import spread_directions
from eqdmri_monai.simulate.signal import fibre_tensor, tensor_signal
from eqdmri_monai.transforms.scan import table_of


def fibre_image(affine: np.ndarray, fibre: np.ndarray, bvecs: np.ndarray, size: int = 30) -> np.ndarray:
    """A spindle of parallel fibres in a round medium, shape (Q, X, Y, Z); b0 first."""
    ijk = np.stack(np.mgrid[3 * (slice(size),)], axis=-1)
    world = (ijk - (size - 1) / 2) @ affine[:3, :3].T
    along = world @ fibre
    across = np.linalg.norm(world - along[..., None] * fibre, axis=-1)
    inside = ((along / 20) ** 2 + (across / 6) ** 2 < 1)[..., None]
    bvals = np.full(len(bvecs), 1000.0)
    spindle = tensor_signal(fibre_tensor(fibre, 1.7e-3, 0.3e-3), bvals, bvecs)
    return np.moveaxis(np.where(inside, spindle, np.exp(-1000 * 0.8e-3)), -1, 0)


def principal_axes(x: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Axis of the tensor that fits the data with these q-vectors, and long axis of the spindle in the array."""
    x = x.as_tensor().double()
    weight = x.std(dim=0) * (x.std(dim=0) > 0.5 * x.std(dim=0).max())
    design = torch.stack(
        [q[:, a] * q[:, b] * (1 if a == b else 2) for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], 1
    )
    mean = (x.clamp(min=1e-3).log() * weight).flatten(1).sum(1) / weight.sum()
    d = torch.linalg.lstsq(design, -mean[:, None]).solution.flatten()
    tensor = torch.stack([d[0], d[3], d[4], d[3], d[1], d[5], d[4], d[5], d[2]]).reshape(3, 3)
    where = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in x.shape[1:]])
    w = weight.flatten()[:, None]
    centred = where - (w * where).sum(0) / w.sum()
    return torch.linalg.eigh(tensor)[1][:, -1], torch.linalg.eigh(centred.T @ (w * centred))[1][:, -1]


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.rad2deg(torch.arccos((a @ b).abs().clamp(max=1))))


KEY, EDGE = {"keys": "image"}, {"keys": "image", "padding_mode": "border"}
CHAINS = {
    "as stored": [],
    "RAS": [Orientationd(**KEY, axcodes="RAS", labels=None)],
    "PIR": [Orientationd(**KEY, axcodes="PIR", labels=None)],
    "spacing": [Spacingd(**KEY, pixdim=(1.5, 1.5, 1.5), mode="bilinear")],
    "flip": [Flipd(**KEY, spatial_axis=0)],
    "rotate 90": [Rotate90d(**KEY, k=1, spatial_axes=(0, 2))],
    "random rotate 90": [RandRotate90d(**KEY, prob=1.0, spatial_axes=(1, 2))],
    "rotate": [Rotated(**EDGE, angle=(0.3, -0.4, 0.2), keep_size=True)],
    "random rigid": [RandAffined(**EDGE, prob=1.0, rotate_range=(0.5, 0.5, 0.5), translate_range=2)],
    "isotropic zoom": [Zoomd(**KEY, zoom=0.9, mode="trilinear", padding_mode="edge")],
    "scale and turn": [Affined(**EDGE, rotate_params=(0.2, 0.1, -0.3), scale_params=(0.9, 0.9, 0.9))],
    "a whole pipeline": [
        Orientationd(**KEY, axcodes="RAS", labels=None),
        Spacingd(**KEY, pixdim=(1.8, 1.8, 1.8), mode="bilinear"),
        Rotated(**EDGE, angle=(0.2, 0.3, -0.4), keep_size=True),
        RandRotate90d(**KEY, prob=1.0),
        CenterSpatialCropd(**KEY, roi_size=(28, 28, 28)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_turn_with_the_data(chain, mirror):
    """What FSL's file says is read with the file's affine, and meets the data after each chain within a degree."""
    R = o3.matrix_x(torch.tensor(0.2)) @ o3.matrix_z(torch.tensor(-0.15))
    affine = torch.eye(4)
    affine[:3, :3] = R @ torch.diag(torch.tensor([2.0 * mirror, 2.0, 2.0]))
    bvecs = spread_directions(12, np.random.default_rng(0))
    fibre = np.array([0.5, 0.7, -0.4]) / np.linalg.norm([0.5, 0.7, -0.4])
    stored = world_to_fsl(torch.from_numpy(bvecs), affine)  # what a scanner writes next to the file
    table = GradientTable(torch.full((12,), 1000.0), fsl_to_world(stored, affine))
    meta = {"gradients": table.rows.numpy()}
    x = MetaTensor(torch.from_numpy(fibre_image(affine.numpy(), fibre, bvecs)).float(), affine=affine, meta=meta)
    transform = Compose(CHAINS[chain]).set_random_state(seed=1)
    out = transform({"image": x})["image"]
    q = world_to_voxel(table_of(out).q, out.affine)
    assert angle(*principal_axes(out, q)) < 1.0
    if chain == "a whole pipeline":  # the check itself sees vectors that were left behind
        assert angle(*principal_axes(out, stored)) > 10.0

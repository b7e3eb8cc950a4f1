"""Maps of a scan that do not turn with the head: what networks without directions see, and what trees are grown on."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from eqdmri_monai.tensors import fit_tensor, fractional_anisotropy, mean_diffusivity
from eqdmri_monai.transforms.scan import table_of, with_volumes

FLOOR = 0.01  # of b0: the least signal whose logarithm is taken
# mm, of Gaussians: the maps' values, the width of what counts as around, and of derivatives
VALUES, AROUND, DERIVATIVES = (0.0, 2.0, 4.0, 8.0, 12.0), (8.0, 16.0), (2.5, 5.0)
FEATURES = 3 * len(VALUES) + 3 * len(AROUND) + 3 * 4 * len(DERIVATIVES) + 3  # 48


def local_mean(values: np.ndarray, brain: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the mean over a Gaussian neighbourhood, of voxels in the brain alone; sigma in voxels."""
    share = ndimage.gaussian_filter(brain.astype(np.float32), sigma)
    return ndimage.gaussian_filter(values * brain, sigma) / np.maximum(share, 1e-3)


def b0_and_tensor(image: torch.Tensor, brain: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Return b0 (X, Y, Z), over its mean in the brain, and the tensor (6, N) of the brain's voxels, µm²/ms."""
    table = table_of(image)
    values = image.as_tensor().float()
    b0 = values[table.b0_mask].mean(0)
    inside = torch.from_numpy(brain)
    signal = values[:, inside].clamp(min=FLOOR * float(b0[inside].mean()))
    tensor, _ = fit_tensor(signal.double().log()[None], table.q, weighted=False)
    return (b0 / b0[inside].mean()).numpy(), tensor[0]


def maps_of(image: torch.Tensor, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return b0, mean diffusivity and FA of about 0 ± 1, (3, X, Y, Z), and the outer eigenvalues (2, …)."""
    b0, tensor = b0_and_tensor(image, brain)
    out = np.zeros((5, *brain.shape), np.float32)
    scatter = b0[brain].std()
    out[0][brain] = (b0[brain] - 1) / max(scatter, 1e-6)
    out[1][brain] = (mean_diffusivity(tensor[None])[0].clamp(0, 4).numpy() - 1.0) / 0.5
    out[2][brain] = (fractional_anisotropy(tensor[None])[0].clamp(0, 1).numpy() - 0.3) / 0.2
    matrix = tensor.T[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    evals = torch.linalg.eigvalsh(matrix).clamp(0, 4).numpy()
    out[3][brain], out[4][brain] = evals[:, 2], evals[:, 0]
    return out[:3], out[3:]


class InvariantMapsd(MapTransform):
    """Replace a scan by b0, mean diffusivity and fractional anisotropy, shape (3, X, Y, Z), about 0 ± 1 in the brain.

    b0 is brought to mean 0 and deviation 1 in the brain; the others are (MD - 1.0 µm²/ms) / 0.5 and (FA - 0.3) / 0.2 in
    every scan.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) with gradient tables.
    mask_key : str
        Brain mask (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with maps, which have no gradient table any more."""
        d = dict(data)
        brain = np.asarray(d[self.mask_key][0]) > 0.5
        for key in self.key_iterator(d):
            d[key] = with_volumes(d[key], torch.from_numpy(maps_of(d[key], brain)[0]))
        return d


class InvariantFeaturesd(MapTransform):
    """Replace a scan by 48 numbers for each voxel, none of which turns with the head.

    Of b0, mean diffusivity and FA each: means over Gaussians of 0 to 12 mm; the value against what lies around (8 and
    16 mm), in local standard deviations; length of the gradient and eigenvalues of the Hessian at 2.5 and 5 mm. Besides
    the largest and the smallest eigenvalue of the tensor, and the depth under the brain's surface. All in the brain.

    Parameters
    ----------
    keys, mask_key
        As in `InvariantMapsd`.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with images (48, X, Y, Z) without gradient tables."""
        d = dict(data)
        brain = np.asarray(d[self.mask_key][0]) > 0.5
        for key in self.key_iterator(d):
            image = d[key]
            spacing = image.affine[:3, :3].norm(dim=0).numpy()
            maps, evals = maps_of(image, brain)
            features = [feature for one in maps for feature in scale_space(one, brain, spacing)]
            depth = ndimage.distance_transform_edt(np.pad(brain, 1), spacing)[1:-1, 1:-1, 1:-1]
            stack = np.stack([*features, *evals, depth]).astype(np.float32) * brain
            d[key] = with_volumes(image, torch.from_numpy(stack))
        return d


def scale_space(values: np.ndarray, brain: np.ndarray, spacing: np.ndarray) -> list[np.ndarray]:
    """Return 15 maps of one: 5 means, 2 values against what lies around, and 2 times a gradient and 3 curvatures."""
    out = [local_mean(values, brain, s / spacing) if s else values for s in VALUES]
    for s in AROUND:
        mean = local_mean(values, brain, s / spacing)
        variance = local_mean((values - mean) ** 2, brain, s / spacing)
        out.append((values - mean) / np.sqrt(variance + 1e-4))
    filled = np.where(brain, values, local_mean(values, brain, 4.0 / spacing))  # no cliff at the brain's surface
    for s in DERIVATIVES:

        def derivative(*axes: int, s: float = s) -> np.ndarray:
            order = [axes.count(a) for a in range(3)]
            scale = np.prod([s / spacing[a] for a in axes])  # per Gaussian width, whatever the voxel
            return scale * ndimage.gaussian_filter(filled, s / spacing, order=order)

        out.append(np.sqrt(sum(derivative(a) ** 2 for a in range(3))))
        hessian = np.zeros((int(brain.sum()), 3, 3), np.float32)
        for a in range(3):
            for b in range(a, 3):
                hessian[:, a, b] = hessian[:, b, a] = derivative(a, b)[brain]
        for values_of_one in np.linalg.eigvalsh(hessian).T:
            curvature = np.zeros(brain.shape, np.float32)
            curvature[brain] = values_of_one
            out.append(curvature)
    return out

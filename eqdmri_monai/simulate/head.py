"""A real head as a model that can be scanned again: S0, share of free water, and the diffusion tensors of its tissue.

Signal of a voxel, for b-value b and direction g:

    S = S0 · [f exp(-b d_water) + (1 - f) (1 + θ b gᵀDg)^(-1/θ)]

The tissue's diffusivities follow a gamma distribution, whose excess kurtosis is 3θ, so that a fit at one b-value holds
at others; θ = 0 is the plain tensor model. One shell cannot tell f from D, so f is the least share for which the
tissue's mean diffusivity is one that tissue has.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.lesions import LesionEffect, tensor_change
from eqdmri_monai.simulate.signal import FLUID

# 3θ = 1.05 is the mean kurtosis of white matter (Jensen and Helpern 2010, doi:10.1002/nbm.1518). With it, the mean
# diffusivities of white matter in six heads, measured at b = 1000 to 2500, differ by 15 %; with the plain tensor by 30.
THETA = 0.35
TISSUE_MD = 1.1e-3  # mm²/s; more is free water (grey matter has 0.94 to 1.06e-3 in these heads)
EIGENVALUES = 0.05e-3, 3e-3  # mm²/s; what noise puts outside is put back


@dataclass(frozen=True)
class Head:
    """Anatomy on a grid.

    Parameters
    ----------
    S0 : array, shape (X, Y, Z)
        Signal without weighting, of the scanner's echo time and coils.
    fluid : array, shape (X, Y, Z)
        Share of S0 that is free water, 0 to 1.
    tensor : array, shape (X, Y, Z, 3, 3)
        Of the tissue, world frame, mm²/s.
    brain : array, shape (X, Y, Z), bool
    affine : array, shape (4, 4)
        mm.
    """

    S0: np.ndarray
    fluid: np.ndarray
    tensor: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel sizes, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def world(self) -> np.ndarray:
        """World coordinates of the voxels, mm, shape (X, Y, Z, 3)."""
        ijk = np.stack(np.mgrid[tuple(slice(n) for n in self.brain.shape)], axis=-1)
        return ijk @ self.affine[:3, :3].T + self.affine[:3, 3]

    def signal(self, table: GradientTable, where: np.ndarray | None = None) -> np.ndarray:
        """Return the signal of a table's volumes (world frame): (X, Y, Z, Q), or (N, Q) for N voxels of a mask."""
        if where is None:
            signal = np.zeros((*self.S0.shape, len(table)), np.float32)
            signal[self.S0 > 0] = self.signal(table, self.S0 > 0)
            return signal
        S0, fluid, tensor = self.S0[where], self.fluid[where], self.tensor[where]
        bvals, bvecs = table.bvals.numpy(), table.bvecs.numpy()
        b_matrix = (bvals[:, None, None] * bvecs[:, :, None] * bvecs[:, None, :]).reshape(len(bvals), 9)
        weighting = tensor.reshape(*tensor.shape[:-2], 9) @ b_matrix.T.astype(tensor.dtype)  # b gᵀDg
        tissue = (1 - fluid)[..., None] * (1 + THETA * np.maximum(weighting, 0)) ** (-1 / THETA)
        return S0[..., None] * (fluid[..., None] * np.exp(-bvals * FLUID) + tissue).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write to an .npz file."""
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, S0=self.S0, fluid=self.fluid, tensor=self.tensor, brain=self.brain, affine=self.affine)

    @classmethod
    def load(cls, path: Path) -> "Head":
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in arrays})


def fit_head(
    dwi: np.ndarray, table: GradientTable, affine: np.ndarray, brain: np.ndarray, *, theta: float = THETA
) -> Head:
    """Fit the model to a scan, in the brain and two voxels around it.

    Parameters
    ----------
    dwi : array, shape (X, Y, Z, Q)
    table : GradientTable
        World frame.
    affine : array, shape (4, 4)
        mm.
    brain : array, shape (X, Y, Z), bool
    theta : float
        θ above.

    Returns
    -------
    Head

    Source
    ------
    Linear least squares of the tensor: Basser et al. 1994, doi:10.1016/S0006-3495(94)80775-1. Gamma distribution:
    Jensen and Helpern 2010, doi:10.1002/nbm.1518. Free water at one shell needs a prior: Pasternak et al. 2009,
    doi:10.1002/mrm.22055.
    """
    b0_mask = table.b0_mask.numpy()
    bvals, g = table.bvals.numpy()[~b0_mask], table.bvecs.numpy()[~b0_mask]
    S0 = dwi[..., b0_mask].mean(-1).astype(np.float32)
    inside = ndimage.binary_dilation(brain, iterations=2) & (S0 > 0)
    attenuation = dwi[inside][:, ~b0_mask] / S0[inside][:, None]  # [n, q]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    design = np.stack([(1 if i == j else 2) * g[:, i] * g[:, j] for i, j in pairs], axis=1)
    solve = np.linalg.pinv(design).T  # [q, 6]
    water = np.exp(-bvals * FLUID)

    def tissue(n, fluid) -> np.ndarray:
        """Return the six numbers of the tensors of voxels n, when shares `fluid` of them are water."""
        rest = (attenuation[n] - fluid[:, None] * water) / np.maximum(1 - fluid, 1e-3)[:, None]
        log = -np.log(np.clip(rest, 1e-3, 1.0))
        return ((np.expm1(theta * log) / theta if theta > 0 else log) / bvals) @ solve

    fluid = np.zeros(len(attenuation))
    too_fast = np.flatnonzero(tissue(np.arange(len(fluid)), fluid)[:, :3].mean(1) > TISSUE_MD)
    low, high = np.zeros(len(too_fast)), np.ones(len(too_fast))
    for _ in range(10):  # the tissue's MD falls as the share rises
        middle = (low + high) / 2
        more = tissue(too_fast, middle)[:, :3].mean(1) > TISSUE_MD
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    fluid[too_fast] = high
    six = tissue(np.arange(len(fluid)), fluid)
    tensor = np.empty((len(six), 3, 3))
    for k, (i, j) in enumerate(pairs):
        tensor[:, i, j] = tensor[:, j, i] = six[:, k]
    evals, evecs = np.linalg.eigh(tensor)
    tensor = (evecs * np.clip(evals, *EIGENVALUES)[:, None, :]) @ evecs.transpose(0, 2, 1)

    maps = np.zeros(brain.shape, np.float32), np.zeros((*brain.shape, 3, 3), np.float32)
    maps[0][inside], maps[1][inside] = fluid, tensor
    return Head(S0 * inside, *maps, brain, np.asarray(affine, float))


def md_and_fa(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean diffusivity (mm²/s) and fractional anisotropy of tensors (..., 3, 3)."""
    md = np.trace(tensor, axis1=-2, axis2=-1) / 3
    rest = tensor - md[..., None, None] * np.eye(3, dtype=tensor.dtype)
    square = (tensor**2).sum((-2, -1))
    return md, np.sqrt(1.5 * (rest**2).sum((-2, -1)) / np.maximum(square, 1e-20))


def regions(head: Head) -> dict[str, np.ndarray]:
    """Return where lesions may lie: masks (X, Y, Z) that do not overlap.

    "periventricular", "juxtacortical", "infratentorial" and "deep white" are white matter, together all of it;
    "deep grey" is thalamus and basal ganglia. They are found by diffusivity, anisotropy and place in the head, which is
    good enough to spread lesions, and no atlas.
    """
    # over about 4 mm, for noise makes anisotropy
    smooth = ndimage.gaussian_filter(head.tensor, (*(1.8 / head.spacing), 0, 0))
    md, fa = md_and_fa(smooth)
    fluid = ndimage.gaussian_filter(head.fluid, 1.0 / head.spacing)
    depth = ndimage.distance_transform_edt(head.brain, head.spacing)
    solid = head.brain & (fluid < 0.15) & (md < 1.2e-3) & (md > 0.4e-3)
    white = solid & (fa > 0.25) & (depth > 3.5)  # the rim is anisotropic by noise and distortion
    labels, number = ndimage.label(white)
    if number:
        sizes = np.bincount(labels.ravel())[1:] * head.spacing.prod()
        white = np.isin(labels, 1 + np.flatnonzero(sizes > 1000))
    ventricle = (fluid > 0.5) & (depth > 20)
    near = ndimage.distance_transform_edt(~ventricle, head.spacing) if ventricle.any() else np.full(md.shape, np.inf)
    world = head.world
    low, high = np.percentile(world[head.brain], [1, 99], axis=0)
    x, y, z = np.moveaxis((world - low) / (high - low), -1, 0)
    below = white & (z < 0.28) & (y < 0.5) & (np.abs(x - 0.5) < 0.27)
    beside = white & ~below & (near < 8)
    outer = white & ~below & ~beside & (depth < 13)
    middle = (np.abs(x - 0.5) < 0.27) & (y > 0.35) & (y < 0.7) & (z > 0.3) & (z < 0.7)
    grey = solid & ~white & (fa < 0.25) & (depth > 25) & (near < 25) & middle
    return {
        "periventricular": beside,
        "juxtacortical": outer,
        "infratentorial": below,
        "deep white": white & ~below & ~beside & ~outer,
        "deep grey": grey,
    }


def with_lesions(head: Head, lesions: Iterable[tuple[np.ndarray, LesionEffect]]) -> Head:
    """Return a head with lesions: pairs of a weight (X, Y, Z), the share of each voxel that is lesion, and an effect.

    In the share of a voxel that is tissue, S0 rises by ``effect.gain`` and the tensor changes by `tensor_change`.
    """
    S0, tensor = head.S0.copy(), head.tensor.copy()
    for weight, effect in lesions:
        inside = weight > 0
        w = weight[inside] * (1 - head.fluid[inside])
        S0[inside] *= 1 + effect.gain * w
        tensor[inside] += w[:, None, None] * tensor_change(tensor[inside], effect)
    return replace(head, S0=S0, tensor=tensor)


def implant_measured(dwi: np.ndarray, table: GradientTable, head: Head, changed: Head) -> np.ndarray:
    """Multiply a measured signal by what the model says of the change; voxels without change keep their bits.

    Noise and artefacts are those of the scan.

    Parameters
    ----------
    dwi : array, shape (X, Y, Z, Q)
    table : GradientTable
        World frame.
    head, changed : Head
        Fitted to the scan, and with lesions.
    """
    where = (head.S0 != changed.S0) | (head.tensor != changed.tensor).any((-2, -1))
    out = np.array(dwi, dtype=np.float32)
    before, after = head.signal(table, where), changed.signal(table, where)
    out[where] *= after / np.maximum(before, 1e-6 * head.S0[where].max(initial=1))
    return out

"""Smooth random deformations of a head: shape, pose and mirror images, with the tensors turned along.

A deformation says where in the head each point of the new space comes from:

    φ(x) = c + M (x - c) + Σ_k a_k cos(w_k · x + φ_k)

with M linear and a few long waves, so that its Jacobian is known exactly. Tensors turn by the rotation in it (finite
strain): D'(x) = R D(φ(x)) Rᵀ, R = the orthogonal factor of (∂φ/∂x)⁻¹. Mirrors are orthogonal factors too.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from eqdmri_monai.simulate.head import Head


@dataclass(frozen=True)
class Waves:
    """A smooth vector field, Σ_k a_k cos(w_k · x + φ_k).

    Parameters
    ----------
    amplitude, frequency : array, shape (K, 3)
        a_k, mm, and w_k, 1/mm.
    phase : array, shape (K,)
    """

    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, size: float, *, shortest: float = 60.0, number: int = 12) -> "Waves":
        """Draw waves of 1 to 2.5 times the shortest length (mm), root mean square `size` (mm) over space."""
        direction = rng.standard_normal((number, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        frequency = 2 * np.pi / (shortest * rng.uniform(1, 2.5, (number, 1))) * direction
        amplitude = rng.standard_normal((number, 3))
        amplitude *= size / np.sqrt((amplitude**2).sum() / 2)
        return cls(amplitude, frequency, rng.uniform(0, 2 * np.pi, number))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the field at points (..., 3)."""
        return np.cos(x @ self.frequency.T + self.phase) @ self.amplitude

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Return ∂u_i/∂x_j at points (N, 3), shape (N, 3, 3)."""
        outer = (self.amplitude[:, :, None] * self.frequency[:, None, :]).reshape(len(self.phase), 9)
        return (-np.sin(x @ self.frequency.T + self.phase) @ outer).reshape(-1, 3, 3)


@dataclass(frozen=True)
class Deformation:
    """φ above.

    Parameters
    ----------
    matrix : array, shape (3, 3)
        M.
    centre : array, shape (3,)
        c, world mm.
    waves : Waves
    """

    matrix: np.ndarray
    centre: np.ndarray
    waves: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: np.ndarray) -> "Deformation":
        """Draw a head: turned by 15° (standard deviation), 6 % larger or smaller, sheared, bent; half of them mirrored.

        The bending, 2 mm over lengths of 60 mm and more, is as much as that of a few registrations of healthy heads.
        """
        pose = Rotation.from_rotvec(np.radians(rng.normal(0, 15 / np.sqrt(3), 3))).as_matrix()
        stretch = np.eye(3) * rng.uniform(0.94, 1.06) + rng.normal(0, 0.02, (3, 3))
        mirror = np.diag([rng.choice([-1.0, 1.0]), 1, 1])
        return cls(mirror @ stretch @ pose, np.asarray(centre, float), Waves.draw(rng, rng.uniform(0.5, 2.5)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return where points (..., 3) of the new space come from."""
        return self.centre + (x - self.centre) @ self.matrix.T + self.waves(x)

    def inverse(self, y: np.ndarray, steps: int = 30) -> np.ndarray:
        """Return where points (..., 3) of the head go, by fixed-point steps; the waves are small."""
        back, x = np.linalg.inv(self.matrix).T, y
        for _ in range(steps):
            x = self.centre + (y - self.waves(x) - self.centre) @ back
        return x

    def rotation(self, x: np.ndarray) -> np.ndarray:
        """Return R at points (N, 3), shape (N, 3, 3), by Newton's iteration for the polar factor (Higham 1986)."""
        R = self.matrix + self.waves.jacobian(x)
        for _ in range(7):
            R = (R + np.linalg.inv(R).transpose(0, 2, 1)) / 2
        return R.transpose(0, 2, 1)


def no_waves() -> Waves:
    """Return the field that is 0."""
    return Waves(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))


def resample(
    head: Head, shape: tuple[int, int, int], affine: np.ndarray, deformation: Deformation, shift: Waves | None = None
) -> Head:
    """Return a deformed head on another grid.

    Parameters
    ----------
    head : Head
    shape : three ints
    affine : array, shape (4, 4)
        Of the new grid, mm.
    deformation : Deformation
    shift : Waves
        Distortion of the image, mm, as echo-planar imaging makes it: it moves what is seen, and makes it brighter where
        it is pressed together, without turning a tensor.

    Returns
    -------
    Head

    Source
    ------
    Finite strain: Alexander et al. 2001, doi:10.1109/42.963816. Brightness: Jezzard and Balaban 1995,
    doi:10.1002/mrm.1910340111.
    """
    ijk = np.stack(np.mgrid[tuple(slice(n) for n in shape)], axis=-1).reshape(-1, 3)
    seen = ijk @ affine[:3, :3].T + affine[:3, 3]
    true = seen if shift is None else seen + shift(seen)
    back = np.linalg.inv(head.affine)
    where = deformation(true) @ back[:3, :3].T + back[:3, 3]
    inside = np.flatnonzero(ndimage.map_coordinates((head.S0 > 0).astype(np.uint8), where.T, order=0))
    seen, true, where = seen[inside], true[inside], where[inside].T
    # a coarser grid sees more of the head at once
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sigma = 0.4 * np.sqrt(np.maximum((spacing.prod() ** (1 / 3) / head.spacing) ** 2 - 1, 0))

    def at(values: np.ndarray) -> np.ndarray:
        values = ndimage.gaussian_filter(values, sigma) if sigma.any() else values
        return ndimage.map_coordinates(values, where, order=1, output=np.float32)

    def on_grid(values: np.ndarray) -> np.ndarray:
        out = np.zeros((len(ijk), *values.shape[1:]), values.dtype)
        out[inside] = values
        return out.reshape(*shape, *values.shape[1:])

    S0, water = at(head.S0), at(head.S0 * head.fluid)
    tissue = head.S0 * (1 - head.fluid)  # what a voxel's tensors count by
    amount = np.maximum(at(tissue), 1e-6 * head.S0.max())
    tensor = np.zeros((len(inside), 3, 3), np.float32)
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        tensor[:, i, j] = tensor[:, j, i] = at(tissue * head.tensor[..., i, j]) / amount
    R = deformation.rotation(true).astype(np.float32)
    tensor = R @ tensor @ R.transpose(0, 2, 1)
    fluid = np.clip(water / np.maximum(S0, 1e-6 * head.S0.max()), 0, 1)
    brain = at(head.brain.astype(np.float32)) > 0.5
    if shift is not None:
        S0 *= np.maximum(np.linalg.det(np.eye(3) + shift.jacobian(seen)), 0.1)
    return Head(on_grid(S0), on_grid(fluid), on_grid(tensor), on_grid(brain), np.asarray(affine, float))

"""How a head is scanned: grid, gradient scheme, echo time, coils, sharpness, distortion, noise; all drawn at random.

The ranges are wider than those of the scanners at hand, so that the next one lies within.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.deformation import Waves
from eqdmri_monai.simulate.head import Head, md_and_fa
from eqdmri_monai.simulate.phantom import oblique_affine, spread_directions
from eqdmri_monai.simulate.signal import rician

# T2 at 3 T, ms: Wansapura et al. 1999, doi:10.1002/(SICI)1522-2586(199904)9:4<531::AID-JMRI4>3.0.CO;2-L; fluid is far
# longer than any echo time.
T2 = {"white": 80.0, "grey": 110.0, "fluid": 2000.0}


@dataclass(frozen=True)
class Acquisition:
    """A scanner and its protocol.

    Parameters
    ----------
    table : GradientTable
        World frame.
    spacing : three floats
        mm.
    angles : three floats
        Obliqueness, degrees.
    echo : float
        Echo time more than that of the scan that the head is from, ms.
    snr : float
        White-matter b0 over the noise's standard deviation.
    blur : float
        Standard deviation of the point spread, voxels.
    coil : Waves
        First component: logarithm of the coils' sensitivity.
    shift : Waves
        Distortion along the second voxel axis, mm.
    """

    table: GradientTable
    spacing: tuple[float, float, float]
    angles: tuple[float, float, float]
    echo: float
    snr: float
    blur: float
    coil: Waves
    shift: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Acquisition":
        """Draw 1 to 3 b0s, 6 to 64 directions on 1 to 3 shells of b = 700 to 3000, voxels of 1.75 to 3.5 mm."""
        plane, angles = rng.uniform(1.75, 3.0), tuple(rng.normal(0, 8, 3))
        spacing = (plane, plane, float(np.clip(plane * rng.uniform(0.9, 1.6), 2.0, 3.5)))
        axis = oblique_affine((2, 2, 2), (1.0, 1.0, 1.0), angles)[:3, 1]
        shift = Waves.draw(rng, rng.uniform(0, 2.5), shortest=50.0)
        return cls(
            table=random_table(rng), spacing=spacing, angles=angles, echo=rng.uniform(-25, 40),
            snr=float(np.exp(rng.uniform(np.log(12), np.log(80)))), blur=rng.uniform(0.0, 0.6),
            coil=Waves.draw(rng, rng.uniform(0, 0.2), shortest=150.0, number=4),
            shift=replace(shift, amplitude=(shift.amplitude @ axis)[:, None] * axis),
        )  # fmt: skip

    def grid(self, points: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
        """Return shape and affine of a grid that holds points (N, 3) of the world with 6 mm to spare."""
        affine = oblique_affine((1, 1, 1), self.spacing, self.angles)
        ijk = points @ np.linalg.inv(affine[:3, :3]).T
        low, high = ijk.min(0) - 6 / np.array(self.spacing), ijk.max(0) + 6 / np.array(self.spacing)
        affine[:3, 3] = affine[:3, :3] @ low
        return tuple(int(n) for n in np.ceil(high - low) + 1), affine


def random_table(rng: np.random.Generator) -> GradientTable:
    """Draw a scheme: b0s first, then 1 to 3 shells, each of directions spread by electrostatic repulsion."""
    shells = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    total = int(np.exp(rng.uniform(np.log(6), np.log(64.99))))
    levels = np.sort(rng.uniform(700, 3000, shells)).round(-1)
    counts = [max(6 if k == 0 else 3, total // shells) for k in range(shells)]
    b0s = int(rng.integers(1, 4))
    bvals = np.concatenate([np.zeros(b0s), np.repeat(levels, counts)])
    bvecs = np.concatenate([np.zeros((b0s, 3)), *(spread_directions(n, rng) for n in counts)])
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))


def acquire(head: Head, acquisition: Acquisition, rng: np.random.Generator) -> np.ndarray:
    """Return the scan of a head that lies on the acquisition's grid: (X, Y, Z, Q), float32."""
    _, fa = md_and_fa(head.tensor)
    white = np.clip((fa - 0.15) / 0.2, 0, 1)
    tissue = white * np.exp(-acquisition.echo / T2["white"]) + (1 - white) * np.exp(-acquisition.echo / T2["grey"])
    water = head.fluid * np.exp(-acquisition.echo / T2["fluid"])
    total = (1 - head.fluid) * tissue + water
    coil = np.exp(acquisition.coil(head.world)[..., 0])
    seen = replace(
        head,
        S0=(head.S0 * total * coil).astype(np.float32),
        fluid=(water / np.maximum(total, 1e-6)).astype(np.float32),
    )
    dwi = seen.signal(acquisition.table)
    if acquisition.blur > 0.2:
        dwi = ndimage.gaussian_filter(dwi, (*3 * [acquisition.blur], 0))
    in_white = head.brain & (fa > 0.4) & (head.fluid < 0.1)
    level = np.median(seen.S0[in_white if in_white.any() else head.brain])
    return rician(dwi, level / acquisition.snr, rng)

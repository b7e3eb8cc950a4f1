"""Implant lesions into real scans, and add phantoms: the cohort that the shipped weights were trained on.

Reads the folder of scans named by --data (see the model card for their sources) and writes, for each scan, several
realisations with other lesions, plus scans.json with the lists "training", "validation" and "testing". A scan is in
one list only, and so is a patient whose lesion shapes are used. A folder that is begun goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel, fractional_anisotropy, mean_diffusivity
from dipy.segment.mask import median_otsu
from scipy import ndimage

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import read_table, write_fsl
from eqdmri_monai.files.writing import output_folder, written_whole
from eqdmri_monai.simulate import (
    LesionEffect,
    components,
    implant,
    lesion_weight,
    make_phantom,
    pieces,
    single_shell,
)

# section: (scans with the number of realisations, patients whose lesion shapes are used, phantoms as (directions, b))
COHORT = {
    "training": (
        {
            "dwi_philips_bangalore32/dwi": 8,
            "dwi_philips_vanderbilt15_b2000/dwi": 7,
            "dwi_siemens_xa30_b2500/PA": 7,
        },
        ("patient07", "patient19"),
        [(30, 1000.0), (20, 1500.0), (40, 2000.0), (24, 700.0), (32, 1000.0), (60, 2500.0)],
    ),
    "validation": ({"dwi_philips_elition16_t1/dwi": 2}, ("patient26",), [(30, 1000.0)]),
    "testing": (
        {"dwi_toshiba12_rotated/ortho": 2, "dwi_toshiba12_rotated/SAG30": 1},
        ("patient26",),
        [(30, 1000.0)],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the cohort is written")
    parser.add_argument("--data", type=Path, required=True, help="folder of real scans")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    folder, lists = Path(output_folder(options.folder)), {}
    for k, (section, (scans, patients, phantoms)) in enumerate(COHORT.items()):
        shapes = lesion_shapes(
            [options.data / f"ms_lesions_lesjak/{patient}_GOLD_STANDARD.nii.gz" for patient in patients]
        )
        items = []
        for name, number in scans.items():
            scan = None
            for i in range(number):
                stem = folder / f"{section}_{name.replace('/', '_')}_{i}"
                if not Path(f"{stem}_lesion.nii.gz").exists():
                    scan = scan or Scan(options.data / f"{name}.nii.gz")
                    seed = [options.seed, k, i, *name.encode()]
                    write(stem, *scan.with_lesions(shapes, np.random.default_rng(seed)), scan.table, scan.affine)
                items.append(stem.name)
        for i, (directions, b) in enumerate(phantoms):
            stem = folder / f"{section}_phantom_{i}"
            if not Path(f"{stem}_lesion.nii.gz").exists():
                seed = 1000 * (k + 1) + i
                rng = np.random.default_rng(seed)
                table = single_shell(directions, b, rng, b0s=1 + i % 3)
                angles = tuple(rng.uniform(-20, 20, 3))
                phantom = make_phantom(seed, table, angles=angles, lesions=20, snr=rng.uniform(12, 35))
                write(stem, phantom.dwi, phantom.lesion, table, phantom.affine)
            items.append(stem.name)
        lists[section] = [{"image": f"{item}.nii.gz", "label": f"{item}_lesion.nii.gz"} for item in items]
    with written_whole(folder / "scans.json") as part:
        part.write_text(json.dumps(lists, indent=1))


def lesion_shapes(masks: list[Path]) -> list[np.ndarray]:
    """Return the lesions of some patients at 1 mm; confluent ones of more than 3 ml give 40 pieces each."""
    rng, shapes = np.random.default_rng(0), []
    for mask in masks:
        for lesion in components(read(mask)[0], minimum=40):
            shapes += pieces(lesion, 40, rng) if lesion.sum() > 3000 else [lesion]
    return shapes


class Scan:
    """A real scan, its diffusion tensors, and where lesions may lie.

    Parameters
    ----------
    path : Path
        NIfTI with FSL sidecars.
    """

    def __init__(self, path: Path):
        self.dwi, self.affine = read(path)
        self.table = read_table({"image": path}, self.affine, volumes=self.dwi.shape[3])
        b0 = self.dwi[..., self.table.b0_mask.numpy()].mean(-1)
        _, brain = median_otsu(b0, median_radius=2, numpass=2, finalize_mask=True)
        gtab = gradient_table(self.table.bvals.numpy(), bvecs=self.table.bvecs.numpy())
        fit = TensorModel(gtab).fit(self.dwi, mask=brain)
        self.tensor = fit.quadratic_form * brain[..., None, None]
        smooth = ndimage.gaussian_filter(self.tensor, (1, 1, 1, 0, 0))
        evals = np.clip(np.linalg.eigvalsh(smooth), 0, 3e-3)
        md, fa = mean_diffusivity(evals), fractional_anisotropy(evals)
        voxel = np.linalg.norm(self.affine[:3, :3], axis=0)
        depth = ndimage.distance_transform_edt(brain, voxel)
        self.tissue = brain & (md < 1.5e-3)
        self.white = (fa > 0.25) & (md < 1.0e-3) & (md > 0.3e-3) & (depth > 8)
        fluid = (md > 1.8e-3) & (depth > 20)
        self.near_ventricle = self.white & (ndimage.distance_transform_edt(~fluid, voxel) < 8)

    def with_lesions(self, shapes: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the scan with 12 to 30 lesions, half of them beside the ventricles, and their mask."""
        dwi, total = self.dwi, np.zeros(self.dwi.shape[:3], np.float32)
        # Most lesions of a patient are tiny; large ones are drawn more often, or there would be little to learn from.
        share = np.sqrt([shape.sum() for shape in shapes])
        share /= share.sum()
        for _ in range(rng.integers(12, 31)):
            places = self.near_ventricle if self.near_ventricle.any() and rng.random() < 0.5 else self.white
            voxel = np.argwhere(places)[rng.integers(places.sum())]
            centre = self.affine[:3, :3] @ voxel + self.affine[:3, 3]
            weight = lesion_weight(
                [shapes[rng.choice(len(shapes), p=share)]], centre[None], total.shape, self.affine, rng
            )
            weight *= self.tissue * (total < 0.05)
            bvals, bvecs = self.table.bvals.numpy(), self.table.bvecs.numpy()
            dwi = implant(dwi, bvals, bvecs, self.tensor, weight, LesionEffect.draw(rng))
            total = np.maximum(total, weight)
        return dwi, total > 0.5


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


def write(stem: Path, dwi: np.ndarray, lesion: np.ndarray, table, affine: np.ndarray) -> None:
    scale = 30000 / dwi.max()  # int16 keeps 1/30000 of the range, far below the noise
    write_fsl(table, affine, stem)
    write_nifti(f"{stem}.nii.gz", np.round(dwi * scale).astype(np.int16), affine)
    write_nifti(f"{stem}_lesion.nii.gz", lesion.astype(np.uint8), affine)
    print(f"{stem.name}: {int(lesion.sum())} lesion voxels", flush=True)


if __name__ == "__main__":
    main()

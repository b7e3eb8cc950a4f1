"""Make the cohort of the study: real scans with implanted lesions, new scans of the same heads, and scans without any.

Reads the folder of scans named by --data (see docs/study.md for their sources) and writes scans, labels, the numbers
of the lesions, brain masks, and scans.json, which says of each scan its head, scanner, kind, section and lesions.
Everything follows from the seed, scan by scan. A folder that is begun goes on where it stopped; the fits of the heads
lie in it.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from dipy.segment.mask import median_otsu

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import read_table, write_fsl
from eqdmri_monai.files.writing import output_folder, written_whole
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.simulate.cohort import Scan, draw_lesions, implanted, simulated
from eqdmri_monai.simulate.head import Head, fit_head
from eqdmri_monai.simulate.shapes import ms_shapes, stroke_shapes
from eqdmri_monai.tensors import condition_number

# head: scanner, and its fields of view; those in one tuple share a world, and get the same lesions
HEADS = {
    "bangalore": ("achieva", [("dwi_philips_bangalore32/dwi",)]),
    "vanderbilt": ("dstream", [("dwi_philips_vanderbilt15_b2000/dwi",)]),
    "elition": ("elition", [("dwi_philips_elition16_t1/dwi",)]),
    "siemens": ("prisma", [("dwi_siemens_xa30_b2500/PA", "dwi_siemens_xa30_b2500/AP")]),
    "toshiba": ("galan", [tuple(f"dwi_toshiba12_rotated/{view}" for view in ("ortho", "SAG30", "ALL20"))]),
    "canon": (
        "galan",
        [
            tuple(f"dwi_canon12_rotated/{view}" for view in ("ax_ortho", "ax_ALL20", "sag_ALL20")),
            ("dwi_canon12_rotated/ax_headturned_tilted",),
        ],
    ),
}
SCHEMES = ("6", "10", "12", "15", "signs", "shuffled")  # numbers: so many well-spread directions
LESIONS = 12, 30  # of a scan
WITHOUT = 0.2  # share of simulated scans without a lesion
# rows of the stroke lesions, patients of the multiple-sclerosis ones; thresholds are chosen with the shapes of testing
SHAPES = {"training": (range(80), ("07", "19")), "choice": (range(1000, 1040), ("26",))}
SHAPES["testing"] = SHAPES["choice"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the cohort is written")
    parser.add_argument("--data", type=Path, required=True, help="folder of real scans")
    parser.add_argument("--implanted", type=int, default=8, help="training scans a head, lesions in its own signal")
    parser.add_argument("--simulated", type=int, default=16, help="training scans a head, new scans of it")
    parser.add_argument("--sets", type=int, default=2, help="sets of lesions for testing, each in all fields of view")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    folder = Path(output_folder(options.folder))
    for name in ("heads", "scans"):
        (folder / name).mkdir(exist_ok=True)
    cohort = Cohort(options.data, folder, options.seed)
    rows = []
    for row in plan(implanted=options.implanted, simulated=options.simulated, sets=options.sets, seed=options.seed):
        file = folder / "scans" / f"{row['name']}.json"
        if not file.exists():
            scan = cohort.scan(row)
            write(folder / "scans" / row["name"], scan)
            with written_whole(file) as part:
                part.write_text(json.dumps(row | {"lesions": known_lesions(scan)}))
            print(row["name"], flush=True)
        rows.append(json.loads(file.read_text()))
    with written_whole(folder / "scans.json") as part:
        part.write_text(json.dumps(rows, indent=1))


def plan(*, implanted: int, simulated: int, sets: int, seed: int) -> list[dict]:
    """Return what is to be made, one row a scan; the most needed first."""
    rows = []

    def add(head: str, world: tuple[str, ...], view: str, section: str, kind: str, number: int, scheme="") -> None:
        name = f"{section}_{kind}_{head}_{Path(view).name}_{number}{scheme and '_' + scheme}"
        rows.append(
            {"name": name, "head": head, "scanner": HEADS[head][0], "view": view, "world": world[0],
             "section": section, "kind": kind, "number": number, "scheme": scheme, "seed": seed}
        )  # fmt: skip

    for head, (_, worlds) in HEADS.items():
        views = [(world, view) for world in worlds for view in world]
        for world, view in views:
            add(head, world, view, "testing", "healthy", 0)
            add(head, world, view, "training", "healthy", 0)
            for k in range(sets):
                add(head, world, view, "testing", "implanted", k)
        add(head, *views[0], "choice", "implanted", 0)
        for scheme in SCHEMES:
            add(head, *views[0], "schemes", "implanted", 0, scheme)
        for k in range(implanted):
            add(head, *views[k % len(views)], "training", "implanted", k)
    for k in range(simulated):
        for head, (_, worlds) in HEADS.items():
            views = [(world, view) for world in worlds for view in world]
            add(head, *views[k % len(views)], "training", "simulated", k)
    return rows


class Cohort:
    """Makes the scans of a plan, keeping the heads that are fitted and the lesion shapes."""

    def __init__(self, data: Path, folder: Path, seed: int):
        self.data, self.folder, self.seed = data, folder, seed
        self.shapes = {}

    def scan(self, row: dict) -> Scan:
        """Return one scan; it depends on its row and the seed alone."""
        dwi, table, head = self.measured(row["view"])
        # other schemes are of the same lesions as the first set for testing
        names = [
            "testing" if row["scheme"] else row["section"],
            row["kind"],
            row["head"] if row["kind"] == "simulated" else row["world"],
        ]
        rng = np.random.default_rng([self.seed, row["number"], *"/".join(names).encode()])
        number = int(rng.integers(*LESIONS, endpoint=True))
        if row["kind"] == "healthy":
            return implanted(dwi, table, head, [])
        shapes = self.lesion_shapes("testing" if row["scheme"] else row["section"])
        if row["kind"] == "implanted":
            first = self.measured(row["world"])[2]  # whose lesions the other fields of view get too
            return other_scheme(implanted(dwi, table, head, draw_lesions(first, shapes, rng, number)), row["scheme"])
        return simulated(head, shapes, rng, 0 if rng.random() < WITHOUT else number)

    def measured(self, view: str) -> tuple[np.ndarray, GradientTable, Head]:
        """Return a real scan and the head fitted to it."""
        path, fit = self.data / f"{view}.nii.gz", self.folder / "heads" / f"{view.replace('/', '_')}.npz"
        image = nib.load(path)
        dwi = image.get_fdata(dtype=np.float32)
        with warnings.catch_warnings():  # repeated directions are no concern here
            warnings.simplefilter("ignore", UserWarning)
            table = read_table({"image": path}, image.affine, volumes=dwi.shape[3])
        if not fit.exists():
            b0 = dwi[..., table.b0_mask.numpy()].mean(-1)
            _, brain = median_otsu(b0, median_radius=2, numpass=2, finalize_mask=True)
            fit_head(dwi, table, image.affine, brain > 0).save(fit)
        return dwi, table, Head.load(fit)

    def lesion_shapes(self, section: str) -> list[np.ndarray]:
        if section not in self.shapes:
            subjects, patients = SHAPES[section]
            masks = [self.data / f"ms_lesions_lesjak/patient{k}_GOLD_STANDARD.nii.gz" for k in patients]
            strokes = stroke_shapes(self.data / "stroke_lesion_masks_soop/lesions_rle.npz", subjects)
            self.shapes[section] = ms_shapes(masks) + strokes
        return self.shapes[section]


def other_scheme(scan: Scan, scheme: str) -> Scan:
    """Return a scan with some of its volumes, or with their signs or order changed, by a name of `SCHEMES`."""
    if not scheme:
        return scan
    volumes, table = torch.arange(len(scan.table)), scan.table
    if scheme.isdigit():
        weighted, rng = (~table.b0_mask).nonzero().flatten(), np.random.default_rng(0)
        choices = [weighted[np.sort(rng.permutation(len(weighted))[: int(scheme)])] for _ in range(100)]
        best = min(choices, key=lambda choice: condition_number(table.bvecs[choice]))  # the farthest may lie on a cone
        volumes = torch.cat([table.b0_mask.nonzero().flatten(), best])
    elif scheme == "shuffled":
        volumes = torch.from_numpy(np.random.default_rng(0).permutation(len(table)))
    elif scheme == "signs":
        signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], len(table)))
        table = GradientTable(table.bvals, table.bvecs * signs[:, None])
    return replace(scan, dwi=scan.dwi[..., volumes.numpy()], table=table[volumes])


def known_lesions(scan: Scan) -> list[dict]:
    """Return the lesions that the label shows: their number, strength, region, and volume in ml."""
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    voxels = np.bincount(scan.lesion.ravel(), minlength=len(scan.lesions) + 1)
    return [
        {"number": k, "strength": lesion.strength, "region": lesion.region, "ml": round(voxels[k] * voxel_ml, 4)}
        for k, lesion in enumerate(scan.lesions, start=1)
        if voxels[k]
    ]


def write(stem: Path, scan: Scan) -> None:
    """Write a scan with its gradient table, its label, the numbers of its lesions, and its brain mask."""
    scale = 30000 / scan.dwi.max()  # int16 keeps 1/30000 of the range, far below the noise
    write_fsl(scan.table, scan.affine, stem)
    write_nifti(f"{stem}_lesion.nii.gz", (scan.lesion > 0).astype(np.uint8), scan.affine)
    write_nifti(f"{stem}_numbers.nii.gz", scan.lesion, scan.affine)
    write_nifti(f"{stem}_brain.nii.gz", scan.brain.astype(np.uint8), scan.affine)
    write_nifti(f"{stem}.nii", np.round(scan.dwi * scale).astype(np.int16), scan.affine)


if __name__ == "__main__":
    main()

"""By how much the maps of a network change where they should not: a table for one's own model and one's own scan.

The scan is written to files anew in each of these forms, and goes the whole way from files to a map on its own grid:

- *once more*: as it is, for the noise of the computation;
- *storage order*: axes of the array exchanged and mirrored, the affine with them;
- *turn of the head*: affine and table turned together in the scanner, by the rotations of a cube and by others. Whether
  these are exact depends on the network's grid: that of `transforms.ResampleRASd` follows the scan;
- *sign of directions*: that of all, and that of some drawn at random;
- *order of volumes*: drawn at random;
- *turn between voxels*: the head turned within its grid, which interpolates (cubic splines). No network is exact here.
"""

import csv
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from e3nn import o3
from monai.transforms import Activations, Activationsd, Compose, Invertd
from scipy.ndimage import affine_transform
from tqdm import tqdm

import eqdmri_monai
from eqdmri_monai.files.nifti import stem_of, write_nifti
from eqdmri_monai.files.tables import read_table, table_files, write_fsl
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.networks import TensorNet
from eqdmri_monai.report.record import circumstances, sha256
from eqdmri_monai.symmetry import cube_rotations

COLUMNS = ("symmetry", "case", "largest", "mean")


@dataclass(frozen=True)
class Form:
    """A scan in one of its forms.

    Parameters
    ----------
    symmetry, case : str
    dwi : array, shape (X, Y, Z, Q)
    affine : array, shape (4, 4)
    table : GradientTable
    brain : array, shape (X, Y, Z), optional
    back : callable
        Turns a map (C, X, Y, Z) of this form to the grid of the scan; NaN where it has no value there.
    """

    symmetry: str
    case: str
    dwi: np.ndarray
    affine: np.ndarray
    table: GradientTable
    brain: np.ndarray | None = None
    back: Callable[[np.ndarray], np.ndarray] = lambda x: x


class MapOfScan:
    """What a bundle makes of a scan: the network's output after its activation, on the scan's own grid.

    Parameters
    ----------
    network : Module
    inferer : callable
    preprocessing, postprocessing : Compose
        Of the postprocessing, only activations are applied. The network is given ``image``, and ``q`` where the
        preprocessing makes it.
    device : device

    Raises
    ------
    ValueError
        When the network's outputs are no scalars, so that a map turns with the head.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inferer: Callable[..., torch.Tensor],
        preprocessing: Compose,
        postprocessing: Compose,
        device: torch.device | str,
    ):
        irreps = getattr(network, "irreps_out", None)
        if isinstance(network, TensorNet) or (irreps is not None and o3.Irreps(irreps).lmax > 0):
            raise ValueError("what this network gives turns with the head; this check is for maps of scalars")
        self.network, self.inferer, self.device = network.to(device).eval(), inferer, device
        self.preprocessing = preprocessing
        self.activate = [t for t in postprocessing.transforms if isinstance(t, Activations | Activationsd)]
        self.invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)

    def __call__(self, scan: Mapping[str, str]) -> np.ndarray:
        """Return the map (C, X, Y, Z) of a scan's files."""
        data = self.preprocessing(dict(scan))
        extra = {"q": data["q"][None].to(self.device)} if "q" in data else {}
        with torch.no_grad():
            pred = self.inferer(data["image"][None].to(self.device), self.network, **extra)[0].cpu()
        for activate in self.activate:
            pred = activate({"pred": pred})["pred"] if isinstance(activate, Activationsd) else activate(pred)
        return self.invert({"pred": pred, "image": data["image"]})["pred"].numpy()


def forms(scan: Form, *, turns: int, cases: int, rng: np.random.Generator) -> Iterator[Form]:
    """Yield the forms of a scan that should all have its map.

    Parameters
    ----------
    scan : Form
    turns : int
        How many of the 23 rotations of a cube to try.
    cases : int
        How many of all else.
    rng : numpy Generator
    """
    yield replace(scan, symmetry="once more")
    orders = [(p, s) for p in permutations(range(3)) for s in product((1, -1), repeat=3)][1:]
    for k in rng.permutation(len(orders))[:cases]:
        yield stored(scan, *orders[k])
    quarter = [R.numpy() for R in cube_rotations()[1:]]
    for R in quarter[:turns]:
        yield turned_head(
            scan, R, " ".join(f"{'-' if row.sum() < 0 else ''}{'xyz'[np.abs(row).argmax()]}" for row in R)
        )
    for _ in range(cases):
        yield turned_head(scan, random_rotation(rng), "any")
    for k in range(cases):
        sign = -np.ones(len(scan.table)) if k == 0 else rng.choice([-1.0, 1.0], len(scan.table))
        table = GradientTable(scan.table.bvals, torch.as_tensor(sign)[:, None] * scan.table.bvecs)
        yield replace(scan, symmetry="sign of directions", case="some" if k else "all", table=table)
    for _ in range(cases):
        order = rng.permutation(len(scan.table))
        yield replace(scan, symmetry="order of volumes", dwi=scan.dwi[..., order], table=scan.table[order])
    for _ in range(cases):
        yield turned_between_voxels(scan, random_rotation(rng))


def number_of_forms(turns: int, cases: int) -> int:
    """Return how many `forms` there are."""
    return 1 + min(turns, 23) + 5 * cases


def stored(scan: Form, order: Sequence[int], signs: Sequence[int]) -> Form:
    """Return a scan whose axes come in another order, those of sign -1 mirrored."""
    backwards = [axis for axis in range(3) if signs[axis] < 0]
    new_to_old = np.eye(4)
    new_to_old[:3, :3] = 0
    for axis, (old, sign) in enumerate(zip(order, signs, strict=True)):
        new_to_old[old, axis] = sign
        new_to_old[old, 3] = scan.dwi.shape[old] - 1 if sign < 0 else 0
    affine = scan.affine @ new_to_old

    def there(x: np.ndarray) -> np.ndarray:
        return np.flip(x.transpose(*order, *range(3, x.ndim)), backwards)

    def back(x: np.ndarray) -> np.ndarray:
        return np.flip(x, [1 + axis for axis in backwards]).transpose(0, *(1 + np.argsort(order)))

    brain = None if scan.brain is None else there(scan.brain)
    case = "".join(nib.aff2axcodes(affine))
    return replace(
        scan, symmetry="storage order", case=case, dwi=there(scan.dwi), affine=affine, brain=brain, back=back
    )


def turned_head(scan: Form, R: np.ndarray, case: str) -> Form:
    """Return a scan whose head lay turned in the scanner, grid and gradients with it."""
    turn = np.eye(4)
    turn[:3, :3] = R
    table = turned_table(scan.table, R)
    return replace(scan, symmetry="turn of the head", case=case, affine=turn @ scan.affine, table=table)


def turned_between_voxels(scan: Form, R: np.ndarray) -> Form:
    """Return a scan whose head and gradients are turned about the centre of the grid, which stays."""
    axes = scan.affine[:3, :3]
    centre = (np.array(scan.dwi.shape[:3]) - 1) / 2

    def turn(x: np.ndarray, R: np.ndarray, outside: float) -> np.ndarray:
        matrix = np.linalg.solve(axes, R.T @ axes)
        return affine_transform(x, matrix, centre - matrix @ centre, order=3, mode="constant", cval=outside)

    def back(x: np.ndarray) -> np.ndarray:
        inside = turn(turn(np.ones(x.shape[1:]), R, 0.0), R.T, 0.0) > 1 - 1e-3
        return np.where(inside, np.stack([turn(one, R.T, 0.0) for one in x]), np.nan)

    dwi = np.stack([turn(volume, R, 0.0) for volume in np.moveaxis(scan.dwi, -1, 0)], axis=-1).clip(min=0)
    brain = None if scan.brain is None else (turn(scan.brain.astype(float), R, 0.0) > 0.5).astype(scan.brain.dtype)
    table = turned_table(scan.table, R)
    return replace(scan, symmetry="turn between voxels", case="any", dwi=dwi, brain=brain, table=table, back=back)


def turned_table(table: GradientTable, R: np.ndarray) -> GradientTable:
    """Return a table whose directions are turned in the world."""
    return GradientTable(table.bvals, table.bvecs @ torch.as_tensor(R).to(table.bvecs).T)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation (3, 3), uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def check_symmetries(
    map_of: Callable[[Mapping[str, str]], np.ndarray],
    scan: Mapping[str, str],
    *,
    turns: int = 23,
    cases: int = 3,
    seed: int = 0,
    shown: bool = False,
) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Map a scan in all of its `forms`, and compare.

    Parameters
    ----------
    map_of : callable
        Such as `MapOfScan`.
    scan : mapping
        From `files.scans.scan_list`.
    turns, cases, seed : int
        See `forms`.
    shown : bool
        Show a bar: a scan is mapped some dozens of times.

    Returns
    -------
    array, shape (C, X, Y, Z)
        The map of the scan as it is.
    list of dict
        A row for each form: symmetry, case, and the largest and mean absolute difference of its map.
    """
    image = nib.load(scan["image"])
    table = read_table(scan, image.affine, volumes=image.shape[3])
    brain = np.asarray(nib.load(scan["brain_mask"]).dataobj) if scan.get("brain_mask") else None
    plain = Form("", "", image.get_fdata(dtype=np.float32), image.affine, table, brain)
    bar = tqdm(
        forms(plain, turns=turns, cases=cases, rng=np.random.default_rng(seed)),
        total=number_of_forms(turns, cases), desc="the scan as it is", disable=not shown,
        bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}",
    )  # fmt: skip
    expected, rows = map_of(scan), []
    for form in bar:
        bar.set_description(f"{form.symmetry} {form.case}".rstrip())
        with tempfile.TemporaryDirectory(prefix="eqdmri-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the scan, which were said before, with names of files that go
            found = form.back(map_of(write_form(form, Path(folder), stem_of(scan["image"]))))
        difference = np.abs(found - expected)
        rows.append({
            "symmetry": form.symmetry, "case": form.case,
            "largest": float(np.nanmax(difference)), "mean": float(np.nanmean(difference)),
        })  # fmt: skip
    return expected, rows


def write_form(form: Form, folder: Path, stem: str) -> dict[str, str]:
    """Write a form of a scan to files, as of `files.scans.scan_list`."""
    files = {"image": str(write_nifti(folder / f"{stem}.nii", form.dwi, form.affine))}
    files["bval"], files["bvec"] = map(str, write_fsl(form.table, form.affine, folder / stem))
    if form.brain is not None:
        files["brain_mask"] = str(write_nifti(folder / f"{stem}_mask.nii", form.brain, form.affine))
    return files


def save_symmetries(
    map_of: Callable[[Mapping[str, str]], np.ndarray],
    scans: Sequence[Mapping[str, str]],
    *,
    folder: str | Path,
    weights: str | Path,
    turns: int = 23,
    cases: int = 3,
    seed: int = 0,
) -> None:
    """Print the table of `check_symmetries`, and write it: ``<scan>_symmetry.csv``, with a record of what was checked.

    Parameters
    ----------
    map_of, turns, cases, seed
        See `check_symmetries`.
    scans : sequence of mapping
        One scan.
    folder : path
        Where the files go.
    weights : path
        Named in the record by their hash.
    """
    (scan,) = scans
    expected, rows = check_symmetries(map_of, scan, turns=turns, cases=cases, seed=seed, shown=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {"weights": weights, "input": scan["image"], **table_files(scan)}
    files |= {"brain_mask": scan["brain_mask"]} if scan.get("brain_mask") else {}
    record = {
        "eqdmri_monai": eqdmri_monai.__version__,
        "input": Path(scan["image"]).name,
        **{f"{key}_sha256": sha256(path) for key, path in files.items()},
        "turns": turns, "cases": cases, "seed": seed,
        "map": {"lowest": float(expected.min()), "highest": float(expected.max()), "deviation": float(expected.std())},
        **circumstances(),
    }  # fmt: skip
    stem = Path(folder) / stem_of(scan["image"])
    with written_whole(f"{stem}_symmetry.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    with written_whole(f"{stem}_symmetry.csv") as part:
        part.write_text(text.getvalue())
    print(table_of_symmetries(rows))
    print(f"the map itself: {expected.min():.3g} to {expected.max():.3g}, deviation {expected.std():.3g}")
    print(f"results are in {stem}_symmetry.csv")


def table_of_symmetries(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the table to print: a line for each symmetry, with its worst case."""
    lines = [f"{'symmetry':<20} {'cases':>5} {'largest':>8} {'mean':>8}  worst"]
    for symmetry, group in groupby(rows, key=lambda row: row["symmetry"]):
        group = list(group)
        worst = max(group, key=lambda row: row["largest"])
        mean = np.mean([row["mean"] for row in group])
        lines.append(f"{symmetry:<20} {len(group):>5} {worst['largest']:>8.1e} {mean:>8.1e}  {worst['case']}".rstrip())
    return "\n".join(lines)

"""Gradient tables in files: FSL's bval and bvec, MRtrix's .b."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from eqdmri_monai.files.nifti import stem_of
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.frames import fsl_to_world, world_to_fsl
from eqdmri_monai.gradients import GradientTable, check_table

MAX_BYTES = 10_000_000  # of a table; one of 1000 volumes has 40 kB


def read_fsl(
    bval: str | Path,
    bvec: str | Path,
    affine: np.ndarray,
    *,
    volumes: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> GradientTable:
    """Read FSL ``bval`` and ``bvec`` files into a table in the world frame.

    Numbers may be parted by blanks, tabs or commas, with any line ends; directions may be rows or columns.

    Parameters
    ----------
    bval, bvec : path
    affine : array, shape (4, 4)
        Original affine of the image that the files came with, mm.
    volumes : int
        Number of volumes of that image.
    warn : callable
        See `check_table`.

    Raises
    ------
    FileNotFoundError
        When a file is missing.
    ValueError
        When a file is not a table of numbers, or `check_table` refuses it.

    Source
    ------
    FSL FDT user guide; see `frames.fsl_to_world` for the frame.
    """
    values, rows = read_numbers(bval).flatten(), read_numbers(bvec)
    if rows.shape[0] == 3 and rows.shape[1] != 3:
        rows = rows.T
    if rows.shape[1] != 3:
        raise ValueError(f"{bvec}: {rows.shape[0]} x {rows.shape[1]} numbers; directions must be 3 rows or 3 columns")
    if len(rows) != len(values):
        raise ValueError(
            f"{bvec}: {len(rows)} directions but {bval} has {len(values)} b-values; they belong to different scans"
        )
    if rows.shape == (3, 3):
        raise ValueError(
            f"{bvec}: 3 directions; rows and columns cannot be told apart, and at least 6 directions are needed"
        )
    bvals = torch.from_numpy(values)
    unit = check_table(bvals, torch.from_numpy(rows), volumes=volumes, name=str(bvec), bval_name=str(bval), warn=warn)
    return GradientTable(bvals, fsl_to_world(unit, torch.as_tensor(np.array(affine))))


def read_mrtrix(
    path: str | Path, *, volumes: int | None = None, warn: Callable[[str], None] = warnings.warn
) -> GradientTable:
    """Read an MRtrix ``.b`` file: one row "x y z b" for each volume, directions in the world frame.

    `volumes` and `warn` are those of `check_table`.

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    ValueError
        When it does not have four columns, or `check_table` refuses it.

    Source
    ------
    MRtrix3 documentation, "Diffusion gradient scheme handling".
    """
    rows = read_numbers(path)
    if rows.shape[1] != 4:
        raise ValueError(f"{path}: {rows.shape[1]} columns; an MRtrix table has 4 (x y z b)")
    bvals = torch.from_numpy(rows[:, 3].copy())
    unit = check_table(bvals, torch.from_numpy(rows[:, :3].copy()), volumes=volumes, name=str(path), warn=warn)
    return GradientTable(bvals, unit)


def read_table(
    scan: Mapping,
    affine: np.ndarray,
    *,
    volumes: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> GradientTable:
    """Read the table of a scan from its `table_files`.

    Parameters
    ----------
    scan : mapping
    affine : array, shape (4, 4)
        Original affine of the image, mm.
    volumes : int
        Number of volumes of the image.
    warn : callable
        See `check_table`.

    Raises
    ------
    FileNotFoundError
        When there is no table.
    ValueError
        When only one of bval and bvec is given, or the table is refused.
    """
    files = table_files(scan)
    if "mrtrix" in files:
        return read_mrtrix(files["mrtrix"], volumes=volumes, warn=warn)
    return read_fsl(files["bval"], files["bvec"], affine, volumes=volumes, warn=warn)


def table_files(scan: Mapping) -> dict[str, Path]:
    """Return where the table of a scan is: in the files that it names, else in files next to the image.

    Parameters
    ----------
    scan : mapping
        ``bval`` and ``bvec``, or ``mrtrix``; else ``image``, whose sidecars are looked for.

    Returns
    -------
    dict
        bval and bvec, or mrtrix.

    Raises
    ------
    FileNotFoundError
        When there is no table.
    ValueError
        When only one of bval and bvec is given.
    """
    if scan.get("mrtrix"):
        return {"mrtrix": Path(scan["mrtrix"])}
    if bool(scan.get("bval")) != bool(scan.get("bvec")):
        raise ValueError(f"{scan.get('image')}: bval and bvec must be given together")
    if scan.get("bval"):
        return {key: Path(scan[key]) for key in ("bval", "bvec")}
    return find_sidecars(scan["image"])


def find_sidecars(image: str | Path) -> dict[str, Path]:
    """Find the table of an image by name: stem.bval + stem.bvec, stem.b, or bvals + bvecs in the same folder.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    image = Path(image)
    stem = image.parent / stem_of(image)
    for bval, bvec in (
        (f"{stem}.bval", f"{stem}.bvec"),
        (f"{stem}.bvals", f"{stem}.bvecs"),
        (image.parent / "bvals", image.parent / "bvecs"),
    ):
        if Path(bval).is_file() and Path(bvec).is_file():
            return {"bval": Path(bval), "bvec": Path(bvec)}
    if Path(f"{stem}.b").is_file():
        return {"mrtrix": Path(f"{stem}.b")}
    raise FileNotFoundError(
        f"{image}: no gradient table; put {stem.name}.bval and {stem.name}.bvec (or {stem.name}.b) next to it"
    )


def read_numbers(path: str | Path) -> np.ndarray:
    """Read a text file of numbers, shape (rows, columns), float64; what follows a # is a comment.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is empty, holds something that is no number, or has rows of different lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name the gradient table of this scan")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are no gradient table; name that of this scan")
    try:
        lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
        words = [line.partition("#")[0].split() for line in lines]
        rows = [[_number(word) for word in line] for line in words if line]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a table of numbers; save it as plain text (UTF-8)") from None
    except ValueError as e:
        raise ValueError(f"{path}: not a table of numbers ({e}); name that of this scan, or correct it") from None
    if not rows:
        raise ValueError(f"{path}: there is no number in it; copy it again")
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(
            f"{path}: {len(rows)} rows of {sorted({len(row) for row in rows})} numbers; rows must be equally long"
        )
    return np.array(rows)


def _number(word: str) -> float:
    if "_" in word:  # which Python's float skips
        raise ValueError(f"{word!r} is no number")
    return float(word)


def write_fsl(table: GradientTable, affine: np.ndarray, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.bval and stem.bvec for an image of this affine; returns both paths."""
    bvecs = world_to_fsl(table.bvecs, torch.as_tensor(np.array(affine)))
    paths = Path(f"{stem}.bval"), Path(f"{stem}.bvec")
    with written_whole(paths[0]) as part:
        part.write_text(" ".join(f"{b:g}" for b in table.bvals.tolist()) + "\n")
    with written_whole(paths[1]) as part:
        part.write_text("\n".join(" ".join(f"{x:.8f}" for x in row) for row in bvecs.T.tolist()) + "\n")
    return paths

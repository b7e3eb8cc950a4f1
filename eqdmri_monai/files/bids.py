"""BIDS folders: the diffusion scans in one, with the tables that they inherit, and names and description of results.

Source: Brain Imaging Data Structure 1.10, "The Inheritance Principle", "Derivatives: Imaging data types".
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import eqdmri_monai
from eqdmri_monai.files.tables import read_numbers
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import B0_THRESHOLD

logger = logging.getLogger(__name__)
VERSION = "1.10.0"  # of BIDS, that the names here follow
PARTS = ("phase", "real", "imag")  # that a scan may be stored in; the rest are magnitudes
# Results that BIDS has no name for.
IGNORED = ("*_report.*", "index.html", "summary.csv")


def bids_scans(folder: str | Path) -> list[dict[str, str]]:
    """List the diffusion scans of a BIDS folder: ``sub-*/[ses-*/]dwi/*_dwi.nii.gz``, in the order of their names.

    Phase, real and imaginary parts, and scans without any weighting, are left out, with a message in the log.

    Parameters
    ----------
    folder : path
        A raw data set, or derivatives such as preprocessed scans.

    Returns
    -------
    list of dict
        As of `scans.scan_list`; bval and bvec are there where the scan has them, itself or from a level above.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When there is no scan in it, or two tables of one level apply to a scan.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the root of a BIDS data set")
    images = [p for session in ("", "ses-*/") for p in root.glob(f"sub-*/{session}dwi/sub-*_dwi.nii*")]
    scans = []
    for image in sorted(p for p in images if p.name.endswith((".nii", ".nii.gz"))):
        tables = {key: inherited(root, image, f".{key}") for key in ("bval", "bvec")}
        scan = {"image": str(image)} | {key: str(path) for key, path in tables.items() if path}
        reason = left_out(image, tables["bval"])
        if reason:
            logger.warning("%s: %s, left out", image.relative_to(root), reason)
        else:
            scans.append(scan)
    if not scans:
        raise ValueError(f"{folder}: no diffusion scan; in BIDS they are sub-*/[ses-*/]dwi/sub-*_dwi.nii.gz")
    return scans


def left_out(image: Path, bval: Path | None) -> str | None:
    """Return why an image is no scan to map; None where it is one, or would say so better itself."""
    part = entities(image.name)[0].get("part")
    if part in PARTS:
        return f"holds the {part} part, not magnitudes"
    try:
        weighted = bval is None or (read_numbers(bval) > B0_THRESHOLD).any()
    except (ValueError, OSError):
        return None
    return None if weighted else "has no volume with diffusion weighting"


def inherited(root: Path, image: Path, extension: str) -> Path | None:
    """Return the file of metadata that applies to an image: that of the lowest level which has one.

    It has the image's suffix, and no entity that the image has not.

    Raises
    ------
    ValueError
        When two of one level apply.
    """
    own, suffix = entities(image.name)
    for level in (p for p in image.parents if p == root or root in p.parents):
        found = []
        for path in sorted(level.glob(f"*{suffix}{extension}")):
            theirs, its_suffix = entities(path.name)
            if its_suffix == suffix and theirs.items() <= own.items():
                found.append(path)
        if len(found) > 1:
            raise ValueError(
                f"{image}: both {found[0].name} and {found[1].name} in {level} apply to it; BIDS allows one at each "
                "level, so rename or move one"
            )
        if found:
            return found[0]
    return None


def entities(name: str) -> tuple[dict[str, str], str]:
    """Return the entities of a file name, and its suffix: sub-1_run-2_dwi.nii.gz has sub, run and dwi."""
    *parts, suffix = name.partition(".")[0].split("_")
    return dict(part.partition("-")[::2] for part in parts), suffix


def derivative_name(path: Path, names: Mapping[str, Mapping[str, str]]) -> Path:
    """Return the name in BIDS of a result: ``sub-1_dwi_lesion.nii.gz`` becomes ``sub-1_desc-lesion_mask.nii.gz``.

    A ``desc`` of the scan makes way for that of the result.

    Parameters
    ----------
    path : Path
        Named after the scan, with "_" and what it is behind that.
    names : mapping
        For each word that says what a result is, its ``name``: entities and suffix.

    Raises
    ------
    ValueError
        When a result has no name.
    """
    stem, dot, extension = path.name.partition(".")
    scan, _, kind = stem.rpartition("_")
    if kind not in names:
        raise ValueError(f"{path.name}: the config says no name of BIDS for {kind!r}; give it one in bids_names")
    kept = [part for part in scan.removesuffix("_dwi").split("_") if not part.startswith("desc-")]
    return path.with_name("_".join([*kept, names[kind]["name"]]) + dot + extension)


def uri(root: str | Path, path: str | Path) -> str:
    """Return the BIDS URI of a file of the data set that `describe_derivatives` calls raw."""
    return f"bids:raw:{Path(os.path.relpath(path, root)).as_posix()}"


def describe_derivatives(folder: str | Path, raw: str | Path | None, *, overwrite: bool = False) -> None:
    """Write ``dataset_description.json``, and ``.bidsignore`` for what BIDS has no name for, to a folder of results.

    Parameters
    ----------
    folder : path
    raw : path
        The BIDS folder that the scans are from; nothing is written where it is None.
    overwrite : bool
        Write it again, where an earlier version of this program did.

    Raises
    ------
    ValueError
        When the folder belongs to another data set.
    """
    if raw is None:
        return
    folder, path = Path(folder), Path(folder) / "dataset_description.json"
    link = Path(os.path.relpath(os.path.realpath(raw), os.path.realpath(folder))).as_posix()
    description = {
        "Name": "Maps of diffusion scans",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "eqdmri_monai", "Version": eqdmri_monai.__version__}],
        "DatasetLinks": {"raw": link},
    }
    if path.is_file() or link == ".":
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            ours = {one["Name"] for one in there["GeneratedBy"]} == {"eqdmri_monai"}
            ours = ours and there["DatasetLinks"] == description["DatasetLinks"] and link != "."
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise ValueError(
                f"{folder}: belongs to another BIDS data set; choose another output folder, such as "
                f"{Path(raw) / 'derivatives' / 'eqdmri_monai'}"
            )
    if overwrite or not path.is_file():
        with written_whole(folder / ".bidsignore") as part:
            part.write_text("\n".join(IGNORED) + "\n", encoding="utf-8")
        with written_whole(path) as part:
            part.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

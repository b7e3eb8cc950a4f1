"""Lists of scans: one from the command line, or many from a JSON file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from eqdmri_monai.files.bids import bids_scans

# Keys of a scan that hold paths; "mrtrix" is a .b file in place of bval and bvec.
PATH_KEYS = ("image", "bval", "bvec", "mrtrix", "brain_mask", "label")


def scan_list(
    dwi: str | None = None,
    datalist: str | None = None,
    section: str = "testing",
    *,
    bids: str | None = None,
    dicom: str | None = None,
    series: int | None = None,
    missing_ok: bool = False,
    **files: str | None,
) -> list[dict]:
    """List scans for a MONAI data set, from one scan's path, a JSON file, a BIDS folder, or DICOM.

    Parameters
    ----------
    dwi : path
        One scan; `files` may name its bval, bvec, mrtrix, brain_mask and label.
    datalist : path
        ``{"training": [{"image": …, "label": …}], "validation": […], "testing": […]}``, where each scan may also name
        bval, bvec, mrtrix and brain_mask. Paths are relative to the JSON file.
    section : str
        Which list to take.
    bids : path
        See `bids.bids_scans`.
    dicom : path
        A folder or archive with one diffusion series; or several, and `series` is the number of the one to take. It is
        converted in a temporary folder that goes when this process ends; see `dicom.dicom_to_scan`.
    series : int
    missing_ok : bool
        Whether files of a list or a BIDS folder may be missing; one scan always has all that are named.

    Returns
    -------
    list of dict
        Absolute paths as str.

    Raises
    ------
    FileNotFoundError
        When a file that is named does not exist.
    ValueError
        When not exactly one of `dwi`, `datalist`, `bids` and `dicom` is given, or `files` of more than one scan; the
        JSON file has not this form; or there is no scan in a BIDS folder or DICOM files.
    """
    if (dwi, datalist, bids, dicom).count(None) != 3:
        raise ValueError(
            "name one scan (--dwi scan.nii.gz, or --dicom folder), or many (--datalist scans.json, or --bids folder)"
        )
    of_one = [key for key, value in files.items() if value]
    if of_one and (datalist or bids):
        raise ValueError(f"{datalist or bids}: --{of_one[0]} belongs to one scan, and here are many; leave it out")
    if dicom is not None:
        from eqdmri_monai.files.dicom import dicom_to_scan, temporary_folder  # needs packages of the extra "dicom"

        masks = {k: str(Path(v).absolute()) for k, v in files.items() if v and k == "brain_mask"}
        return [dicom_to_scan(dicom, temporary_folder(), series=series) | masks]
    if dwi is not None:
        scans = [
            with_paths({"image": dwi, **{k: v for k, v in files.items() if v}}, dwi, "scan", PATH_KEYS, Path.cwd())
        ]
    elif bids is not None:
        scans = bids_scans(bids)
    else:
        scans = listed(datalist, section, "scan", PATH_KEYS)
    source = datalist or bids
    for scan in scans:
        for key, value in scan.items():
            if not Path(value).is_file() and not (missing_ok and source):
                raise FileNotFoundError(f"{value}: no such file ({key} of a scan in {source or 'the command line'})")
    if not scans:
        raise ValueError(f'{datalist}: the list "{section}" is empty')
    return scans


def listed(datalist: str | Path, section: str, kind: str, keys: Sequence[str]) -> list[dict[str, str]]:
    """Read one list of a JSON file, of "scan" or whatever `kind` says; paths are relative to the file.

    Raises
    ------
    FileNotFoundError
        When there is no such JSON file.
    ValueError
        When it has no such list, or an entry is none of `with_paths`.
    """
    path = Path(datalist)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a datalist JSON")
    try:
        items = json.loads(path.read_text())[section]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f'{path}: no list "{section}" in this JSON file ({type(e).__name__}: {e})') from None
    if not isinstance(items, list):
        raise ValueError(f'{path}: "{section}" must be a list of {kind}s, got {items!r}')
    return [with_paths(item, datalist, kind, keys, path.parent) for item in items]


def with_paths(item: object, source: str | Path, kind: str, keys: Sequence[str], folder: Path) -> dict[str, str]:
    """Return an entry with absolute paths; `source` is named where it is no mapping of some of keys to paths."""
    if not isinstance(item, dict) or "image" not in item or set(item) - set(keys):
        rest = ", ".join(keys[1:])
        raise ValueError(f"{source}: a {kind} must be a mapping with image and {rest} where it has them, got {item}")
    odd = [key for key, value in item.items() if not isinstance(value, str | os.PathLike)]
    if odd:
        raise ValueError(f"{source}: {odd[0]} of a {kind} must be a path, got {item[odd[0]]!r}")
    return {key: str((folder / value).absolute()) for key, value in item.items()}


def common_folder(scans: Sequence[Mapping[str, str]], datalist: str | None = None, bids: str | None = None) -> str:
    """Return the folder that names of results start from: that of the list, if all images lie in it, the BIDS folder,
    else the lowest that all lie in.

    Parameters
    ----------
    scans : sequence of dict
        From `scan_list`.
    datalist, bids : path
    """
    if bids:
        return os.path.abspath(bids)
    folders = [os.path.dirname(os.path.normpath(scan["image"])) for scan in scans]
    lowest = os.path.commonpath(folders)
    listed = os.path.dirname(os.path.abspath(datalist)) if datalist else lowest
    return listed if os.path.commonpath([listed, lowest]) == listed else lowest

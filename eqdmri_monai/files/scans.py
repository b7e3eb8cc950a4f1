"""Lists of scans: one from the command line, or many from a JSON file."""

import json
from pathlib import Path

# Keys of a scan that hold paths; "mrtrix" is a .b file in place of bval and bvec.
PATH_KEYS = ("image", "bval", "bvec", "mrtrix", "brain_mask", "label")


def scan_list(
    dwi: str | None = None, datalist: str | None = None, section: str = "testing", **files: str | None
) -> list[dict]:
    """List scans for a MONAI data set, from one scan's path or from a JSON file.

    Parameters
    ----------
    dwi : path
        One scan; `files` may name its bval, bvec, mrtrix, brain_mask and label.
    datalist : path
        ``{"training": [{"image": …, "label": …}], "validation": […], "testing": […]}``, where each scan may also name
        bval, bvec, mrtrix and brain_mask. Paths are relative to the JSON file.
    section : str
        Which list to take.

    Returns
    -------
    list of dict
        Absolute paths as str.

    Raises
    ------
    FileNotFoundError
        When a file that is named does not exist.
    ValueError
        When neither or both of `dwi` and `datalist` are given, or the JSON file has not this form.
    """
    if (dwi is None) == (datalist is None):
        raise ValueError("name either one scan (--dwi scan.nii.gz) or a list of scans (--datalist scans.json)")
    if dwi is not None:
        scans, folder = [{"image": dwi, **{k: v for k, v in files.items() if v}}], Path.cwd()
    else:
        path = Path(datalist)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give a datalist JSON")
        try:
            scans = json.loads(path.read_text())[section]
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f'{path}: no list "{section}" in this JSON file ({type(e).__name__}: {e})') from None
        folder = path.parent
    resolved = []
    for scan in scans:
        if not isinstance(scan, dict) or "image" not in scan or set(scan) - set(PATH_KEYS):
            raise ValueError(
                f"{datalist or dwi}: a scan must be a mapping with image and any of {PATH_KEYS[1:]}, got {scan}"
            )
        scan = {key: str((folder / value).absolute()) for key, value in scan.items()}
        for key, value in scan.items():
            if not Path(value).is_file():
                raise FileNotFoundError(f"{value}: no such file ({key} of a scan in {datalist or 'the command line'})")
        resolved.append(scan)
    if not resolved:
        raise ValueError(f'{datalist}: the list "{section}" is empty')
    return resolved

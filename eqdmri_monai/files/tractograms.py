"""Tractograms: .trk, .tck and .trx in, world mm; .trx out, with groups and numbers of each streamline added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.streamlines import ArraySequence
from nibabel.streamlines.tractogram_file import DataError, HeaderError
from torch import Tensor
from trx import trx_file_memmap

from eqdmri_monai.files.scans import listed, with_paths
from eqdmri_monai.files.writing import written_whole

SUFFIXES = ".trk", ".tck", ".trx"
DAMAGED = OSError, ValueError, KeyError, IndexError, BadZipFile, HeaderError, DataError, ImageFileError
MARGIN = 1.0  # voxels that streamlines may leave the volume by: half a voxel of the grid's edge, and rounding


@dataclass(frozen=True)
class Tractogram:
    """What a tractogram's file holds, in memory.

    Parameters
    ----------
    streamlines : ArraySequence
        World mm.
    affine : array, shape (4, 4)
        Of the volume that they lie in.
    dimensions : array, shape (3,)
        Voxels of that volume.
    groups : mapping of str to array of int
        Indices of streamlines.
    per_streamline : mapping of str to array, shape (S, ...)
    per_point : mapping of str to ArraySequence
    per_group : mapping of str to mapping of str to array
    """

    streamlines: ArraySequence
    affine: np.ndarray
    dimensions: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_streamline: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_point: Mapping[str, ArraySequence] = field(default_factory=dict)
    per_group: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def read_tractogram(path: str | Path, reference: str | Path | None = None) -> Tractogram:
    """Read a tractogram into world coordinates.

    Parameters
    ----------
    path : path
        .trk, .tck or .trx.
    reference : path
        Image whose grid a .tck lies in, which has none of its own; for others in place of theirs.

    Returns
    -------
    Tractogram

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is none of these or damaged, a .tck has no reference, there is no streamline, a point is not
        finite, or streamlines lie outside the volume.
    """
    path = Path(path)
    for file in (path, *([Path(reference)] if reference else [])):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a tractogram must be {', '.join(SUFFIXES)}; convert it first")
    if path.suffix == ".tck" and reference is None:
        raise ValueError(f"{path}: a .tck does not say which volume it lies in; name an image of the scan as reference")
    try:
        grid = None
        if reference:
            image = nib.load(reference)
            grid = image.affine, np.array(image.shape[:3])
        tractogram = _read_trx(path, grid) if path.suffix == ".trx" else _read_nibabel(path, grid)
    except DAMAGED as e:
        raise ValueError(f"{path}: cannot be read as a tractogram ({type(e).__name__}: {e}); export it again") from None
    check_tractogram(tractogram, path)
    return tractogram


def _read_trx(path: Path, grid: tuple[np.ndarray, np.ndarray] | None) -> Tractogram:
    trx = trx_file_memmap.load(str(path))
    try:
        copy = lambda sequence: ArraySequence(np.array(a) for a in sequence)  # noqa: E731
        return Tractogram(
            copy(trx.streamlines),
            *(grid or (np.array(trx.header["VOXEL_TO_RASMM"], float), np.array(trx.header["DIMENSIONS"]))),
            groups={name: np.array(members) for name, members in trx.groups.items()},
            per_streamline={name: np.array(values) for name, values in trx.data_per_streamline.items()},
            per_point={name: copy(values) for name, values in trx.data_per_vertex.items()},
            per_group={name: {k: np.array(v) for k, v in d.items()} for name, d in trx.data_per_group.items()},
        )
    finally:
        trx.close()


def _read_nibabel(path: Path, grid: tuple[np.ndarray, np.ndarray] | None) -> Tractogram:
    file = nib.streamlines.load(path)
    return Tractogram(
        file.streamlines,
        *(grid or (np.array(file.header["voxel_to_rasmm"], float), np.array(file.header["dimensions"]))),
        per_streamline=dict(file.tractogram.data_per_streamline),
        per_point=dict(file.tractogram.data_per_point),
    )


def tractogram_list(
    tractogram: str | None = None,
    datalist: str | None = None,
    section: str = "testing",
    *,
    reference: str | None = None,
    apart_from: str | None = None,
) -> list[dict[str, str]]:
    """List tractograms for a MONAI data set, from one's path or from a JSON file.

    Parameters
    ----------
    tractogram : path
        One, whose `reference` may be named.
    datalist : path
        ``{"training": [{"image": …}], "validation": […], "testing": […]}``, each with a reference where it needs one.
        Paths are relative to the JSON file.
    section : str
        Which list to take.
    apart_from : str
        Another list of the file, which must have no tractogram in common with it.

    Returns
    -------
    list of dict
        Absolute paths as str.

    Raises
    ------
    FileNotFoundError
        When a file that is named does not exist.
    ValueError
        When not exactly one of tractogram and datalist is given, the JSON file has not this form, or a tractogram is in
        both lists.
    """
    if (tractogram is None) == (datalist is None):
        raise ValueError("name one tractogram (--tractogram whole.trk), or a list (--datalist tractograms.json)")
    keys = "image", "reference"
    if tractogram is not None:
        item = {"image": tractogram, **({"reference": reference} if reference else {})}
        resolved = {section: [with_paths(item, tractogram, "tractogram", keys, Path.cwd())]}
    else:
        names = [name for name in (section, apart_from) if name is not None]
        resolved = {name: listed(datalist, name, "tractogram", keys) for name in names}
    both = {item["image"] for item in resolved[section]} & {item["image"] for item in resolved.get(apart_from, [])}
    if both:
        raise ValueError(f"{sorted(both)[0]}: in both lists, {section} and {apart_from}, of {datalist}; remove one")
    for value in (value for item in resolved[section] for value in item.values()):
        if not Path(value).is_file():
            raise FileNotFoundError(f"{value}: no such file (in {datalist or 'the command line'})")
    if not resolved[section]:
        raise ValueError(f'{datalist}: the list "{section}" is empty')
    return resolved[section]


def check_tractogram(tractogram: Tractogram, path: str | Path) -> None:
    """Refuse a tractogram without streamlines, with points that are not finite, or outside its volume."""
    if not len(tractogram.streamlines):
        raise ValueError(f"{path}: no streamlines")
    points = np.asarray(tractogram.streamlines._data, dtype=np.float64)
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: {int((~np.isfinite(points)).any(1).sum())} points are not finite; repair the file")
    affine, size = tractogram.affine, np.asarray(tractogram.dimensions, float)
    if (size <= 1).all():
        raise ValueError(f"{path}: its header names no volume (1 × 1 × 1 voxels); name an image as reference")
    voxel = apply_affine(np.linalg.inv(affine), points)
    outside = ((voxel < -MARGIN) | (voxel > size - 1 + MARGIN)).any(1)
    if outside.any():
        as_voxels = ((points >= -MARGIN) & (points <= size - 1 + MARGIN)).all()
        hint = "they look like voxel coordinates; save the file in mm" if as_voxels else "name the image of this scan"
        raise ValueError(f"{path}: {outside.mean():.0%} of the points lie outside the volume; {hint}")


def bundle_labels(tractogram: Tractogram, names: Sequence[str], path: str | Path, *, other: bool = True) -> Tensor:
    """Return the label of each streamline: the place of its group in `names`, or len(names) where it is in none.

    Parameters
    ----------
    tractogram : Tractogram
    names : sequence of str
        Bundles.
    path : path
        For messages.
    other : bool
        Let streamlines be in no group.

    Returns
    -------
    Tensor, shape (S,), int64

    Raises
    ------
    ValueError
        When names repeat, there are no groups or unknown ones, a streamline is in two, or, without `other`, in none.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"names of bundles must differ, got {list(names)}")
    if not tractogram.groups:
        raise ValueError(f"{path}: no groups to learn from; save each bundle as a group of a .trx")
    unknown = sorted(set(tractogram.groups) - set(names))
    if unknown:
        raise ValueError(f"{path}: group {unknown[0]} is none of the bundles {', '.join(names)}; rename or remove it")
    label = np.full(len(tractogram.streamlines), len(names))
    for name, members in tractogram.groups.items():
        if (label[members] != len(names)).any():
            raise ValueError(f"{path}: {int((label[members] != len(names)).sum())} streamlines of group {name} are in "
                             "another group as well; each must be in one")  # fmt: skip
        label[members] = list(names).index(name)
    if not other and (label == len(names)).any():
        raise ValueError(f"{path}: {int((label == len(names)).sum())} streamlines are in no group; add one for them")
    return torch.from_numpy(label)


def write_trx(
    path: str | Path,
    tractogram: Tractogram,
    *,
    groups: Mapping[str, np.ndarray],
    per_streamline: Mapping[str, np.ndarray],
) -> None:
    """Write a tractogram as .trx with more groups and more numbers of each streamline; all it has is kept as it is.

    Parameters
    ----------
    path : path
    tractogram : Tractogram
    groups : mapping of str to array of int
        Indices of streamlines.
    per_streamline : mapping of str to array, shape (S,)

    Raises
    ------
    ValueError
        When it has a group or numbers of such a name already.
    """
    taken = sorted((set(groups) & set(tractogram.groups)) | (set(per_streamline) & set(tractogram.per_streamline)))
    if taken:
        raise ValueError(f"{path}: the tractogram has {taken[0]} already; name another prefix (--prefix new_)")
    lines = tractogram.streamlines
    out = trx_file_memmap.TrxFile(len(lines.get_data()), len(lines))
    out.header["VOXEL_TO_RASMM"] = np.float32(tractogram.affine)
    out.header["DIMENSIONS"] = np.uint16(tractogram.dimensions)
    ends = np.cumsum([0, *(len(s) for s in lines)])
    out.streamlines._data = np.float32(lines.get_data())
    out.streamlines._offsets = np.uint32(ends[:-1])
    out.streamlines._lengths = np.uint32(ends[1:] - ends[:-1])
    out.data_per_vertex = dict(tractogram.per_point)
    out.data_per_streamline = dict(tractogram.per_streamline)
    out.data_per_streamline |= {name: np.float32(values)[:, None] for name, values in per_streamline.items()}
    out.groups = {**tractogram.groups, **{n: np.uint32(members) for n, members in groups.items() if len(members)}}
    out.data_per_group = {name: dict(values) for name, values in tractogram.per_group.items()}
    try:
        with written_whole(path) as part:
            trx_file_memmap.save(out, str(part))
    finally:
        out.close()

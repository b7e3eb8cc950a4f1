"""A scan on its way in and to the network: check its files, read its gradient table, write q.

The table travels in ``image.meta["gradients"]`` (rows x y z b, world frame, one for each volume of the image), where it
stays right under every transform that keeps the affine right. The last step, `WriteQd`, makes q-vectors of it along the
axes of the array as it is then. ``image.meta["file_gradients"]`` keeps those of all volumes of the file, when some were
averaged or left out since.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from eqdmri_monai.files.nifti import check_nifti, same_grid
from eqdmri_monai.files.tables import read_table, table_files
from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.gradients import B_UNIT, SHELL_WIDTH, GradientTable, shells


def file_of(image: torch.Tensor) -> str:
    """Name of the file that an image came from, for messages."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", "image"))


def table_of(image: MetaTensor) -> GradientTable:
    """Return the gradient table of an image: one row for each of its volumes, world frame, float64.

    Raises
    ------
    ValueError
        When the image has none, or not one row for each volume.
    """
    rows = getattr(image, "meta", {}).get("gradients")
    if rows is None:
        raise ValueError(f"{file_of(image)}: no gradient table; use LoadGradientsd after LoadImaged")
    if len(rows) != image.shape[0]:
        raise ValueError(
            f"{file_of(image)}: a gradient table of {len(rows)} rows for {image.shape[0]} volumes; was a volume "
            "dropped by hand?"
        )
    return GradientTable.from_rows(rows)


def with_volumes(image: MetaTensor, volumes: torch.Tensor, table: GradientTable | None = None) -> MetaTensor:
    """Return other volumes on the grid of an image, with its history and their own table (none for a mask)."""
    plain = volumes.as_tensor() if isinstance(volumes, MetaTensor) else volumes
    meta = {key: value for key, value in image.meta.items() if key != "gradients"}
    if table is not None:
        meta["gradients"] = table.rows.numpy()
    return MetaTensor(plain, meta=meta, applied_operations=list(image.applied_operations))


def warn_of(image: MetaTensor, sentence: str) -> None:
    """Warn, and keep the sentence, without names of folders, for the report: ``image.meta["warnings"]``, one a line."""
    warnings.warn(sentence, stacklevel=3)
    file, colon, said = sentence.partition(": ")
    kept = f"{Path(file).name}{colon}{said}"
    image.meta["warnings"] = "\n".join(filter(None, (image.meta.get("warnings"), kept)))


class CheckScand(MapTransform):
    """Check files before they are loaded; items that are no paths pass.

    Parameters
    ----------
    keys : keys
        The diffusion scan (4D) first, then masks (3D), which must have its grid.

    Raises
    ------
    FileNotFoundError, ValueError
        See `files.nifti.check_nifti`; besides, when a mask lies on another grid.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        grid = None
        for key in self.key_iterator(dict(data)):
            if not isinstance(data[key], str | Path):
                continue
            shape, affine = check_nifti(data[key], ndim=4 if key == self.keys[0] else 3)
            if key == self.keys[0]:
                grid = shape[:3], affine, data[key]
            elif grid and not same_grid(shape, affine, *grid[:2]):
                raise ValueError(
                    f"{data[key]}: another grid than {grid[2]} (shape {shape} against {grid[0]}); resample it "
                    f"to the scan"
                )
        return dict(data)


class LoadGradientsd(MapTransform):
    """Read the gradient table of a loaded scan into ``image.meta["gradients"]``.

    The table is named by ``data["bval"]`` and ``data["bvec"]``, or ``data["mrtrix"]``, or lies next to the image. An
    image that has ``meta["gradients"]`` already keeps it.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) as `LoadImaged` gives them with ``ensure_channel_first``.
    shells : float or sequence of float
        b-values in s/mm² that every scan must have, within the width of a shell; any scan will do where left out.
    q_max : float
        sqrt(b / 1000) of the strongest weighting that the network is made for, where it has a bound.

    Raises
    ------
    FileNotFoundError, ValueError
        See `files.tables.read_table`; besides, when `shells` are no numbers, a shell is missing or beyond `q_max`,
        or directions are in the scanner's frame but the header does not say how the scan lies in it.

    Warns
    -----
    UserWarning
        See `gradients.check_table`; besides, when the header does not say how the scan lies in the scanner.
    """

    def __init__(
        self, keys: KeysCollection, shells: float | Sequence[float] | None = None, *, q_max: float | None = None
    ):
        super().__init__(keys)
        self.q_max = q_max
        try:
            self.shells = () if shells is None else tuple(float(b) for b in ensure_tuple(shells))
        except (TypeError, ValueError):
            raise ValueError(f"shells must be b-values in s/mm², such as [1000, 2000], not {shells!r}") from None

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with the table in the images' meta, as a numpy array (Q, 4)."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if "gradients" not in image.meta:
                image.meta["gradients"] = self._read(d, image).rows.numpy()
            self._check_b(image)
            image.meta["file_gradients"] = image.meta["gradients"]
        return d

    def _read(self, data: Mapping[Hashable, object], image: MetaTensor) -> GradientTable:
        scan = {name: data.get(name) for name in ("bval", "bvec", "mrtrix")} | {"image": file_of(image)}
        if int(image.meta.get("sform_code", 1)) == int(image.meta.get("qform_code", 1)) == 0:
            if "mrtrix" in table_files(scan):
                raise ValueError(
                    f"{file_of(image)}: the header does not say how the scan lies in the scanner (sform_code and "
                    "qform_code are 0), which directions of MRtrix need; use bval and bvec, or convert it again"
                )
            warn_of(
                image,
                f"{file_of(image)}: the header does not say how the scan lies in the scanner (sform_code and "
                "qform_code are 0); it is read as FSL does (x leftwards), so its map may have left and right exchanged",
            )
        affine, warn = np.asarray(image.meta["original_affine"]), partial(warn_of, image)
        return read_table(scan, affine, volumes=image.shape[0], warn=warn)

    def _check_b(self, image: MetaTensor) -> None:
        bvals = table_of(image).bvals
        shell = shells(bvals)
        present = torch.stack([bvals[shell == s].mean() for s in shell.unique()])
        for b in self.shells:
            if (present - b).abs().min() > max(SHELL_WIDTH[0], SHELL_WIDTH[1] * b):
                found = ", ".join(f"{value:.0f}" for value in present)
                raise ValueError(
                    f"{file_of(image)}: no shell of b = {b:g} s/mm², only {found}; use a scan that has it, or "
                    "take it out of the option shells"
                )
        if self.q_max and present.max() > (1 + SHELL_WIDTH[1]) * B_UNIT * self.q_max**2:
            raise ValueError(
                f"{file_of(image)}: b is up to {present.max():.0f} s/mm², and the network is made for "
                f"{B_UNIT * self.q_max**2:.0f} at most (q_max); leave these volumes out of scan and table"
            )


class WriteQd(MapTransform):
    """Write the q-vectors along the axes of the array as it is now; the last transform before the network.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z).
    q_key : str
        Where q (Q, 3), float32, goes.
    """

    def __init__(self, keys: KeysCollection, q_key: str = "q"):
        super().__init__(keys)
        self.q_key = q_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with q.

        Raises
        ------
        ValueError
            When the array is stored left-handed: the networks are not equivariant under mirrors.
        """
        d = dict(data)
        image = d[self.keys[0]]
        if torch.linalg.det(image.affine[:3, :3]) < 0:
            raise ValueError(
                f'{file_of(image)}: voxel axes are left-handed here; put ResampleRASd or Orientationd(axcodes="RAS") '
                "before WriteQd"
            )
        d[self.q_key] = world_to_voxel(table_of(image).q, image.affine).to(torch.float32)
        return d

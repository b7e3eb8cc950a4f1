"""The page beside a lesion map, one HTML file that opens from disk and needs no network; and an index of all pages.

The browser gets b0, FA, colour FA, probability, lesions and brain as bytes, all in RAS, and draws the planes itself.
"""

import base64
import gzip
import html
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from monai.config import KeysCollection
from monai.data import FolderLayout
from monai.transforms import MapTransform, Transform

from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable, shells
from eqdmri_monai.metrics import lesions
from eqdmri_monai.transforms.scan import file_of


def write_page(
    path: str | Path,
    dwi: np.ndarray,
    table: GradientTable,
    affine: np.ndarray,
    probability: np.ndarray,
    brain: np.ndarray,
    *,
    threshold: float,
    record: Mapping[str, object],
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page of one scan.

    Parameters
    ----------
    path : path
    dwi : array, shape (X, Y, Z, Q)
    table : GradientTable
        Of the Q volumes.
    affine : array, shape (4, 4)
        mm.
    probability, brain : array, shape (X, Y, Z)
    threshold : float
        Of the probability, for what is listed as lesion.
    record : mapping
        Shown as it is; see `record.SaveRecordd`.
    warnings : sequence of str
        Shown on top.

    Returns
    -------
    Path
    """
    orientation = nib.orientations.io_orientation(affine)
    turn = lambda a: nib.orientations.apply_orientation(a, orientation)  # noqa: E731
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, dwi.shape[:3])
    dwi, probability, brain = turn(dwi), turn(probability), turn(brain) > 0.5
    fit = TensorModel(gradient_table(table.bvals.numpy(), bvecs=table.bvecs.numpy())).fit(dwi, mask=brain)
    fa = np.nan_to_num(np.clip(fit.fa, 0, 1))
    b0 = dwi[..., table.b0_mask.numpy()].mean(-1)
    lesion = (probability >= threshold) & brain
    found = _lesions(lesion, probability, abs(np.linalg.det(affine[:3, :3])) * 1e-3)
    volumes = {
        "b0": b0 / max(np.percentile(b0[brain], 99.5), 1e-6),
        "fa": fa,
        "colour": np.moveaxis(np.abs(fit.evecs[..., 0]) * fa[..., None], -1, 0),  # Pajevic and Pierpaoli 1999
        "probability": probability,
        "lesion": lesion,
        "brain": brain,
    }
    start = found[0]["voxel"] if found else np.round(np.argwhere(brain).mean(0)).astype(int).tolist()
    page = {
        "shape": brain.shape,
        "spacing": nib.affines.voxel_sizes(affine).round(4).tolist(),
        "affine": affine.round(5).tolist(),
        "start": start,
        "volumes": {name: _packed(volume) for name, volume in volumes.items()},
        "lesions": found,
        "shells": _shells(table),
        "record": dict(record),
        "warnings": list(warnings),
    }
    total = sum(one["ml"] for one in found)
    summary = (
        f"{len(found)} lesions, {total:.2f} ml above a probability of {threshold:g}, in a brain of "
        f"{brain.sum() * abs(np.linalg.det(affine[:3, :3])) * 1e-3:.0f} ml."
    )
    title = f"Lesion map of {record.get('input', 'a scan')}"
    _write(path, "page.html", title=html.escape(title), summary=html.escape(summary), data=_json(page))
    return Path(path)


def _lesions(lesion: np.ndarray, probability: np.ndarray, ml: float) -> list[dict[str, object]]:
    """List lesions, the largest first; each is shown at its most probable voxel."""
    labels, count = lesions(lesion)
    found = []
    for k in range(1, count + 1):
        voxels = np.argwhere(labels == k)
        p = probability[tuple(voxels.T)]
        found.append(
            {
                "ml": round(len(voxels) * ml, 4),
                "highest": round(float(p.max()), 4),
                "mean": round(float(p.mean()), 4),
                "voxel": voxels[int(p.argmax())].tolist(),
            }
        )
    return sorted(found, key=lambda one: -one["ml"])


def _shells(table: GradientTable) -> list[dict[str, object]]:
    index = shells(table.bvals)
    return [
        {
            "b": round(float(table.bvals[index == s].mean())),
            "directions": table.bvecs[index == s].numpy().round(4).tolist(),
        }
        for s in index.unique()
        if not table.b0_mask[index == s].all()
    ]


def _packed(volume: np.ndarray) -> str:
    """Bytes 0 to 255 of 0 to 1, x fastest (colours before x), compressed, as text."""
    values = np.round(255 * np.clip(np.nan_to_num(volume), 0, 1)).astype(np.uint8)
    return base64.b64encode(gzip.compress(values.tobytes(order="F"), compresslevel=6, mtime=0)).decode("ascii")


def _json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _write(path: str | Path, template: str, **parts: str) -> None:
    text = resources.files("eqdmri_monai.report").joinpath(template).read_text(encoding="utf-8")
    # One pass, so that no part is searched for the names of the others.
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text)
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")


def write_index(folder: str | Path) -> Path:
    """Write index.html, a table of all scans in a folder and those below it that have a record (``*_report.json``).

    Several processes may do so at once: each looks again after it wrote, until nothing is new.

    Returns
    -------
    Path
    """
    folder = Path(folder)
    path, seen = folder / "index.html", None
    while seen != (records := _records(folder)):
        seen = records
        _write(path, "index.html", data=_json([_row(record, folder) for record in records]))
    return path


def _records(folder: Path) -> list[Path]:
    """List what is in place, not what a process is writing (`files.writing.part_of`)."""
    records = sorted(folder.rglob("*_report.json"))
    return [path for path in records if not path.relative_to(folder).parts[0].startswith((".part-", ".done-"))]


def _row(path: Path, folder: Path) -> dict[str, object]:
    record = json.loads(path.read_text(encoding="utf-8"))
    page = path.with_suffix(".html")
    b = record.get("volumes_per_b_value", {})
    return {
        "scan": str(path.relative_to(folder)).removesuffix("_report.json"),
        "page": page.relative_to(folder).as_posix() if page.exists() else None,
        "volumes": sum(b.values()),
        "b": " ".join(b),
        "warnings": len(record.get("warnings", ())),
        **{key: record.get(key) for key in ("lesions", "lesion_ml", "brain_ml", "seconds", "finished")},
    }


class SavePaged(MapTransform):
    """Write a page beside each probability map.

    Parameters
    ----------
    keys : keys
        One probability map (1, X, Y, Z) on the scan's own grid; the data must also hold ``image`` and ``brain_mask``.
    output_dir, data_root_dir : path
        As in `SaveImaged`; the record that is shown is the one that `SaveRecordd` wrote there.
    threshold : float
        What is listed as lesion.
    """

    def __init__(self, keys: KeysCollection, *, output_dir: str, data_root_dir: str, threshold: float):
        super().__init__(keys)
        self.output_dir, self.data_root_dir, self.threshold = output_dir, data_root_dir, threshold

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        source = file_of(data["image"])
        record = json.loads(self._path(source, "json").read_text(encoding="utf-8"))
        scan = nib.load(source)
        write_page(
            self._path(source, "html"),
            np.asarray(scan.dataobj, dtype=np.float32),
            GradientTable.from_rows(data["image"].meta["file_gradients"]),
            scan.affine,
            data[self.keys[0]][0].numpy(),
            data["brain_mask"][0].numpy(),
            threshold=self.threshold,
            record=record,
            warnings=record.get("warnings", ()),
        )
        return dict(data)

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the path of a scan's page."""
        return [self._path(scan["image"], "html")]

    def _path(self, source: str, extension: str) -> Path:
        layout = FolderLayout(
            self.output_dir, "report", extension, parent=False, makedirs=False, data_root_dir=self.data_root_dir
        )
        return Path(layout.filename(source))


class SaveIndex(Transform):
    """Write the index of all pages in a folder, once those of a scan are in place."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, data: Mapping[Hashable, object]) -> Mapping[Hashable, object]:
        """Return data unchanged."""
        write_index(self.folder)
        return data

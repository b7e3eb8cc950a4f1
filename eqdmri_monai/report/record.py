"""The record beside maps: how they were made, and whether they would be the same again."""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data.utils import create_file_basename
from monai.transforms import MapTransform

import eqdmri_monai
from eqdmri_monai.files.tables import table_files
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable, shells
from eqdmri_monai.transforms.scan import file_of

PACKAGES = ("torch", "monai", "e3nn", "dipy", "nibabel", "numpy", "trx-python")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def circumstances(start: float | None = None) -> dict[str, object]:
    """Return what ends every record: versions, when, how long since `start` (s, of `time.monotonic`), and what for."""
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({} if start is None else {"seconds": round(time.monotonic() - start, 1)}),
        "use": "research only, not for diagnosis",
    }


def write_record(
    path: str | Path, inputs: Sequence[str | Path], *, weights: str | Path, settings: Mapping[str, object]
) -> None:
    """Write the record of something made of several files, such as an evaluation.

    Parameters
    ----------
    path : path
    inputs : sequence of path
        Named by their hashes, in this order, and not by their names, which may be a patient's.
    weights : path
    settings : mapping
    """
    record = {
        "eqdmri_monai": eqdmri_monai.__version__,
        "weights_sha256": sha256(weights),
        "inputs_sha256": [sha256(path) for path in inputs],
        **settings,
        **circumstances(),
    }
    with written_whole(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


class SaveRecordd(MapTransform):
    """Write a record (JSON) beside the maps of a scan; before them, so that none is without one.

    Parameters
    ----------
    keys : keys
        The scan as it was read; the data must also hold ``brain_mask``, on the scan's own grid.
    output_dir, data_root_dir : path
        As in `SaveImaged`.
    weights : path
        Named in the record by its hash.
    settings : mapping
        What else decides a map.
    details : mapping
        What else the record says, of no weight for a map, such as windows that give the result of one pass.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_dir: str,
        data_root_dir: str,
        weights: str,
        settings: Mapping[str, object],
        details: Mapping[str, object],
    ):
        super().__init__(keys)
        self.output_dir, self.data_root_dir = output_dir, data_root_dir
        self.weights, self.settings, self.details = weights, dict(settings), dict(details)
        self.begin()

    def begin(self) -> None:
        """Count a scan's seconds from now."""
        self.start = time.monotonic()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        self.write(data, {})
        return dict(data)

    def write(self, data: Mapping[Hashable, object], measured: Mapping[str, object]) -> None:
        """Write the record, with what was measured in the maps."""
        image, mask = data[self.keys[0]], data["brain_mask"]
        source, made_of = file_of(image), mask.meta["made_of"]
        table = GradientTable.from_rows(image.meta["file_gradients"])
        shell = shells(table.bvals)
        files = {key: data.get(key) for key in ("bval", "bvec", "mrtrix")} | {"image": source, "brain_mask": made_of}
        record = {
            **self.identity(files),
            **self.details,
            "volumes_per_b_value": {
                f"{float(table.bvals[shell == s].mean()):.0f}": int((shell == s).sum()) for s in shell.unique()
            },
            **measured,
            "brain_mask": "given" if made_of else "median_otsu",
            "brain_ml": round(float((mask[0].numpy() > 0.5).sum()) * ml_of_voxel(source), 1),
            "warnings": image.meta.get("warnings", "").splitlines(),
            **circumstances(self.start),
        }
        (path,) = self.outputs({"image": source})
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the path of a scan's record."""
        stem = create_file_basename("report", scan["image"], self.output_dir, self.data_root_dir, False, makedirs=False)
        return [Path(f"{stem}.json")]

    def identity(self, scan: Mapping[str, str | None]) -> dict[str, object]:
        """Return what decides a map: version, settings, and hashes of the weights and of all files of the scan.

        Two scans, or two runs, that agree in this have the same maps.
        """
        files = {"input": scan["image"], **table_files(scan), "brain_mask": scan.get("brain_mask")}
        return {
            "eqdmri_monai": eqdmri_monai.__version__,
            "weights_sha256": sha256(self.weights),
            "input": Path(scan["image"]).name,
            **{f"{key}_sha256": sha256(path) for key, path in files.items() if path},
            **self.settings,
        }


def ml_of_voxel(path: str | Path) -> float:
    """Return the volume of a voxel of a file, ml."""
    return float(abs(np.linalg.det(nib.load(path).affine[:3, :3]))) * 1e-3


class SavePictured(MapTransform):
    """What writes a record and, beside it, a picture of the same name; what is in both is the subclass's.

    Parameters
    ----------
    keys : keys
    record : SaveRecordd
        Writes the record.
    """

    def __init__(self, keys: KeysCollection, *, record: SaveRecordd):
        super().__init__(keys)
        self.record = record

    def begin(self) -> None:
        """Count a scan's seconds from now."""
        self.record.begin()

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the paths of a scan's record and picture."""
        (path,) = self.record.outputs(scan)
        return [path, path.with_suffix(".png")]

    def identity(self, scan: Mapping[str, str | None]) -> dict[str, object]:
        """Return what decides a map; see `SaveRecordd.identity`."""
        return self.record.identity(scan)

"""The record beside a lesion map: how it was made, and what it measures."""

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Hashable, Mapping
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
from eqdmri_monai.metrics import lesions
from eqdmri_monai.report.picture import picture
from eqdmri_monai.transforms.scan import file_of

PACKAGES = ("torch", "monai", "e3nn", "dipy", "nibabel", "numpy")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class SaveReportd(MapTransform):
    """Write a record (JSON) and a picture beside each probability map; before the maps, so that none is without one.

    Parameters
    ----------
    keys : keys
        One probability map (1, X, Y, Z), on the scan's own grid; the data must also hold ``image`` and ``brain_mask``.
    output_dir, data_root_dir : path
        As in `SaveImaged`.
    weights : path
        Named in the record by its hash.
    settings : mapping
        What else decides a map, for the record; of these ``threshold`` is what was counted as lesion.
    details : mapping
        What else the record says, of no weight for the map, such as windows that give the result of one pass.

    Raises
    ------
    ValueError
        When the threshold is no probability, or 0, which would make all that is outside the brain a lesion.
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
        if not 0 < self.settings["threshold"] <= 1:
            raise ValueError(f"threshold must be a probability above 0, such as 0.5, not {self.settings['threshold']}")
        self.start = time.monotonic()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        probability, source = data[self.keys[0]], file_of(data["image"])
        scan = nib.load(source)
        table = GradientTable.from_rows(data["image"].meta["file_gradients"])
        lesion = (probability[0] >= self.settings["threshold"]).numpy()
        brain = data["brain_mask"][0].numpy() > 0.5
        shell = shells(table.bvals)
        litres = abs(np.linalg.det(scan.affine[:3, :3])) * 1e-6
        mask = data["brain_mask"].meta["made_of"]
        files = {key: data.get(key) for key in ("bval", "bvec", "mrtrix")} | {"image": source, "brain_mask": mask}
        record = self.identity(files) | self.details
        record |= {
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "volumes_per_b_value": {
                f"{float(table.bvals[shell == s].mean()):.0f}": int((shell == s).sum()) for s in shell.unique()
            },
            "lesion_ml": round(1000 * litres * float(lesion.sum()), 3),
            "lesions": lesions(lesion)[1],
            "brain_mask": "given" if mask else "median_otsu",
            "brain_ml": round(1000 * litres * float(brain.sum()), 1),
            "warnings": data["image"].meta.get("warnings", "").splitlines(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.monotonic() - self.start, 1),
            "use": "research only, not for diagnosis",
        }
        report, png = self.outputs({"image": source})
        report.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(report) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
        picture(png, np.asarray(scan.dataobj, dtype=np.float32), table, scan.affine, probability[0].numpy(), brain)
        self.start = time.monotonic()
        return dict(data)

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the paths of a scan's record and picture."""
        stem = create_file_basename("report", scan["image"], self.output_dir, self.data_root_dir, False, makedirs=False)
        return [Path(f"{stem}.{kind}") for kind in ("json", "png")]

    def identity(self, scan: Mapping[str, str | None]) -> dict[str, object]:
        """Return what decides a map: version, settings, and hashes of the weights and of all files of the scan.

        Two scans, or two runs, that agree in this have the same map.
        """
        files = {"input": scan["image"], **table_files(scan), "brain_mask": scan.get("brain_mask")}
        return {
            "eqdmri_monai": eqdmri_monai.__version__,
            "weights_sha256": sha256(self.weights),
            "input": Path(scan["image"]).name,
            **{f"{key}_sha256": sha256(path) for key, path in files.items() if path},
            **self.settings,
        }

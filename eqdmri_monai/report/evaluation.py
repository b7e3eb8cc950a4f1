"""What an evaluation leaves: a table with a row for each scan, and a picture of each with drawn lesions in outline."""

import csv
import os
from pathlib import Path

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events

from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.metrics import scan_scores
from eqdmri_monai.report.picture import picture
from eqdmri_monai.transforms.scan import file_of


class SaveScores:
    """Compare each lesion map with the lesions drawn by hand, as soon as there is one.

    In `output_dir` there is then a picture of each scan, ``…_evaluation.png``, and at the end ``scan_metrics.csv``: a
    row for each scan with what `metrics.scan_scores` gives, empty where it is not defined. Volumes of all scans
    together are added to the engine's metrics, as ``val_true_ml`` and ``val_predicted_ml``.

    Parameters
    ----------
    output_dir : path
    data_root_dir : path
        Folder of all scans; they are named by their paths from there.
    threshold : float
        Of the probability: lesion where it is that or more.
    """

    def __init__(self, output_dir: str | Path, data_root_dir: str | Path, threshold: float):
        self.output_dir, self.data_root_dir, self.threshold = Path(output_dir), Path(data_root_dir), threshold
        self.rows: list[dict[str, object]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose scans come out as image, pred, label and brain_mask, on their own grids."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.rows = []

    def _score(self, engine: Engine) -> None:
        for before, after in zip(engine.state.batch, engine.state.output, strict=True):
            item = before | after
            source, affine = file_of(item["image"]), np.asarray(item["label"].affine)
            name = os.path.relpath(source, self.data_root_dir)
            probability, label, brain = (item[key].cpu().numpy() for key in ("pred", "label", "brain_mask"))
            for k, (p, y) in enumerate(zip(probability, label, strict=True)):
                voxel_ml = 1e-3 * abs(np.linalg.det(affine[:3, :3]))
                scores = scan_scores(p, y, brain[0], voxel_ml=voxel_ml, threshold=self.threshold)
                self.rows.append({"scan": name} | ({"output": k} if len(label) > 1 else {}) | scores)
            stem = name.removesuffix(".gz").removesuffix(".nii")
            scan, table = nib.load(source), GradientTable.from_rows(item["image"].meta["file_gradients"])
            dwi = np.asarray(scan.dataobj, dtype=np.float32)
            png = self.output_dir / f"{stem}_evaluation.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            picture(png, dwi, table, scan.affine, probability.max(0), brain[0], outline=label.max(0))

    def _write(self, engine: Engine) -> None:
        rows = self.rows
        if idist.get_world_size() > 1:
            rows = [row for share in idist.all_gather(rows) for row in share]
        rows = sorted(rows, key=lambda row: row["scan"])
        engine.state.metrics |= {f"val_{name}": sum(row[name] for row in rows) for name in ("true_ml", "predicted_ml")}
        if idist.get_rank() == 0:
            with written_whole(self.output_dir / "scan_metrics.csv") as part, part.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows({name: _text(value) for name, value in row.items()} for row in rows)


def _text(value: object) -> str:
    return str(value) if not isinstance(value, float) else "" if np.isnan(value) else f"{value:.6g}"

"""A tractogram with its bundles: as .trx, and as a picture from three sides, coloured by bundle."""

import json
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.config import KeysCollection
from monai.data.utils import create_file_basename
from monai.transforms import MapTransform

import eqdmri_monai
from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.tractograms import read_tractogram, write_trx
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.report.record import circumstances, sha256

MOST = 3000  # streamlines drawn; more only hide each other


def draw_bundles(path: Path, streamlines: np.ndarray, label: np.ndarray, names: Sequence[str]) -> None:
    """Write a PNG.

    Parameters
    ----------
    path : Path
    streamlines : array, shape (S, P, 3)
        World mm.
    label : array, shape (S,)
        Places in `names`; what lies beyond is drawn grey, as no bundle.
    names : sequence of str
    """
    colours = matplotlib.colormaps["tab10"].colors
    shown = np.linspace(0, len(label) - 1, min(len(label), MOST)).round().astype(int)
    colour = [(*colours[c % 10], 0.5) if c < len(names) else (0.6, 0.6, 0.6, 0.25) for c in label[shown]]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    views = ("from above", 0, 1, "RA"), ("from the front", 0, 2, "RS"), ("from the right", 1, 2, "AS")
    for ax, (title, across, up, axes) in zip(figure.subplots(1, 3), views, strict=True):
        ax.add_collection(LineCollection(streamlines[shown][..., [across, up]], colors=colour, linewidths=0.7))
        ax.autoscale()
        ax.set_aspect("equal")
        ax.set_title(title)
        ax.set_xlabel(f"{axes[0]}, mm")
        ax.set_ylabel(f"{axes[1]}, mm")
    count = np.bincount(label, minlength=len(names) + 1)
    keys = [Line2D([], [], color=colours[c % 10], label=f"{name} ({count[c]})") for c, name in enumerate(names)]
    keys.append(Line2D([], [], color="0.6", label=f"no bundle ({count[len(names) :].sum()})"))
    figure.legend(handles=keys, loc="outside lower center", ncols=6, frameon=False)
    save_figure(path, figure)


class SaveTractogramd(MapTransform):
    """Write the tractogram that was read, as .trx with bundles as groups and the probabilities; a picture; a record.

    Streamlines are the originals in their order; affine, dimensions, groups and data that the file had are kept. A
    record (JSON) says how the bundles were made, and comes before them.

    Parameters
    ----------
    keys : keys
        Probabilities (classes, S), whose meta names the file; the last class may be that of no bundle.
    output_dir, data_root_dir : path
        As in `SaveImaged`.
    names : sequence of str
        Bundles.
    weights : path
        Named in the record by their hash.
    settings : mapping
        What else decides the bundles; said in the record.
    details : mapping
        What else the record says, of no weight for the bundles.
    prefix : str
        Before each name, where the file has such groups already.
    reference_key : str
        As in `LoadTractogramd`.
    image_key : str
        Streamlines as the network saw them, for the picture.

    Raises
    ------
    ValueError
        When two classes or more remain without a name, or see `write_trx`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_dir: str | Path,
        data_root_dir: str | Path,
        names: Sequence[str],
        weights: str | Path,
        settings: Mapping[str, object],
        details: Mapping[str, object],
        prefix: str = "",
        reference_key: str = "reference",
        image_key: str = "image",
    ):
        super().__init__(keys)
        self.output_dir, self.data_root_dir = output_dir, data_root_dir
        self.names, self.prefix, self.weights = list(names), prefix, weights
        self.settings, self.details = dict(settings), dict(details)
        self.reference_key, self.image_key = reference_key, image_key
        self.begin()

    def begin(self) -> None:
        """Count a tractogram's seconds from now."""
        self.start = time.monotonic()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        d = dict(data)
        for key in self.key_iterator(d):
            probability, image = d[key].cpu().numpy(), d[self.image_key]
            if len(probability) not in (len(self.names), len(self.names) + 1):
                raise ValueError(f"names must be those of the network's {len(probability)} classes, got {self.names}")
            item = {"image": image.meta["filename_or_obj"], "reference": d.get(self.reference_key)}
            best = probability.argmax(0)
            groups = {self.prefix + name: np.flatnonzero(best == c) for c, name in enumerate(self.names)}
            numbers = {"probability": probability.max(0)}
            numbers |= {name: p for name, p in zip(self.names, probability, strict=False)}
            numbers = {f"{self.prefix}{name}"[:20]: values for name, values in numbers.items()}
            path, trx, png = self.outputs(item)
            path.parent.mkdir(parents=True, exist_ok=True)
            tractogram = read_tractogram(item["image"], item["reference"])
            record = {
                **self.identity(item),
                **self.details,
                "streamlines": len(best),
                "streamlines_per_bundle": {name: len(members) for name, members in groups.items()},
                **circumstances(self.start),
            }
            with written_whole(path) as part:  # no record is left where the rest fails
                part.write_text(json.dumps(record, indent=1) + "\n")
                write_trx(trx, tractogram, groups=groups, per_streamline=numbers)
                draw_bundles(png, image.cpu().numpy(), best, self.names)
        return d

    def outputs(self, item: Mapping[str, str]) -> list[Path]:
        """Return the paths of a tractogram's record, bundles and picture."""
        folders = self.output_dir, self.data_root_dir
        stem = create_file_basename("bundles", item["image"], *folders, False, makedirs=False)
        return [Path(f"{stem}{suffix}") for suffix in (".json", ".trx", ".png")]

    def identity(self, item: Mapping[str, str]) -> dict[str, object]:
        """Return what decides the bundles: version, settings, and hashes of the weights and of the files."""
        files = {"weights": self.weights, "input": item["image"], "reference": item.get("reference")}
        return {
            "eqdmri_monai": eqdmri_monai.__version__,
            "input": Path(item["image"]).name,
            **{f"{key}_sha256": sha256(path) for key, path in files.items() if path},
            "names": self.names,
            **self.settings,
        }

"""Sidecars of BIDS beside maps."""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path

from monai.config import KeysCollection
from monai.data.utils import create_file_basename
from monai.transforms import MapTransform

from eqdmri_monai.files.bids import uri
from eqdmri_monai.files.tables import table_files
from eqdmri_monai.files.writing import written_whole
from eqdmri_monai.transforms.scan import file_of


class SaveSidecarsd(MapTransform):
    """Write a JSON file beside each map: what it is, which files it was made of, and on whose grid it lies.

    Parameters
    ----------
    keys : keys
        The scan as it was read.
    output_dir, data_root_dir : path
        As in `SaveImaged`; `data_root_dir` is the root of the BIDS data set.
    names : mapping
        See `files.bids.derivative_name`; whatever stands there besides ``name`` is said in the sidecar.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_dir: str | Path,
        data_root_dir: str,
        names: Mapping[str, Mapping[str, object]],
    ):
        super().__init__(keys)
        self.output_dir, self.data_root_dir = output_dir, data_root_dir
        self.says = {kind: {k: v for k, v in of.items() if k != "name"} for kind, of in names.items() if len(of) > 1}

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        source = file_of(data[self.keys[0]])
        scan = {key: data.get(key) for key in ("bval", "bvec", "mrtrix")} | {"image": source}
        sources = [uri(self.data_root_dir, path) for path in (source, *table_files(scan).values())]
        for says, path in zip(self.says.values(), self.outputs({"image": source}), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                sidecar = {**says, "Sources": sources, "SpatialReference": sources[0]}
                part.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
        return dict(data)

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return the paths of a scan's sidecars."""
        stems = (
            create_file_basename(kind, scan["image"], self.output_dir, self.data_root_dir, False, makedirs=False)
            for kind in self.says
        )
        return [Path(f"{stem}.json") for stem in stems]

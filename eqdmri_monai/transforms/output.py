"""What a network gave, on its way to files."""

import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from eqdmri_monai.files.writing import put_in_place
from eqdmri_monai.transforms.scan import file_of


class CheckFinited(MapTransform):
    """Refuse a network's output that is not finite in every voxel, before anything is made of it.

    Parameters
    ----------
    keys : keys
        Outputs; the data must also hold ``image``, whose file is named.
    weights : path, optional
        Named in the message.

    Raises
    ------
    ValueError
        When a value is infinite or not a number.
    """

    def __init__(self, keys: KeysCollection, *, weights: str | None = None):
        super().__init__(keys)
        self.weights = weights

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        for key in self.key_iterator(dict(data)):
            wrong = int((~torch.isfinite(data[key])).sum())
            if wrong:
                raise ValueError(
                    f"{file_of(data['image'])}: {wrong} of the {data[key].numel()} values that the network with "
                    f"{self.weights or 'the weights of this training'} gives are not finite, so nothing is written; "
                    "try another scan to see whether this one or the weights are at fault"
                )
        return dict(data)


class SaveTogether(Transform):
    """Apply transforms that write files, and put all files of a scan in place when all are whole; else none.

    They are put in place in the order in which they were written, within a moment: what describes a map comes before
    it, and is there when the map is.

    Parameters
    ----------
    transforms : sequence of callable
        They write below `part`.
    part : path
        A hidden folder on the same disk, of this process alone (`files.writing.part_of`).
    folder : path
        Where the files are to appear, in the same subfolders.
    """

    def __init__(self, transforms: Sequence[Callable], *, part: str | Path, folder: str | Path):
        self.transforms, self.part, self.folder = transforms, Path(part), Path(folder)

    def __call__(self, data: Mapping[Hashable, object]) -> Mapping[Hashable, object]:
        """Return what the last transform returns."""
        written: dict[Path, None] = {}  # in order
        try:
            for transform in self.transforms:
                data = transform(data)
                written |= dict.fromkeys(path for path in sorted(self.part.rglob("*")) if path.is_file())
            for path in written:
                target = self.folder / path.relative_to(self.part)
                target.parent.mkdir(parents=True, exist_ok=True)
                put_in_place(path, target)
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
        return data

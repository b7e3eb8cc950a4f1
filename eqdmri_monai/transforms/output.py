"""What a network gave, on its way to files."""

import os
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.data.utils import create_file_basename
from monai.transforms import MapTransform, SaveImaged, Transform

from eqdmri_monai.files.maps import WriteFault
from eqdmri_monai.files.writing import put_together
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
    it, and is there when the map is (`files.writing.put_together`).

    Parameters
    ----------
    transforms : sequence of callable
        They write below `part`. `SaveImaged` and those with ``outputs(scan)`` say beforehand what they will write.
    part : path
        A hidden folder on the same disk, of this process alone (`files.writing.part_of`).
    folder : path
        Where the files are to appear, in the same subfolders.
    data_root_dir : path
        As in `SaveImaged`.
    rename : callable
        Gives a file the name that it appears under, from the one that it is written under; the same where left out.
    """

    def __init__(
        self,
        transforms: Sequence[Callable],
        *,
        part: str | Path,
        folder: str | Path,
        data_root_dir: str | Path,
        rename: Callable[[Path], Path] | None = None,
    ):
        self.transforms, self.data_root_dir, self.rename = transforms, data_root_dir, rename
        self.part, self.folder = Path(part), Path(folder)

    def __call__(self, data: Mapping[Hashable, object]) -> Mapping[Hashable, object]:
        """Return what the last transform returns."""
        written: dict[Path, None] = {}  # in order
        try:
            for transform in self.transforms:
                data = transform(data)
                written |= dict.fromkeys(path for path in sorted(self.part.rglob("*")) if path.is_file())
            put_together(self.part, {path: self.target(path) for path in written})
        except WriteFault as e:
            raise e.error from None
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
        return data

    def name(self, scan: Mapping[str, str]) -> str:
        """Return what the files of a scan are named after: its path from the data's root, without extension."""
        stem = create_file_basename("", scan["image"], self.part, self.data_root_dir, False, makedirs=False)
        return os.path.relpath(stem, self.part)

    def outputs(self, scan: Mapping[str, str]) -> list[Path]:
        """Return where the files of a scan appear."""
        files = []
        for transform in self.transforms:
            if isinstance(transform, SaveImaged):
                layout = copy(transform.saver.folder_layout)
                layout.makedirs = False
                files.append(layout.filename(scan["image"]))
            elif hasattr(transform, "outputs"):
                files += transform.outputs(scan)
        return [self.target(path) for path in files]

    def target(self, path: str | Path) -> Path:
        """Return where a file that is written below `part` appears."""
        target = self.folder / Path(os.path.normpath(path)).relative_to(self.part)
        return self.rename(target) if self.rename else target

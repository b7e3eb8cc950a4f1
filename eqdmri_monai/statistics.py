"""Numbers of a whole training set that the paper's way of training needs: means of volumes, counts of lesion voxels."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from eqdmri_monai.files.scans import scan_list
from eqdmri_monai.files.writing import written_whole


def training_statistics(
    file: str | Path, *, datalist: str | None, transform: Callable[[Mapping], Mapping], trained: bool = False
) -> dict:
    """Read the statistics of a training set, or find them, scan by scan, and write them down.

    Weights that were trained with them are of no use without them, so they lie next to the weights.

    Parameters
    ----------
    file : path
        JSON; read where it exists.
    datalist : path
        As in `files.scans.scan_list`; its section "training" is taken.
    transform : callable
        Gives ``image`` (Q, X, Y, Z), ``label`` and ``brain_mask`` (1, X, Y, Z), before normalisation.
    trained : bool
        Whether the weights exist already; then the file must, too.

    Returns
    -------
    dict
        channel_means, the mean of each volume over all voxels of a scan, then over scans; positives and negatives, the
        number of brain voxels with label 1 and 0; scans, their number.

    Raises
    ------
    FileNotFoundError
        When weights have no statistics next to them.
    ValueError
        When scans differ in their number of volumes, or no voxel of a lesion is in the brain.

    Source
    ------
    Müller et al., sections 4.1 and 4.3.
    """
    file = Path(file)
    if file.is_file():
        return json.loads(file.read_text())
    if trained:
        raise FileNotFoundError(f"{file}: no such file; copy it from the folder in which the weights were trained")
    means, positives, voxels = [], 0, 0
    for scan in scan_list(datalist=datalist, section="training"):
        item = transform(scan)
        image, label, brain = (item[key].as_tensor() for key in ("image", "label", "brain_mask"))
        means.append(image.flatten(1).mean(1, dtype=torch.float64))
        if len(means[-1]) != len(means[0]):
            raise ValueError(
                f"{scan['image']}: {len(means[-1])} volumes but the scans before have {len(means[0])}; means of "
                "volumes over a data set need one scheme for all scans"
            )
        positives += int((label[:, brain[0] > 0] > 0).sum())
        voxels += int((brain > 0).sum()) * len(label)
    if not positives:
        raise ValueError(f"{datalist}: no scan for training has a lesion voxel in its brain; check the labels")
    statistics = {
        "channel_means": torch.stack(means).mean(0).tolist(),
        "positives": positives,
        "negatives": voxels - positives,
        "scans": len(means),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as part:
        part.write_text(json.dumps(statistics))
    return statistics

"""Lesion shapes drawn by hand, each in its own box at 1 mm, and their division into those to train and to test with."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from eqdmri_monai.simulate.lesions import components, pieces

SMALLEST, LARGEST = 40, 3000  # mm³; below, a shape is a few voxels, and above, it is cut into pieces


def ms_shapes(masks: Sequence[Path]) -> list[np.ndarray]:
    """Return the lesions of some patients at 1 mm (bool); of confluent ones of more than 3 ml 40 pieces each."""
    rng, shapes = np.random.default_rng(0), []
    for mask in masks:
        for lesion in components(nib.load(mask).get_fdata(dtype=np.float32), minimum=SMALLEST):
            shapes += pieces(lesion, 40, rng) if lesion.sum() > LARGEST else [lesion]
    return shapes


def stroke_shapes(file: Path, subjects: Sequence[int]) -> list[np.ndarray]:
    """Return lesions out of a file of run-length packed masks (1 mm), of subjects by their row.

    Parameters
    ----------
    file : path
        .npz with shape, run_offset, run_start and run_length; row k's voxels are those of its runs, in C order.
    subjects : sequence of int
    """
    rng, shapes = np.random.default_rng(0), []
    with np.load(file) as packed:
        size, offset = packed["shape"], packed["run_offset"]
        start, length = packed["run_start"], packed["run_length"]
    for k in subjects:
        runs = slice(offset[k], offset[k + 1])
        mask = np.zeros(np.prod(size) + 1, np.int8)
        np.add.at(mask, start[runs], 1)
        np.add.at(mask, start[runs] + length[runs].astype(start.dtype), -1)
        mask = np.cumsum(mask, dtype=np.int8)[:-1].reshape(size)
        for lesion in components(mask, minimum=SMALLEST):
            shapes += pieces(lesion, 4, rng) if lesion.sum() > LARGEST else [lesion]
    return [shape for shape in shapes if shape.sum() >= SMALLEST]

"""Colour FA of one scan in three ways: the fit of six directions, the network on the same six, the fit of the others.

python scripts/tensor_picture.py tensors --data folder/of/scans     # after scripts/tensor_study.py

The network is the one that was trained without that scanner. docs/tensors/colour_fa.png is the elition head.
"""

import argparse
from pathlib import Path

import numpy as np
from make_cohort import HEADS
from scipy import ndimage
from tensor_study import Network, Part, measures

from eqdmri_monai.report.picture import Planes, save_black

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the trainings are")
    parser.add_argument("--data", type=Path, required=True, help="folder of real scans")
    parser.add_argument("--head", choices=HEADS, default="elition")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "tensors" / "colour_fa.png")
    options = parser.parse_args()
    scanner, worlds = HEADS[options.head]
    part, run = Part.of(options.data, worlds[0][0], 6, 0), options.folder / f"tensor_mean_{scanner}"
    count = len(part.rest_table) - 1
    columns = {
        "six directions, plain fit": part.plain,
        "the same six, network": Network(run / "model.pt", run, "tensor_mean")(part),
        f"plain fit of the {count} others": part.reference,
    }
    planes = Planes(part.affine, ndimage.center_of_mass(part.brain), part.brain.shape)
    figure, _ = planes.figure({title: colours(tensor) * part.brain[..., None] for title, tensor in columns.items()})
    save_black(options.figure, figure)


def colours(tensor: np.ndarray) -> np.ndarray:
    """Return colour FA (X, Y, Z, 3) of tensors (X, Y, Z, 3, 3)."""
    fa, _, direction = measures(tensor)
    return np.clip(np.abs(direction) * fa[..., None], 0, 1)


if __name__ == "__main__":
    main()

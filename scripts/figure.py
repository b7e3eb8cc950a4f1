"""Draw a scan, its fibre directions and a probability map, with known lesions outlined: the figure of the README."""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from eqdmri_monai.files.tables import read_table
from eqdmri_monai.report import picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("dwi", "probability", "brain", "lesion", "png"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    dwi = nib.load(options.dwi)
    table = read_table({"image": options.dwi}, dwi.affine, volumes=dwi.shape[3])
    maps = [np.asarray(nib.load(path).dataobj) for path in (options.probability, options.brain, options.lesion)]
    volumes = dwi.get_fdata(dtype=np.float32)
    picture(options.png, volumes, table, dwi.affine, maps[0], maps[1], outline=maps[2])


if __name__ == "__main__":
    main()

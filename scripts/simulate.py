"""Write a simulated scan: dwi.nii.gz, dwi.bval, dwi.bvec, lesion.nii.gz and scans.json in a folder."""

import argparse
import json
from pathlib import Path

import numpy as np

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.files.writing import output_folder, written_whole
from eqdmri_monai.simulate import make_phantom, single_shell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directions", type=int, default=30)
    parser.add_argument("--b", type=float, default=1000.0, help="s/mm²")
    options = parser.parse_args()

    folder = Path(output_folder(options.folder))
    table = single_shell(options.directions, options.b, np.random.default_rng(options.seed))
    phantom = make_phantom(options.seed, table)
    write_nifti(folder / "dwi.nii.gz", np.round(phantom.dwi).astype(np.int16), phantom.affine)
    write_fsl(table, phantom.affine, folder / "dwi")
    write_nifti(folder / "lesion.nii.gz", phantom.lesion.astype(np.uint8), phantom.affine)
    with written_whole(folder / "scans.json") as part:
        part.write_text(json.dumps({"testing": [{"image": "dwi.nii.gz", "label": "lesion.nii.gz"}]}, indent=1))
    print(f"{folder}: {phantom.dwi.shape} voxels and volumes, {int(phantom.lesion.sum())} lesion voxels")


if __name__ == "__main__":
    main()

"""See that this copy of the bundle is whole and gives the stored mask for the stored scan, on CPU, without network.

It lies in the folder verify of an assembled bundle, and needs what requirements.txt names.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER.parent
MASK = FOLDER / "mask.nii.gz"
MIN_DICE = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the mask in place of comparing with it")
    store = parser.parse_args().store
    if not store:
        check_sums()
    with tempfile.TemporaryDirectory() as out:
        lesion = mapped(Path(out))
        if store:
            nib.save(lesion, MASK)
            return
    stored, new = (np.asarray(image.dataobj) > 0 for image in (nib.load(MASK), lesion))
    dice = 2 * (stored & new).sum() / (stored.sum() + new.sum())
    print(f"Dice {dice:.5f} with the stored mask of {stored.sum()} voxels")
    if not dice >= MIN_DICE:
        sys.exit(
            f"error: the mask differs from the stored one (Dice {dice:.5f}, at least {MIN_DICE}); do not use this copy"
        )


def check_sums() -> None:
    lines = (BUNDLE / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ", 1)
        path = BUNDLE / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            sys.exit(f"error: {name} is missing or differs from what was built; copy the bundle again")
    print(f"{len(lines)} files as they were built")


def mapped(out: Path) -> nib.Nifti1Image:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file",
               str(BUNDLE / "configs" / "inference.yaml"), "--bundle_root", str(BUNDLE),
               "--dwi", str(FOLDER / "scan.nii.gz"), "--output_dir", str(out)]  # fmt: skip
    done = subprocess.run(
        command, cwd=out, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    lesion = nib.load(out / "scan_lesion.nii.gz")
    return nib.Nifti1Image(np.asarray(lesion.dataobj), lesion.affine)


if __name__ == "__main__":
    main()

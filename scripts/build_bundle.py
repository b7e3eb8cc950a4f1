"""Assemble the bundle, its package and exported models in one folder that runs by itself: dist/eqdmri_ms_segmentation.

    cd dist/eqdmri_ms_segmentation && make verify        # a stored scan gives the stored mask, and no file is damaged

Beside what bundle/ and the package hold it gets configs/inference.json and train.json for MONAI Deploy, MONAI Label and
the zoo; models/model.pt2, model.ts and model.onnx; requirements.txt; verify/; SHA256SUMS; and a .zip of all of it.
"""

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.report import sha256
from eqdmri_monai.simulate import make_phantom, single_shell

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = """# make verify   no file is damaged, and the stored scan gives the stored mask; needs no network
PYTHON ?= python3
verify:
\t$(PYTHON) verify/verify.py
.PHONY: verify
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist" / "eqdmri_ms_segmentation")
    parser.add_argument("--formats", nargs="*", default=["pt2", "ts", "onnx"], help="models to export")
    parser.add_argument("--no_example", action="store_true", help="leave out the scan of make verify")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if folder.exists():
        raise SystemExit(f"{folder}: exists already; remove it or name another --folder")
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(part, options.formats, example=not options.no_example)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    print(folder)
    print(folder.with_suffix(".zip"))


def fill(folder: Path, formats: list[str], *, example: bool) -> None:
    """Write everything to a new folder."""
    ignore = shutil.ignore_patterns("__pycache__", "eval", "runs")
    shutil.copytree(ROOT / "bundle", folder, ignore=ignore)
    shutil.copytree(ROOT / "eqdmri_monai", folder / "eqdmri_monai", ignore=ignore)
    configs = folder / "configs"
    for name, files in {"inference": ["inference", "integration"], "train": ["train"]}.items():
        config = ConfigParser.load_config_files([str(configs / f"{file}.yaml") for file in files])
        (configs / f"{name}.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "requirements.txt").write_text(requirements())
    if formats:
        command = [sys.executable, str(ROOT / "scripts" / "export.py"), "--bundle_root", str(folder), "--formats"]
        subprocess.run(command + formats, check=True)
    if example:
        (folder / "Makefile").write_text(MAKEFILE)
        write_example(folder)
    sums = [(path.relative_to(folder).as_posix(), sha256(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums))


def requirements() -> str:
    """Return exact versions of what the package needs, without what tests and exports need."""
    wanted = [
        line
        for line in importlib.metadata.requires("eqdmri_monai")
        if re.search("extra == .dicom", line) or ";" not in line
    ]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in wanted}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return "".join(f"{pin}\n" for pin in pins if re.match(r"[\w-]+", pin)[0].lower().replace("_", "-") in names)


def write_example(folder: Path) -> None:
    """Simulate a scan, map it with the bundle as it lies there, and keep both and what compares with them."""
    place = folder / "verify"
    place.mkdir()
    shutil.copy(ROOT / "scripts" / "verify.py", place)
    table = single_shell(12, 1000.0, np.random.default_rng(1), b0s=1)
    phantom = make_phantom(1, table, shape=(48, 56, 40), spacing=(2.5, 2.5, 2.5), lesions=8)
    scan = np.round(phantom.dwi / phantom.dwi.max() * 1000).astype(np.int16)
    write_nifti(place / "scan.nii.gz", scan, phantom.affine)
    write_fsl(table, phantom.affine, place / "scan")
    subprocess.run([sys.executable, str(place / "verify.py"), "--store"], check=True)


if __name__ == "__main__":
    main()

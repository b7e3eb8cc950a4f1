"""Assemble the bundle and its package in one folder, dist/eqdmri_ms_segmentation, for zoo, Label and Deploy."""

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist" / "eqdmri_ms_segmentation")
    folder = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"{folder}: exists already; remove it or name another --folder")
    ignore = shutil.ignore_patterns("__pycache__", "eval", "runs")
    shutil.copytree(ROOT / "bundle", folder, ignore=ignore)
    shutil.copytree(ROOT / "eqdmri_monai", folder / "eqdmri_monai", ignore=ignore)
    print(folder)


if __name__ == "__main__":
    main()

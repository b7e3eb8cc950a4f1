"""The main job from end to end: a scan, lesion maps by `monai.bundle run`, and what came out.

Without --dwi the scan is simulated, and the result is compared with the lesions that were simulated.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dwi", type=Path, help="your own scan, with its .bval and .bvec next to it")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="where everything is written")
    options = parser.parse_args()

    start, folder = time.monotonic(), options.folder.resolve()
    dwi = options.dwi.absolute() if options.dwi else folder / "scan" / "dwi.nii.gz"
    if not options.dwi:
        say("1. A simulated scan: b0s and 30 directions at b = 1000 s/mm², 16 lesions")
        run(str(ROOT / "scripts" / "simulate.py"), str(folder / "scan"), "--seed", "1")
    say("2. Lesion maps")
    results = folder / "results"
    overwrite = [] if options.dwi else ["--overwrite"]
    run(*monai_run("inference"), f"--dwi={dwi}", f"--output_dir={results}", *overwrite)
    if not options.dwi:
        say("3. Comparison with the simulated lesions")
        evaluation = folder / "evaluation"
        scans = folder / "scan" / "scans.json"
        run(*monai_run("evaluate"), f"--datalist={scans}", f"--output_dir={evaluation}")
        with (evaluation / "metrics.csv").open() as file:
            metrics = {name: float(value) for name, value in csv.reader(file)}

    stem = dwi.name.removesuffix(".gz").removesuffix(".nii")
    record = json.loads((results / f"{stem}_report.json").read_text())
    say(f"Done in {time.monotonic() - start:.0f} s")
    print(f"{record['lesions']} lesions, {record['lesion_ml']} ml, in a brain of {record['brain_ml']} ml")
    if not options.dwi:
        print(f"Dice {metrics['val_dice']:.3f}, average precision {metrics['val_average_precision']:.3f}")
    for path in sorted(results.glob(f"{stem}_*")):
        print(f"  {path}")
    print(f"Look at {results / f'{stem}_report.png'}")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def monai_run(job: str) -> list[str]:
    quiet = ["-W", "ignore:parsing config_file"]  # MONAI's reminder that a config is code; this one is ours
    return [*quiet, "-m", "monai.bundle", "run", "--args_file", str(ROOT / "bundle" / f"{job}.yaml")]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()

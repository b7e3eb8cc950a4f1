import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_the_assembled_bundle_brings_its_own_package(tmp_path):
    folder = tmp_path / "eqdmri_ms_segmentation"
    subprocess.run([sys.executable, str(SCRIPTS / "build_bundle.py"), "--folder", str(folder)], check=True)
    where = "$print('from', __import__('eqdmri_monai').__file__)"
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs" / "inference.yaml"),
         "--bundle_root", str(folder), "--run", f'["{where}"]'],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"from {folder / 'eqdmri_monai'}" in done.stdout, done.stderr
    for name in ("LICENSE", "configs/metadata.json", "models/model.pt", "docs/README.md"):
        assert (folder / name).is_file()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "build_bundle.py"), "--folder", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "exists already" in done.stderr

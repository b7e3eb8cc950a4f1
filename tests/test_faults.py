"""Disks that fill up or take nothing: a sentence, nothing half-written, and the same command is right later."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from command_line import CommandLine

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["2x0e+1x1e"], "kernel_size": 3}
SPACING = [10.0, 10.0, 12.0]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Three scans of a few voxels with labels, a list of them, a BIDS folder of them, and weights."""
    folder, items = tmp_path_factory.mktemp("scans"), []
    for k in range(3):
        table = single_shell(6, 1000.0, np.random.default_rng(k))
        phantom = make_phantom(k, table, shape=(14, 16, 12), spacing=(10, 10, 12), lesions=3)
        write_nifti(folder / f"s{k}.nii.gz", phantom.dwi, phantom.affine)
        write_fsl(phantom.table, phantom.affine, folder / f"s{k}")
        write_nifti(folder / f"s{k}_lesion.nii.gz", phantom.lesion.astype(np.uint8), phantom.affine)
        items.append({"image": f"s{k}.nii.gz", "label": f"s{k}_lesion.nii.gz"})
        place = folder / "bids" / f"sub-{k}" / "dwi"
        place.mkdir(parents=True)
        for ending in (".nii.gz", ".bval", ".bvec"):
            shutil.copy(folder / f"s{k}{ending}", place / f"sub-{k}_dwi{ending}")
    lists = {"training": items, "validation": items[:1], "testing": items}
    (folder / "scans.json").write_text(json.dumps(lists))
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), folder / "model.pt")
    return folder


@pytest.fixture
def command(scans, monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """A function that runs a bundle command; it returns the exit code and the last line of what was said."""
    line = CommandLine(monkeypatch, capfd)
    small = ["--device", "cpu", "--spacing", json.dumps(SPACING)]
    small += [word for key, value in NETWORK.items() for word in (f"--network_def#{key}", json.dumps(value))]
    return lambda config, *words: line("--args_file", BUNDLE / f"{config}.yaml", *words, *small)


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, option: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    try:
        if not disk.mount("size=64k"):
            pytest.skip("this user may not mount a small disk")
    except FileNotFoundError:
        pytest.skip("there is no command mount here")
    yield disk
    subprocess.run(["umount", str(folder)], check=True)


RESULTS = ("report.json", "report.png", "report.html", "brain.nii.gz", "lesion.nii.gz", "probability.nii.gz")


def test_a_full_disk_gets_nothing_of_a_scan_and_all_of_it_when_there_is_room(scans, disk, command):
    mapping = ["inference", "--dwi", scans / "s0.nii.gz", "--weights", scans / "model.pt", "--output_dir", disk.folder]
    code, said = command(*mapping)
    assert (code, said) == (1, f"error: {disk.folder}: No space left on device")
    assert disk.files() == set()
    assert disk.mount("remount,size=16m")
    code, said = command(*mapping)
    assert code == 0, said
    assert disk.files() == {"index.html", *(f"s0_{name}" for name in RESULTS)}
    assert nib.load(disk.folder / "s0_probability.nii.gz").get_fdata().max() > 0


@pytest.mark.parametrize("source", ["datalist", pytest.param("bids", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_keeps_the_scans_that_it_took(scans, disk, command, source):
    place = scans / ("scans.json" if source == "datalist" else "bids")
    mapping = ["inference", f"--{source}", place, "--weights", scans / "model.pt", "--output_dir", disk.folder]
    assert disk.mount("remount,size=16m")
    code, said = command(*mapping)
    assert code == 0, said
    whole = {path: path.read_bytes() for path in disk.folder.rglob("*.nii.gz")}
    used = shutil.disk_usage(disk.folder).used
    for path in disk.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert disk.mount(f"remount,size={used // 2 // 4096 * 4096}")
    code, said = command(*mapping)
    assert (code, said) == (1, f"error: {disk.folder}: No space left on device")
    there = {path: path.read_bytes() for path in disk.folder.rglob("*.nii.gz")}
    assert 0 < len(there) < len(whole)
    assert len(there) % 3 == 0  # all of a scan, or nothing
    assert {path: whole[path] for path in there} == there
    assert not list(disk.folder.glob(".part-*"))
    assert disk.mount("remount,size=16m")
    code, said = command(*mapping)
    assert code == 0, said
    assert f"{len(there) // 3} of them before" in said
    assert {path: path.read_bytes() for path in disk.folder.rglob("*.nii.gz")} == whole


@pytest.mark.parametrize("config", ["inference", "train", "evaluate"])
def test_a_folder_that_takes_nothing_is_said_before_anything_is_done(scans, disk, command, config):
    assert disk.mount("remount,ro")
    words = ["--datalist", scans / "scans.json", "--output_dir", disk.folder / "out"]
    code, said = command(config, *words, *(["--weights", scans / "model.pt"] if config != "train" else []))
    assert code == 1
    folder = f"{disk.folder}/out" + ("/models" if config == "train" else "")
    assert said == f"error: {folder}: cannot write results there (Read-only file system); choose another output folder"
    assert disk.files() == set()

"""Runs that are killed: a training goes on as if it had not been, by the same command; maps are there with reports."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.files.weights import read_state
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
EPOCHS, STEPS = 8, 2


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    """A training of a second or two: two scans of a few voxels, a network of a few weights."""
    folder, items = tmp_path_factory.mktemp("scans"), []
    for k in range(STEPS):
        table = single_shell(6, 1000.0, np.random.default_rng(k))
        phantom = make_phantom(k, table, shape=(14, 16, 12), spacing=(10, 10, 12), lesions=3)
        image, label, brain = (folder / f"{name}{k}.nii.gz" for name in ("dwi", "lesion", "brain"))
        write_nifti(image, phantom.dwi, phantom.affine)
        write_fsl(phantom.table, phantom.affine, folder / f"dwi{k}")
        write_nifti(label, phantom.lesion.astype(np.uint8), phantom.affine)
        write_nifti(brain, phantom.brain.astype(np.uint8), phantom.affine)
        items.append({"image": image.name, "label": label.name, "brain_mask": brain.name})
    (folder / "scans.json").write_text(json.dumps({"training": items, "validation": items[:1]}))
    return {
        "bundle_root": str(BUNDLE), "datalist": str(folder / "scans.json"), "spacing": [10.0, 10.0, 12.0],
        "crop_size": [6, 6, 6], "epochs": EPOCHS, "val_interval": 2, "network_def#irreps_pq": ["2x0e+1x1e"],
        "network_def#irreps_p": ["2x0e+1x1e"], "network_def#kernel_size": 3, "resume": "auto",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Callable]:
    """A function that runs the bundle, until a signal if it is given one; returns exit code and what was printed."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "bundle_server.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        log = tmp_path_factory.mktemp("log") / "log.txt"

        def run(config: str, options: dict, **kill) -> tuple[int, str]:
            task = {"config": config, "options": options, "log": str(log), **kill}
            print(json.dumps(task), file=server.stdin, flush=True)
            return int(server.stdout.readline()), log.read_text()

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def train(run, options) -> Callable:
    """A function that trains in a folder; else like `run`."""
    return lambda folder, options=options, **kill: run("train.yaml", options | {"output_dir": str(folder)}, **kill)


@pytest.fixture(scope="module")
def unbroken(train, options, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that nothing stopped, and how long it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder / "first", options | {"epochs": 1})  # reads from disk what the others find in memory
    start = time.monotonic()
    code, log = train(folder / "whole")
    assert code == 0, log
    return folder / "whole", time.monotonic() - start


def models(folder: Path) -> dict[str, dict]:
    """Read whatever a run keeps; each file must be whole, but for those that have no name yet."""
    files = {path.name: path for path in folder.glob("models/[!.]*")}
    assert files.keys() <= {"checkpoint.pt", "model.pt"}
    return {name: read_state(path) for name, path in files.items()}


def same(a: Path, b: Path) -> None:
    """Compare what two runs keep: weights, state of the optimizer, learning rate, best score."""
    first, second = models(a), models(b)
    assert first.keys() == second.keys() == {"checkpoint.pt", "model.pt"}
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6)


def killed_and_resumed(train, unbroken, folder: Path, kills: int, seed: int) -> None:
    """Kill runs at random moments until that is done so many times; what is kept is looked at after each."""
    whole, seconds = unbroken
    rng, done, runs = random.Random(seed), 0, 0
    while done < kills:
        runs += 1
        run, epochs, code = folder / str(runs), 0, -1
        while code != 0:
            number = rng.choice([signal.SIGKILL, signal.SIGTERM])
            before = models(run)
            code, log = train(run, signal=number, after=rng.uniform(0, seconds))
            assert code in (0, -number, 128 + number), log
            done += code != 0
            kept = models(run)
            assert kept.keys() >= before.keys()
            if "model.pt" in kept:
                assert "checkpoint.pt" in kept
            if "checkpoint.pt" in kept:
                steps = kept["checkpoint.pt"]["trainer"]["iteration"]
                assert steps % STEPS == 0
                assert epochs <= steps // STEPS <= EPOCHS
                epochs = steps // STEPS
        assert epochs == EPOCHS
        same(whole, run)
        assert {path.name for path in run.glob("models/[!.]*")} == {"checkpoint.pt", "model.pt"}


def test_six_kills(train, unbroken, tmp_path):
    killed_and_resumed(train, unbroken, tmp_path, kills=6, seed=0)


@pytest.mark.slow
def test_fifty_kills(train, unbroken, tmp_path):
    killed_and_resumed(train, unbroken, tmp_path, kills=50, seed=1)


def test_a_stopped_command_says_how_to_go_on_and_does(train, unbroken, tmp_path):
    code, log = train(tmp_path, signal=signal.SIGTERM, until=str(tmp_path / "models" / "model.pt"))
    assert code == 128 + signal.SIGTERM
    said = rf"SIGTERM: \d+ of {EPOCHS} epochs are in {tmp_path}/models/checkpoint.pt; repeat the command with --res"
    assert re.match(said, log.splitlines()[-1])
    assert "Traceback" not in log
    code, log = train(tmp_path)
    assert code == 0, log
    same(unbroken[0], tmp_path)
    code, log = train(tmp_path)  # once more, when there is nothing left to do
    assert code == 0
    assert f"{EPOCHS} of {EPOCHS} epochs are done" in log
    same(unbroken[0], tmp_path)


@pytest.mark.slow
def test_a_map_is_never_without_its_report(run, options, tmp_path):
    """Kills between the moments at which the files of a scan appear."""
    shared = ("bundle_root", "spacing", "network_def#irreps_pq", "network_def#irreps_p", "network_def#kernel_size")
    small = {key: options[key] for key in shared}
    net = PQNet(**{key.split("#")[1]: small[key] for key in shared[2:]}, spacing=small["spacing"])
    torch.save(net.float().state_dict(), tmp_path / "model.pt")
    scan = Path(options["datalist"]).parent / "dwi0.nii.gz"
    mapping = small | {"dwi": str(scan), "weights": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "out")}
    code, log = run("inference.yaml", mapping)
    assert code == 0, log
    files = {path.name for path in (tmp_path / "out").iterdir()}
    together = {name for name in files if name.startswith("dwi0")}
    broken, names = 0, ("dwi0_report.json", "dwi0_brain.nii.gz", "dwi0_lesion.nii.gz")
    for k, name in enumerate(4 * names):  # on a busy machine a kill may come late
        if k >= len(names) and broken:
            break
        mapping["output_dir"] = str(out := tmp_path / f"{k}_{name}")
        code, log = run("inference.yaml", mapping, signal=signal.SIGKILL, until=str(out / name))
        assert code in (0, -signal.SIGKILL), log
        there = {path.name for path in out.iterdir()}
        broken += there & together != together
        if "dwi0_probability.nii.gz" in there:
            assert together <= there
        for path in out.glob("dwi0*.nii.gz"):
            assert np.asarray(nib.load(path).dataobj).shape == (14, 16, 12)
        code, log = run("inference.yaml", mapping)
        assert code == 0, log
        assert {path.name for path in out.iterdir()} == files
    assert broken > 0  # else no kill came between

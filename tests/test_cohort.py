"""Lists of scans: none is lost, none is done twice, none replaces another."""

import csv
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged, SaveImaged

from eqdmri_monai.cohort import map_scans
from eqdmri_monai.files import writing
from eqdmri_monai.files.maps import WholeNibabelWriter
from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.scans import common_folder, scan_list
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.files.writing import output_folder, part_of
from eqdmri_monai.report import SaveRecordd, SaveReportd
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.transforms import CheckScand, LoadGradientsd, SaveTogether

TABLE = single_shell(7, 1000.0, np.random.default_rng(0))


@pytest.fixture(autouse=True)
def _float32_and_no_picture(monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr("eqdmri_monai.report.lesion_report.picture", lambda path, *_: path.write_bytes(b"png"))


def write_scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dwi = np.random.default_rng(seed).random((5, 6, 4, len(TABLE)), dtype=np.float32)
    write_nifti(path, dwi, np.diag([2.0, 2.0, 2.0, 1.0]))
    stem = path.parent / path.name.removesuffix(".gz").removesuffix(".nii")
    write_fsl(TABLE, np.diag([2.0, 2.0, 2.0, 1.0]), stem)
    return path


@pytest.fixture
def three(tmp_path):
    """Three scans, a list of them, and weights."""
    (tmp_path / "model.pt").write_bytes(b"weights")
    for k in range(3):
        write_scan(tmp_path / f"s{k}.nii.gz", k)
    return datalist(tmp_path, *(f"s{k}.nii.gz" for k in range(3)))


def datalist(folder: Path, *names: str) -> Path:
    (folder / "scans.json").write_text(json.dumps({"testing": [{"image": name} for name in names]}))
    return folder / "scans.json"


def whole_brain(data):
    meta = {**data["image"].meta, "made_of": ""}
    return data | {"brain_mask": MetaTensor(torch.ones_like(data["image"][:1].as_tensor()), meta=meta)}


class Mean(torch.nn.Module):
    """Maps a scan to the mean of its volumes; `before` is called with it, and may do what goes wrong in a scan."""

    def __init__(self, before=lambda image: None):
        super().__init__()
        self.before = before

    def forward(self, image):
        self.before(image)
        return image.mean(1, keepdim=True)


def run(datalist: Path, out: Path, *, before=lambda image: None, threshold: float = 0.5, **options) -> None:
    """Map a list by the loop, with a network and transforms that take no time."""
    scans = scan_list(datalist=str(datalist), missing_ok=True)
    folder = output_folder(out)
    common = {"output_dir": part_of(Path(folder) / "scan"), "data_root_dir": common_folder(scans, str(datalist))}
    weights = str(datalist.parent / "model.pt")
    saving = SaveTogether(
        [
            SaveReportd(
                "pred", record=SaveRecordd("image", weights=weights, settings={}, details={}, **common),
                threshold=threshold,
            ),
            SaveImaged(
                "pred", output_postfix="map", separate_folder=False, print_log=False, resample=False,
                writer=WholeNibabelWriter, **common,
            ),
        ],
        part=common["output_dir"], folder=folder, data_root_dir=common["data_root_dir"],
    )  # fmt: skip
    read = Compose(
        [CheckScand("image"), LoadImaged("image", ensure_channel_first=True), LoadGradientsd("image"), whole_brain]
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=DataLoader(Dataset(scans, read)), network=Mean(before),
        postprocessing=Compose([saving]),
    )  # fmt: skip
    map_scans(evaluator, scans, saving, **{"summary": Path(folder) / "summary.csv"} | options)


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as stream:
        return {row["scan"]: row for row in csv.DictReader(stream)}


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name[0] != "."}


def test_every_scan_gets_its_own_map_and_its_row(three, tmp_path, capfd):
    out = tmp_path / "out"
    run(three, out)
    assert set(files(out)) == {"summary.csv"} | {
        f"s{k}_{name}" for k in range(3) for name in ("map.nii.gz", "report.json", "report.png")
    }
    for k in range(3):
        dwi = nib.load(tmp_path / f"s{k}.nii.gz").get_fdata(dtype=np.float32)
        found = nib.load(out / f"s{k}_map.nii.gz").get_fdata(dtype=np.float32)
        np.testing.assert_allclose(found, dwi.mean(-1), atol=1e-6)
        record = json.loads((out / f"s{k}_report.json").read_text())
        assert {key: rows(out)[f"s{k}"][key] for key in ("lesions", "lesion_ml", "brain_ml", "error")} == {
            "lesions": str(record["lesions"]), "lesion_ml": str(record["lesion_ml"]), "brain_ml": "1.0", "error": "",
        }  # fmt: skip
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == f"3 of 3 scans have their results; results are in {out}"
    assert all(f"{k + 1}/3 s{k}: {stage}" in said.err for k in range(3) for stage in ("reading", "network", "writing"))


def spoil_cut(tmp_path):
    (tmp_path / "s1.nii.gz").write_bytes((tmp_path / "s1.nii.gz").read_bytes()[:-200])
    return "cut short"


def spoil_missing(tmp_path):
    (tmp_path / "s1.nii.gz").unlink()
    return f"{tmp_path}/s1.nii.gz: no such file"


def spoil_table(tmp_path):
    (tmp_path / "s1.bvec").unlink()
    return f"{tmp_path}/s1.nii.gz: no gradient table"


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_missing, spoil_table])
def test_a_bad_scan_fails_alone_and_is_done_when_it_is_mended(three, tmp_path, capfd, spoil):
    out, whole = tmp_path / "out", {p.name: p.read_bytes() for p in tmp_path.glob("s1*")}
    words = spoil(tmp_path)
    with pytest.raises(ValueError, match=rf"1 of 3 scans failed; see {out}/summary.csv"):
        run(three, out)
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == f"2 of 3 scans have their results; results are in {out}"
    assert [line for line in said.err.replace("\r", "\n").splitlines() if "error: s1: " in line and words in line]
    assert not list(out.glob("s1*"))
    assert words in rows(out)["s1"]["error"]
    assert rows(out)["s0"]["error"] == rows(out)["s2"]["error"] == ""
    before = files(out)
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    run(three, out)
    assert capfd.readouterr().out.splitlines()[-1].startswith("3 of 3 scans have their results, 2 of them before;")
    assert rows(out)["s1"]["error"] == ""
    after = files(out)
    assert {name: after[name] for name in before if name != "summary.csv"} == {
        name: content for name, content in before.items() if name != "summary.csv"
    }


def test_the_time_of_a_scan_that_failed_is_not_the_next_ones(three, tmp_path):
    def before(image):
        if not (tmp_path / "out" / "summary.csv").exists():
            time.sleep(1)
            raise ValueError("slow and wrong")

    with pytest.raises(ValueError, match="1 of 3 scans failed"):
        run(three, tmp_path / "out", before=before)
    seconds = {name: float(row["seconds"]) for name, row in rows(tmp_path / "out").items()}
    assert seconds["s0"] >= 1 > max(seconds["s1"], seconds["s2"])


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (RuntimeError("odd"), "RuntimeError: odd"),
        (KeyError("x"), "KeyError: 'x'"),
        (torch.OutOfMemoryError("9 GiB"), "not enough memory; choose smaller windows, such as --window [64,64,64]"),
    ],
)
def test_whatever_goes_wrong_in_one_scan_the_next_one_is_mapped(three, tmp_path, error, row):
    seen = []

    def before(image):
        seen.append(image)
        if len(seen) == 1:
            raise error

    with pytest.raises(ValueError, match="1 of 3 scans failed"):
        run(three, tmp_path / "out", before=before)
    assert rows(tmp_path / "out")["s0"]["error"] == row
    assert len(list((tmp_path / "out").glob("*_map.nii.gz"))) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interruption_and_a_full_disk_stop_the_list_and_it_goes_on_later(three, tmp_path, error, capfd):
    seen = []

    def before(image):
        seen.append(image)
        if len(seen) == 2:
            raise error

    with pytest.raises((KeyboardInterrupt, OSError), match=rf"No space left on device: '{tmp_path}/out'|^$"):
        run(three, tmp_path / "out", before=before)
    assert list(rows(tmp_path / "out")) == ["s0"]
    assert len(list((tmp_path / "out").glob("*_map.nii.gz"))) == 1
    run(three, tmp_path / "out")
    assert list(rows(tmp_path / "out")) == ["s0", "s1", "s2"]


# --- nothing is replaced


def test_what_is_finished_is_not_done_again_unless_it_must_be(three, tmp_path, capfd):
    out, seen = tmp_path / "out", []
    run(three, out)
    before = files(out)
    run(three, out, before=seen.append)
    assert seen == []
    assert files(out) == before
    (out / "s1_map.nii.gz").unlink()
    (out / "summary.csv").unlink()
    run(three, out, before=seen.append)
    assert len(seen) == 1
    assert (out / "s1_map.nii.gz").is_file()
    assert list(rows(out)) == ["s0", "s1", "s2"]
    run(three, out, before=seen.append, overwrite=True)
    assert len(seen) == 4


def change_weights(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"others")
    return "weights", {}


def change_scan(tmp_path):
    write_scan(tmp_path / "s1.nii.gz", 9)
    return "input", {}


def change_table(tmp_path):
    path = tmp_path / "s1.bval"
    path.write_text(path.read_text().replace("1000", "1001"))
    return "bval", {}


def change_threshold(tmp_path):
    return "threshold", {"threshold": 0.4}


@pytest.mark.parametrize("change", [change_weights, change_scan, change_table, change_threshold])
def test_results_of_something_else_are_kept_unless_told_otherwise(three, tmp_path, change):
    out = tmp_path / "out"
    run(three, out)
    before = files(out)
    name, options = change(tmp_path)
    with pytest.raises(ValueError, match="scans failed"):
        run(three, out, **options)
    hint = "choose another output folder, or --overwrite True"
    assert rows(out)["s1"]["error"] == f"{out}/s1_report.json: is there already, made with another {name}; {hint}"
    after = files(out)
    assert {key: after[key] for key in before if key != "summary.csv"} == {
        key: before[key] for key in before if key != "summary.csv"
    }
    run(three, out, overwrite=True, **options)
    assert rows(out)["s1"]["error"] == ""


def test_files_that_nobody_knows_are_kept(three, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "s1_map.nii.gz").write_text("drawn by hand")
    with pytest.raises(ValueError, match="1 of 3 scans failed"):
        run(three, out)
    assert (out / "s1_map.nii.gz").read_text() == "drawn by hand"
    assert "s1_map.nii.gz: is there already, and no record says of what" in rows(out)["s1"]["error"]


CLASHES = {
    ("s0.nii.gz", "s1.nii.gz", "s0.nii.gz"): r"s0.nii.gz stands twice in the list, and both would be mapped to .*/s0_",
    ("s0.nii.gz", "./s0.nii.gz"): r"s0.nii.gz stands twice in the list",
    ("s0.nii.gz", "s0.nii"): r"/s0.nii.gz and .*/s0.nii, and both would be mapped to .*/out/s0_.*; give them different",
}  # fmt: skip


@pytest.mark.parametrize("names", CLASHES)
def test_scans_that_would_replace_each_other_are_refused_before_any_is_read(three, tmp_path, names):
    write_scan(tmp_path / "s0.nii")
    with pytest.raises(ValueError, match=CLASHES[names]):
        run(datalist(tmp_path, *names), tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_scans_of_one_name_in_different_folders_are_kept_apart(three, tmp_path):
    for k, folder in enumerate(("a", "b/c")):
        write_scan(tmp_path / folder / "dwi.nii.gz", k)
    run(datalist(tmp_path, "a/dwi.nii.gz", "b/c/dwi.nii.gz"), tmp_path / "out")
    assert list(rows(tmp_path / "out")) == ["a/dwi", "b/c/dwi"]
    assert (tmp_path / "out" / "b" / "c" / "dwi_map.nii.gz").is_file()
    # a longer list does not move what is finished
    seen = []
    run(datalist(tmp_path, "a/dwi.nii.gz", "b/c/dwi.nii.gz", "s0.nii.gz"), tmp_path / "out", before=seen.append)
    assert len(seen) == 1


def test_a_result_never_replaces_a_file_of_the_list(three, tmp_path):
    items = [{"image": "s0.nii.gz", "brain_mask": "s0_map.nii.gz"}]
    write_nifti(tmp_path / "s0_map.nii.gz", np.ones((5, 6, 4), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    three.write_text(json.dumps({"testing": items}))
    before = (tmp_path / "s0_map.nii.gz").read_bytes()
    with pytest.raises(ValueError, match=r"s0_map.nii.gz: the result of .*s0.nii.gz would replace this file"):
        run(three, tmp_path, overwrite=True)
    assert (tmp_path / "s0_map.nii.gz").read_bytes() == before


def test_long_names_have_their_maps_and_longer_ones_a_sentence(three, tmp_path):
    fits, too_long, wide = "x" * 233 + ".nii.gz", "y" * 248 + ".nii.gz", "試" * 70 + ".nii.gz"
    for name in (fits, too_long, wide):
        write_scan(tmp_path / "s0.nii.gz")
        (tmp_path / "s0.nii.gz").rename(tmp_path / name)
    items = [{"image": name, "bval": "s0.bval", "bvec": "s0.bvec"} for name in (fits, too_long, wide)]
    three.write_text(json.dumps({"testing": items}))
    with pytest.raises(ValueError, match="1 of 3 scans failed"):
        run(three, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [found[n.removesuffix(".nii.gz")]["error"] for n in (fits, wide)] == ["", ""]
    assert found["y" * 248]["error"].endswith(
        "no files can have the names of its results (File name too long); shorten its name"
    )


# --- killed, and in several processes


def slow(put_in_place):
    def put(*paths):
        time.sleep(0.01)
        put_in_place(*paths)

    return put


def child(three, out, **options):
    """Map the list with moments between any two files, so that kills meet them."""
    torch.set_num_threads(1)
    writing.put_in_place = slow(writing.put_in_place)
    run(three, out, progress=False, **options)  # tqdm has locks that outlive a killed process


def test_killed_at_any_moment_the_same_command_completes_the_list(three, tmp_path):
    """kill -9, 25 times: whatever is there is whole, and the last run finds what is left to do."""
    expected, out = tmp_path / "expected", tmp_path / "out"
    run(three, expected)
    chance, context = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(25):
        process = context.Process(target=child, args=(three, out))
        process.start()
        time.sleep(chance.uniform(0, 0.35))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in out.glob("s*_map.nii.gz"):  # a map is whole, and never without its record
            stem = path.name.removesuffix("_map.nii.gz")
            assert path.stat().st_size == (expected / path.name).stat().st_size
            json.loads((out / f"{stem}_report.json").read_text())
        if (out / "summary.csv").is_file():
            assert all(row["error"] == "" for row in rows(out).values())
        if chance.random() < 0.3:
            for path in out.glob("s1*"):
                path.unlink()
    run(three, out)
    assert list(rows(out)) == ["s0", "s1", "s2"]
    assert set(files(out)) == set(files(expected))
    for k in range(3):
        assert (out / f"s{k}_map.nii.gz").read_bytes() == (expected / f"s{k}_map.nii.gz").read_bytes()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".part-")]


def test_no_map_is_lost_when_it_is_replaced(three, tmp_path):
    """kill -9 in the middle of --overwrite, 20 times: each scan has all of the old results, or all of the new ones."""
    expected, out = {}, tmp_path / "out"
    for threshold in (0.3, 0.6):
        run(three, tmp_path / str(threshold), threshold=threshold)
        found = files(tmp_path / str(threshold))
        expected[threshold] = {name: content for name, content in found.items() if name.endswith("map.nii.gz")}
    run(three, out, threshold=0.3)
    chance, context, completed = random.Random(0), multiprocessing.get_context("fork"), 0
    for k in range(20):
        wanted = {"threshold": (0.6, 0.3)[k % 2], "overwrite": True}
        process = context.Process(target=child, args=(three, out), kwargs=wanted)
        process.start()
        time.sleep(chance.uniform(0.02, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        completed += bool(list(out.glob(".done-*")))
        output_folder(out)  # as the next command does
        assert not [path.name for path in out.iterdir() if path.name.startswith((".part-", ".done-"))]
        for scan in ("s0", "s1", "s2"):
            record = json.loads((out / f"{scan}_report.json").read_text())
            assert (out / f"{scan}_report.png").is_file()
            assert (out / f"{scan}_map.nii.gz").read_bytes() == expected[record["threshold"]][f"{scan}_map.nii.gz"]
    assert completed > 0  # else no kill came between


def test_two_processes_that_map_one_list_into_one_folder_both_end_well(three, tmp_path):
    """The same command typed twice, six times, with moments between any two files."""
    expected, out, context = tmp_path / "expected", tmp_path / "out", multiprocessing.get_context("fork")
    run(three, expected)
    chance = random.Random(0)
    for _ in range(6):
        processes = [context.Process(target=child, args=(three, out)) for _ in range(2)]
        for process in processes:
            process.start()
            time.sleep(chance.uniform(0, 0.3))
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert list(rows(out)) == ["s0", "s1", "s2"]
        assert all(row["error"] == "" for row in rows(out).values())
        assert set(files(out)) == set(files(expected))
        for k in range(3):
            assert (out / f"s{k}_map.nii.gz").read_bytes() == (expected / f"s{k}_map.nii.gz").read_bytes()
        shutil.rmtree(out)


def share(three, out, rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        run(three, out, share=slice(rank, None, 2), progress=False)
    finally:
        torch.distributed.destroy_process_group()


def test_processes_share_a_list_and_all_know_of_a_failure(three, tmp_path):
    (tmp_path / "s1.nii.gz").unlink()  # in the share of process 1
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=share, args=(three, tmp_path / "out", rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [1, 1]
    assert {name: bool(row["error"]) for name, row in rows(tmp_path / "out").items()} == {
        "s0": False, "s1": True, "s2": False,
    }  # fmt: skip

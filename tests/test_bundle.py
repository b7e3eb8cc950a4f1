"""The bundle as a user runs it: inference, training, evaluation, and bad input."""

import copy
import csv
import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata
from monai.networks.nets import UNet
from monai.transforms import CastToTyped, Compose
from sklearn.metrics import average_precision_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eqdmri_monai.errors import sentence
from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.metrics import scan_scores
from eqdmri_monai.networks import PQNet
from eqdmri_monai.report import sha256
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [6.0, 6.0, 6.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def phantoms():
    tables = [single_shell(n, b, np.random.default_rng(n)) for n, b in ((8, 1000.0), (10, 2000.0))]
    return [make_phantom(s, t, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6) for s, t in enumerate(tables)]


@pytest.fixture
def cohort(tmp_path, phantoms):
    """Two scans with labels, a datalist of them, and weights."""
    items = []
    for k, phantom in enumerate(phantoms):
        write_nifti(tmp_path / f"s{k}.nii.gz", phantom.dwi, phantom.affine)
        write_fsl(phantom.table, phantom.affine, tmp_path / f"s{k}")
        write_nifti(tmp_path / f"s{k}_lesion.nii.gz", phantom.lesion.astype(np.uint8), phantom.affine)
        write_nifti(tmp_path / f"s{k}_brain.nii.gz", phantom.brain.astype(np.uint8), phantom.affine)
        items.append({"image": f"s{k}.nii.gz", "label": f"s{k}_lesion.nii.gz", "brain_mask": f"s{k}_brain.nii.gz"})
    lists = {"training": items, "validation": items[:1], "testing": items}
    (tmp_path / "scans.json").write_text(json.dumps(lists))
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), tmp_path / "model.pt")
    return tmp_path


def run(configs, network=SMALL, **options) -> ConfigWorkflow:
    """Run a bundle command in this process."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in configs],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        initialize=["$monai.utils.set_determinism(seed=0)"],  # one_line_errors is for command lines
        **network | options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return workflow


def infer(dwi, cohort, output, **options) -> Path:
    run(["inference.yaml"], dwi=str(dwi), weights=str(cohort / "model.pt"), output_dir=str(output), **options)
    return Path(output)


# --- inference


def test_maps_lie_on_the_scans_own_grid(cohort):
    out = infer(cohort / "s0.nii.gz", cohort, cohort / "out")
    scan = nib.load(cohort / "s0.nii.gz")
    maps = {f"s0_{name}.nii.gz" for name in ("probability", "lesion", "brain")}
    report = {"s0_report.png", "s0_report.json", "s0_report.html", "index.html"}
    assert {path.name for path in out.iterdir()} == maps | report
    for name in ("probability", "lesion", "brain"):
        image = nib.load(out / f"s0_{name}.nii.gz")
        assert image.shape == scan.shape[:3]
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    probability, lesion, brain = (
        nib.load(out / f"s0_{n}.nii.gz").get_fdata() for n in ("probability", "lesion", "brain")
    )
    assert 0 <= probability.min() < probability.max() <= 1
    assert probability[brain == 0].max() == 0
    np.testing.assert_array_equal(lesion, probability >= 0.5)


def stored(phantom, codes: str, folder: Path) -> Path:
    """Write the same scan in another storage order."""
    image = nib.Nifti1Image(phantom.dwi, phantom.affine)
    to = nib.orientations.ornt_transform(nib.io_orientation(phantom.affine), nib.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(to)
    write_nifti(folder / f"{codes}.nii.gz", np.asarray(turned.dataobj), turned.affine)
    write_fsl(phantom.table, turned.affine, folder / codes)
    return folder / f"{codes}.nii.gz"


def in_ras(path: Path) -> np.ndarray:
    return nib.as_closest_canonical(nib.load(path)).get_fdata()


def test_storage_order_does_not_matter(cohort, phantoms):
    maps = []
    for codes in ("LAS", "RAS", "PSL", "IPR", "ALI"):
        out = infer(stored(phantoms[0], codes, cohort), cohort, cohort / "out")
        maps.append(in_ras(out / f"{codes}_probability.nii.gz"))
    assert maps[0].std() > 0.01
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], rtol=0, atol=1e-5)


def test_sign_of_gradients_and_order_of_volumes_do_not_matter(cohort, phantoms):
    phantom, rng = phantoms[0], np.random.default_rng(0)
    order = rng.permutation(len(phantom.table))
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], (len(order), 1)))
    table = GradientTable(phantom.table.bvals[order], sign * phantom.table.bvecs[order])
    write_nifti(cohort / "other.nii.gz", phantom.dwi[..., order], phantom.affine)
    write_fsl(table, phantom.affine, cohort / "other")
    a = infer(cohort / "s0.nii.gz", cohort, cohort / "a") / "s0_probability.nii.gz"
    b = infer(cohort / "other.nii.gz", cohort, cohort / "b") / "other_probability.nii.gz"
    np.testing.assert_allclose(in_ras(b), in_ras(a), rtol=0, atol=1e-5)


def test_many_scans_of_different_schemes_run_in_one_call_and_a_bad_one_fails_alone(cohort):
    items = [{"image": f"{name}.nii.gz"} for name in ("s0", "s0_brain", "s1")]
    (cohort / "scans.json").write_text(json.dumps({"testing": items}))
    options = {"weights": str(cohort / "model.pt"), "output_dir": str(cohort / "out")}
    with pytest.raises(RuntimeError) as error:
        run(["inference.yaml"], datalist=str(cohort / "scans.json"), **options)
    assert sentence(error.value) == f"1 of 3 scans failed; see {cohort}/out/summary.csv"
    assert {path.name for path in (cohort / "out").glob("*_probability.nii.gz")} == {
        "s0_probability.nii.gz", "s1_probability.nii.gz",
    }  # fmt: skip
    with (cohort / "out" / "summary.csv").open(newline="") as stream:
        errors = {row["scan"]: row["error"] for row in csv.DictReader(stream)}
    assert errors.pop("s0_brain").startswith(f"{cohort}/s0_brain.nii.gz: ")
    assert errors == {"s0": "", "s1": ""}


def test_bfloat16_gives_about_the_same(cohort):
    a = infer(cohort / "s0.nii.gz", cohort, cohort / "a") / "s0_probability.nii.gz"
    options = {"amp": True, "bfloat16": True}  # also where it is slow
    b = infer(cohort / "s0.nii.gz", cohort, cohort / "b", **options) / "s0_probability.nii.gz"
    assert 1e-5 < np.abs(in_ras(a) - in_ras(b)).max() < 0.05


def test_bfloat16_gives_way_where_it_is_slow_and_the_record_says_so(cohort):
    maps = []
    for name, options in {"fp32": {}, "amp": {"amp": True, "bfloat16#flags": "$frozenset({'avx2'})"}}.items():
        out = infer(cohort / "s0.nii.gz", cohort, cohort / name, **options)
        maps.append(in_ras(out / "s0_probability.nii.gz"))
        assert json.loads((out / "s0_report.json").read_text())["amp"] is False
    np.testing.assert_array_equal(*maps)


def test_training_in_bfloat16_learns_about_the_same(cohort):
    train(cohort, "fp32", epochs=1, val_interval=1)
    train(cohort, "bf16", epochs=1, val_interval=1, amp=True, bfloat16=True)
    exact, rounded = losses(cohort / "fp32"), losses(cohort / "bf16")
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_windows_do_not_change_the_map(cohort):
    whole = infer(cohort / "s0.nii.gz", cohort, cohort / "a") / "s0_probability.nii.gz"
    parts = infer(cohort / "s0.nii.gz", cohort, cohort / "b", window=[14, 12, -1]) / "s0_probability.nii.gz"
    np.testing.assert_allclose(in_ras(parts), in_ras(whole), rtol=0, atol=1e-5)


def test_windows_over_monais_u_net_do_not_change_the_map(cohort):
    """A network that knows nothing of q, halo and stride, laid over the config."""
    network = {"spatial_dims": 3, "in_channels": 9, "out_channels": 1, "channels": [4, 4, 4], "strides": [2, 2]}
    network |= {"norm": "batch"}
    torch.manual_seed(1)
    torch.save(UNet(**network).state_dict(), cohort / "model.pt")
    overlay = {"network_def": {"_target_": "UNet", **network}, "inferer::with_q": False}
    (cohort / "overlay.json").write_text(json.dumps(overlay | {"inferer::halo": 10, "inferer::stride": 4}))
    options = {"dwi": str(cohort / "s0.nii.gz"), "weights": str(cohort / "model.pt"), "spacing": [3.0, 3.0, 3.0]}
    for output, window in (("whole", [-1, -1, -1]), ("parts", [30, -1, 36])):
        configs = ["inference.yaml", str(cohort / "overlay.json")]
        run(configs, {}, output_dir=str(cohort / output), window=window, **options)
    whole, parts = (in_ras(cohort / output / "s0_probability.nii.gz") for output in ("whole", "parts"))
    assert whole.std() > 0.01
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)
    assert json.loads((cohort / "parts" / "s0_report.json").read_text())["warnings"] == []


def test_windows_that_change_the_map_are_in_the_record(cohort):
    options = {"network_def#normalization": "instance", "window": [14, 12, -1]}
    torch.save(PQNet(spacing=SPACING, normalization="instance", **NETWORK).state_dict(), cohort / "model.pt")
    for scan in ("s0", "s1"):
        infer(cohort / f"{scan}.nii.gz", cohort, cohort / "out", **options)
        record = json.loads((cohort / "out" / f"{scan}_report.json").read_text())
        assert [line for line in record["warnings"] if "windows are blended" in line]


# --- training and evaluation


def losses(folder: Path) -> list[float]:
    """Training losses in the order of iterations, over all files of a folder."""
    found = {}
    for file in sorted(folder.glob("tensorboard/*")):
        events = EventAccumulator(str(file)).Reload()
        if "train_loss" in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("train_loss")}
    return [found[step] for step in sorted(found)]


def train(cohort, output, overlays=(), **options):
    return run(
        ["train.yaml", *overlays],
        datalist=str(cohort / "scans.json"),
        **{"output_dir": str(cohort / output), "crop_size": [8, 8, 8], "epochs": 4, "val_interval": 4} | options,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(cohort, workers):
    train(cohort, "unbroken", workers=workers)
    train(cohort, "broken", workers=workers, **{"train#trainer#max_epochs": 2})
    train(cohort, "broken", workers=workers, resume=str(cohort / "broken" / "models" / "checkpoint.pt"))
    whole, parts = losses(cohort / "unbroken"), losses(cohort / "broken")
    assert len(whole) == 8
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)
    a, b = (torch.load(cohort / run / "models" / "model.pt", weights_only=True) for run in ("unbroken", "broken"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=1e-6)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_training_never_touches_another_one(cohort, monkeypatch):
    """Whatever is mistaken, not one byte changes in the folder of a finished run."""
    short = {"epochs": 1, "val_interval": 1}
    train(cohort, "done", **short)
    train(cohort, "other", **short)
    (cohort / "half.pt").write_bytes((cohort / "other" / "models" / "checkpoint.pt").read_bytes()[:-999])
    before = contents(cohort)
    elsewhere = {"output_dir": str(cohort / "new")}
    mistakes = {
        r"checkpoint.pt: a training before this one wrote it; go on with --resume auto, or cho": {},
        r"none.pt: no such file; --resume auto": {"resume": "none.pt"},
        r"other/models/checkpoint.pt: going on from it would replace .*done/models/checkpoint.pt": {
            "resume": "other/models/checkpoint.pt"
        },
        r"done/models/checkpoint.pt: weights of another network": {
            "resume": "auto",
            "network_def#irreps_pq": ["3x0e+1x1e"],
        },
        r"half.pt: not a file of weights, or damaged": elsewhere | {"resume": "half.pt"},
        r"done/models/model.pt: no checkpoint of a training": elsewhere | {"resume": "done/models/model.pt"},
    }
    monkeypatch.chdir(cohort)
    for words, options in mistakes.items():
        with pytest.raises((RuntimeError, ValueError, FileNotFoundError)) as error:
            train(cohort, "done", **short | options)
        assert re.search(words, str(cause(error.value))), cause(error.value)
        assert contents(cohort) == before


def test_a_run_goes_on_in_another_folder_where_it_looks_for_its_best_weights_anew(cohort):
    train(cohort, "first", epochs=2, val_interval=1, **{"train#trainer#max_epochs": 1})
    checkpoint = cohort / "first" / "models" / "checkpoint.pt"
    before = contents(cohort / "first")
    train(cohort, "second", epochs=2, val_interval=1, resume=str(checkpoint))
    assert contents(cohort / "first") == before
    assert torch.load(cohort / "second" / "models" / "checkpoint.pt")["trainer"]["iteration"] == 4
    assert (cohort / "second" / "models" / "model.pt").is_file()


def test_cached_scans_are_right_to_a_thousandth_and_no_step_writes_into_them(cohort):
    workflow = train(cohort, "run", epochs=1)
    dataset = workflow.parser.get_parsed_content("train::dataset")
    parsed = workflow.parser.get_parsed_content
    crops = [t for t in parsed("train::prepare_crops") if not isinstance(t, CastToTyped)]
    exact = Compose([*parsed("scan::read"), *parsed("scan::prepare"), parsed("normalize"), *crops])
    before = copy.deepcopy(dataset._cache)
    for _ in range(5):
        for item, scan in enumerate(dataset.data):
            dataset[item]
            image, cached = exact(scan)["image"], dataset._cache[item]["image"]
            assert (image - cached.float()).abs().max() < 1e-3 * image.abs().max()
    for old, new in zip(before, dataset._cache, strict=True):
        for key in ("image", "label", "brain_mask", "label_fg_indices", "label_bg_indices"):
            np.testing.assert_array_equal(np.asarray(new[key]), np.asarray(old[key]))


def test_evaluation_measures_what_inference_maps(cohort):
    weights, scans = str(cohort / "model.pt"), str(cohort / "scans.json")
    options = {"weights": weights, "datalist": scans, "threshold": 0.505}  # where random weights find some lesions
    run(["train.yaml", "evaluate.yaml"], output_dir=str(cohort / "eval"), **options)
    run(["inference.yaml"], output_dir=str(cohort / "out"), dwi=None, **options)

    expected, probabilities, labels = [], [], []
    for name in ("s0", "s1"):
        p, brain = (nib.load(cohort / "out" / f"{name}_{kind}.nii.gz") for kind in ("probability", "brain"))
        label = nib.load(cohort / f"{name}_lesion.nii.gz")
        p, brain, y = (image.get_fdata() for image in (p, brain, label))
        ml = np.prod(label.header.get_zooms()) / 1000
        expected.append(scan_scores(p, y, brain, voxel_ml=ml, threshold=0.505))
        probabilities.append(p[brain > 0])
        labels.append(y[brain > 0])
    with (cohort / "eval" / "scan_metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("scan") for row in rows] == ["s0.nii.gz", "s1.nii.gz"]
    for row, scores in zip(rows, expected, strict=True):
        assert {name: float(value) for name, value in row.items()} == pytest.approx(scores, rel=1e-4)
        assert 0 < scores["found_lesions"] <= scores["true_lesions"]
        assert 0 < scores["lesion_precision"] <= 1

    with (cohort / "eval" / "metrics.csv").open(newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    probability, label = np.concatenate(probabilities), np.concatenate(labels)
    total = {name: sum(scores[name] for scores in expected) for name in expected[0]}
    assert metrics == pytest.approx(
        {
            "val_average_precision": average_precision_score(label, probability),
            "val_auc": roc_auc_score(label, probability),
            "val_dice": np.mean([scores["dice"] for scores in expected]),
            "val_lesion_sensitivity": total["found_lesions"] / total["true_lesions"],
            "val_lesion_precision": 1 - total["false_lesions"] / total["predicted_lesions"],
            "val_true_ml": total["true_ml"],
            "val_predicted_ml": total["predicted_ml"],
        },
        rel=1e-4,
    )
    written = {path.name for path in (cohort / "eval").iterdir()}
    pictures = {"s0_evaluation.png", "s1_evaluation.png"}
    assert written == {"metrics.csv", "scan_metrics.csv", "evaluation.json"} | pictures
    record = json.loads((cohort / "eval" / "evaluation.json").read_text())
    assert record["weights_sha256"] == sha256(weights)
    files = [cohort / f"{name}{kind}.nii.gz" for name in ("s0", "s1") for kind in ("", "_lesion")]
    assert record["inputs_sha256"] == [sha256(path) for path in files]
    assert record["threshold"] == 0.505


def test_the_weights_of_a_training_measure_what_it_said(cohort):
    train(cohort, "run", epochs=1, val_interval=1)
    run(
        ["train.yaml", "evaluate.yaml"],
        datalist=str(cohort / "scans.json"),
        section="validation",
        weights=str(cohort / "run" / "models" / "model.pt"),
        output_dir=str(cohort / "eval"),
    )
    with (cohort / "eval" / "metrics.csv").open(newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    events = [EventAccumulator(str(file)).Reload() for file in (cohort / "run" / "tensorboard").iterdir()]
    said = {name: e.Scalars(name)[-1].value for e in events for name in e.Tags()["scalars"] if name in metrics}
    assert said.keys() == metrics.keys() - {"val_true_ml", "val_predicted_ml"}
    assert {name: metrics[name] for name in said} == pytest.approx(said, rel=1e-5, nan_ok=True)


def test_the_papers_way_of_training_evaluation_and_inference(cohort):
    items = json.loads((cohort / "scans.json").read_text())["training"][:1]
    (cohort / "one.json").write_text(json.dumps({"training": 2 * items, "validation": items, "testing": items}))
    zoo = [f"../../configs/paper/{name}.yaml" for name in ("paper", "late", "l_TP1_1+4_c")]
    options = {"datalist": str(cohort / "one.json"), "network_def#radial#num_q": 2}
    run(["train.yaml", *zoo], output_dir=str(cohort / "run"), epochs=1, val_interval=1, **options)
    assert len(losses(cohort / "run")) == 2
    statistics = json.loads((cohort / "run" / "models" / "statistics.json").read_text())
    assert len(statistics["channel_means"]) == 9
    assert statistics["scans"] == 2
    options["weights"] = str(cohort / "run" / "models" / "model.pt")
    run(["train.yaml", *zoo, "evaluate.yaml"], output_dir=str(cohort / "eval"), **options)
    assert "val_dice" in (cohort / "eval" / "metrics.csv").read_text()
    del options["datalist"]
    zoo[0] = "../../configs/paper/paper_inference.yaml"
    run(["inference.yaml", *zoo], dwi=str(cohort / "s0.nii.gz"), output_dir=str(cohort / "out"), **options)
    assert (cohort / "out" / "s0_probability.nii.gz").is_file()


def test_spherical_convolutions_train_and_map_in_the_bundle(cohort):
    overlay = "../../configs/sphere_net.yaml"
    small = {"channels": [2], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
    options = {"network": {"spacing": SPACING, **{f"network_def#{key}": value for key, value in small.items()}}}
    train(cohort, "run", [overlay], epochs=1, val_interval=1, **options)
    weights = str(cohort / "run" / "models" / "model.pt")
    dwi, out = str(cohort / "s0.nii.gz"), cohort / "out"
    run(["inference.yaml", overlay], dwi=dwi, weights=weights, output_dir=str(out), **options)
    probability = nib.load(out / "s0_probability.nii.gz").get_fdata()
    assert 0 < probability.max() <= 1


# --- several processes; what their gradients are is in test_parallel.py


def world(monkeypatch, rank: int, processes: int) -> None:
    """Set what torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, **names}.items():
        monkeypatch.setenv(name, str(value))


def two_processes(configs, cohort, **options) -> None:
    """Run a bundle command in two processes."""
    files = [str(CONFIGS / name) for name in configs]
    words = [f"--{key}={value}" for key, value in (SMALL | options).items()]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2",
         "-m", "monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(BUNDLE),
         "--datalist", str(cohort / "scans.json"), *words],
        cwd=cohort, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def three(cohort):
    """A cohort of three scans, too many to divide evenly by two."""
    for path in list(cohort.glob("s0*")):
        shutil.copy(path, cohort / path.name.replace("s0", "s2"))
    names = ("", "_lesion", "_brain")
    items = [
        dict(zip(("image", "label", "brain_mask"), (f"s{k}{name}.nii.gz" for name in names), strict=True))
        for k in range(3)
    ]
    (cohort / "scans.json").write_text(json.dumps({"training": items, "validation": items[:2], "testing": items}))
    return cohort


def test_a_group_of_one_process_trains_like_one_process(cohort, monkeypatch):
    train(cohort, "alone", epochs=2, val_interval=2)
    world(monkeypatch, 0, 1)
    idist.initialize("gloo")
    train(cohort, "group", ["multi_gpu_train.yaml"], epochs=2, val_interval=2)
    np.testing.assert_allclose(losses(cohort / "group"), losses(cohort / "alone"), rtol=0, atol=1e-6)
    for name in ("model.pt", "checkpoint.pt"):
        a, b = (torch.load(cohort / run / "models" / name, weights_only=True) for run in ("alone", "group"))
        assert a.get("network", a).keys() == b.get("network", b).keys()


def test_each_scan_is_mapped_by_exactly_one_process(three, monkeypatch):
    shares, scans = [], [str(three / f"s{k}.nii.gz") for k in range(3)]
    for rank in range(4):
        world(monkeypatch, rank, 4)
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / name) for name in ("inference.yaml", "multi_gpu_inference.yaml")],
            logging_file=False, datalist=str(three / "scans.json"), bundle_root=str(BUNDLE), initialize=["$None"],
        )  # fmt: skip
        workflow.initialize()
        shares += scans[workflow.parser.get_parsed_content("map_scans::share")]
    assert sorted(shares) == scans


@pytest.mark.slow
def test_two_processes_train_and_one_goes_on(three):
    options = {"crop_size": [8, 8, 8], "val_interval": 2}
    two_processes(["train.yaml", "multi_gpu_train.yaml"], three, output_dir="run", epochs=2, **options)
    assert len(losses(three / "run")) == 2 * 2  # 3 scans in 2 processes
    assert len(list((three / "run" / "tensorboard").iterdir())) == 1
    checkpoint = three / "run" / "models" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)["network"]
    assert state.keys() == PQNet(spacing=SPACING, **NETWORK).state_dict().keys()
    options |= {"crop_size": [8, 8, 8], "datalist": str(three / "scans.json"), "output_dir": str(three / "more")}
    run(["train.yaml"], epochs=3, resume=str(checkpoint), **options)
    assert len(losses(three / "more")) == 3
    two_processes(
        ["train.yaml", "multi_gpu_train.yaml"], three, output_dir="last", epochs=4,
        resume=three / "more" / "models" / "checkpoint.pt", crop_size=[8, 8, 8], val_interval=4,
    )  # fmt: skip
    assert len(losses(three / "last")) == 2


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(three):
    options = {"datalist": str(three / "scans.json"), "weights": str(three / "model.pt")}
    run(["train.yaml", "evaluate.yaml"], output_dir=str(three / "one"), **options)
    two_processes(
        ["train.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"], three, output_dir=three / "two", weights="model.pt"
    )
    for name in ("metrics.csv", "scan_metrics.csv"):
        one, two = (list(csv.reader((three / folder / name).read_text().splitlines())) for folder in ("one", "two"))
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert a[0] == b[0]
            assert [_number(x) for x in a] == pytest.approx([_number(x) for x in b], abs=1e-6, nan_ok=True)
    assert {path.name for path in (three / "one").iterdir()} == {path.name for path in (three / "two").iterdir()}
    assert len(list((three / "two").glob("*_evaluation.png"))) == 3


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return 0.0  # a name


@pytest.mark.slow
def test_two_processes_map_what_one_maps(three):
    options = {"datalist": str(three / "scans.json"), "dwi": None}
    run(["inference.yaml"], weights=str(three / "model.pt"), output_dir=str(three / "one"), **options)
    two_processes(["inference.yaml", "multi_gpu_inference.yaml"], three, output_dir="two", weights="model.pt")
    one, two = ({path.name for path in (three / folder).glob("[!.]*")} for folder in ("one", "two"))
    assert one == two
    assert len(one) == 3 * 6 + 2  # with the index of pages and the summary
    for name in one:
        if name.endswith(".nii.gz"):
            np.testing.assert_allclose(in_ras(three / "two" / name), in_ras(three / "one" / name), rtol=0, atol=1e-6)


def test_training_and_inference_prepare_scans_alike():
    train, inference = (ConfigParser.load_config_file(CONFIGS / f"{name}.yaml") for name in ("train", "inference"))
    for key in ("scan", "normalize", "network_def"):
        assert train[key] == inference[key]
    assert train["task"]["activate"] == inference["task"]["activate"]


def test_configs_have_the_ids_that_monai_looks_for(cohort):
    options = {"datalist": str(cohort / "scans.json")}
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "train.yaml"), meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        workflow_type="train", bundle_root=str(BUNDLE), output_dir=str(cohort / "run"), initialize=["$None"], **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        assert workflow.check_properties() in ([], None)
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.yaml"), meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        workflow_type="infer", bundle_root=str(BUNDLE), initialize=["$None"], **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        assert workflow.check_properties() in ([], None)


def test_metadata_has_the_form_that_monai_demands(tmp_path):
    required = [
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format",
    ]  # fmt: skip
    schema = {"type": "object", "required": required, "properties": {"changelog": {"type": "object"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schema's hash is not checked
        verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


def test_shipped_weights_fit_the_configured_network():
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.yaml"), meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        bundle_root=str(BUNDLE), initialize=["$None"],  # one_line_errors would change this process
    )  # fmt: skip
    workflow.initialize()
    workflow.parser.get_parsed_content("load_weights")


# --- bad input: one sentence, and nothing is written


def spoil_bvec(cohort, change):
    path = cohort / "s0.bvec"
    rows = np.loadtxt(path)
    change(rows)
    np.savetxt(path, rows)


def set_nan(rows):
    rows[:, 4] = np.nan


def halve(rows):
    rows *= 0.5


def write_scan(cohort, dwi, affine=None):
    image = nib.load(cohort / "s0.nii.gz")
    new = nib.Nifti1Image(dwi(image.get_fdata(dtype=np.float32)), None if affine is not None else image.affine)
    if affine is not None:
        new.set_sform(affine, code=1)
    nib.save(new, cohort / "s0.nii.gz")


def put_nan(x):
    x[3, 4, 5] = np.nan
    return x


def shear(cohort):
    affine = nib.load(cohort / "s0.nii.gz").affine.copy()
    affine[:3, 1] += 0.4 * affine[:3, 0]
    write_scan(cohort, lambda x: x, affine)


def cut_short(cohort):
    path = cohort / "s0.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])


def empty_mask(cohort):
    mask = nib.load(cohort / "s0_brain.nii.gz")
    write_nifti(cohort / "s0_brain.nii.gz", np.zeros(mask.shape, np.uint8), mask.affine)
    return {"brain_mask": str(cohort / "s0_brain.nii.gz")}


def spoil_weights(cohort, value):
    """Spoil a weight so that the file or only the map shows it."""
    state = torch.load(cohort / "model.pt", weights_only=True)
    state[next(iter(state))].fill_(value)
    torch.save(state, cohort / "model.pt")


def no_folder(cohort):
    (cohort / "out").touch()


BAD_INPUT = {
    "count mismatch": (lambda c: write_scan(c, lambda x: x[..., :-1]), r"s0.bvec: 10 entries for a scan of 9 volumes"),
    "missing table": (lambda c: (c / "s0.bvec").unlink(), r"s0.nii.gz: no gradient table; put s0.bval"),
    "NaN table": (lambda c: spoil_bvec(c, set_nan), r"s0.bvec: direction of volume 4 is not a number"),
    "directions not unit": (lambda c: spoil_bvec(c, halve), r"s0.bvec: direction of volume 2 has length 0.5, not 1"),
    "b-values all 0": (lambda c: (c / "s0.bval").write_text("0 " * 10), r"s0.bval: all b-values are 50 s/mm² or less"),
    "NaN image": (lambda c: write_scan(c, put_nan), r"s0.nii.gz: volume 0 has 1 voxels that are not finite"),
    "all-zero image": (lambda c: write_scan(c, lambda x: 0 * x), r"s0.nii.gz: every voxel is 0"),
    "3D image": (lambda c: write_scan(c, lambda x: x[..., 0]), r"s0.nii.gz: 3 axes \(24, 28, 20\)"),
    "truncated gz": (cut_short, r"s0.nii.gz: the file is cut short"),
    "sheared affine": (shear, r"s0.nii.gz: affine has sheared voxel axes"),
    "empty mask": (empty_mask, r"s0_brain.nii.gz: the brain mask is empty"),
    "another number of classes": (
        lambda c: {"network_def#irreps_out": "3x0e"},
        r"model.pt: weights of another network",
    ),
    "weights of another network": (lambda c: {"network_def#irreps_pq": ["4x0e"]}, r"model.pt: weights of another netw"),
    "no weights": (lambda c: (c / "model.pt").unlink(), r"model.pt: no such file; train first"),
    "NaN weights": (lambda c: spoil_weights(c, np.nan), r"model.pt: \d+ of the \d+ weights in \S+ are not finite"),
    "NaN map": (lambda c: spoil_weights(c, 1e38), r"s0.nii.gz: \d+ of the \d+ values that the network with .*model.pt"),
    "unwritable output": (no_folder, r"out: cannot write results there"),
    "no scan": (lambda c: (c / "s0.nii.gz").unlink(), r"s0.nii.gz: no such file"),
}


def cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_sentence_and_writes_nothing(cohort, case):
    spoil, words = BAD_INPUT[case]
    changed = spoil(cohort)
    options = changed if isinstance(changed, dict) else {}
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)) as error:
        infer(cohort / "s0.nii.gz", cohort, cohort / "out", **options)
    sentence = str(cause(error.value))
    assert re.search(words, sentence), sentence
    assert "\n" not in sentence
    assert not (cohort / "out").is_dir() or list((cohort / "out").iterdir()) == []


def test_labels_of_another_number_of_classes_are_refused(cohort):
    label = nib.load(cohort / "s0_lesion.nii.gz")
    write_nifti(cohort / "s0_lesion.nii.gz", 3 * np.asarray(label.dataobj), label.affine)
    with pytest.raises(RuntimeError) as error:
        train(cohort, "run")
    assert re.search(r"s0_lesion.nii.gz: label of 1 channels with values \[0.0, 3.0\]", str(cause(error.value)))


# --- as a command, from elsewhere


def command(cohort, *words) -> subprocess.CompletedProcess:
    options = [f"--{key}={value}" for key, value in SMALL.items()]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *words, "--weights", "model.pt", *options],
        cwd=cohort, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_runs_from_any_folder_with_any_names(cohort):
    name, out = "$a b#1,2%'{@dwi}", "20240131"
    for path in list(cohort.glob("s0.*")):
        path.rename(cohort / path.name.replace("s0", name, 1))
    done = command(
        cohort, "--args_file", str(BUNDLE / "inference.yaml"), "--dwi", f"{name}.nii.gz", f"--output_dir={out}"
    )
    assert done.returncode == 0, done.stderr
    assert (cohort / out / f"{name}_probability.nii.gz").exists()
    record = json.loads((cohort / out / f"{name}_report.json").read_text())
    assert done.stdout.splitlines()[-1] == (
        f"{name}: lesions {record['lesions']}, lesion_ml {record['lesion_ml']}, brain_ml {record['brain_ml']}; "
        f"results are in {cohort}/{out}"
    )


def test_the_plain_command_ends_with_one_sentence_on_bad_input(cohort):
    (cohort / "s0.nii.gz").write_bytes(gzip.compress(b"nothing"))
    plain = ("--config_file", str(CONFIGS / "inference.yaml"), "--bundle_root", str(BUNDLE))
    done = command(cohort, *plain, "--dwi", "s0.nii.gz", "--output_dir", "out")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"error: .*s0.nii.gz: not a readable NIfTI file", done.stderr.splitlines()[-1]), done.stderr
    assert not any((cohort / "out").iterdir())

"""The study's runner on a cohort of three small heads: it trains, scores, writes its lines, and does nothing twice."""

import csv
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from heads import ball

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.cohort import draw_lesions, implanted
from eqdmri_monai.simulate.lesions import blob

SCRIPT = Path(__file__).parents[1] / "scripts" / "study.py"


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # its classes are looked up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    scans = folder / "cohort" / "scans"
    scans.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    shapes, table = [blob(rng) for _ in range(3)], single_shell(6, 1000.0, rng, b0s=1)
    for k, name_of_head in enumerate("abc"):
        head = ball(20, 2.5, seed=k)
        noisy = np.abs(head.signal(table) + rng.normal(0, 0.02, (*head.brain.shape, 7))).astype(np.float32)
        for section in ("training", "choice", "testing", "healthy"):
            lesions = [] if section == "healthy" else draw_lesions(head, shapes, rng, 6)
            scan, name = implanted(noisy, table, head, lesions), f"{section}_{name_of_head}"
            write_fsl(table, head.affine, scans / name)
            write_nifti(scans / f"{name}.nii", scan.dwi, head.affine)
            write_nifti(scans / f"{name}_lesion.nii.gz", (scan.lesion > 0).astype(np.uint8), head.affine)
            write_nifti(scans / f"{name}_numbers.nii.gz", scan.lesion, head.affine)
            write_nifti(scans / f"{name}_brain.nii.gz", head.brain.astype(np.uint8), head.affine)
            kind = {"kind": "implanted" if lesions else "healthy", "section": section if lesions else "testing"}
            known = [{"number": n, "strength": lesion.strength, "ml": 0.3} for n, lesion in enumerate(lesions, start=1)]
            where = {"name": name, "head": name_of_head, "scanner": f"scanner {name_of_head}", "view": "only"}
            rows.append(where | kind | {"number": 0, "lesions": known})
    (folder / "cohort" / "scans.json").write_text(json.dumps(rows))
    return folder


def lines(file: Path, contender: str) -> list[dict]:
    with file.open() as text:
        return [line for line in csv.DictReader(text) if line["contender"] == contender]


@pytest.mark.parametrize(
    "contender",
    [
        "boosting",
        "forest",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("pqnet", "sphere_net", "pq_unet", "maps_unet", "sh_unet_turned")
        ),
    ],
)
def test_a_run_is_scored_on_the_head_left_out_and_not_done_again(study, folder, contender, monkeypatch, capsys):
    plan, results = folder / "plan.yaml", folder / "results"
    plan.write_text(f"- {{ question: 1, contenders: [{contender}], data: [both], seeds: [0] }}\n")
    words = ["--plan", plan, "--results", results, "--steps", "2", "--left_out", "scanner a"]
    words += ["--set", "crop_size=[16,16,16]", "crops=2"]
    monkeypatch.setattr(sys, "argv", ["study.py", str(folder), *map(str, words)])
    study.main()
    assert f"{contender}_both_scanner a_0_2_own_" in capsys.readouterr().out
    (run,) = lines(results / "runs.csv", contender)
    assert (run["heads"], run["scans"]) == ("a", "2")
    assert 0 < float(run["average_precision"]) <= 1
    scans = lines(results / "scans.csv", contender)
    assert {(line["head"], line["kind"]) for line in scans} == {("a", "implanted"), ("a", "healthy")}
    healthy = next(line for line in scans if line["kind"] == "healthy")
    assert healthy["predicted_ml"] == run["healthy_ml"]
    assert healthy["average_precision"] == "nan"
    study.main()
    assert capsys.readouterr().out == ""


def test_thresholds_are_compared_where_a_run_is_finished(study, folder, monkeypatch, capsys):
    plan, results = folder / "plan.yaml", folder / "thresholds"
    plan.write_text("- { question: 1, contenders: [boosting], data: [both], seeds: [0], steps: 0 }\n")
    words = [str(folder), "--plan", str(plan), "--results", str(results), "--left_out", "scanner a"]
    monkeypatch.setattr(sys, "argv", ["study.py", *words, "--thresholds"])
    study.main()
    assert capsys.readouterr().out == ""  # nothing is finished
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    study.main()
    monkeypatch.setattr(sys, "argv", ["study.py", *words, "--thresholds"])
    study.main()
    study.main()  # not done again
    scans = lines(results / "thresholds.csv", "boosting")
    assert [float(line["threshold"]) for line in scans if line["kind"] == "healthy"] == list(study.THRESHOLDS)
    for kind in ("healthy", "implanted"):
        called = [float(line["predicted_ml"]) for line in scans if line["kind"] == kind]
        assert called == sorted(called, reverse=True)
        assert called[0] > 0
    (chosen,) = {line["threshold"] for line in lines(results / "runs.csv", "boosting")}
    scored = next(line for line in lines(results / "scans.csv", "boosting") if line["kind"] == "implanted")
    same = [line for line in scans if line["kind"] == "implanted" and float(line["threshold"]) == float(chosen)]
    assert all(line["dice"] == scored["dice"] for line in same)


def test_weights_to_ship_are_trained_on_all_heads_and_calibrated(study, folder, monkeypatch):
    plan = folder / "plan.yaml"
    plan.write_text("- { question: 1, contenders: [forest], data: [both], seeds: [0] }\n")
    words = ["--plan", plan, "--results", folder / "shipped", "--steps", "0", "--left_out", "none"]
    monkeypatch.setattr(sys, "argv", ["study.py", str(folder), *map(str, words)])
    study.main()
    (run,) = (folder / "runs").glob("forest_both_none_*")
    summary, weights = json.loads((run / "summary.json").read_text()), torch.load(run / "model.pt")
    assert summary["scans"] == 3
    first, second = (weights[f"{name}.start"] for name in ("first", "second"))
    expected = summary["scale"] * study.pickle.loads((run / "trees.pkl").read_bytes())[1]._baseline_prediction.item()
    assert float(second) == pytest.approx(expected + summary["shift"], rel=1e-5)
    assert first.isfinite()
    assert not (folder / "shipped" / "runs.csv").exists()


def test_a_plan_gives_each_run_once(study, tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "- { question: 1, contenders: [a, b], data: [both], seeds: [0] }\n"
        "- { question: 3, contenders: [a], data: [both, simulated], seeds: [0, 1], learning_rates: [own, 0.01] }\n"
        "- { form: long, question: 1, contenders: [c], data: [both], seeds: [0], steps: 3, left_out: [t] }\n"
    )
    runs = list(study.planned(tmp_path / "plan.yaml", ["s", "t"], 7, "1a2b", long=False))
    assert len(runs) == len(set(runs)) == 4 + 16 - 2
    assert len({run.name for run in runs}) == len(runs)
    assert {run.steps for run in runs} == {7}
    longer = set(study.planned(tmp_path / "plan.yaml", ["s", "t"], 7, "1a2b", long=True)) - set(runs)
    assert [(run.contender, run.left_out, run.steps) for run in longer] == [("c", "t", 3)]
    assert not set(study.planned(tmp_path / "plan.yaml", ["s"], 7, "1a2b", long=True)) - set(runs)


def test_every_contender_of_the_plan_has_its_file(study):
    runs = list(study.planned(study.CONFIGS / "plan.yaml", ["dstream"], 1, "1a2b", long=True))
    assert {name for run in runs for name in run.contender.split("+")} == {
        file.stem for file in study.CONFIGS.glob("*.yaml")
    } - {"plan", "study"}


def test_the_short_form_is_done(study):
    results = study.ROOT / "results" / "study"
    ours = [run for run in study.read_rows(results / "scans.csv") if run["contender"] == "forest"]
    scanners = sorted({line["left_out"] for line in ours})
    assert len(scanners) == 5
    for run in study.planned(study.CONFIGS / "plan.yaml", scanners, 1, ours[-1]["cohort"], long=False):
        assert study.finished(study.asdict(run), results / "runs.csv"), run.name


def test_a_cohort_has_one_name_on_all_machines(study):
    """Rounding moves a lesion's border by a voxel between processors; another list of scans is another cohort."""
    rows = [{"name": "a", "seed": 0, "lesions": [{"number": 1, "ml": 0.3}]}, {"name": "b", "seed": 0, "lesions": []}]
    voxel_more = [rows[0] | {"lesions": [{"number": 1, "ml": 0.327}]}, rows[1]]
    assert study.cohort_of(rows) == study.cohort_of(voxel_more)
    others = rows[:1], [row | {"seed": 1} for row in rows]
    assert len({study.cohort_of(other) for other in (rows, *others)}) == 3


def test_the_cohort_of_the_results_is_that_of_the_script(study):
    spec = importlib.util.spec_from_file_location("make_cohort", SCRIPT.with_name("make_cohort.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.plan(implanted=8, simulated=16, sets=2, seed=0)  # as by default
    runs = study.read_rows(study.ROOT / "results" / "study" / "runs.csv")
    assert {run["cohort"] for run in runs if run["contender"] == "forest"} == {study.cohort_of(rows)}


def test_two_processes_never_do_one_run(study, folder, monkeypatch, capsys):
    plan, results = folder / "plan.yaml", folder / "shared"
    plan.write_text("- { question: 1, contenders: [boosting], data: [both], seeds: [0], steps: 0 }\n")
    words = [str(folder), "--plan", str(plan), "--results", str(results), "--left_out", "scanner b"]
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    (run,) = study.planned(
        plan, ["scanner b"], 0, study.cohort_of(json.loads((folder / "cohort" / "scans.json").read_text())), long=False
    )
    held = (
        "import sys, time; from eqdmri_monai.files.checkpoints import hold_folder;"
        "held = hold_folder(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    out = folder / "runs" / run.name
    out.mkdir(parents=True, exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", held, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        study.main()
        assert capsys.readouterr().out == ""
        assert not (results / "runs.csv").exists()
    finally:
        other.communicate()
    study.main()
    assert len(lines(results / "runs.csv", "boosting")) == 1


def test_training_data_is_as_asked(study):
    rows = [
        {"section": "training", "scanner": f"s{k % 5}", "head": f"h{k % 5}", "kind": kind, "name": f"{k}{kind}"}
        for k in range(50)
        for kind in ("implanted", "simulated", "healthy")
    ]

    def chosen(data: str) -> list[dict]:
        return study.training_rows(rows, study.Run("any", data, "s0", 0, 1, "own", "1a2b"))

    assert len(chosen("both")) == 120
    assert {row["kind"] for row in chosen("simulated")} == {"simulated"}
    assert {row["kind"] for row in chosen("implanted")} == {"implanted", "healthy"}
    assert len({row["head"] for row in chosen("heads2")}) == 2
    share = chosen("share26")
    assert len(share) == 4 * round(0.26 * 30)
    assert {row["head"] for row in share} == {"h1", "h2", "h3", "h4"}
    assert not any(row["scanner"] == "s0" for data in ("both", "share26", "heads2") for row in chosen(data))
    with pytest.raises(ValueError, match="no kind of training data"):
        chosen("all")


def test_a_calibrated_map_has_the_lesions_it_says(study):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (40, 40, 10)) < 0.1
    said = 1 / (1 + np.exp(-(3 * truth + rng.normal(0, 1, truth.shape) + 2)))  # far too sure of lesion
    brain = np.ones(truth.shape, bool)
    (scale, shift), threshold = study.chosen([(said, truth, brain)])
    calibrate = partial(study.calibrated, scale=scale, shift=shift)
    assert calibrate(said).mean() == pytest.approx(truth.mean(), rel=0.02)
    assert study.calibration_error(calibrate(said)[brain], truth[brain]) < 0.01
    assert 0.1 < threshold < 0.8
    assert (np.argsort(calibrate(said).ravel()) == np.argsort(said.ravel())).all()


def test_a_mean_over_heads_counts_a_head_once(study):
    rows = [
        {"head": head, "kind": kind, "average_precision": value, "predicted_ml": 10 * value}
        for head, kind, value in (("a", "implanted", 0.2), ("a", "implanted", 0.4), ("b", "implanted", 0.9),
                                  ("a", "healthy", 0.1), ("b", "healthy", 0.3))
    ]  # fmt: skip
    means = study.over_heads(rows)
    assert means["average_precision"] == pytest.approx(0.6)
    assert means["healthy_ml"] == pytest.approx(2.0)

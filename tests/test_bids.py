"""A BIDS folder in place of a scan, and results that are BIDS derivatives."""

import csv
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from eqdmri_monai.errors import sentence
from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [6.0, 6.0, 6.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}
PLAIN, SESSION = "sub-1/dwi/sub-1", "sub-2/ses-a/dwi/sub-2_ses-a_run-1"
MAPS = ("desc-lesion_mask", "desc-lesion_probseg", "desc-brain_mask")


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two scans: one with its own table, and one of a session, whose table lies in the root."""
    study = tmp_path_factory.mktemp("study") / "raw"
    for k, place in enumerate((PLAIN, SESSION)):
        path = study / f"{place}_dwi.nii.gz"
        path.parent.mkdir(parents=True)
        table = single_shell(8, 1000.0, np.random.default_rng(k))
        phantom = make_phantom(k, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6)
        write_nifti(path, phantom.dwi, phantom.affine)
        write_fsl(table, phantom.affine, study / (f"{place}_dwi" if k == 0 else "run-1_dwi"))
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), study.parent / "model.pt")
    return study


def run(study: Path, out: Path, *configs: str, **options) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / name) for name in ("inference.yaml", *configs)], logging_file=False,
        bundle_root=str(BUNDLE), initialize=["$None"], finalize=["$None"], bids=str(study), output_dir=str(out),
        **SMALL | {"weights": str(study.parent / "model.pt")} | options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()


def files(folder: Path) -> dict[str, int]:
    """Files and when they were written."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def results(study):
    torch.set_default_dtype(torch.float32)
    run(study, study / "derivatives" / "eqdmri_monai")
    return study / "derivatives" / "eqdmri_monai"


def test_the_results_are_derivatives(study, results):
    assert set(files(results)) == {"dataset_description.json", ".bidsignore", "index.html", "summary.csv"} | {
        f"{place}_{name}"
        for place in (PLAIN, SESSION)
        for name in (
            *(f"{kind}{ending}" for kind in MAPS for ending in (".nii.gz", ".json")),
            *(f"desc-lesion_report{ending}" for ending in (".json", ".html", ".png")),
        )
    }
    raw = (results / json.loads((results / "dataset_description.json").read_text())["DatasetLinks"]["raw"]).resolve()
    for place, table in ((PLAIN, f"{PLAIN}_dwi"), (SESSION, "run-1_dwi")):
        scan = nib.load(study / f"{place}_dwi.nii.gz")
        for kind in MAPS:
            image = nib.load(results / f"{place}_{kind}.nii.gz")
            assert image.shape == scan.shape[:3]
            np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
            sidecar = json.loads((results / f"{place}_{kind}.json").read_text())
            assert sidecar["Sources"] == [
                f"bids:raw:{name}" for name in (f"{place}_dwi.nii.gz", f"{table}.bval", f"{table}.bvec")
            ]
            assert sidecar["SpatialReference"] == f"bids:raw:{place}_dwi.nii.gz"
            assert all((raw / source.removeprefix("bids:raw:")).is_file() for source in sidecar["Sources"])
            assert sidecar.get("Type") == {"lesion": "Lesion", "brain": "Brain"}.get(kind[5:-5])
            assert sidecar["Description"]
        lesion, probability = (
            np.asarray(nib.load(results / f"{place}_desc-lesion_{kind}.nii.gz").dataobj) for kind in ("mask", "probseg")
        )
        np.testing.assert_array_equal(lesion, probability >= 0.5)
    assert "0.5 or more" in json.loads((results / f"{PLAIN}_desc-lesion_mask.json").read_text())["Description"]
    with (results / "summary.csv").open(newline="") as stream:
        assert {row["scan"]: row["error"] for row in csv.DictReader(stream)} == {
            f"{p}_dwi": "" for p in (PLAIN, SESSION)
        }
    index = (results / "index.html").read_text()
    assert all(f"{place}_desc-lesion_report.html" in index for place in (PLAIN, SESSION))
    record = json.loads((results / f"{SESSION}_desc-lesion_report.json").read_text())
    assert {"input_sha256", "bval_sha256", "bvec_sha256", "weights_sha256"} <= record.keys()


def test_the_same_command_does_nothing_twice_and_only_what_is_left(study, results):
    before = files(results)
    run(study, results)
    assert {name: time for name, time in files(results).items() if name != "index.html"} == {
        name: time for name, time in before.items() if name != "index.html"
    }
    (results / f"{PLAIN}_desc-lesion_probseg.json").unlink()
    run(study, results)
    after = files(results)
    assert after.keys() == before.keys()
    others = {name for name in before if not name.startswith("sub-1") and name not in ("index.html", "summary.csv")}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert after[f"{PLAIN}_desc-lesion_mask.nii.gz"] > before[f"{PLAIN}_desc-lesion_mask.nii.gz"]


def test_each_process_maps_its_share(study, results, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        run(study, tmp_path / "out", "multi_gpu_inference.yaml")
        there = {name for name in files(tmp_path / "out") if name.endswith("probseg.nii.gz")}
        assert there == {f"{p}_desc-lesion_probseg.nii.gz" for p in (PLAIN, SESSION)[: rank + 1]}
    assert set(files(tmp_path / "out")) == set(files(results))
    for place in (PLAIN, SESSION):
        one, two = (nib.load(folder / f"{place}_desc-lesion_probseg.nii.gz") for folder in (results, tmp_path / "out"))
        np.testing.assert_array_equal(one.dataobj, two.dataobj)


def test_raw_data_are_not_mixed_with_results(study):
    before = files(study)
    with pytest.raises((RuntimeError, ValueError)) as error:
        run(study, study)
    assert sentence(error.value).startswith(f"{study}: belongs to another BIDS data set; choose another output folder")
    assert files(study) == before

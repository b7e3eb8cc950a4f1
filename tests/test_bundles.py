"""Tractograms as a user brings them: training on labelled ones, then bundles of one in another pose, through files."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from monai.bundle import ConfigWorkflow
from nibabel.affines import apply_affine
from nibabel.streamlines import ArraySequence

from eqdmri_monai.errors import sentence
from eqdmri_monai.files.tractograms import read_tractogram, tractogram_list, write_trx

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
SMALL = {"network_def#irreps": "4x0e+3x1e+2x2e", "network_def#neighbours": 10}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The five heads of `make_tractograms.py`, and weights of one epoch on four of them."""
    folder = tmp_path_factory.mktemp("tractograms")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tractograms.py"), "--folder", str(folder)], check=True)
    torch.set_default_dtype(torch.float32)
    options = {"datalist": str(folder / "tractograms.json"), "output_dir": str(folder / "run"), "device": "cpu"}
    run("bundles_train.yaml", epochs=1, val_interval=1, **options)
    return folder


def run(config, **options) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / config), meta_file=str(CONFIGS / "metadata.json"), logging_file=False,
        bundle_root=str(CONFIGS.parent), initialize=["$monai.utils.set_determinism(seed=0)"], **SMALL | options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return workflow


def infer(folder, name, output):
    weights = str(folder / "run" / "models" / "bundles.pt")
    run(
        "bundles_inference.yaml",
        tractogram=str(folder / name),
        weights=weights,
        output_dir=str(output),
        prefix="my_",
        device="cpu",
    )
    return read_tractogram(output / f"{Path(name).stem}_bundles.trx")


def test_labels_are_the_same_in_every_pose_of_the_head(folder, tmp_path):
    upright = infer(folder, "head_5.trx", tmp_path)
    original = read_tractogram(folder / "head_5.trx")
    np.testing.assert_array_equal(upright.streamlines.get_data(), original.streamlines.get_data())
    assert {"AF_L", "AF_R", "CST_L", "CST_R", "CC_ForcepsMajor"} < set(upright.groups)  # those it had
    assert (tmp_path / "head_5_bundles.png").is_file()
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = o3.rand_matrix().numpy(), [30, -200, 15]
    lines = ArraySequence(np.float32(apply_affine(motion, s)) for s in original.streamlines)
    moved = replace(original, streamlines=lines, affine=motion @ original.affine)
    write_trx(folder / "moved.trx", moved, groups={}, per_streamline={})
    turned = infer(folder, "moved.trx", tmp_path)
    for name in [name for name in upright.groups if name.startswith("my_")]:
        np.testing.assert_array_equal(turned.groups[name], upright.groups[name])
    for name, values in upright.per_streamline.items():
        np.testing.assert_allclose(turned.per_streamline[name], values, atol=1e-3)


def test_probabilities_of_all_classes_are_kept(folder, tmp_path):
    found = infer(folder, "head_5.trx", tmp_path).per_streamline
    assert set(found) == {"my_probability", "my_AF_L", "my_AF_R", "my_CST_L", "my_CST_R", "my_CC_ForcepsMajor"}
    best = np.max([values for name, values in found.items() if name != "my_probability"], axis=0)
    assert (found["my_probability"] >= best - 1e-6).all()


def test_a_list_goes_on_after_a_failure_and_repeats_nothing(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    shutil.copy(folder / "head_4.trx", tmp_path / "sub" / "head_5.trx")  # of the same name in another folder
    shutil.copy(folder / "head_5.trx", tmp_path)
    (tmp_path / "bad.trk").write_bytes(b"TRACK")
    items = [{"image": name} for name in ("bad.trk", "head_5.trx", "sub/head_5.trx")]
    (tmp_path / "list.json").write_text(json.dumps({"testing": items}))
    options = {"datalist": str(tmp_path / "list.json"), "output_dir": str(tmp_path / "out"), "prefix": "my_"}
    options |= {"weights": str(folder / "run" / "models" / "bundles.pt"), "device": "cpu"}
    with pytest.raises(RuntimeError) as error:
        run("bundles_inference.yaml", **options)
    assert "1 of 3 tractograms failed" in sentence(error.value)
    results = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    names = [f"{stem}_bundles{suffix}" for stem in ("head_5", "sub/head_5") for suffix in (".json", ".png", ".trx")]
    assert [str(path.relative_to(tmp_path / "out")) for path in results] == names
    before = [path.stat().st_mtime_ns for path in results]
    with pytest.raises(RuntimeError):
        run("bundles_inference.yaml", **options)
    assert [path.stat().st_mtime_ns for path in results] == before
    with pytest.raises(RuntimeError) as error:  # alone, with another prefix
        run(
            "bundles_inference.yaml",
            **options | {"datalist": None, "tractogram": str(tmp_path / "head_5.trx"), "prefix": "x_"},
        )
    assert "made with another prefix" in sentence(error.value)


def test_lists_of_tractograms(tmp_path):
    for name in ("a.trk", "b.trk"):
        (tmp_path / name).touch()
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": "a.trk"}], "validation": [{"image": "b.trk"}], "testing": []}))
    assert tractogram_list(datalist=path, section="training") == [{"image": str(tmp_path / "a.trk")}]
    with pytest.raises(ValueError, match="name one tractogram"):
        tractogram_list()
    with pytest.raises(ValueError, match='the list "testing" is empty'):
        tractogram_list(datalist=path)
    with pytest.raises(ValueError, match='no list "other"'):
        tractogram_list(datalist=path, section="other")
    with pytest.raises(FileNotFoundError, match="no such file"):
        tractogram_list("none.trk")
    with pytest.raises(FileNotFoundError, match="give a datalist"):
        tractogram_list(datalist=tmp_path / "none.json")
    path.write_text(json.dumps({"training": [{"image": "a.trk"}], "validation": [{"image": "a.trk"}]}))
    with pytest.raises(ValueError, match="in both lists, training and validation"):
        tractogram_list(datalist=path, section="training", apart_from="validation")
    path.write_text(json.dumps({"training": [{"image": "a.trk", "bval": "x"}]}))
    with pytest.raises(ValueError, match="must be a mapping with image and reference"):
        tractogram_list(datalist=path, section="training")
    for lists, words in (
        ({"training": None}, "must be a list of tractograms"),
        ({"training": [{"image": None}]}, "a path"),
    ):
        path.write_text(json.dumps(lists))
        with pytest.raises(ValueError, match=words):
            tractogram_list(datalist=path, section="training")

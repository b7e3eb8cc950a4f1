"""Lesion maps by trees as a user gets them: the bundle's config over inference.yaml and evaluate.yaml."""

import csv
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from sklearn.ensemble import HistGradientBoostingClassifier

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.networks import InvariantForest
from eqdmri_monai.nn.forest import Forest
from eqdmri_monai.simulate import make_phantom, single_shell

BUNDLE = Path(__file__).parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
SPACING = [6.0, 6.0, 6.0]


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan in two storage orders, a list of it, and trees grown on it."""
    folder = tmp_path_factory.mktemp("forest")
    phantom = make_phantom(
        0, single_shell(8, 1000.0, np.random.default_rng(0)), shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6
    )
    for codes in ("LAS", "PIR"):
        for name, volume in (("", phantom.dwi), ("_lesion", phantom.lesion.astype(np.uint8))):
            image = nib.Nifti1Image(volume, phantom.affine)
            to = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
            turned = image.as_reoriented(to)
            write_nifti(folder / f"{codes}{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)
        write_fsl(phantom.table, turned.affine, folder / codes)
    items = [{"image": f"{codes}.nii.gz", "label": f"{codes}_lesion.nii.gz"} for codes in ("LAS", "PIR")]
    (folder / "scans.json").write_text(json.dumps({"training": items, "validation": items, "testing": items}))

    torch.set_default_dtype(torch.float32)
    config = ConfigParser()
    config.read_config([str(CONFIGS / name) for name in ("train.yaml", "forest_inference.yaml")])
    config.update({"spacing": SPACING, "datalist": str(folder / "scans.json")})
    config.get_parsed_content("imports")
    network = InvariantForest(spacing=SPACING)
    prepare = [*config.get_parsed_content("scan#read"), *config.get_parsed_content("scan#prepare")]
    prepare += [config.get_parsed_content(key) for key in ("normalize", "scan#write_q")]
    item = {key: str(folder / name) for key, name in items[0].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for transform in prepare:
            item = transform(item)
    image, label, brain = (item[key].as_tensor() for key in ("image", "label", "brain_mask"))
    numbers, inside = network.invariants(image[None], item["q"]), brain[0] > 0.5
    zero = torch.zeros_like(inside, dtype=torch.float32)[None, None]
    y = (label[0] > 0.5)[inside].numpy()
    forests = []
    for maps in (numbers, torch.cat([numbers, network.context(zero, inside[None, None])], dim=1)):
        trees = HistGradientBoostingClassifier(max_iter=20, early_stopping=False, min_samples_leaf=5, random_state=0)
        forests.append(Forest.of(trees.fit(maps[0].movedim(0, -1)[inside].numpy(), y)))
    network.first, network.second = forests
    torch.save(network.state_dict(), folder / "forest.pt")
    return folder


def run(job: str, folder: Path, **options) -> None:
    trees, nodes = zip(
        *(torch.load(folder / "forest.pt")[f"{name}.value"].shape for name in ("first", "second")), strict=True
    )
    base = ["train.yaml", "evaluate.yaml"] if job == "evaluate" else ["inference.yaml"]
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in (*base, "forest_inference.yaml")],
        meta_file=str(CONFIGS / "metadata.json"), logging_file=False, bundle_root=str(BUNDLE), spacing=SPACING,
        initialize=["$monai.utils.set_determinism(seed=0)"], weights=str(folder / "forest.pt"),
        **{"network_def#trees": list(trees), "network_def#nodes": list(nodes)} | options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def test_maps_find_the_lesions_that_trees_were_grown_on_in_any_storage_order(folder):
    maps = {}
    for codes in ("LAS", "PIR"):
        run("inference", folder, dwi=str(folder / f"{codes}.nii.gz"), output_dir=str(folder / "out"))
        image = nib.load(folder / "out" / f"{codes}_probability.nii.gz")
        maps[codes] = nib.as_closest_canonical(image).get_fdata()
    np.testing.assert_allclose(maps["PIR"], maps["LAS"], rtol=0, atol=1e-4)
    truth = nib.as_closest_canonical(nib.load(folder / "LAS_lesion.nii.gz")).get_fdata() > 0
    assert maps["LAS"][truth].mean() > 3 * maps["LAS"][~truth].mean()


def test_they_are_evaluated_as_other_networks_are(folder):
    run("evaluate", folder, datalist=str(folder / "scans.json"), output_dir=str(folder / "evaluation"))
    with (folder / "evaluation" / "metrics.csv").open() as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    assert metrics["val_average_precision"] > 0.3


def test_the_shipped_trees_are_those_of_the_config():
    weights = BUNDLE / "models" / "forest.pt"
    config = yaml.safe_load((CONFIGS / "forest_inference.yaml").read_text())["network_def"]
    network = InvariantForest(config["trees"], config["nodes"], spacing=(2.5, 2.5, 2.5))
    load_weights(network, weights)
    assert network.second.value.abs().max() > 0

"""What other programs ask of the bundle: the zoo's checks, MONAI Label's and MONAI Deploy's calls, scans in memory.

The sequences of calls are those of MONAI Label 0.8.5 (`BundleInferTask`) and MONAI Deploy App SDK 4.0.0
(`MonaiBundleInferenceOperator`); neither needs to be installed here.
"""

import json
import os
import shutil
import site
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.networks import PQNet
from eqdmri_monai.networks.plain_pq_net import plain_form
from eqdmri_monai.simulate import make_phantom, single_shell

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
NETWORK = {"irreps_pq": ["2x0e+1x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3}
SPACING = [6.0, 6.0, 6.0]
SMALL = {"spacing": SPACING, **{f"network_def#{key}": value for key, value in NETWORK.items()}}


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def phantom():
    table = single_shell(8, 1000.0, np.random.default_rng(0))
    return make_phantom(0, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6)


@pytest.fixture(scope="module")
def case(tmp_path_factory, phantom):
    """A bundle as build_bundle.py leaves its configs, of a small network; a scan; and the mask that inference gives."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("case")
    bundle = folder / "eqdmri_ms_segmentation"
    shutil.copytree(CONFIGS, bundle / "configs")
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    network = PQNet(spacing=SPACING, **NETWORK)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    torch.jit.script(network.eval()).save(bundle / "models" / "model.ts")
    for name, files in {"inference": ["inference.yaml", "integration.yaml"], "train": ["train.yaml"]}.items():
        config = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / file) for file in files]))
        for key, value in SMALL.items():
            config[key] = value
        (bundle / "configs" / f"{name}.json").write_text(json.dumps(config.get()))
    write_nifti(folder / "s0.nii.gz", phantom.dwi, phantom.affine)
    write_fsl(phantom.table, phantom.affine, folder / "s0")
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.yaml"), logging_file=False, bundle_root=str(bundle), initialize=["$None"],
        dwi=str(folder / "s0.nii.gz"), output_dir=str(folder / "out"), **SMALL,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    return bundle, folder / "s0.nii.gz", nib.load(folder / "out" / "s0_lesion.nii.gz")


def config_of(bundle: Path) -> ConfigParser:
    """Read inference.json as MONAI Label does."""
    config = ConfigParser()
    config.read_config(bundle / "configs" / "inference.json")
    config.config.update({"bundle_root": str(bundle), "device": "cpu"})
    return config


def check_mask(pred: MetaTensor, mask: nib.Nifti1Image) -> None:
    assert np.asarray(mask.dataobj).any()
    np.testing.assert_array_equal(pred[0].numpy(), np.asarray(mask.dataobj))
    np.testing.assert_allclose(pred.affine.numpy(), mask.affine, atol=1e-4)


def test_the_calls_of_monai_label_give_the_mask(case):
    bundle, scan, mask = case
    config = config_of(bundle)
    network = config.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    data = {"image": str(scan), "image_path": str(scan), "device": "cpu", "model": "eqdmri_ms_segmentation"}
    for transform in config.get_parsed_content("preprocessing", instantiate=True).transforms:
        if isinstance(transform, LoadImaged):
            assert all(isinstance(data[key], str) for key in transform.keys)  # as its LoadImageTensord looks at them
            transform._loader.image_only = False
        data = transform(data)
    inferer = config.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        outputs = inferer(data["image"][None].to(torch.device("cpu")), network.eval())
    data["pred"] = outputs[0]
    for transform in config.get_parsed_content("postprocessing", instantiate=True).transforms:
        data = transform(data)
    check_mask(data["pred"], mask)
    assert data["image_path"] == str(scan)


def test_monai_label_itself_gives_the_mask(case):
    label = pytest.importorskip(
        "monailabel.tasks.infer.bundle", reason="MONAI Label is not installed", exc_type=ImportError
    )
    bundle, scan, mask = case
    task = label.BundleInferTask(str(bundle), conf={})
    assert task.is_valid()
    path, result = task({"image": str(scan), "device": "cpu", "result_extension": ".nii.gz"})
    written = nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(mask.dataobj))
    np.testing.assert_allclose(written.affine, mask.affine, atol=1e-4)
    assert result["label_names"] == {"lesion": 1}


@pytest.mark.parametrize("model", ["model.pt", "model.ts"])
def test_the_calls_of_monai_deploy_give_the_mask(case, phantom, model):
    bundle, scan, mask = case
    config = config_of(bundle)
    config.parse()
    preprocessing, postprocessing, inferer = map(
        config.get_parsed_content, ("preprocessing", "postprocessing", "inferer")
    )
    preprocessing.transforms = [t for t in preprocessing.transforms if type(t).__name__ != "LoadImaged"]
    if model == "model.ts":
        network = torch.jit.load(bundle / "models" / model).eval()
    else:
        network = config.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(bundle / "models" / model, weights_only=True))
    affine = nib.load(scan).affine
    meta = {"affine": affine, "original_affine": affine, "gradients": phantom.table.rows.numpy()}
    volumes = torch.from_numpy(np.moveaxis(phantom.dwi.astype(np.float32), -1, 0).copy())
    inputs = preprocessing({"image": MetaTensor.ensure_torch_and_prune_meta(volumes, meta)})
    image = inputs["image"]
    first = inputs.pop("image")[None]
    others = {key: value[None] for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        outputs = inferer(inputs=first, network=network, **others)
    check_mask(postprocessing({"pred": outputs[0], **inputs, "image": image})["pred"], mask)


def test_scans_in_memory_go_through_a_workflow(case, phantom):
    bundle, scan, mask = case
    affine = nib.load(scan).affine
    volumes = torch.from_numpy(np.moveaxis(phantom.dwi.astype(np.float32), -1, 0).copy())
    meta = {"original_affine": affine, "gradients": phantom.table.rows.numpy()}
    image = MetaTensor(volumes, affine=torch.from_numpy(affine), meta=meta)
    in_memory = {"dataset#data": [{"image": image}], "scan#read#1#_disabled_": True}  # no LoadImaged
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"), logging_file=False, workflow_type="infer",
        bundle_root=str(bundle), initialize=["$None"], run=["$@load_weights", "$@evaluator.run()"], **in_memory,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    check_mask(workflow.evaluator.state.output[0]["pred"], mask)


def test_the_zoos_checks_of_the_network_pass(case, tmp_path):
    bundle, *_ = case
    files = {
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
    }
    verify_net_in_out(net_id="network_def", device="cpu", any=8, **files)
    ckpt = str(bundle / "models" / "model.pt")
    ckpt_export(net_id="network_def", filepath=str(tmp_path / "model.ts"), ckpt_file=ckpt, **files)
    exported = torch.jit.load(tmp_path / "model.ts")
    network = PQNet(spacing=SPACING, **NETWORK).eval()
    network.load_state_dict(torch.load(ckpt, weights_only=True))
    q = torch.cat([torch.zeros(1, 3), torch.nn.functional.normalize(torch.randn(7, 3), dim=1)])[None]
    image = torch.randn(1, 8, 6, 7, 8)
    torch.testing.assert_close(exported(image, q), network(image, q), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="missing value for argument 'q'"):
        exported(image)
    torch.testing.assert_close(plain_form(network)(image, q), network(image, q), rtol=0, atol=1e-5)


def test_monai_loads_the_trained_network_by_the_bundles_name(case):
    bundle, *_ = case
    # to nowhere: what is there already is not downloaded
    network = load(name=bundle.name, bundle_dir=str(bundle.parent), source="github", repo="none/none/none")
    assert isinstance(network, PQNet)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("files", "kind", "options"),
    [
        (["inference.json"], "infer", {"dwi": "s0.nii.gz"}),
        (["inference.yaml"], "infer", {"dwi": "s0.nii.gz"}),
        (["train.yaml"], "train", {"datalist": "scans.json"}),
        (["train.yaml", "evaluate.yaml"], "train", {"datalist": "scans.json"}),
    ],
    ids=["integration", "inference", "train", "evaluate"],
)
def test_monai_finds_all_that_it_looks_for(case, tmp_path, files, kind, options):
    bundle, scan, mask = case
    write_nifti(tmp_path / "label.nii.gz", np.asarray(mask.dataobj), mask.affine)
    item = {"image": str(scan), "label": str(tmp_path / "label.nii.gz")}
    lists = {key: [item] for key in ("training", "validation", "testing")}
    (tmp_path / "scans.json").write_text(json.dumps(lists))
    folder = scan.parent if "dwi" in options else tmp_path
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / file) for file in files], logging_file=False, workflow_type=kind,
        meta_file=str(bundle / "configs" / "metadata.json"), bundle_root=str(bundle), initialize=["$None"],
        output_dir=str(tmp_path / "out"), **{key: str(folder / value) for key, value in options.items()},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow.initialize()
        assert workflow.check_properties() in ([], None)


# --- the assembled directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist") / "eqdmri_ms_segmentation"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_bundle.py"), "--folder", str(folder)], check=True)
    return folder


def alone(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run Python with all packages but this one, and without network."""
    packages = [p for p in (*site.getsitepackages(), *sys.path) if p.endswith("site-packages")]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(packages), "HOME": str(cwd), **nowhere}
    environment |= {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    # -S: no .pth files, and so no editable install
    return subprocess.run(
        [sys.executable, "-S", *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_directory_verifies_itself_alone_from_anywhere(directory, tmp_path):
    gone = alone("-c", "import eqdmri_monai", cwd=tmp_path)
    assert "No module named 'eqdmri_monai'" in gone.stderr
    done = alone(str(directory / "verify" / "verify.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Dice 1.00000 with the stored mask" in done.stdout
    voxels = int(done.stdout.split("mask of ")[1].split()[0])
    assert voxels > 100


@pytest.mark.slow
def test_a_damaged_directory_says_what_is_damaged(directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    weights = bytearray((copy / "models" / "model.pt").read_bytes())
    weights[-1000] ^= 1
    (copy / "models" / "model.pt").write_bytes(weights)
    done = alone(str(copy / "verify" / "verify.py"), cwd=tmp_path)
    assert done.returncode != 0
    assert "error: models/model.pt is missing or differs from what was built" in done.stderr


@pytest.mark.slow
def test_the_zoos_checks_pass_in_the_directory(directory, tmp_path):
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"):
        assert (directory / name).is_file()
    assert (directory.with_suffix(".zip")).is_file()
    schema = {"type": "object", "required": ["schema", "version", "network_data_format", "required_packages_version"]}
    (directory / "eval").mkdir(exist_ok=True)
    (directory / "eval" / "schema.json").write_text(json.dumps(schema))
    configs = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    for command in (
        ["verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", "eval/schema.json"],
        ["verify_net_in_out", "network_def", *configs, "--any", "8", "--device", "cpu"],
        ["ckpt_export", "network_def", "--filepath", "eval/model.ts", "--ckpt_file", "models/model.pt", *configs],
    ):
        done = alone("-W", "ignore", "-m", "monai.bundle", *command, cwd=directory)
        assert done.returncode == 0, done.stderr
    assert (directory / "eval" / "model.ts").is_file()


@pytest.mark.slow
def test_the_zip_runs_wherever_it_is_unpacked(directory, tmp_path):
    with zipfile.ZipFile(directory.with_suffix(".zip")) as archive:
        archive.extractall(tmp_path / "a b")
    (bundle,) = (tmp_path / "a b").iterdir()
    scan = ["--dwi", "verify/scan.nii.gz", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    done = alone("-m", "monai.bundle", "run", "--args_file", "inference.yaml", *scan, cwd=bundle)
    assert done.returncode == 0, done.stderr
    found, stored = (
        nib.load(path) for path in (tmp_path / "out" / "scan_lesion.nii.gz", bundle / "verify" / "mask.nii.gz")
    )
    assert np.asarray(stored.dataobj).any()
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(stored.dataobj))


INSTALLED = """
import sys, torch, eqdmri_monai
from importlib import resources
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import single_shell
import eqdmri_monai.workflow, eqdmri_monai.files.dicom, eqdmri_monai.report
assert eqdmri_monai.__file__.startswith(sys.argv[1]), eqdmri_monai.__file__
for name in ("page.html", "index.html"):
    assert resources.files("eqdmri_monai.report").joinpath(name).read_text(encoding="utf-8")
net = PQNet(("2x0e+1x1e",), ("2x0e+1x1e",), kernel_size=3)
print(tuple(net(torch.rand(1, 7, 6, 6, 6), torch.nn.functional.normalize(torch.randn(7, 3), dim=1)).shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_what_is_built_installs_and_runs_from_another_folder(tmp_path, form):
    """Without network: with the setuptools that is here."""
    source, built, target = tmp_path / "source", tmp_path / "built", tmp_path / "target"
    shutil.copytree(ROOT / "eqdmri_monai", source / "eqdmri_monai", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{form}({str(built)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (package,) = built.iterdir()
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(package)], check=True)
    done = alone(
        "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{INSTALLED}", str(target), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 1, 6, 6, 6)"

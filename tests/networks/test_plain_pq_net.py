"""The exported form of a network: equal to it for every gradient table, and never an answer for a wrong one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from eqdmri_monai.bases import FilterBasis, pq_diff
from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.networks import PQNet
from eqdmri_monai.networks.plain_pq_net import plain_form
from eqdmri_monai.symmetry import random_scheme

BUNDLE = Path(__file__).parents[2] / "bundle"
SMALL = {"irreps_pq": ["3x0e+2x1e"], "irreps_p": ["3x0e+1x1e"], "kernel_size": 3, "spacing": (2.0, 2.0, 3.0)}


def case(directions: int = 5, *lengths: float, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    q = random_scheme(directions, *(lengths or (1.0, 1.4)))
    q = torch.cat([q, q[:1], q[1:2]])  # a second b0, and a direction twice
    return torch.randn(batch, len(q), 6, 7, 5), q.expand(batch, -1, -1)


@pytest.mark.parametrize(
    "options",
    [{}, {"irreps_pq": ["2x0e+1x1e+1x2e"]}, {"bases": [FilterBasis("tp", lmax=1)]}, {"irreps_out": "2x0e"}],
    ids=["default", "degree 2", "degree 1 alone", "two classes"],
)
@pytest.mark.parametrize("lengths", [(1.0,), (0.8, 1.2, 1.7)])
def test_it_equals_the_network(options, lengths):
    network = PQNet(**SMALL | options).eval()
    plain = plain_form(network)
    image, q = case(5, *lengths, batch=2)
    torch.testing.assert_close(plain(image, q), network(image, q), rtol=0, atol=1e-12)


def test_noise_in_b_is_evened_out_alike():
    network = PQNet(**SMALL).eval()
    image, q = case()
    q = q * (1 + 0.004 * torch.randn(q.shape[1], 1))
    torch.testing.assert_close(plain_form(network)(image, q), network(image, q), rtol=0, atol=1e-12)


def test_script_and_program_take_any_sizes():
    network = PQNet(**SMALL).eval()
    plain = plain_form(network)
    script = torch.jit.script(plain)
    batch, volumes = torch.export.Dim("batch"), torch.export.Dim("volumes")
    x, y, z = (torch.export.Dim(name) for name in "xyz")
    shapes = {"image": {0: batch, 1: volumes, 2: x, 3: y, 4: z}, "q": {0: batch, 1: volumes}}
    program = torch.export.export(plain, case(4, 1.0, batch=2), dynamic_shapes=shapes).module()
    for image, q in (case(7), case(4, 1.3, batch=3), (torch.randn(1, 9, 8, 4, 9), case(6, 0.9)[1])):
        for form in (script, program):
            torch.testing.assert_close(form(image, q), network(image, q), rtol=0, atol=1e-12)


def test_tables_that_it_cannot_answer_for_give_no_number():
    plain = plain_form(PQNet(**SMALL).eval())
    image, q = case(batch=2)
    other = q.clone()
    other[1] = q[1].flip(0)
    assert plain(image, other).isnan().all()
    b = torch.linspace(300, 2000, 40)  # one shell or many: a matter of order
    q = (b / 1000).sqrt()[:, None] * torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    q = torch.cat([torch.zeros(1, 3), q])[None]
    assert plain(torch.randn(1, 41, 4, 4, 4), q).isnan().all()


def test_forms_cannot_be_called_without_q():
    plain = plain_form(PQNet(**SMALL).eval())
    image, q = case(batch=2)
    with pytest.raises(RuntimeError, match="missing value for argument 'q'"):
        torch.jit.script(plain)(image)
    with pytest.raises(ValueError, match="same number and type of args"):
        torch.export.export(plain, (image, q.clone())).module()(image)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"irreps_pq": ["2x0e", "2x0e"]}, "more than one pq layer"),
        ({"irreps_in": "1x0e+1x1e"}, "more than one scalar"),
        ({"bases": [pq_diff]}, "does not factor"),
        ({"antipodal": False}, "not closed"),
        ({"reduction": "mean"}, "no function of length"),
    ],
)
def test_networks_of_other_kinds_are_refused(options, reason):
    with pytest.raises(ValueError, match=f"no plain form for all gradient tables: .*{reason}"):
        plain_form(PQNet(**SMALL | options))


def test_files_need_neither_e3nn_nor_this_package(tmp_path):
    torch.set_default_dtype(torch.float32)
    network = PQNet(**SMALL).eval()
    plain = plain_form(network)
    image, q = case(batch=2)
    torch.jit.script(plain).save(tmp_path / "model.ts")
    torch.export.save(torch.export.export(plain, (image, q.clone())), tmp_path / "model.pt2")
    torch.save((image, q, network(image, q).detach()), tmp_path / "case.pt")
    program = """
import sys
sys.modules.update({"e3nn": None, "eqdmri_monai": None})
import torch
image, q, logits = torch.load("case.pt")
for answer in (torch.jit.load("model.ts"), torch.export.load("model.pt2").module()):
    torch.testing.assert_close(answer(image, q), logits, rtol=0, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:`isinstance.treespec:FutureWarning")  # torch's exporter itself
def test_onnx_runtime_agrees(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    torch.set_default_dtype(torch.float32)
    network = PQNet(**SMALL).eval()
    D = torch.export.Dim.DYNAMIC
    arguments = case(4, 1.0, batch=2)
    program = torch.onnx.export(
        plain_form(network), (arguments[0], arguments[1].clone()), dynamo=True, verbose=False,
        dynamic_shapes={"image": dict.fromkeys(range(5), D), "q": {0: D, 1: D}}, input_names=["image", "q"],
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for image, q in (case(7), case(4, 1.3, batch=3)):
        (y,) = session.run(None, {"image": image.numpy(), "q": q.contiguous().numpy()})
        torch.testing.assert_close(torch.from_numpy(y), network(image, q).detach(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="q"):
        session.run(None, {"image": image.numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dwi_philips_elition16_t1/dwi", "dwi_siemens_xa30_b2500/PA"])
def test_the_bundles_network_on_a_real_scan(data, name):
    torch.set_default_dtype(torch.float32)
    config = ConfigParser()
    config.read_config(BUNDLE / "configs" / "inference.yaml")
    config["check_gradients"] = "$lambda data: data"
    network = load_weights(config.get_parsed_content("network_def"), BUNDLE / "models" / "model.pt").eval()
    scan = config.get_parsed_content("preprocessing")({"image": str(data / f"{name}.nii.gz")})
    middle = tuple(slice(n // 2 - 12, n // 2 + 12) for n in scan["image"].shape[1:])
    image, q = scan["image"].as_tensor()[(None, slice(None), *middle)], scan["q"][None]
    logits = network(image, q).detach()
    for form in (plain_form(network), torch.jit.script(plain_form(network))):
        assert (form(image, q) - logits).abs().max() < 1e-5 * logits.abs().max()

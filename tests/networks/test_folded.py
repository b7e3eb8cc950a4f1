import subprocess
import sys

import pytest
import torch

from eqdmri_monai.bases import p_space, pq_diff
from eqdmri_monai.networks import GradualPQNet, PQNet, fold
from eqdmri_monai.symmetry import random_scheme

SMALL = {"kernel_size": 3, "irreps_p": ("4x0e+2x1e+1x2e", "3x0e")}
NETWORKS = [
    PQNet,
    lambda **options: PQNet(antipodal=False, **options),
    lambda **options: PQNet(irreps_pq=("2x0e+1x1e", "3x0e+1x1e"), reduction="mean", **options),
    lambda **options: PQNet(irreps_in="1x0e+1x1e", irreps_out="1x1e", bases=(pq_diff, p_space), **options),
    lambda **options: GradualPQNet(["3x0e+1x1e"], [4], "4x0e+1x1e", **options),
    lambda **options: GradualPQNet([], [], "4x0e+1x1e", num_q=(2,), antipodal=False, **options),
]


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """Give all biases a value: they start at zero."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("make", NETWORKS)
def test_a_folded_network_is_the_same_function(make):
    network, q = filled(make(**SMALL)), random_scheme(5, 1.0, 1.4)
    shape = (network.irreps_in.dim,) if network.irreps_in.dim > 1 else ()
    image = torch.randn(2, *shape, len(q), 4, 5, 6)
    folded = fold(network, q)
    torch.testing.assert_close(folded(image, q), network(image, q).detach(), rtol=0, atol=1e-9)
    assert not [p for p in folded.parameters() if p.requires_grad]


def test_in_single_precision_folding_costs_no_accuracy():
    """Both forms differ from double precision by rounding: 1e-6 to 3e-6 of the largest logit, seen over seeds."""
    network, q = filled(PQNet()), random_scheme(12, 1.0)
    image = torch.randn(1, len(q), 10, 10, 10)
    exact = network(image, q).detach()
    network, image, q = network.float(), image.float(), q.float()
    forms = network(image, q).detach(), fold(network, q)(image)
    errors = [(form - exact).abs().max() / exact.abs().max() for form in forms]
    assert max(errors) < 1e-5, errors


def test_a_folded_network_runs_without_e3nn(tmp_path):
    network, q = filled(PQNet(**SMALL)), random_scheme(5, 1.0)
    image = torch.randn(1, len(q), 6, 7, 8)
    size = [torch.export.Dim(axis, min=4, max=512) for axis in "xyz"]
    shapes = {"image": dict(enumerate(size, start=2))}
    program = torch.export.export(fold(network, q), (torch.randn(1, len(q), 9, 10, 11),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "folded.pt2")
    torch.save((image, network(image, q).detach()), tmp_path / "pair.pt")
    code = (
        "import sys; sys.modules['e3nn'] = None; import torch\n"
        "network = torch.export.load(sys.argv[1]).module()\n"
        "image, expected = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-9)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "folded.pt2", tmp_path / "pair.pt"], check=True, cwd=tmp_path
    )


def test_another_table_is_refused():
    network, q = PQNet(**SMALL), random_scheme(5, 1.0)
    with pytest.raises(ValueError, match="folded for another gradient table"):
        fold(network, q)(torch.zeros(1, len(q), 4, 4, 4), 1.1 * q)


def test_what_has_no_plain_form_is_refused():
    with pytest.raises(ValueError, match="a NormNonlinearity cannot be folded"):
        fold(PQNet(nonlinearity="norm", **SMALL), random_scheme(5, 1.0))

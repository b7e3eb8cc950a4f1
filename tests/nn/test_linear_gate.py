import e3nn.nn
import pytest
import torch
from e3nn import o3

from eqdmri_monai.nn import Gate, Linear


def test_linear_agrees_with_e3nn():
    ours = Linear("3x0e+2x1e", "2x0e+3x1e+1x2e")
    theirs = o3.Linear("3x0e+2x1e", "2x0e+3x1e+1x2e")
    theirs.weight.data = torch.cat([w.T.flatten() for w in ours.weights])
    x = torch.randn(4, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_linear_keeps_every_order_of_blocks():
    layer, R = Linear("1x1e+2x0e", "2x0e+2x1e"), o3.rand_matrix()
    x = torch.randn(3, 5)
    D_in, D_out = layer.irreps_in.D_from_matrix(R), layer.irreps_out.D_from_matrix(R)
    torch.testing.assert_close(layer(x @ D_in.T), layer(x) @ D_out.T, rtol=0, atol=1e-9)


def test_gate_agrees_with_e3nn():
    ours = Gate("3x0e+2x1e+1x2e")
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    theirs = e3nn.nn.Gate("3x0e", [silu], "3x0e", [sigmoid], "2x1e+1x2e")
    x = torch.randn(5, ours.irreps_in.dim)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("irreps", ["4x0e", "2x0e+1x1e", "1x0e+2x1e+1x3e", "2x1e"])
def test_gate_commutes_with_rotation(irreps):
    gate, R = Gate(irreps), o3.rand_matrix()
    x = torch.randn(2, gate.irreps_in.dim, 3, 3, 3)
    turn = lambda x, irreps: torch.einsum("ij,bj...->bi...", irreps.D_from_matrix(R), x)  # noqa: E731
    torch.testing.assert_close(gate(turn(x, gate.irreps_in)), turn(gate(x), gate.irreps_out), rtol=0, atol=1e-9)


def test_gate_refuses_scalars_after_vectors():
    with pytest.raises(ValueError, match="sorted by degree"):
        Gate("2x1e+1x0e")

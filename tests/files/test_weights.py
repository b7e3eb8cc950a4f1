import pytest
import torch

from eqdmri_monai.bases import p_space, tp1
from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.networks import PQNet


def network(**options) -> PQNet:
    return PQNet(irreps_pq=("2x0e+1x1e",), irreps_p=("3x0e+1x1e",), kernel_size=3, **options)


def test_weights_are_loaded_from_a_state_dict_and_from_a_checkpoint(tmp_path):
    net = network()
    torch.save(net.state_dict(), tmp_path / "model.pt")
    torch.save({"network": net.state_dict(), "optimizer": {}}, tmp_path / "checkpoint.pt")
    for name in ("model.pt", "checkpoint.pt"):
        other = load_weights(network(), tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"bias is \(1,\) there and \(3,\) here"):
        load_weights(network(irreps_out="3x0e"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="weights of another network"):
        load_weights(network(bases=(tp1, p_space)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a file of weights"):
        load_weights(network(), tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match="train first"):
        load_weights(network(), tmp_path / "none.pt")

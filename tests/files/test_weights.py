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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    state = network().state_dict()
    name = list(state)[-1]
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt: 1 of the {state[name].numel()} weights in {name} are not finite"):
        load_weights(network(), tmp_path / "model.pt")


def test_files_that_are_damaged_or_hold_something_else_are_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 3] ^= 1  # one bit of a weight, which torch.load takes
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({name: 1 for name in network().state_dict()}, tmp_path / "numbers.pt")
    for name, content in {"empty": b"", "half": whole[: len(whole) // 2], "middle": bytes(middle)}.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    for name in ("empty", "half", "middle", "list", "numbers"):
        with pytest.raises(
            ValueError, match=rf"{name}.pt: (not a file of weights|weights of another network)"
        ) as error:
            load_weights(network(), tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)

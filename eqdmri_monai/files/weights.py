"""Weights of a network: from a file, or a sentence that says why not."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load weights that were saved as a state dict, or as a training checkpoint that holds one under "network".

    Parameters
    ----------
    network : Module
    path : path

    Returns
    -------
    Module
        The network.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is no file of weights, the weights belong to another configuration, or one is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; train first, or name the weights with --weights")
    state = read_state(path)
    state = state.get("network", state)
    check_weights(network, state, path)
    network.load_state_dict(state)
    return network


def read_state(path: str | Path) -> dict:
    """Read what `torch.save` wrote of a dictionary of states; no code in it is run.

    Raises
    ------
    ValueError
        When the file is no such file, or damaged.
    """
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():  # torch.load compares no checksums
            raise ValueError("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damage can end in any error
        raise ValueError(f"{path}: not a file of weights, or damaged ({type(e).__name__}); copy it again") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: not a file of weights but a {type(state).__name__}; copy it again")
    return state


def check_weights(network: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights that a network cannot take, or that would give no numbers.

    Raises
    ------
    ValueError
        When the weights belong to another configuration, or one of them is not finite.
    """
    own = network.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or unexpected:
        name = sorted(missing or unexpected)[0]
        raise ValueError(
            f"{path}: weights of another network: {len(missing)} missing and {len(unexpected)} unknown, such as "
            f"{name}; "
            "use the configuration that they were trained with"
        )
    for name, value in own.items():
        if not isinstance(state[name], torch.Tensor) or state[name].shape != value.shape:
            shape = getattr(state[name], "shape", None)
            raise ValueError(
                f"{path}: weights of another network: {name} is {shape and tuple(shape)} there and "
                f"{tuple(value.shape)} here; use the configuration that they were trained with"
            )
    for name, value in state.items():
        count = int((~value.isfinite()).sum())
        if count:
            raise ValueError(
                f"{path}: {count} of the {value.numel()} weights in {name} are not finite; its training went wrong, "
                "take an earlier file"
            )

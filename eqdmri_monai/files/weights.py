"""Weights of a network: from a file, or a sentence that says why not."""

import pickle
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
        When the file is no file of weights, or the weights belong to another configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; train first, or name the weights with --weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("network", state)
        missing, unexpected = network.state_dict().keys() - state.keys(), state.keys() - network.state_dict().keys()
    except (RuntimeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path}: not a file of weights ({type(e).__name__}); copy it again") from None
    if missing or unexpected:
        name = sorted(missing or unexpected)[0]
        raise ValueError(
            f"{path}: weights of another network: {len(missing)} missing and {len(unexpected)} unknown, such as "
            f"{name}; "
            "use the configuration that they were trained with"
        )
    for name, value in network.state_dict().items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: weights of another network: {name} is {tuple(state[name].shape)} there and "
                f"{tuple(value.shape)} here; use the configuration that they were trained with"
            )
    network.load_state_dict(state)
    return network

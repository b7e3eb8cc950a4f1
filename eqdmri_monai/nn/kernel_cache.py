"""What is built from the weights alone is built once, until a weight changes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class KernelCache:
    """Keep one value that depends on a module's parameters and on a few small tensors.

    Without gradients (inference, validation) the value is built anew only where a parameter or one of the tensors is
    not what it was: the windows of a scan share their kernels. With gradients it is built in each call.
    """

    def __init__(self):
        self._parameters, self._keys, self._value = [], [], None

    def __call__(self, module: nn.Module, keys: tuple[Tensor, ...], build: Callable[[], object]) -> object:
        """Return ``build()``, or what it returned before with these parameters and keys."""
        if torch.is_grad_enabled():
            return build()
        # views keep the old memory from being used again, so that an equal address means the same tensor
        parameters = [(p.detach(), p._version) for p in module.parameters()]
        if not (self._same(parameters) and self._same_keys(keys)):
            self._value = build()
            self._parameters, self._keys = parameters, [key.clone() for key in keys]
        return self._value

    def _same(self, parameters: list[tuple[Tensor, int]]) -> bool:
        return len(parameters) == len(self._parameters) and all(
            a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and i == j
            for (a, i), (b, j) in zip(parameters, self._parameters, strict=True)
        )

    def _same_keys(self, keys: tuple[Tensor, ...]) -> bool:
        return len(keys) == len(self._keys) and all(
            a.device == b.device and torch.equal(a, b) for a, b in zip(keys, self._keys, strict=True)
        )

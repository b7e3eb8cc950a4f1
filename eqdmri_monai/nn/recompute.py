"""Memory for time: what is computed a second time in the backward pass need not be kept for it."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def run(function: Callable[..., Tensor], *args: Tensor, recompute: bool) -> Tensor:
    """Call a function, or with `recompute` and gradients on: keep its arguments alone for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def streamed_sum(
    term: Callable[..., Tensor], chunks: Sequence, tensors: Sequence[Tensor], parameters: Iterable[Tensor] = ()
) -> Tensor:
    """Return the sum of a term over chunks, keeping no term; the backward pass computes each once more.

    `torch.utils.checkpoint` of each term would do so too, but keeps the nodes of all their graphs: small pieces of
    memory between which the large ones of the next term do not fit (glibc 2.36: +23 MB with each term of 12 MB).

    Parameters
    ----------
    term : callable
        Called with one of the chunks and the tensors; the same result each time.
    chunks : sequence
    tensors : sequence of Tensor
        All that a term computes with and that was computed before.
    parameters : iterable of Tensor
        Leaves that a term computes with besides.

    Returns
    -------
    Tensor

    Source
    ------
    Müller et al., 4.3.
    """
    return _StreamedSum.apply(term, chunks, len(tensors), *tensors, *parameters)


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, term: Callable[..., Tensor], chunks: Sequence, count: int, *inputs: Tensor) -> Tensor:
        y = sum(term(chunk, *inputs[:count]) for chunk in chunks)
        ctx.save_for_backward(*inputs)
        ctx.term, ctx.chunks, ctx.count, device = term, chunks, count, y.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        needs, count = ctx.needs_input_grad[3:], ctx.count
        inputs = [  # cut from what they were computed from
            x.detach().requires_grad_(need) if k < count else x
            for k, (x, need) in enumerate(zip(ctx.saved_tensors, needs, strict=True))
        ]
        wanted = [k for k, need in enumerate(needs) if need]
        sums: list[Tensor | None] = [None] * len(inputs)
        for chunk in ctx.chunks:
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                y = ctx.term(chunk, *inputs[:count])
            new = torch.autograd.grad(y, [inputs[k] for k in wanted], gradient, allow_unused=True)
            for k, value in zip(wanted, new, strict=True):
                if value is not None:
                    sums[k] = value if sums[k] is None else sums[k] + value
        return None, None, None, *sums

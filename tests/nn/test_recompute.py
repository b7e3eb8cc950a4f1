import torch

from eqdmri_monai.nn.recompute import streamed_sum


def test_value_and_gradients_are_those_of_the_sum():
    leaf, x = (torch.randn(5, requires_grad=True) for _ in range(2))
    first = x.exp()
    second = first.sin()  # computed from another of the tensors
    still = torch.randn(5)

    def term(k: int, first: torch.Tensor, second: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
        return (first + k * still) * (second * leaf).cos() if k else first * second

    plain = sum(term(k, first, second, still) for k in range(4))
    streamed = streamed_sum(term, range(4), [first, second, still], [leaf])
    torch.testing.assert_close(streamed, plain)
    upstream = torch.randn(5)
    gradients = [torch.autograd.grad(y, (x, leaf), upstream, retain_graph=True) for y in (plain, streamed)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_no_term_is_kept():
    x, kept = torch.randn(1000, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        streamed_sum(lambda k, x: (k * x).exp(), range(7), [x])
    assert sum(kept) == 1000


def test_the_backward_pass_computes_in_the_precision_of_the_forward_pass():
    x, seen = torch.randn(4, 4, dtype=torch.float32, requires_grad=True), []

    def term(k: int, x: torch.Tensor) -> torch.Tensor:
        seen.append((x @ x).dtype)
        return (k * x) @ x

    with torch.autocast("cpu", torch.bfloat16):
        y = streamed_sum(term, range(3), [x])
    y.sum().backward()
    assert seen == [torch.bfloat16] * 6

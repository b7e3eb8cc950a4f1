import numpy as np
import pytest
import torch
from e3nn import o3

from eqdmri_monai.networks import StreamlineNet


def head(count=12, points=8):
    """Smooth streamlines about 60 mm long, in a head of about 100 mm."""
    steps = torch.randn(1, count, 1, 3) + 0.3 * torch.randn(1, count, points, 3)
    return 40 * torch.randn(1, count, 1, 3) + (8 * steps).cumsum(2)


def small(classes=4):
    return StreamlineNet(classes, irreps="4x0e+3x1e+2x2e", neighbours=5)


def test_logits_are_the_same_in_any_pose():
    net, image = small(), head()
    logits = net(image)
    for _ in range(5):
        moved = image @ o3.rand_matrix().T + 100 * torch.randn(3)
        torch.testing.assert_close(net(moved), logits, atol=1e-9, rtol=0)
    assert logits.std(2).min() > 1e-3


def test_the_direction_of_travel_does_not_matter():
    net, image = small(), head()
    flipped = torch.where(torch.rand(1, 12, 1, 1) < 0.5, image.flip(2), image)
    torch.testing.assert_close(net(flipped), net(image), atol=1e-9, rtol=0)


def test_the_order_of_streamlines_goes_along():
    net, image, order = small(), head(), torch.randperm(12)
    torch.testing.assert_close(net(image[:, order]), net(image)[..., order], atol=1e-9, rtol=0)


def test_heads_of_a_batch_do_not_mix():
    net, image = small(), torch.cat([head(), head()])
    torch.testing.assert_close(net(image)[1:], net(image[1:]), atol=1e-9, rtol=0)


def test_single_precision_changes_little():
    net, image = small(), head()
    logits = net(image)
    torch.set_default_dtype(torch.float32)
    single = small()
    for p, q in zip(single.parameters(), net.parameters(), strict=True):
        p.data.copy_(q)
    moved = (image @ o3.rand_matrix(dtype=torch.float64).T + 100).float()
    torch.testing.assert_close(single(moved).double(), logits, atol=1e-3, rtol=0)


def test_left_and_right_differ():
    net, image = small(), head()
    assert (net(image * torch.tensor([-1.0, 1, 1])) - net(image)).abs().max() > 1e-3


def test_a_network_blind_to_mirrors_names_three_bundles_of_five_at_most():
    """In a head that is its own mirror image, the logits of a pair of mirrored bundles then agree."""
    net, half = small(5), head(8)
    middle = head(4)
    mirror = torch.tensor([-1.0, 1, 1])
    af, cst = half[:, :4], half[:, 4:]
    image = torch.cat([af, af * mirror, cst, cst * mirror, middle, middle * mirror], 1)
    blind = net(image) + net(image * mirror)
    torch.testing.assert_close(blind[..., :4], blind[..., 4:8], atol=1e-9, rtol=0)
    label = torch.tensor([0, 1, 2, 3, 4, 4]).repeat_interleave(4)
    bundles = np.arange(24) < 20  # as many of each
    assert (blind.argmax(1)[0] == label)[bundles].double().mean() <= 0.6


def test_straight_streamlines_are_no_exception():
    ends = 40 * torch.randn(1, 12, 2, 3)
    straight = ends[:, :, :1].lerp(ends[:, :, 1:], torch.linspace(0, 1, 8)[:, None])
    net = small()
    logits = net(straight)
    assert logits.std(2).min() > 1e-3
    torch.testing.assert_close(net(straight @ o3.rand_matrix().T), logits, atol=1e-9, rtol=0)


def test_a_streamline_that_comes_near_does_so_smoothly():
    net, image = small(), head()
    offset = torch.zeros(1, 12, 1, 3)
    offset[0, 0, 0, 0] = 1.0
    places = torch.linspace(-60, 60, 80)
    values = torch.stack([net(image + s * offset)[0, :, 1:] for s in places]).detach()
    assert values.diff(dim=0).abs().max() < 0.3 * (values.amax(0) - values.amin(0)).max()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.randn(1, 12, 1, 3), "2 points or more"),
        (torch.zeros(1, 12, 8, 3, dtype=torch.int64), "int64"),
        (torch.full((1, 12, 8, 3), torch.nan), "must be finite"),
        (torch.randn(1, 5, 8, 3), "more streamlines than the network's 5"),
    ],
)
def test_tensors_that_are_no_tractogram_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        small()(image)


def test_options_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match="must be 1 or more"):
        StreamlineNet(0)
    with pytest.raises(ValueError, match="even labels only"):
        StreamlineNet(2, irreps="2x0e+1o")

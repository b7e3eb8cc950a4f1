import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from eqdmri_monai.networks import InvariantForest
from eqdmri_monai.nn.forest import Forest
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid


@pytest.fixture
def scan():
    q = random_scheme(7, 1.0)
    image = 0.3 * torch.randn(2, 8, 7, 8, 9) - 0.5
    image[..., :2] = 0
    return image, q


@pytest.fixture
def grown(scan):
    """Trees that tell voxels of a high log b0 and low anisotropy."""
    network = InvariantForest()
    numbers, names = network.invariants(*scan).movedim(1, -1)[scan[0].any(1)], network.invariants.names
    y = numbers[:, names.index("b0 2.0")] - numbers[:, names.index("anisotropy 5.0")]
    classifier = HistGradientBoostingClassifier(max_iter=15, early_stopping=False, random_state=0)
    return Forest.of(classifier.fit(numbers.numpy(), (y > y.median()).numpy()))


@pytest.mark.parametrize("smooth", [0.0, 3.0])
def test_maps_turn_with_the_head_and_volumes_come_in_any_order(grown, scan, smooth):
    image, q = scan
    network = InvariantForest(smooth=smooth)
    network.forest = grown
    logits = network(image, q)
    assert logits[..., 2:].std() > 0.3
    assert (logits[..., :2] == network.OUTSIDE).all()
    for R in cube_rotations():
        torch.testing.assert_close(network(turn_grid(image, R), q @ R.T), turn_grid(logits, R), rtol=0, atol=1e-5)
    order = torch.randperm(len(q))
    torch.testing.assert_close(network(image[:, order], -q[order]), logits, rtol=0, atol=1e-5)


def test_a_scan_of_no_brain_and_weights_from_a_file(grown, scan):
    image, q = scan
    network = InvariantForest(*grown.value.shape)
    assert (network(torch.zeros_like(image), q) == network.OUTSIDE).all()
    whole = InvariantForest()
    whole.forest = grown
    network.load_state_dict(whole.state_dict())
    torch.testing.assert_close(network(image, q), whole(image, q))


def test_smoothing_keeps_what_is_even(grown, scan):
    image, q = scan
    image = image.mean((2, 3, 4), keepdim=True).expand_as(image).clone()
    plain, smooth = (InvariantForest(smooth=s) for s in (0.0, 3.0))
    plain.forest = smooth.forest = Forest(0, 1)
    torch.testing.assert_close(smooth(image, q), plain(image, q), rtol=0, atol=1e-9)

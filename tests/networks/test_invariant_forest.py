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
    """Trees that tell voxels of a high log b0 and low anisotropy, and trees that look at the first map around."""
    network, brain = InvariantForest(), scan[0].any(1)
    numbers, names = network.invariants(*scan), network.invariants.names
    y = numbers[:, names.index("b0 2.0")] - numbers[:, names.index("anisotropy 5.0")]
    y = (y > y[brain].median())[brain]
    context = network.context(torch.where(brain, torch.randn(brain.shape), 0)[:, None], brain[:, None])
    options = {"max_iter": 15, "early_stopping": False, "random_state": 0}
    forests = []
    for maps in (numbers, torch.cat([numbers, context], dim=1)):
        x = maps.movedim(1, -1)[brain].numpy()
        forests.append(Forest.of(HistGradientBoostingClassifier(**options).fit(x, y.numpy())))
    return forests


@pytest.mark.parametrize("smooth", [0.0, 3.0])
def test_maps_turn_with_the_head_and_volumes_come_in_any_order(grown, scan, smooth):
    image, q = scan
    network = InvariantForest(smooth=smooth)
    network.first, network.second = grown
    logits = network(image, q)
    assert logits[..., 2:].std() > 0.3
    assert (logits[..., :2] == network.OUTSIDE).all()
    for R in cube_rotations():
        torch.testing.assert_close(network(turn_grid(image, R), q @ R.T), turn_grid(logits, R), rtol=0, atol=1e-5)
    order = torch.randperm(len(q))
    torch.testing.assert_close(network(image[:, order], -q[order]), logits, rtol=0, atol=1e-5)


def test_a_scan_of_no_brain_and_weights_from_a_file(grown, scan):
    image, q = scan
    network = InvariantForest(*zip(*(forest.value.shape for forest in grown), strict=True))
    assert (network(torch.zeros_like(image), q) == network.OUTSIDE).all()
    whole = InvariantForest()
    whole.first, whole.second = grown
    network.load_state_dict(whole.state_dict())
    torch.testing.assert_close(network(image, q), whole(image, q))


def test_the_second_forest_sees_a_blob_where_the_first_does():
    network = InvariantForest()
    brain, logits = torch.ones(1, 1, 15, 15, 15, dtype=torch.bool), torch.full((1, 1, 15, 15, 15), -4.0)
    logits[..., 6:9, 6:9, 6:9] = 4
    context = network.context(logits, brain)[0, :, 7, 7, 7]
    assert context.shape == (18,)
    mean, contrast, gradient, curvatures = context[1], context[6], context[10], context[11:14]
    assert mean > 0
    assert contrast > 1
    assert gradient < 1e-9
    assert (curvatures < -1).all()
    torch.testing.assert_close(curvatures, curvatures[:1].expand(3))

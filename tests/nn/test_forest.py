import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from eqdmri_monai.nn.forest import MOST_LEAVES, Forest


@pytest.fixture
def x():
    x = np.random.default_rng(0).normal(size=(3000, 7)).astype(np.float32)
    x[:, 3] = x[:, 3].round()  # ties at thresholds
    return x


def grown(x: np.ndarray, leaves: int) -> HistGradientBoostingClassifier:
    classifier = HistGradientBoostingClassifier(
        max_iter=20, max_leaf_nodes=leaves, min_samples_leaf=5, early_stopping=False, random_state=0
    )
    noise = np.random.default_rng(1).normal(size=len(x))  # or few leaves say it all
    return classifier.fit(x, x[:, 0] * x[:, 3] + noise > 0.3)


@pytest.mark.parametrize("leaves", [3, 31, 32, MOST_LEAVES])
def test_it_decides_as_the_trees_that_it_is_made_of(x, leaves):
    classifier = grown(x, leaves)
    forest, expected = Forest.of(classifier), classifier.decision_function(x)
    assert expected.std() > 0.1
    assert max(stage[0].nodes["is_leaf"].sum() for stage in classifier._predictors) == leaves
    torch.testing.assert_close(forest(torch.from_numpy(x)), torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    again = Forest(*forest.value.shape)
    again.load_state_dict(forest.state_dict())
    torch.testing.assert_close(again(torch.from_numpy(x[:5])), forest(torch.from_numpy(x[:5])))
    again.rescale(2.0, -1.0)
    torch.testing.assert_close(again(torch.from_numpy(x[:5])), 2 * forest(torch.from_numpy(x[:5])) - 1)


def test_no_voxels_and_no_trees():
    assert Forest(0, 1)(torch.zeros(3, 2)).tolist() == [0, 0, 0]
    assert Forest(2, 3)(torch.zeros(0, 2)).shape == (0,)


def test_more_leaves_than_bits_are_refused(x):
    with pytest.raises(ValueError, match="63 are the most"):
        Forest.of(grown(x, MOST_LEAVES + 1))

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from eqdmri_monai.nn.forest import Forest


def test_it_decides_as_the_trees_that_it_is_made_of(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 7)).astype(np.float32)
    x[:, 3] = x[:, 3].round()  # ties at thresholds
    classifier = HistGradientBoostingClassifier(max_iter=20, early_stopping=False, random_state=0)
    classifier.fit(x, x[:, 0] * x[:, 3] > 0.3)
    forest, expected = Forest.of(classifier), classifier.decision_function(x)
    assert expected.std() > 1
    torch.testing.assert_close(forest(torch.from_numpy(x)), torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    again = Forest(*forest.value.shape)
    again.load_state_dict(forest.state_dict())
    torch.testing.assert_close(again(torch.from_numpy(x[:5])), forest(torch.from_numpy(x[:5])))
    again.rescale(2.0, -1.0)
    torch.testing.assert_close(again(torch.from_numpy(x[:5])), 2 * forest(torch.from_numpy(x[:5])) - 1)


def test_no_voxels_and_no_trees():
    assert Forest(0, 1)(torch.zeros(3, 2)).tolist() == [0, 0, 0]
    assert Forest(2, 3)(torch.zeros(0, 2)).shape == (0,)

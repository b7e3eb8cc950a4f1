import pytest

from eqdmri_monai.bases import p_space, q_space, tp, tp1, tp_vec


@pytest.mark.parametrize(
    ("basis", "counts"),
    [
        (tp1, (2, 6, 9, 9)),
        (tp_vec, (1, 3, 1, 0)),
        (p_space, (1, 1, 1, 1)),
        (q_space, (1, 1, 1, 1)),
        (tp(0), (1, 1, 1, 1)),
    ],
)
def test_number_of_angular_functions_of_each_degree(basis, counts):
    assert tuple(len(basis.pairs(l)) for l in range(4)) == counts


def test_tp1_takes_the_papers_pairs():
    assert tp1.pairs(0) == [(0, 0), (1, 1)]
    assert tp1.pairs(1) == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_paths_couple_every_filter_degree():
    assert {l for l, _, _ in tp1.paths(1, 2)} == {1, 2, 3}

import pytest

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, p_space, q_space, tp, tp1, tp_vec


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


def test_products_of_any_reach_meet_the_triangle_rule():
    for reach in range(4):
        for l in range(4):
            expected = [
                (l_p, l_q)
                for l_p in range(9)
                for l_q in range(9)
                if abs(l_p - l) <= reach and abs(l_q - l) <= reach and abs(l_p - l_q) <= l <= l_p + l_q
            ]
            assert tp(reach).pairs(l) == expected


def test_an_own_list_is_taken_as_it_is():
    basis = FilterBasis("own", products=[[2, 1, 1], [0, 2, 2]])
    assert [basis.pairs(l) for l in range(3)] == [[(2, 2)], [], [(1, 1)]]
    assert basis == FilterBasis("own", products=((0, 2, 2), (2, 1, 1)))
    assert tp_vec.paths(1, 1) == [(0, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 2, 2)]


def test_a_truncated_basis_is_a_part_of_the_whole():
    whole = tp1.paths(2, 2)
    assert FilterBasis("TP±1", lmax=2).paths(2, 2) == [path for path in whole if max(path) <= 2]
    assert [l for l, _, _ in DifferenceBasis(lmax=1).paths(2, 1)] == [1]


def test_filter_degrees_can_be_chosen_for_each_pair_of_types():
    basis = FilterBasis("p-space", over_q=False, l_filters=[[1, 1, [0, 2]], [1, 0, []]])
    assert [l for l, _, _ in basis.paths(1, 1)] == [0, 2]
    assert basis.paths(1, 0) == []
    assert [l for l, _, _ in basis.paths(0, 1)] == [1]
    assert [l for l, _, _ in DifferenceBasis(l_filters=[[1, 1, [1]]]).paths(1, 1)] == [1]


def test_what_is_listed_twice_counts_once():
    assert FilterBasis("own", products=[(1, 0, 1), (1, 1, 0), [1, 0, 1]]) == FilterBasis(
        "own", products=[(1, 1, 0), (1, 0, 1)]
    )
    basis = DifferenceBasis(l_filters=[(1, 1, [2, 0, 0]), (1, 1, [2])])
    assert [l for l, _, _ in basis.paths(1, 1)] == [0, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"products": [(2, 1, 0)]}, r"products hold \(l_filter, l_p, l_q\) = \(2, 1, 0\), but l_filter must lie"),
        ({"products": [(-1, 0, 1)]}, "l_filter must lie"),
        ({"products": [(1, 0, 1)], "over_q": False}, "0 without over_p or over_q"),
        ({"over_p": False, "over_q": False}, "depend on p or on q"),
        ({"l_filters": [(1, 0, [2])]}, r"from l_in = 0 to l_out = 1 have degrees \[1\], but l_filters asks for \[2\]"),
    ],
)
def test_impossible_bases_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FilterBasis("own", **options)

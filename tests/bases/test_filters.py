import pytest
from e3nn import o3

from eqdmri_monai.bases import DifferenceBasis, FilterBasis, p_space, pq_diff, q_space, tp, tp1, tp_vec
from eqdmri_monai.bases.filters import check_paths


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"products": [(2, 1, 0)]}, r"products must keep .* \(2, 1, 0\) is impossible"),
        ({"products": [(-1, 0, 1)]}, r"products must be a list of \(l_filter, l_p, l_q\), all whole numbers from 0"),
        ({"products": [(1, 0)]}, r"products must be a list of .* got \[\(1, 0\)\]"),
        ({"products": (1, 0, 1)}, r"products must be a list of .* got \(1, 0, 1\)"),
        ({"products": [(1.0, 0, 1)]}, "products must be a list of"),
        ({"products": "101"}, "products must be a list of"),
        ({"products": [(1, 0, 1), (1, 1, 0), [1, 0, 1]]}, r"products must name each .* once, got \(1, 0, 1\) twice"),
        ({"products": []}, "at least one"),
        ({"products": [(1, 0, 1)], "over_q": False}, "set over_p and over_q"),
        ({"over_p": False, "over_q": False}, "depend on p or on q"),
        ({"reach": -1}, "reach must be 0 or more"),
    ],
)
def test_impossible_bases_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FilterBasis("own", **options)


@pytest.mark.parametrize("kind", [FilterBasis, DifferenceBasis])
@pytest.mark.parametrize(
    ("l_filters", "words"),
    [
        ([(1, 0, [2])], r"l_filters .* impossible from l_in = 0 to l_out = 1; it must be one of \[1\]"),
        ([(1, 1)], r"l_filters must be a list of \(l_out, l_in, list of l_filter\), all whole numbers from 0"),
        ([(1, 1, 2)], "l_filters must be a list of"),
        ([(1, -1, [])], "l_filters must be a list of"),
        (None, "l_filters must be a list of .* got None"),
        ([(1, 1, [0, 2, 0])], "l_filters from l_in = 1 to l_out = 1 must name each l_filter once, got 0 twice"),
        ([(1, 1, [0]), (1, 1, [2])], r"l_filters must name each \(l_out, l_in\) once, got \(1, 1\) twice"),
    ],
)
def test_impossible_filter_degrees_are_refused(kind, l_filters, words):
    with pytest.raises(ValueError, match=words):
        kind(name="own", l_filters=l_filters)


def test_bases_without_a_filter_are_refused():
    with pytest.raises(ValueError, match="basis small has no filter from 1x0e to 1x2e; raise its lmax"):
        check_paths([FilterBasis("small", lmax=1)], o3.Irreps("0e"), o3.Irreps("2e"))


VECTORS = o3.Irreps("0e+1e")


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ((), "bases must name at least one filter basis"),
        (tp1, r"bases must be a list of filter bases, .* write \[\.\.\.\] around a single one"),
        ("tp1", "bases must be a list of filter bases, got 'tp1'"),
        (None, "bases must be a list of filter bases, got None"),
        ([tp1, "p_space"], "bases must hold FilterBasis or DifferenceBasis objects, got 'p_space'"),
    ],
)
def test_bases_must_be_a_list_of_bases(bases, words):
    with pytest.raises(ValueError, match=words):
        check_paths(bases, VECTORS, VECTORS)


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ((tp1, tp1), r"\(0, 0, 0\) from l_in = 0 to l_out = 0 in both TP±1 and TP±1"),
        ((p_space, q_space, p_space), r"\(0, 0, 0\) .* in both p-space and p-space"),
        ((tp(2), tp_vec), r"in both TP±2 and TP-vec; leave it out of one by products or l_filters"),
        ((pq_diff, tp1), r"\(0, 0, 0\) from l_in = 0 to l_out = 0 in both pq-difference and TP±1"),
        ((pq_diff, DifferenceBasis("low", lmax=1)), "in both pq-difference and low"),
        ((FilterBasis("own", products=[(1, 1, 0)]), tp1), r"\(1, 1, 0\) from l_in = 1 to l_out = 0 in both own"),
    ],
)
def test_sums_do_not_repeat_a_filter(bases, words):
    with pytest.raises(ValueError, match=words):
        check_paths(bases, VECTORS, VECTORS)


@pytest.mark.parametrize(
    "bases",
    [
        (pq_diff, p_space),
        (pq_diff, q_space),
        (tp1, p_space, q_space),  # the same angular functions, but radial functions of other lengths
        (tp_vec, FilterBasis("own", products=[(2, 1, 1)])),
        (DifferenceBasis(l_filters=[(0, 0, []), (1, 1, [1, 2])]), tp1),
    ],
)
def test_sums_of_different_filters_are_taken(bases):
    check_paths(bases, VECTORS, VECTORS)

import numpy as np
import pytest
import torch
from dipy.core.gradients import unique_bvals_tolerance
from e3nn import o3

from eqdmri_monai.gradients import GradientTable, QSampling, check_table, q_vectors, shells, spread_subset
from eqdmri_monai.simulate.phantom import spread_directions
from eqdmri_monai.symmetry import random_scheme


def table(directions=8, bvals=None):
    bvecs = torch.cat([torch.zeros(1, 3), torch.from_numpy(spread_directions(directions, np.random.default_rng(0)))])
    bvals = torch.cat([torch.zeros(1), torch.full((directions,), 1000.0)]) if bvals is None else torch.as_tensor(bvals)
    return bvals, bvecs


def test_q_vectors_are_absolute():
    q = q_vectors(torch.tensor([0.0, 50.0, 1000.0, 4000.0]), torch.tensor([[0.0, 0, 1]]).expand(4, 3))
    torch.testing.assert_close(q.norm(dim=1), torch.tensor([0.0, 0.0, 1.0, 2.0]))


def test_shells_gather_b_values_within_five_percent_or_fifty():
    b = torch.tensor([0, 5, 50, 995, 1000, 1005, 1045, 1990, 2010, 2090, 3000, 3140.0])
    assert shells(b).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]


def test_shells_agree_with_dipy_on_a_multishell_scheme():
    b = torch.tensor([0.0, 1000] * 4 + [2000.0, 3000] * 3)
    b = b + torch.randn(len(b)).clamp(-2, 2) * 5 * (b > 0)
    assert int(shells(b).max()) + 1 == len(unique_bvals_tolerance(b.numpy(), tol=50))


def test_shells_do_not_depend_on_order():
    b = torch.rand(40) * 3000
    order = torch.randperm(40)
    assert torch.equal(shells(b)[order], shells(b[order]))


def test_noise_in_b_changes_neither_shells_nor_directions():
    q = random_scheme(6, 1.0, 1.6)
    noisy = q * (1 + 0.004 * torch.randn(len(q), 1))
    a, b = QSampling.of(q), QSampling.of(noisy)
    assert torch.equal(a.shell, b.shell)
    torch.testing.assert_close(a.length, b.length, rtol=0, atol=0.01)
    torch.testing.assert_close(b.q.norm(dim=1), b.length[b.shell])


def test_weights_average_each_shell_and_then_the_shells():
    sampling = QSampling.of(torch.cat([torch.zeros(2, 3), random_scheme(5, 1.0)[1:], random_scheme(9, 1.6)[1:]]))
    per_shell = torch.zeros(3).index_add(0, sampling.shell, sampling.weights())
    torch.testing.assert_close(per_shell, torch.tensor([1.0, 0.5, 0.5]))


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_a_spread_subset_does_not_depend_on_rotation_order_or_sign(count):
    q, R = random_scheme(20, 1.0, 1.5), o3.rand_matrix()
    order, sign = torch.randperm(len(q)), torch.randint(0, 2, (len(q), 1)) * 2.0 - 1
    chosen = spread_subset(q, count)
    assert chosen[0] == 0
    assert len(set(chosen.tolist())) == count
    assert torch.equal(order[spread_subset((sign * q @ R.T)[order], count)], chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rotation_of_an_icosahedron_changes_no_choice_among_equals(dtype):
    golden = (1 + 5**0.5) / 2
    q = torch.tensor([[s * golden, 0, 1][k:] + [s * golden, 0, 1][:k] for s in (1, -1) for k in range(3)])
    for _ in range(10):
        rotated = (q @ o3.rand_matrix().T).to(dtype)
        assert spread_subset(rotated, 4).tolist() == spread_subset(q, 4).tolist()


def test_a_spread_subset_is_spread():
    q = random_scheme(60, 1.0)

    def closest(v):
        return ((v @ v.T).abs() - 2 * torch.eye(len(v))).max()

    assert closest(q[spread_subset(q, 7)][1:]) < 0.75  # cosine; 6 directions cannot be below 0.45
    assert closest(q[1:7]) > 0.75


def test_all_of_a_scheme_is_a_subset_of_it():
    q = random_scheme(6, 1.0)
    assert sorted(spread_subset(q, 7).tolist()) == list(range(7))
    with pytest.raises(ValueError, match="number of q-vectors, 7, got 8"):
        spread_subset(q, 8)


def test_a_table_is_its_rows():
    t = GradientTable(*table())
    again = GradientTable.from_rows(t.rows)[t.bvals > 50]
    torch.testing.assert_close(again.rows, t.rows[~t.b0_mask])


def test_check_table_gives_unit_directions():
    bvals, bvecs = table()
    unit = check_table(bvals, bvecs * 1.005)
    torch.testing.assert_close(unit, bvecs)


def test_a_direction_that_is_no_number_at_b0_is_left_out():
    bvals, bvecs = table()
    bvecs[0] = torch.nan
    assert torch.equal(check_table(bvals, bvecs)[0], torch.zeros(3))


def spoil(field, index, value):
    bvals, bvecs = table()
    (bvals if field == "bvals" else bvecs)[index] = value
    return bvals, bvecs


def around(degrees):
    """Twelve directions at one angle to the z axis."""
    polar, azimuth = torch.deg2rad(torch.tensor(degrees)), torch.arange(12.0) / 12 * torch.pi
    bvecs = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos().expand(12)], dim=1)
    return torch.tensor([0.0] + 12 * [1000.0]), torch.cat([torch.zeros(1, 3), bvecs])


@pytest.mark.parametrize(
    ("bvals_bvecs", "words"),
    [
        ((torch.zeros(3), torch.zeros(4, 3)), "belong to different scans"),
        (spoil("bvals", 2, torch.nan), "b-value of volume 2 is not a number"),
        (spoil("bvals", 2, -5.0), "b-value of volume 2 is negative"),
        (spoil("bvals", 2, 1e30), r"b-value of volume 2 is over 100000 s/mm², beyond any scanner"),
        (spoil("bvals", slice(None), 0.0), "this is no diffusion scan"),
        (spoil("bvals", slice(1, None), 1.0), "multiply by 1000"),
        (spoil("bvals", 0, 1000.0), "at least one b0 is needed"),
        (spoil("bvecs", 3, torch.nan), "direction of volume 3 is not a number"),
        (spoil("bvecs", 3, 0.0), "direction of volume 3 has length 0, not 1"),
        (spoil("bvecs", 3, 0.9), "not 1"),
        (table(5), "5 distinct directions; at least 6"),
        (around(90.0), "lie in one plane or on one cone"),
        (around(60.0), "lie in one plane or on one cone"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(bvals_bvecs, words):
    with pytest.raises(ValueError, match=words):
        check_table(*bvals_bvecs, name="dwi.bvec")


def test_a_table_for_another_number_of_volumes_is_refused():
    with pytest.raises(ValueError, match=r"dwi.bvec: 9 entries for a scan of 8 volumes"):
        check_table(*table(), volumes=8, name="dwi.bvec")


def test_a_direction_at_b0_is_warned_about():
    with pytest.warns(UserWarning, match="volume 0 has b = 0 s/mm² and a direction"):
        check_table(*spoil("bvecs", 0, torch.tensor([1.0, 0, 0])))


def test_repeated_and_opposite_directions_are_warned_about():
    bvals, bvecs = table()
    with pytest.warns(UserWarning, match="volumes 1 and 2 have the same direction"):
        check_table(bvals, torch.cat([bvecs[:2], -bvecs[1:2], bvecs[3:]]))


def test_directions_that_are_spread_badly_are_warned_about():
    bvals, bvecs = around(90.0)
    bvecs[1::2, 2] += 0.15
    with pytest.warns(UserWarning, match=r"the directions are spread badly \(condition \d+; 3 is good\)"):
        check_table(bvals, torch.nn.functional.normalize(bvecs, dim=1))


def test_doubts_go_where_the_caller_wants_them():
    doubts = []
    check_table(*spoil("bvecs", 0, torch.tensor([1.0, 0, 0])), name="a.bvec", bval_name="a.bval", warn=doubts.append)
    assert doubts == ["a.bval: volume 0 has b = 0 s/mm² and a direction; it is read as a b0"]

import torch

from eqdmri_monai.symmetry import cube_rotations, quarter_turns, random_scheme, turn_features, turn_grid


def keys(rotations) -> set[tuple[int, ...]]:
    return {tuple(R.round().int().flatten().tolist()) for R in rotations}


def test_the_cube_has_24_rotations_and_quarter_turns_make_them_all():
    rotations = cube_rotations()
    assert len(keys(rotations)) == 24
    torch.testing.assert_close(rotations[0], torch.eye(3))
    for R in rotations:
        torch.testing.assert_close(R @ R.T, torch.eye(3))
        torch.testing.assert_close(torch.linalg.det(R), torch.tensor(1.0))
    made = keys([torch.eye(3)])
    for _ in range(5):
        made |= keys(turn @ torch.tensor(k).view(3, 3).double() for turn in quarter_turns() for k in made)
    assert made == keys(rotations)


def test_quarter_turns_go_about_their_axes():
    for axis, R in enumerate(quarter_turns()):
        unit = torch.eye(3)
        torch.testing.assert_close(R @ unit[axis], unit[axis])
        torch.testing.assert_close(R @ unit[(axis + 1) % 3], unit[(axis + 2) % 3])


def test_a_value_at_p_moves_to_rp():
    x = torch.zeros(2, 5, 7, 9)
    p, centre = torch.tensor([1, 2, 7]), torch.tensor([2.0, 3.0, 4.0])
    x[(1, *p)] = 1.0
    for R in cube_rotations():
        y = turn_grid(x, R)
        moved = R @ (p - centre) + (torch.tensor(y.shape[1:]) - 1) / 2
        assert y[(1, *moved.round().long())] == y.sum() == 1


def test_positions_are_a_vector_field_that_turns_into_itself():
    axes = [torch.arange(n) - (n - 1) / 2 for n in (5, 5, 5)]
    field = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    for R in cube_rotations():
        torch.testing.assert_close(turn_features(field, R, "1e"), field)
        assert R.equal(torch.eye(3)) or not turn_grid(field, R).equal(field)


def test_features_keep_their_type_and_precision():
    x, R = torch.randn(2, 8, 3, 4, 5, 6, dtype=torch.float32), quarter_turns()[0]
    assert turn_features(x, R, "1x1e+1x2e").dtype == torch.float32
    y = x
    for _ in range(4):
        y = turn_features(y, R, "1x1e+1x2e")
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def test_a_random_scheme_has_b0_and_shells():
    lengths = random_scheme(4, 1.0, 1.5).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.0, *4 * [1.0], *4 * [1.5]]))

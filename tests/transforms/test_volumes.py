import pytest
import torch
from scans import image_from

from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.tensors import q_squares
from eqdmri_monai.transforms import AverageB0d, RandSplitVolumesd, RandSubsampleVolumesd
from eqdmri_monai.transforms.scan import table_of


def test_b0s_are_averaged_into_the_first_volume():
    q = random_scheme(6, 1.0)[[1, 0, 2, 0, 3, 4, 5, 6]]
    x = image_from(q)
    out = AverageB0d("image")({"image": x})["image"]
    torch.testing.assert_close(out[0].as_tensor(), x.as_tensor()[[1, 3]].mean(0))
    torch.testing.assert_close(out[1:].as_tensor(), x.as_tensor()[[0, 2, 4, 5, 6, 7]])
    torch.testing.assert_close(table_of(out).q, torch.cat([q[1:2], q[[0, 2, 4, 5, 6, 7]]]))


def test_a_scan_without_b0_is_refused():
    with pytest.raises(ValueError, match="at least one b0 is needed"):
        AverageB0d("image")({"image": image_from(random_scheme(6, 1.0)[1:])})


def test_a_subset_of_volumes_keeps_its_own_q_vectors():
    q = random_scheme(12, 1.0)
    x = image_from(q)
    x[:] = torch.arange(13.0)[:, None, None, None]
    transform = RandSubsampleVolumesd("image", minimum=6, maximum=8).set_random_state(seed=3)
    sizes = set()
    for _ in range(20):
        out = transform({"image": x})["image"]
        which = out[:, 0, 0, 0].as_tensor().long()
        assert which[0] == 0
        torch.testing.assert_close(table_of(out).q, q[which])
        sizes.add(len(which) - 1)
    assert sizes == {6, 7, 8}


def test_of_several_subsets_one_that_determines_a_tensor_is_taken():
    twice = random_scheme(6, 1.0)[1:]
    q = torch.cat([torch.zeros(1, 3), twice, 1.4 * twice])  # the same directions on two shells
    x = image_from(q)
    for choices, fewest in ((1, 1), (50, 6)):
        transform = RandSubsampleVolumesd("image", minimum=6, maximum=6, choices=choices).set_random_state(seed=0)
        tables = [table_of(transform({"image": x})["image"]).q[1:] for _ in range(20)]
        assert (min(int(torch.linalg.matrix_rank(q_squares(t))) for t in tables) == 6) == (fewest == 6)


def test_a_scan_is_parted_in_two_with_the_b0_in_both():
    q = random_scheme(16, 1.0)
    x = image_from(q)
    x[:] = torch.arange(17.0)[:, None, None, None]
    split = RandSplitVolumesd("image", minimum=6, maximum=9).set_random_state(seed=0)
    counts = set()
    for _ in range(20):
        out = split({"image": x})
        given, rest = (out[key][:, 0, 0, 0].as_tensor().long().tolist() for key in ("image", "rest"))
        assert given[0] == rest[0] == 0
        assert sorted(given[1:] + rest[1:]) == list(range(1, 17))
        for key, which in (("image", given), ("rest", rest)):
            torch.testing.assert_close(table_of(out[key]).q, q[which])
        counts.add(len(given) - 1)
    assert counts == {6, 7, 8, 9}


def test_a_choice_is_well_spread_and_the_same_for_one_seed():
    q = random_scheme(16, 1.0)
    split = RandSplitVolumesd("image", seed=3, choices=50)
    a, b = (table_of(split({"image": image_from(q)})["image"]) for _ in range(2))
    torch.testing.assert_close(a.rows, b.rows)
    random = [torch.linalg.cond(q_squares(q[1 + torch.randperm(16)[:6]])) for _ in range(20)]
    assert torch.linalg.cond(q_squares(a.bvecs[1:])) < torch.stack(random).median()


def test_a_scan_of_too_few_directions_cannot_be_parted():
    with pytest.raises(ValueError, match="11 directions are less than 6 for the network and 6 for its truth"):
        RandSplitVolumesd("image")({"image": image_from(random_scheme(11, 1.0))})

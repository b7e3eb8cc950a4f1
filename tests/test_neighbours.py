import pytest
import torch

from eqdmri_monai.neighbours import ball, check_cloud, euclidean, everyone, farthest_points, knn, take


def cloud(*counts, dim=3):
    n = max(counts)
    mask = torch.arange(n) < torch.tensor(counts)[:, None]
    return torch.randn(len(counts), n, dim), mask


@pytest.mark.parametrize("own", [False, True])
def test_the_nearest_are_those_that_sorting_gives(own):
    x, mask = cloud(600, 540)  # more than one block of rows
    found = knn(euclidean(x), 5, mask=mask, centres=mask, own=own)
    d = torch.cdist(x, x).masked_fill(~mask[:, None], torch.inf)
    if not own:
        d.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    order = d.argsort(-1)
    assert torch.equal(found.mask, mask[..., None].expand_as(found.mask))
    assert torch.equal(found.index[mask], order[mask][:, :5])
    reach = take(d.transpose(1, 2).flatten(0, 1)[None], order[None, 0, :1, 5:6])[0, 0, 0, 0]
    torch.testing.assert_close(found.reach[0, 0], reach)


def test_a_ball_holds_all_within_its_radius():
    x, mask = cloud(30, 20)
    found = ball(euclidean(x), 2.5, mask=mask, centres=mask)
    near = (torch.cdist(x, x) <= 2.5) & mask[:, None] & mask[..., None] & ~torch.eye(30, dtype=torch.bool)
    again = torch.zeros_like(near)
    for b, i, k in found.mask.nonzero().tolist():
        again[b, i, found.index[b, i, k]] = True
    assert torch.equal(again, near)


def test_ties_are_kept():
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))[None]
    mask = torch.ones(1, 25, dtype=torch.bool)
    found = knn(euclidean(grid), 3, mask=mask, centres=mask)
    assert found.mask[0, 12].sum() == 4  # all four beside the centre, though three were asked for
    assert found.reach[0, 12] == pytest.approx(2**0.5)
    assert found.mask[0, 0].sum() == 3  # two beside the corner and the one across


def test_farthest_points_spread_and_never_repeat():
    x, mask = cloud(20, 9)
    x[:, 3] = x[:, 2]  # even where two points share a place
    index, valid = farthest_points(torch.cdist(x, x), 0.5, mask=mask)
    assert valid.sum(1).tolist() == [10, 5]
    for row, ok in zip(index, valid, strict=True):
        assert len(set(row[ok].tolist())) == int(ok.sum())
    assert mask.gather(1, index)[valid].all()
    everything, valid = farthest_points(torch.cdist(x, x), 1.0, mask=mask)
    assert sorted(everything[1][valid[1]].tolist()) == list(range(9))


def test_farthest_points_go_along_with_a_permutation():
    x, mask = cloud(20)
    order = torch.randperm(20)
    index, _ = farthest_points(torch.cdist(x, x), 0.4, mask=mask)
    permuted, _ = farthest_points(torch.cdist(x[:, order], x[:, order]), 0.4, mask=mask)
    assert torch.equal(order[permuted[0]], index[0])


def test_everyone_leaves_padding_out():
    _, mask = cloud(3, 2)
    assert everyone(mask, mask).mask.sum((1, 2)).tolist() == [9, 4]


def test_bad_clouds_are_refused():
    x, mask = cloud(4, 3)
    with pytest.raises(ValueError, match="2 or more points"):
        check_cloud(x[:, :1], points=2)
    with pytest.raises(ValueError, match="1 or more points that the mask keeps, got 0"):
        check_cloud(x, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="got 0"):
        check_cloud(x[:, :0])
    with pytest.raises(ValueError, match="mask must be"):
        check_cloud(x, mask[:1])
    with pytest.raises(ValueError, match="floating-point"):
        check_cloud(x.long())
    x[1, 3] = torch.nan  # padding may be anything
    assert check_cloud(x, mask) is mask
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="must be finite, got 1"):
        check_cloud(x, mask)


def test_searches_without_an_answer_are_refused():
    x, mask = cloud(4, 3)
    with pytest.raises(ValueError, match="k must be from 1 to 2"):
        knn(euclidean(x), 3, mask=mask, centres=mask)
    with pytest.raises(ValueError, match="has no neighbour within radius"):
        ball(euclidean(x), 1e-9, mask=mask, centres=mask)
    with pytest.raises(ValueError, match="share must be"):
        farthest_points(torch.cdist(x, x), 0.0, mask=mask)

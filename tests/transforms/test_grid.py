import itertools

import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor

from eqdmri_monai.transforms import ResampleRASd


def image(affine: torch.Tensor, shape=(9, 8, 7)) -> MetaTensor:
    """Two volumes that are linear in the world, and so interpolated exactly."""
    ijk = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    world = torch.einsum("ij,jxyz->ixyz", affine[:3, :3], ijk) + affine[:3, 3, None, None, None]
    return MetaTensor(world[:2], affine=affine)


def affine_of(R: torch.Tensor, sizes=(2.0, 2.5, 3.0)) -> torch.Tensor:
    affine = torch.eye(4)
    affine[:3, :3], affine[:3, 3] = R * torch.tensor(sizes), torch.tensor([10.0, -20, 5])
    return affine


def resample(x, spacing=(2.0, 2.0, 2.0), mode="bilinear"):
    return ResampleRASd("image", spacing, [mode])({"image": x})["image"]


@pytest.mark.parametrize("mirror", [1, -1])
def test_what_is_linear_in_the_world_is_so_on_the_new_grid_and_back(mirror):
    R = o3.rand_matrix() @ torch.diag(torch.tensor([mirror, 1.0, 1.0]))
    x = image(affine_of(R))
    transform = ResampleRASd("image", [1.7, 1.8, 1.9], ["bilinear"])
    out = transform({"image": x})
    y = out["image"]
    torch.testing.assert_close(y.affine[:3, :3].norm(dim=0), torch.tensor([1.7, 1.8, 1.9]))
    assert torch.linalg.det(y.affine[:3, :3]) > 0
    inner = (slice(None), *3 * [slice(1, -1)])  # beyond the scan its border goes on
    expected = image(y.affine, y.shape[1:]).as_tensor()
    torch.testing.assert_close(y.as_tensor()[inner], expected[inner].float(), rtol=0, atol=1e-4)
    back = transform.inverse(out)["image"]
    torch.testing.assert_close(back.affine, x.affine, rtol=0, atol=0)
    torch.testing.assert_close(back.as_tensor()[inner], x.as_tensor()[inner].float(), rtol=0, atol=1e-4)


def test_no_change_of_1e_6_moves_the_grid():
    """Where numbers of voxels are ties (2.5 to 2 mm), and where two axes are equally near to one of the world's."""
    for R in (torch.eye(3), o3.rand_matrix(), o3.matrix_x(torch.tensor(torch.pi / 4))):
        exact = affine_of(R)
        grids = []
        for _ in range(8):
            affine = exact + 1e-6 * torch.randn(4, 4) * torch.tensor([[1.0], [1], [1], [0]])
            y = resample(image(affine))
            corners = torch.tensor(list(itertools.product(*((0.0, n - 1.0) for n in y.shape[1:]))))
            world = corners @ y.affine[:3, :3].T + y.affine[:3, 3]
            grids.append(torch.stack(sorted(world, key=lambda p: p.round().tolist())))
        for grid in grids[1:]:
            torch.testing.assert_close(grid, grids[0], rtol=0, atol=1e-4)


def test_cubic_voxels_keep_their_size_where_none_is_wanted_and_others_become_cubic():
    for R in (torch.eye(3), torch.eye(3)[[2, 0, 1]] * torch.tensor([1.0, -1, 1]), o3.rand_matrix()):
        x = image(affine_of(R, sizes=(3.0, 3.0, 2.999999)))
        y = resample(x, spacing=None)
        assert sorted(y.shape[1:]) == sorted(x.shape[1:])
        torch.testing.assert_close(y.flatten().sort()[0], x.float().flatten().sort()[0], rtol=0, atol=1e-4)
        y = resample(image(affine_of(R)), spacing=None)
        torch.testing.assert_close(y.affine[:3, :3].norm(dim=0), torch.full((3,), 15 ** (1 / 3)))


def test_voxels_of_the_wanted_size_are_not_interpolated():
    x = MetaTensor(torch.rand(3, 5, 6, 7).float(), affine=affine_of(torch.eye(3), (2.0, 2.0, 2.0)))
    torch.testing.assert_close(resample(x).as_tensor(), x.as_tensor(), rtol=0, atol=0)


@pytest.mark.parametrize("noise", [-1e-6, 0, 1e-6])
def test_a_mask_of_ties_is_rounded_one_way(noise):
    mask = torch.zeros(1, 5, 1, 1)
    mask[:, 2:] = 1
    y = resample(MetaTensor(mask, affine=affine_of(torch.eye(3), (4.0 + noise, 2, 2))), mode="mask")
    assert y.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]  # the voxel in the middle is half in


@pytest.mark.parametrize("spacing", [2.0, [2.0, 2.0], [2, 2, 0], [2, 2, "two"], [2, 2, float("nan")]])
def test_a_spacing_that_is_not_three_sizes_is_refused(spacing):
    with pytest.raises(ValueError, match=r"spacing must be three voxel sizes in mm, such as \[2.0, 2.0, 2.0\]"):
        ResampleRASd("image", spacing, ["bilinear"])


def test_voxels_without_number_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"801 x 876 x 901 voxels .* choose a larger one"):
        resample(image(affine_of(torch.eye(3), (2000.0, 2500.0, 3000.0))), (20.0, 20.0, 20.0))


def test_the_grid_is_cut_to_the_box_around_a_mask():
    x = image(affine_of(o3.rand_matrix()), (12, 13, 14))
    mask = MetaTensor(torch.zeros(1, 12, 13, 14), affine=x.affine)
    mask[:, 4:8, 5:9, 6:7] = 1
    keys, modes = ["image", "brain_mask"], ["bilinear", "mask"]
    whole = ResampleRASd(keys, (2, 2, 2), modes)({"image": x, "brain_mask": mask})
    cut = ResampleRASd(keys, (2, 2, 2), modes, crop_to="brain_mask", margin=1)({"image": x, "brain_mask": mask})
    ijk = torch.linalg.solve(whole["image"].affine, cut["image"].affine)
    torch.testing.assert_close(ijk[:3, :3], torch.eye(3), rtol=0, atol=1e-12)
    box = [slice(int(a), int(a) + n) for a, n in zip(ijk[:3, 3].round(), cut["image"].shape[1:], strict=True)]
    for key in keys:
        part = whole[key].as_tensor()[(slice(None), *box)]
        torch.testing.assert_close(cut[key].as_tensor(), part, rtol=0, atol=1e-5)
    assert cut["brain_mask"].sum() == whole["brain_mask"].sum()
    assert not cut["brain_mask"][:, 0].any()
    assert cut["brain_mask"][:, 1].any()


def test_a_mask_that_vanishes_at_a_spacing_is_refused():
    x = image(affine_of(torch.eye(3)))
    mask = MetaTensor(torch.zeros(1, 9, 8, 7), affine=x.affine, meta={"filename_or_obj": "mask.nii"})
    mask[:, 3, 3, 3] = 1
    transform = ResampleRASd(["image", "brain_mask"], (4, 4, 4), ["bilinear", "mask"], crop_to="brain_mask")
    with pytest.raises(ValueError, match=r"mask.nii: no voxel of 4 x 4 x 4 mm is half in brain_mask"):
        transform({"image": x, "brain_mask": mask})


def test_a_spacing_that_leaves_voxels_out_is_warned_about():
    with pytest.warns(UserWarning, match=r"voxels of 2 x 2.5 x 3 mm are resampled to 6 x 6 x 6 mm"):
        resample(image(affine_of(torch.eye(3))), (6, 6, 6))

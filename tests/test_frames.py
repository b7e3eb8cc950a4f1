import nibabel as nib
import numpy as np
import pytest
import torch
from e3nn import o3

from eqdmri_monai.frames import fsl_to_world, voxel_axes, world_to_fsl, world_to_voxel


def affine_of(linear) -> torch.Tensor:
    affine = torch.eye(4)
    affine[:3, :3] = linear
    return affine


@pytest.mark.parametrize("sizes", [(2.0, 2.0, 2.0), (1.0, 2.0, 5.0)])
def test_voxel_axes_of_turned_voxels_are_the_turn(sizes):
    R = o3.rand_matrix()
    torch.testing.assert_close(voxel_axes(affine_of(R @ torch.diag(torch.tensor(sizes)))), R, rtol=0, atol=1e-12)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSL", "IRP", "LPI"])
def test_voxel_axes_agree_with_nibabel(codes):
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (4, 5, 6))
    assert nib.aff2axcodes(affine_of(voxel_axes(affine)).numpy()) == nib.aff2axcodes(affine)


def test_fsl_directions_are_mirrored_in_x_in_right_handed_images_only():
    right, left = affine_of(torch.eye(3)), affine_of(torch.diag(torch.tensor([-1.0, 1.0, 1.0])))
    g = torch.tensor([[0.6, 0.8, 0.0]])
    # FSL's x axis points to the left in both, so both files mean the same world direction.
    torch.testing.assert_close(fsl_to_world(g, right), torch.tensor([[-0.6, 0.8, 0.0]]))
    torch.testing.assert_close(fsl_to_world(g, left), torch.tensor([[-0.6, 0.8, 0.0]]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_world_to_fsl_inverts_fsl_to_world(sign):
    affine = affine_of(o3.rand_matrix() @ torch.diag(torch.tensor([2 * sign, 1.5, 3.0])))
    g = torch.randn(5, 3)
    torch.testing.assert_close(world_to_fsl(fsl_to_world(g, affine), affine), g)


def test_world_to_voxel_follows_a_direction_through_the_affine():
    affine = affine_of(2.0 * o3.rand_matrix())
    step = torch.tensor([1.0, 2.0, -1.0])  # voxels
    world = affine[:3, :3] @ step
    torch.testing.assert_close(world_to_voxel(world, affine), 2.0 * step)


def test_sheared_axes_are_refused():
    affine = torch.eye(4)
    affine[0, 1] = 0.5
    with pytest.raises(ValueError, match="sheared voxel axes"):
        voxel_axes(affine)


@pytest.mark.parametrize("column", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])
def test_singular_affine_is_refused(column):
    affine = torch.eye(4)
    affine[:3, 1] = torch.tensor(column)
    with pytest.raises(ValueError, match="singular or not finite"):
        voxel_axes(affine)

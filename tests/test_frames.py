import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from e3nn import o3

from eqdmri_monai.frames import (
    fsl_to_world,
    tensor_to_world,
    voxel_axes,
    voxel_to_world,
    world_to_fsl,
    world_to_voxel,
)
from eqdmri_monai.simulate.signal import tensor_signal


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


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_voxel_to_world_inverts_world_to_voxel(sign):
    affine = affine_of(o3.rand_matrix() @ torch.diag(torch.tensor([2 * sign, 1.5, 3.0])))
    v = torch.randn(5, 3)
    torch.testing.assert_close(voxel_to_world(world_to_voxel(v, affine), affine), v)


def test_the_tensor_of_a_direction_turns_as_the_direction():
    affine, v = affine_of(o3.rand_matrix() @ torch.diag(torch.tensor([-2.0, 1.5, 3.0]))), torch.randn(5, 3)
    world = voxel_to_world(v, affine)
    turned = tensor_to_world(v[:, :, None] * v[:, None], affine)
    torch.testing.assert_close(turned, world[:, :, None] * world[:, None], rtol=0, atol=1e-12)
    assert tensor_to_world(torch.eye(3, dtype=torch.float32), affine).dtype == torch.float32


def test_all_48_storage_orders_of_a_tensor_field_are_one_field_in_the_world():
    """The array's axes are permuted and flipped, the tensors expressed along them, the affine changed accordingly."""
    affine, D = affine_of(o3.rand_matrix() @ torch.diag(torch.tensor([2.0, 1.5, 3.0]))), torch.randn(4, 5, 6, 3, 3)
    world = tensor_to_world(D, affine)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1.0, -1.0), repeat=3):
            flipped = [i for i in range(3) if flips[i] < 0]
            storage = torch.zeros(4, 4)  # new voxel indices to old ones
            for i, axis in enumerate(order):
                storage[axis, i] = flips[i]
                storage[axis, 3] = D.shape[axis] - 1 if flips[i] < 0 else 0
            storage[3, 3] = 1
            S = storage[:3, :3]
            stored = (S.T @ D @ S).permute(*order, 3, 4).flip(flipped)
            expected = world.permute(*order, 3, 4).flip(flipped)
            torch.testing.assert_close(tensor_to_world(stored, affine @ storage), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dipys_tensors_along_voxel_axes_turn_into_the_tensors_of_the_world(sign):
    affine = affine_of(o3.rand_matrix() @ torch.diag(torch.tensor([2 * sign, 1.5, 3.0])))
    R = o3.rand_matrix(6)
    D = R @ torch.diag(torch.tensor([1.7e-3, 0.5e-3, 0.3e-3])) @ R.mT
    bvals = torch.cat([torch.zeros(1), torch.full((20,), 1000.0)])
    bvecs = torch.nn.functional.normalize(torch.randn(21, 3), dim=1) * (bvals > 0)[:, None]
    signal = 100 * tensor_signal(D.numpy(), bvals.numpy(), bvecs.numpy())
    table = gradient_table(bvals.numpy(), bvecs=world_to_voxel(bvecs, affine).numpy())
    fit = torch.from_numpy(TensorModel(table, fit_method="OLS").fit(signal).quadratic_form)
    assert (fit - D).abs().max() > 1e-4  # along the voxel axes it is another matrix
    torch.testing.assert_close(tensor_to_world(fit, affine), D, rtol=0, atol=1e-12)


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

"""Diffusion tensors out of a network, in the frame of the voxels and of the world."""

import numpy as np
import torch
from e3nn import o3

from eqdmri_monai.bases import Radial, q_space, tp1
from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.networks import PQNet
from eqdmri_monai.nn import TensorHead
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.signal import fibre_tensor, tensor_signal
from eqdmri_monai.symmetry import cube_rotations, random_scheme, turn_grid


def affine_of(R):
    affine = torch.eye(4)
    affine[:3, :3] = 2 * R
    return affine


def scan(directions, affine):
    """A fibre in each of 5³ voxels: signal, q along the voxel axes, tensors in µm²/ms and fibres in the world."""
    table = single_shell(directions, 1000.0, np.random.default_rng(directions))
    shape = 3 * (5,)
    fibre = torch.nn.functional.normalize(torch.randn(*shape, 3), dim=-1)
    along, across = 1.2e-3 + 0.8e-3 * torch.rand(shape), 0.2e-3 + 0.4e-3 * torch.rand(shape)  # mm²/s
    D = fibre_tensor(fibre.numpy(), along.numpy(), across.numpy())
    image = torch.from_numpy(tensor_signal(D, table.bvals.numpy(), table.bvecs.numpy())).movedim(-1, 0)[None]
    return image, world_to_voxel(table.q, affine), symmetric_components(1000 * torch.from_numpy(D)[None]), fibre


def test_the_24_right_handed_storage_orders_of_a_scan_have_one_tensor_field_in_the_world():
    net = PQNet(("3x0e+1x1e+2x2e",), ("2x0e+1x1e+1x2e",), "1x0e+1x2e", bases=(tp1, q_space), kernel_size=3)
    head, affine, q_world = TensorHead(), affine_of(o3.rand_matrix()), random_scheme(6, 1.0)
    image = torch.randn(1, len(q_world), 3, 4, 5)

    def in_world(image, affine):
        q = world_to_voxel(q_world, affine)
        return head(net(image, q), affine)

    tensors = in_world(image, affine)
    assert (head(net(image, q_world)) - tensors).abs().max() > 1e-3 * tensors.abs().max()
    for R in cube_rotations():  # the array is stored turned by R, so that its axes lie along the columns of affine Rᵀ
        stored = affine_of(affine[:3, :3] / 2 @ R.T)
        torch.testing.assert_close(in_world(turn_grid(image, R), stored), turn_grid(tensors, R), rtol=0, atol=1e-9)


def test_one_layer_of_tp1_alone_sees_no_tensor_in_a_uniform_signal():
    """Its filters of l = 2 all have l_p > 0, and harmonics of Δp sum to zero over equal voxels; q-space sees it."""
    q = random_scheme(20, 1.0)
    signal = torch.exp(-q @ torch.diag(torch.tensor([1.7, 0.3, 0.3])) @ q.T).diagonal()
    image = signal[None, :, None, None, None].expand(1, -1, 5, 5, 5)
    options = {"irreps_out": "1x0e+1x2e", "kernel_size": 3}
    anisotropy = [
        PQNet(("2x0e+1x1e+2x2e",), (), bases=bases, **options)(image, q)[0, 1:, 2, 2, 2].norm()
        for bases in ((tp1,), (tp1, q_space))
    ]
    assert anisotropy[0] < 1e-12
    assert anisotropy[1] > 1e-3


def test_a_small_network_learns_the_tensors_of_a_scan_and_finds_the_fibres_of_another_on_a_turned_grid():
    net = PQNet(
        ("8x0e+8x2e",), (), "1x0e+1x2e", bases=(q_space,), kernel_size=1,
        radial=Radial("cosine", num_p=1, num_q=2),
    )  # fmt: skip
    head, affine = TensorHead(), affine_of(torch.eye(3))
    image, q, tensors, _ = scan(20, affine)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (head(net(image, q), affine) - tensors).square().mean().backward()
        optimizer.step()

    affine = affine_of(o3.angles_to_matrix(*torch.tensor([0.4, 1.0, 0.7])))
    image, q, tensors, fibre = scan(30, affine)
    with torch.no_grad():
        features = net(image, q)
    predicted = head(features, affine)
    error = (predicted - tensors).square().mean()
    assert error < 0.2 * (tensors - tensors.mean((2, 3, 4), keepdim=True)).square().mean()

    def degrees(tensors):
        principal = torch.linalg.eigh(symmetric_matrix(tensors)[0]).eigenvectors[..., -1]
        return torch.rad2deg(torch.acos((principal * fibre).sum(-1).abs().clamp(max=1)))

    assert degrees(predicted).median() < 2
    assert degrees(head(features)).median() > 30  # the control: read along the voxel axes, they point elsewhere

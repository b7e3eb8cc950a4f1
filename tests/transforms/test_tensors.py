import torch
from e3nn import o3
from scans import image_from

from eqdmri_monai.frames import tensor_to_world
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.tensors import q_squares
from eqdmri_monai.transforms import FitTensord, LogSignald


def test_a_tensor_in_the_world_is_found_along_the_arrays_axes():
    q, affine = random_scheme(10, 1.0), torch.eye(4)
    affine[:3, :3] = 2 * o3.rand_matrix()
    matrix = torch.randn(1, 6, 6, 6, 3, 3)
    truth = symmetric_components(0.3 * matrix @ matrix.mT)
    x = image_from(q, affine)
    x[:] = 700 * torch.exp(-torch.einsum("qc,bc...->bq...", q_squares(q), truth))[0]
    mask = torch.zeros(1, 6, 6, 6)
    mask[:, 1:5] = 1
    out = FitTensord("image", "tensor")(LogSignald("image")({"image": x, "brain_mask": mask}))["tensor"]
    world = symmetric_components(tensor_to_world(symmetric_matrix(out.as_tensor()[None].double()), affine))
    torch.testing.assert_close(world[:, :, 1:5], truth[:, :, 1:5], rtol=0, atol=2e-3)
    assert out[:, 0].abs().max() == 0

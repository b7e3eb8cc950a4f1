import torch
from e3nn import o3
from monai.data import MetaTensor
from scans import image_from

from eqdmri_monai.frames import tensor_to_world
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.tensors import q_squares
from eqdmri_monai.transforms import FitTensord, LogSignald, TensorMapsd, TensorToWorldd


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


def test_maps_are_those_of_the_tensor_and_empty_where_there_is_none():
    evals = torch.tensor([1.7, 0.4, 0.2])
    R = o3.rand_matrix()
    tensor = symmetric_components((R @ evals.diag() @ R.T).expand(1, 2, 2, 2, 3, 3))[0].float()
    tensor[:, 0] = 0
    out = TensorMapsd("pred")({"pred": MetaTensor(tensor)})
    deviation = evals - evals.mean()
    fa = (1.5 * deviation.square().sum() / evals.square().sum()).sqrt()
    torch.testing.assert_close(out["md"][0, 1].double(), (1e-3 * evals.mean()).expand(2, 2), rtol=1e-5, atol=0)
    torch.testing.assert_close(out["fa"][0, 1].double(), fa.expand(2, 2), rtol=1e-5, atol=0)
    torch.testing.assert_close((out["v1"][:, 1].double() * R[:, 0, None, None]).sum(0).abs(), torch.ones(2, 2))
    for name in ("tensor", "md", "fa", "v1"):
        assert not out[name][:, 0].any()


def test_tensors_turn_to_the_world_and_back():
    affine = torch.eye(4)
    affine[:3, :3] = 2 * o3.rand_matrix()
    image = image_from(random_scheme(6, 1.0), affine)
    matrix = torch.randn(6, 6, 6, 3, 3)
    matrix = matrix + matrix.mT
    pred = MetaTensor(symmetric_components(matrix[None])[0], affine=affine)
    world = symmetric_matrix(TensorToWorldd("pred")({"image": image, "pred": pred})["pred"].as_tensor()[None])[0]
    R = affine[:3, :3] / 2
    torch.testing.assert_close(R.T @ world @ R, matrix)

import pytest
import torch
from e3nn import o3

from eqdmri_monai.losses import MaskedBCELoss, MaskedTensorLoss
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.tensors import fractional_anisotropy


def target_of(label, mask):
    return torch.cat([label, mask], dim=1)


def test_loss_is_the_weighted_mean_over_voxels_of_the_brain():
    logits, label = torch.randn(2, 1, 4, 4, 4), (torch.rand(2, 1, 4, 4, 4) > 0.7).double()
    mask = (torch.rand(2, 1, 4, 4, 4) > 0.5).double()
    p = torch.sigmoid(logits)
    each = -(3.0 * label * p.log() + (1 - label) * (1 - p).log())
    loss = MaskedBCELoss(3.0)(logits, target_of(label, mask))
    torch.testing.assert_close(loss.double(), (each * mask).sum() / mask.sum(), rtol=1e-5, atol=0)


def test_voxels_outside_the_brain_have_no_gradient():
    logits, mask = torch.randn(1, 1, 4, 4, 4, requires_grad=True), torch.zeros(1, 1, 4, 4, 4)
    mask[..., :2] = 1
    MaskedBCELoss()(logits, target_of(torch.ones_like(mask), mask)).backward()
    assert logits.grad[..., 2:].abs().max() == 0
    assert logits.grad[..., :2].abs().min() > 0


def test_an_empty_mask_gives_no_loss():
    zeros = torch.zeros(1, 1, 2, 2, 2)
    assert MaskedBCELoss()(zeros, target_of(zeros, zeros)) == 0


def test_a_target_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="need a target of 1 labels and a mask"):
        MaskedBCELoss()(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))


def test_the_tensor_loss_sees_no_frame_and_nothing_outside_the_mask():
    loss, R = MaskedTensorLoss(), o3.rand_matrix()
    tensor, truth, mask = torch.randn(2, 6, 3, 4, 5), torch.randn(2, 6, 3, 4, 5), torch.rand(2, 1, 3, 4, 5).round()
    value = loss(tensor, torch.cat([truth, mask], 1))
    other = torch.where(mask > 0, tensor, 0 * tensor).requires_grad_()
    torch.testing.assert_close(loss(other, torch.cat([truth, mask], 1)), value)
    loss(other, torch.cat([truth, mask], 1)).backward()
    assert other.grad.isfinite().all()
    a, b = (symmetric_components(R @ symmetric_matrix(x) @ R.T) for x in (tensor, truth))
    torch.testing.assert_close(loss(a, torch.cat([b, mask], 1)), value, rtol=0, atol=1e-6)
    assert loss(truth, torch.cat([truth, mask], 1)) < 1e-3


def test_the_tensor_loss_counts_size_shape_and_anisotropy_each_for_itself():
    isotropic = symmetric_components(torch.eye(3)[:, :, None, None, None].movedim((0, 1), (3, 4))[None])
    truth = isotropic + symmetric_components(torch.diag(torch.tensor([0.6, -0.3, -0.3])).expand(1, 1, 1, 1, 3, 3))
    other = isotropic + symmetric_components(torch.diag(torch.tensor([-0.3, 0.6, -0.3])).expand(1, 1, 1, 1, 3, 3))
    target = torch.cat([truth, torch.ones(1, 1, 1, 1, 1)], 1)
    shape = MaskedTensorLoss(0.0)
    assert float(shape(truth + 0.2 * isotropic, target)) == pytest.approx(3**0.5 * 0.2, abs=1e-3)
    assert float(shape(2 * truth - isotropic, target)) == pytest.approx(0, abs=1e-3)  # longer, but of the same shape
    length = 0.54**0.5
    assert float(shape(other, target)) == pytest.approx(length * 1.5, abs=1e-3)  # the cosine is -1/2
    anisotropies = [float(fractional_anisotropy(x)[0, 0, 0, 0]) for x in (truth, 2 * truth - isotropic)]
    difference = float(MaskedTensorLoss(2.0)(2 * truth - isotropic, target))
    assert difference == pytest.approx(2 * (anisotropies[1] - anisotropies[0]), abs=1e-3)

import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from rotation import scheme

from eqdmri_monai.inferers import QSlidingWindowInferer
from eqdmri_monai.networks import PQNet


class Echo(torch.nn.Module):
    """Answers with a number that depends on the q-vectors it was given."""

    def forward(self, image, q):
        return image[:, :1] * 0 + (q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1))[:, None, None, None, None]


def expected(q):
    return q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1)


@pytest.mark.parametrize("sw_batch_size", [1, 2, 3, 8])
def test_each_window_meets_the_q_vectors_of_its_own_scan(sw_batch_size):
    q = torch.stack([scheme(6, 1.0) for _ in range(3)])
    inferer = QSlidingWindowInferer(roi_size=(4, 4, 4), sw_batch_size=sw_batch_size)
    out = inferer(torch.randn(3, 7, 6, 6, 6), Echo(), q=q)
    for item, value in zip(out, expected(q.float()), strict=True):
        torch.testing.assert_close(item, torch.full((1, 6, 6, 6), float(value)), rtol=0, atol=1e-5)


def test_q_vectors_come_from_meta_and_the_current_affine():
    q, affine = scheme(6, 1.0), torch.eye(4)
    affine[:3, :3] = o3.rand_matrix()
    image = MetaTensor(torch.randn(1, 7, 5, 5, 5), affine=affine, meta={"q_world": q.numpy()})
    out = QSlidingWindowInferer(roi_size=(4, 4, 4))(image, Echo())
    value = expected((q @ affine[:3, :3])[None])
    torch.testing.assert_close(out.as_tensor()[0, 0, 0, 0, 0], value[0].to(out.dtype), rtol=0, atol=1e-5)


def test_one_window_is_the_network_itself():
    net, q = PQNet(("2x0e+1x1e",), ("2x0e",), kernel_size=3), scheme(6, 1.0).float()
    net.float()
    image = torch.randn(1, 7, 6, 7, 8, dtype=torch.float32)
    out = QSlidingWindowInferer(roi_size=(-1, -1, -1))(image, net, q=q)
    torch.testing.assert_close(out, net(image, q))


def test_missing_q_vectors_are_an_error():
    inferer = QSlidingWindowInferer(roi_size=(4, 4, 4))
    with pytest.raises(ValueError, match="the network needs q-vectors"):
        inferer(torch.randn(1, 7, 5, 5, 5), Echo())
    with pytest.raises(ValueError, match="q has 2 sets of q-vectors for a batch of 3"):
        inferer(torch.randn(3, 7, 5, 5, 5), Echo(), q=torch.zeros(2, 7, 3))

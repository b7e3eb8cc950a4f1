import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from scans import table_from

from eqdmri_monai.inferers import QSlidingWindowInferer, halo_of
from eqdmri_monai.networks import PlainCNN, PQNet
from eqdmri_monai.symmetry import random_scheme


class Echo(torch.nn.Module):
    """Answers with a number that depends on the q-vectors it was given."""

    def forward(self, image, q):
        return image[:, :1] * 0 + (q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1))[:, None, None, None, None]


class Counted(torch.nn.Module):
    """Counts the voxels that a network is called with."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []

    def forward(self, image, q):
        self.sizes += len(image) * [tuple(image.shape[2:])]
        return self.network(image, q)


def expected(q):
    return q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1)


def small_net():
    net = PQNet(("2x0e+1x1e",), ("2x0e+1x1e",), irreps_out="1x0e+1x1e", kernel_size=3)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):  # or zeros would give zeros
            torch.nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("sw_batch_size", [1, 2, 3, 8])
def test_each_window_meets_the_q_vectors_of_its_own_scan(sw_batch_size):
    q = torch.stack([random_scheme(6, 1.0) for _ in range(3)])
    inferer = QSlidingWindowInferer(roi_size=(4, 4, 4), sw_batch_size=sw_batch_size, halo=0)
    out = inferer(torch.randn(3, 7, 6, 6, 6), Echo(), q=q)
    for item, value in zip(out, expected(q.float()), strict=True):
        torch.testing.assert_close(item, torch.full((1, 6, 6, 6), float(value)), rtol=0, atol=1e-5)


def test_q_vectors_come_from_meta_and_the_current_affine():
    q, affine = random_scheme(6, 1.0), torch.eye(4)
    affine[:3, :3] = o3.rand_matrix()
    image = MetaTensor(torch.randn(1, 7, 5, 5, 5), affine=affine, meta={"gradients": table_from(q).rows.numpy()})
    out = QSlidingWindowInferer(roi_size=(4, 4, 4), halo=0)(image, Echo())
    value = expected((q @ affine[:3, :3])[None])
    torch.testing.assert_close(out.as_tensor()[0, 0, 0, 0, 0], value[0].to(out.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.affine, affine)


def test_one_window_is_the_network_itself():
    net, q = PQNet(("2x0e+1x1e",), ("2x0e",), kernel_size=3), random_scheme(6, 1.0).float()
    net.float()
    image = torch.randn(1, 7, 6, 7, 8, dtype=torch.float32)
    out = QSlidingWindowInferer(roi_size=(-1, -1, -1))(image, net, q=q)
    torch.testing.assert_close(out, net(image, q))


@pytest.mark.parametrize("roi_size", [(8, 8, 8), (9, -1, 7), (15, 9, 30), 10])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_windows_give_what_one_pass_gives_up_to_the_border(roi_size, sw_batch_size):
    net, q, image = small_net(), random_scheme(6, 1.0).float().double(), torch.randn(2, 7, 16, 10, 13)
    with torch.no_grad():
        out = QSlidingWindowInferer(roi_size, sw_batch_size)(image, net, q=q)
        torch.testing.assert_close(out, net(image, q), rtol=0, atol=1e-10)


def test_a_halo_that_is_too_small_is_seen():
    net, q, image = small_net(), random_scheme(6, 1.0).float().double(), torch.randn(1, 7, 12, 8, 8)
    with torch.no_grad():
        out = QSlidingWindowInferer((9, -1, -1), halo=halo_of(net) - 1)(image, net, q=q)
        assert (out - net(image, q)).abs().max() > 1e-4


def test_neighbours_share_two_halos_and_no_more():
    net, length, halo = Counted(small_net()), 16, 3
    with torch.no_grad():
        QSlidingWindowInferer((12, -1, -1))(torch.randn(1, 7, length, 6, 6), net, q=random_scheme(6, 1.0))
    assert net.sizes == 2 * [((length + 2 * halo) // 2, 6, 6)]  # smaller than 12, which would have met twice too often


def test_empty_windows_are_not_computed_and_get_the_answer_to_zeros():
    net, q, halo = Counted(small_net()), random_scheme(6, 1.0).float().double(), 3
    image = torch.zeros(2, 7, 30, 8, 8)
    image[0, :, :6], image[1, :, 20:] = torch.randn(7, 6, 8, 8), torch.randn(7, 10, 8, 8)
    with torch.no_grad():
        out = QSlidingWindowInferer((12, -1, -1), sw_batch_size=2)(image, net, q=q)
        whole = net.network(image, q)
    computed = [size for size in net.sizes if size != 3 * (2 * halo + 1,)]
    assert len(computed) == 1 + 2  # of four windows in each scan
    assert len(net.sizes) == len(computed) + 2  # and zeros once for each scan
    far = (..., *3 * (slice(halo, -halo),))
    torch.testing.assert_close(out[far], whole[far], rtol=0, atol=1e-10)
    torch.testing.assert_close(out[0, :, :9], whole[0, :, :9], rtol=0, atol=1e-10)  # what sees the brain, to the border
    assert out[0, 0, 20, 4, 4].abs() > 1e-3  # the answer to zeros is not 0


def test_the_halo_is_the_sum_of_the_reaches():
    assert halo_of(PQNet()) == 5 * 2
    assert halo_of(small_net()) == 3
    assert halo_of(PlainCNN((7, 4, 1), kernel_size=5)) == 4
    assert halo_of(torch.nn.Conv3d(1, 1, 3, dilation=2)) == 2


def test_windows_that_cannot_be_right_are_refused():
    image, q = torch.randn(1, 7, 10, 10, 10), random_scheme(6, 1.0)
    with pytest.raises(ValueError, match="windows of 6 voxels are no larger than two halos of 3"):
        QSlidingWindowInferer((6, -1, -1))(image, small_net(), q=q)
    for unknown in (Echo(), lambda image, q: image):
        with pytest.raises(ValueError, match="how far this network sees is not known; give halo"):
            QSlidingWindowInferer((6, -1, -1))(image, unknown, q=q)


def test_missing_q_vectors_are_an_error():
    inferer = QSlidingWindowInferer(roi_size=(4, 4, 4))
    with pytest.raises(ValueError, match="the network needs q-vectors"):
        inferer(torch.randn(1, 7, 5, 5, 5), Echo())
    with pytest.raises(ValueError, match="q has 2 sets of q-vectors for a batch of 3"):
        inferer(torch.randn(3, 7, 5, 5, 5), Echo(), q=torch.zeros(2, 7, 3))

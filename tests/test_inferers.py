import functools
import warnings

import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import SegResNet, UNet
from scans import table_from

from eqdmri_monai.inferers import PrecisionInferer, QSlidingWindowInferer
from eqdmri_monai.networks import PQNet, PQUNet, SteerableCNN3d
from eqdmri_monai.nn.receptive_field import measured_halo
from eqdmri_monai.symmetry import random_scheme


class Echo(torch.nn.Module):
    """Answers with a number that depends on the q-vectors it was given."""

    def forward(self, image, q):
        return image[:, :1] * 0 + (q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1))[:, None, None, None, None]


class Counted(torch.nn.Module):
    """Counts the windows that a network is called with."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []
        self.receptive_field = network.receptive_field

    def forward(self, image, q):
        self.sizes += len(image) * [tuple(image.shape[2:])]
        return self.network(image, q)


ImageInferer = functools.partial(QSlidingWindowInferer, with_q=False)


def expected(q):
    return q[:, 1:, 0].sum(1) + 10 * q[:, 1:, 1].sum(1)


def randomized(network):
    """Return it in evaluation mode, with random biases and statistics: or zeros would give zeros."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def small_net():
    return randomized(PQNet(("2x0e+1x1e",), ("2x0e+1x1e",), irreps_out="1x0e+1x1e", kernel_size=3))


def u_shape(grids):
    """Return a U-shape of layers of ours."""
    return randomized(PQUNet(("1x0e",), grids * ("2x0e+1x1e",), kernel_size=3))


def u_net(strides=(2, 2), **options):
    """Return MONAI's UNet, for two volumes."""
    return UNet(3, 2, 1, (3, 4, 4, 4)[: len(strides) + 1], strides, **{"norm": "BATCH"} | options)


# --- whose q


@pytest.mark.parametrize("sw_batch_size", [1, 2, 3, 8])
def test_each_window_meets_the_q_vectors_of_its_own_scan(sw_batch_size):
    q = torch.stack([random_scheme(6, 1.0) for _ in range(3)])
    inferer = QSlidingWindowInferer((4, 4, 4), sw_batch_size, halo=0, stride=1)
    out = inferer(torch.randn(3, 7, 6, 6, 6), Echo(), q=q)
    for item, value in zip(out, expected(q.float()), strict=True):
        torch.testing.assert_close(item, torch.full((1, 6, 6, 6), float(value)), rtol=0, atol=1e-5)


def test_q_vectors_come_from_meta_and_the_current_affine():
    q, affine = random_scheme(6, 1.0), torch.eye(4)
    affine[:3, :3] = o3.rand_matrix()
    image = MetaTensor(torch.randn(1, 7, 5, 5, 5), affine=affine, meta={"gradients": table_from(q).rows.numpy()})
    out = QSlidingWindowInferer((4, 4, 4), halo=0, stride=4)(image, Echo())
    value = expected((q @ affine[:3, :3])[None])
    torch.testing.assert_close(out.as_tensor()[0, 0, 0, 0, 0], value[0].to(out.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.affine, affine)
    assert out.shape == (1, 1, 5, 5, 5)


# --- windows give what one pass gives, up to the border


def test_one_window_is_the_network_itself():
    net, q = PQNet(("2x0e+1x1e",), ("2x0e",), kernel_size=3), random_scheme(6, 1.0).float()
    net.float()
    image = torch.randn(1, 7, 6, 7, 8, dtype=torch.float32)
    out = QSlidingWindowInferer(roi_size=(-1, -1, -1))(image, net, q=q)
    torch.testing.assert_close(out, net(image, q))


@pytest.mark.parametrize(("roi_size", "sw_batch_size"), [((9, 8, 11), 1), ((9, -1, 7), 3), ((11, 9, 30), 2), (10, 3)])
def test_two_scans_with_a_table_each(roi_size, sw_batch_size):
    net, image = small_net(), torch.randn(2, 4, 12, 9, 11)
    q = torch.stack([random_scheme(3, length).float().double() for length in (1.0, 1.4)])
    with torch.no_grad():
        out = QSlidingWindowInferer(roi_size, sw_batch_size)(image, net, q=q)
        whole = torch.cat([net(image[k : k + 1], q[k]) for k in range(2)])
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-10)


# Sizes that are and are not multiples of the stride; windows likewise.
SIZES = [(40, 44, 36), (41, 43, 38), (37, 45, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("roi_size", [(28, -1, -1), (31, 30, 29)])
def test_windows_over_monais_u_net(size, roi_size):
    net, image = randomized(u_net()), torch.randn(1, 2, *size)
    pad = [(0, -n % 4) for n in size]
    padded = torch.nn.functional.pad(image, [side for a, b in reversed(pad) for side in ((a + b) // 2, b - b // 2)])
    inferer = ImageInferer(roi_size, halo=10, stride=4)
    with torch.no_grad():
        out, one_pass = (i(image, net) for i in (inferer, ImageInferer(-1, stride=4)))
        whole = net(padded)
    start = [(-n % 4) // 2 for n in size]
    whole = whole[(..., *(slice(s, s + n) for s, n in zip(start, size, strict=True)))]
    assert out.shape == (1, 1, *size)
    torch.testing.assert_close(one_pass, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(46, 7, 8), (47, 8, 6), (48, 7, 7), (49, 5, 6)])
def test_windows_over_a_u_shape_of_our_layers(size):
    """Odd and even axes, whose coarse grids lie differently."""
    net, image, q = u_shape(2), torch.randn(1, 3, *size), random_scheme(2, 1.0).float().double()
    with torch.no_grad():
        out, whole = QSlidingWindowInferer((44, -1, -1), halo=20)(image, net, q=q), net(image, q)
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("length", [115, 116, 117, 118])
def test_windows_over_three_grids(length):
    net, image, q = u_shape(3), torch.randn(1, 3, length, 5, 6), random_scheme(2, 1.0).float().double()
    with torch.no_grad():
        out, whole = QSlidingWindowInferer((112, -1, -1))(image, net, q=q), net(image, q)
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-6 * whole.abs().max().item())


def test_a_halo_that_is_too_small_is_seen():
    net, q, image = small_net(), random_scheme(6, 1.0).float().double(), torch.randn(1, 7, 12, 8, 8)
    with torch.no_grad():
        out = QSlidingWindowInferer((9, -1, -1), halo=net.receptive_field.halo[0] - 1)(image, net, q=q)
        assert (out - net(image, q)).abs().max() > 1e-4


def test_a_stride_that_is_too_small_is_seen():
    net, image = randomized(u_net()), torch.randn(1, 2, 44, 12, 12)
    with torch.no_grad():
        right, wrong = (ImageInferer((28, -1, -1), halo=11, stride=s)(image, net) for s in (4, 1))
        torch.testing.assert_close(right, net(image), rtol=0, atol=1e-12)
        assert (wrong - net(image)).abs().max() > 1e-3  # windows that begin at 6 and 12


MONAI = {
    "UNet": (u_net, 4, 10),
    "UNet with residual units": (lambda: u_net(num_res_units=2), 4, 23),
    "SegResNet": (lambda: SegResNet(3, 8, 2, 1, blocks_down=(1, 1), blocks_up=(1,), norm="BATCH"), 2, 12),
}


@pytest.mark.parametrize("name", MONAI)
def test_the_halo_of_monais_networks_is_measured_and_serves(name):
    network, stride, halo = MONAI[name]
    network, size = randomized(network()), (-(-2 * halo // stride) + 3) * stride
    assert measured_halo(network, torch.randn(1, 2, size, size, size), stride=stride, tolerance=0) == halo
    image = torch.randn(1, 2, size + 7, 9, 10)
    with torch.no_grad():
        out = ImageInferer((size, -1, -1), halo=halo, stride=stride)(image, network)
        whole = ImageInferer(-1, stride=stride)(image, network)
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-12)


# --- how many windows


def test_neighbours_share_two_halos_and_no_more():
    net, length, halo = Counted(small_net()), 16, 3
    with torch.no_grad():
        QSlidingWindowInferer((12, -1, -1))(torch.randn(1, 4, length, 6, 6), net, q=random_scheme(3, 1.0))
    assert net.sizes == 2 * [((length + 2 * halo) // 2, 6, 6)]  # smaller than 12, which would have met twice too often


@pytest.mark.parametrize("length", [57, 58, 59])
def test_windows_over_a_strided_network_are_as_few(length):
    net = Counted(u_shape(2))  # stride 2
    halo = net.receptive_field.halo[0]
    with torch.no_grad():
        QSlidingWindowInferer((2 * halo + 11, -1, -1))(torch.randn(1, 2, length, 3, 3), net, q=random_scheme(1, 1.0))
    step = (length - 2 * halo) // 4 * 2  # at most half of what is inside, and a multiple of the stride
    assert net.sizes == 2 * [(length - step, 3, 3)]


def test_empty_windows_are_computed_once_for_each_scan():
    net, q = Counted(small_net()), random_scheme(3, 1.0).float().double()
    image = torch.zeros(2, 4, 30, 8, 8)
    image[0, :, :6], image[1, :, 20:] = torch.randn(4, 6, 8, 8), torch.randn(4, 10, 8, 8)
    with torch.no_grad():
        out = QSlidingWindowInferer((12, -1, -1), sw_batch_size=2)(image, net, q=q)
        torch.testing.assert_close(out, net.network(image, q), rtol=0, atol=1e-10)
    assert len(net.sizes) == (1 + 1) + (2 + 1)  # of four windows in each scan
    assert out[0, 0, 20, 4, 4].abs() > 1e-3  # the answer to zeros is not 0


def test_a_scan_of_zeros_has_the_answer_of_one_pass_over_a_strided_network():
    """It has a pattern of the stride."""
    net, image = randomized(u_net()), torch.zeros(1, 2, 64, 12, 12)
    with torch.no_grad():
        out = ImageInferer((32, -1, -1), halo=10, stride=4)(image, net)
        torch.testing.assert_close(out, net(image), rtol=0, atol=1e-12)
    assert out[0, 0, 30:34, 5, 5].std() > 1e-4


# --- windows of networks of which nothing is known


def test_windows_that_cannot_be_right_are_blended_as_monai_does_and_say_so():
    net, image = u_net(norm="INSTANCE"), torch.randn(1, 2, 24, 16, 18)
    ours = ImageInferer((16, 16, 20), overlap=0.25)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="windows are blended.*its InstanceNorm3d sees the whole array"),
    ):
        out = ours(image, net)
    with torch.no_grad():
        monai = SlidingWindowInferer((16, 16, 20), 1, 0.25, mode="gaussian")(image, net)
    torch.testing.assert_close(out, monai, rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match="how far the network sees is not known"):
        QSlidingWindowInferer(4)(torch.randn(1, 7, 6, 6, 6), Echo(), q=random_scheme(6, 1.0))
    net = PQNet(("2x0e",), ("2x0e",), kernel_size=3, normalization="instance").eval()
    with pytest.warns(UserWarning, match="its instance normalisation sees the whole array"):
        QSlidingWindowInferer((6, -1, -1))(torch.randn(1, 4, 8, 5, 5), net, q=random_scheme(3, 1.0))


def test_one_pass_over_them_needs_no_warning():
    net, image = u_net(norm="INSTANCE"), torch.randn(1, 2, 19, 16, 18)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        out = ImageInferer(-1, stride=4)(image, net)
    assert out.shape == (1, 1, 19, 16, 18)


def test_windows_are_rounded_to_the_stride_where_they_are_blended():
    net, image = u_net(norm="INSTANCE"), MetaTensor(torch.randn(2, 2, 23, 16, 18), meta={"warnings": ["dim", ""]})
    with torch.no_grad(), pytest.warns(UserWarning, match="windows are blended"):
        out = ImageInferer((18, -1, 100), stride=4)(image, net)
    assert out.shape == (2, 1, 23, 16, 18)
    first, second = image.meta["warnings"]  # one text for each scan, for its record
    assert first == f"dim\n{second}"
    assert second.startswith("windows are blended")


# --- what is refused


def test_windows_that_cannot_be_right_are_refused():
    image, q, net = torch.randn(1, 7, 10, 10, 10), random_scheme(6, 1.0), u_net(norm="INSTANCE")
    with pytest.raises(ValueError, match=r"windows of 6 voxels are too small: the network sees 3 .* larger than 6"):
        QSlidingWindowInferer((6, -1, -1))(image, small_net(), q=q)
    with pytest.raises(ValueError, match="halo is given but stride is not"):
        QSlidingWindowInferer((6, -1, -1), halo=1)(image, Echo(), q=q)
    with pytest.raises(ValueError, match="no halo is enough for this network, whose InstanceNorm3d sees the whole"):
        ImageInferer((8, -1, -1), halo=2, stride=4)(image[:, :2], net)


def test_sizes_that_a_network_cannot_take_name_the_stride():
    two, three = u_net(), u_net((2, 2, 2))
    with pytest.raises(ValueError, match=r"answers \(19, 16, 16\) voxels with \(20, 16, 16\); give the inferer its"):
        ImageInferer(-1)(torch.randn(1, 2, 19, 16, 16), two)
    with pytest.raises(ValueError, match=r"cannot take \(18, 16, 16\) voxels .*; give the inferer its stride"):
        ImageInferer(-1)(torch.randn(1, 2, 18, 16, 16), three)
    coarser = SteerableCNN3d(2, ((2,), (2,)), strides=(2, 1), kernel_size=3)
    with pytest.raises(ValueError, match=r"answers \(12, 12, 12\) voxels with \(6, 6, 6\)$"):
        ImageInferer(-1)(torch.randn(1, 2, 12, 12, 12), coarser)


def test_missing_q_vectors_are_an_error():
    inferer = QSlidingWindowInferer(roi_size=(4, 4, 4))
    with pytest.raises(ValueError, match="the network needs q-vectors"):
        inferer(torch.randn(1, 7, 5, 5, 5), Echo())
    with pytest.raises(ValueError, match="q has 2 sets of q-vectors for a batch of 3"):
        inferer(torch.randn(3, 7, 5, 5, 5), Echo(), q=torch.zeros(2, 7, 3))


@pytest.mark.parametrize("inferer", [SimpleInferer(), QSlidingWindowInferer(-1), QSlidingWindowInferer([14, -1, -1])])
def test_the_network_alone_is_in_bfloat16_and_only_where_that_is_asked_for(inferer):
    torch.set_default_dtype(torch.float32)
    net, q = PQNet(("2x0e+1x1e",), ("3x0e+1x1e",), kernel_size=3), random_scheme(6, 1.0).float()
    image = MetaTensor(torch.randn(1, len(q), 18, 6, 6))
    exact = inferer(image, net, q=q)
    torch.testing.assert_close(PrecisionInferer(inferer, bfloat16=False)(image, net, q=q), exact, rtol=0, atol=0)
    y = PrecisionInferer(inferer, bfloat16=True)(image, net, q=q)
    assert y.dtype == torch.float32
    assert 1e-4 < (y - exact).abs().max() / exact.abs().max() < 0.05
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)

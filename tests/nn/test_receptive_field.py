import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from eqdmri_monai.networks import GradualPQNet, PlainCNN, PQNet, SphereNet, SteerableCNN3d, TensorNet, fold
from eqdmri_monai.nn import Downsample, PConv, Upsample
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain, measured_halo, whole_array_layer
from eqdmri_monai.symmetry import random_scheme

Q = 8  # volumes


def pq_net(**options):
    return PQNet(("1x0e+1x1e",), ("2x0e",), kernel_size=3, **options)


NETWORKS = {
    "PQNet": lambda q: pq_net(),
    "PQNet, two pq layers": lambda q: PQNet(("1x0e+1x1e", "1x0e"), (), kernel_size=3),
    "PQNet, wide kernel": lambda q: PQNet(("1x0e",), (), kernel_size=5),
    "PQNet, batch normalisation": lambda q: pq_net(normalization="batch").eval(),
    "GradualPQNet": lambda q: GradualPQNet(("1x0e",), (3,), "2x0e", ("1x0e",), num_q=(2, 2), kernel_size=3),
    "TensorNet": lambda q: TensorNet(("1x0e+1x2e",), "1x0e", ("1x0e",)),
    "TensorNet, fit alone": lambda q: TensorNet((), irreps_p=("1x0e",)),
    "SphereNet": lambda q: SphereNet((1,), ("1x0e",), lmax=2, kernel_size=3),
    "SteerableCNN3d": lambda q: SteerableCNN3d(Q, ((2, 1), (2, 1)), residual=True, kernel_size=3),
    "PlainCNN": lambda q: PlainCNN((Q, 3, 1), kernel_size=5),
    "folded": lambda q: fold(pq_net(), q),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_see_as_far_as_they_say(name):
    q = random_scheme(Q - 1, 1.0)
    network = NETWORKS[name](q)
    measured = measured_halo(network, torch.randn(1, Q, 12, 11, 12), q, tolerance=1e-10)
    assert network.receptive_field == ReceptiveField(3 * (float(measured),))


@pytest.mark.parametrize("options", [{"kernel_size": 3, "dilation": 2}, {"kernel_size": 5}])
def test_torchs_convolutions_are_known(options):
    network = nn.Conv3d(Q, 1, padding="same", **options)
    measured = measured_halo(network, torch.randn(1, Q, 9, 9, 9))
    assert chain([nn.Sequential(network)]).halo == 3 * (measured,)


def test_layers_add_up_in_voxels_of_the_input():
    conv, down, up = PConv("1x0e", "1x0e", kernel_size=3), Downsample((2, 2, 1)), Upsample((2, 2, 1))
    field = chain([conv, down, conv, down, conv, up, up, conv])
    assert field.reach == (1 + 2 + 4 + 1, 1 + 2 + 4 + 1, 4)
    assert field.stride == (4, 4, 1)
    assert field.factor == (1, 1, 1)
    assert field.tail == pytest.approx(2 * (((5**2 + 10**2) + (8 * 4) ** 2 + (8 * 2) ** 2) ** 0.5,) + (0,))
    assert chain([Downsample(2), Upsample(2), Downsample(3), Upsample(3)]).stride == (6, 6, 6)
    strided = chain(SteerableCNN3d(1, ((2,), (2,), (2,)), strides=(2, 1, 3), kernel_size=3))
    assert (strided.halo, strided.stride, strided.factor) == (3 * (1 + 2 + 2 + 6,), (6, 6, 6), (6, 6, 6))


@pytest.mark.parametrize("steps", [1, 2])
def test_what_lies_beyond_the_halo_of_another_grid_changes_nothing(steps):
    layers = [*steps * [Downsample()], *steps * [Upsample()]]
    halo, size = chain(layers).halo[0], 200
    x = torch.randn(1, 1, size, 5, 5)
    other = x.clone()
    middle = size // 2
    other[:, :, : middle - halo] = torch.randn(middle - halo, 5, 5)

    def network(x):
        sizes = []
        for layer in layers[:steps]:
            sizes.append(x.shape[-3:])
            x = layer(x)
        for layer, size in zip(layers[steps:], reversed(sizes), strict=True):
            x = layer(x, size)
        return x

    y, z = network(x), network(other)
    assert (y - z)[:, :, middle:].abs().max() < 1e-5 * y.abs().max()
    assert (y - z)[:, :, middle - halo // 2 :].abs().max() > 1e-5 * y.abs().max()


def test_what_reads_the_whole_array_is_known():
    assert pq_net(normalization="instance").receptive_field is None
    assert SteerableCNN3d(1, ((2,),), "2x0e", whole=True).receptive_field is None
    assert whole_array_layer(pq_net(normalization="instance")) == "instance normalisation"
    assert whole_array_layer(UNet(3, 1, 1, (2, 2), (2,))) == "InstanceNorm3d"
    assert whole_array_layer(UNet(3, 1, 1, (2, 2), (2,), norm="BATCH")) is None
    assert whole_array_layer(nn.BatchNorm3d(1, track_running_stats=False)) == "BatchNorm3d"
    assert whole_array_layer(nn.InstanceNorm3d(1, track_running_stats=True)) is None
    assert whole_array_layer(lambda image, q: image) is None
    with pytest.raises(ValueError, match="the network sees all of 12 voxels"):
        measured_halo(lambda image: image - image.mean(), torch.randn(1, 1, 12, 12, 12))

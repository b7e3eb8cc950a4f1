"""A trained network as plain convolutions, for one gradient table.

`FoldedNet` and what it is made of use torch alone: exported by `torch.export`, it runs where e3nn is not installed.
"""

import copy

import torch
from e3nn.nn import Dropout
from torch import Tensor, nn

from eqdmri_monai.gradients import QSampling, spread_subset
from eqdmri_monai.networks.gradual_pq_net import GradualPQNet
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.networks.steerable_cnn import ResidualBlock, SteerableCNN3d
from eqdmri_monai.nn import ChannelsFirst, Gate, PConv, PQConv, PStack
from eqdmri_monai.nn.receptive_field import ReceptiveField, chain
from eqdmri_monai.nn.steerable_conv import SteerableConv3d

MIB = 2**20
CHUNK = 256 * MIB  # most numbers in the weight of one convolution over q


class PlainGate(nn.Module):
    """`Gate` without e3nn.

    Parameters
    ----------
    num_scalars : int
    blocks : sequence of (int, int)
        Number of gates and components that each multiplies.
    silu_scale, sigmoid_scale : float
    """

    def __init__(self, num_scalars: int, blocks: list[tuple[int, int]], *, silu_scale: float, sigmoid_scale: float):
        super().__init__()
        self.num_scalars, self.num_gates = num_scalars, sum(mul for mul, _ in blocks)
        repeats = torch.tensor([dim for mul, dim in blocks for _ in range(mul)], dtype=torch.int64)
        self.register_buffer("index", torch.arange(self.num_gates).repeat_interleave(repeats))
        self.silu_scale, self.sigmoid_scale = silu_scale, sigmoid_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated (B, irreps_out.dim, ...) of (B, irreps_in.dim, ...)."""
        scalars = self.silu_scale * nn.functional.silu(x[:, : self.num_scalars])
        if not self.num_gates:
            return scalars
        gates = x[:, self.num_scalars : self.num_scalars + self.num_gates]
        gates = (self.sigmoid_scale * torch.sigmoid(gates))[:, self.index]
        return torch.cat([scalars, gates * x[:, self.num_scalars + self.num_gates :]], dim=1)


class PlainPQLayer(nn.Module):
    """Plain convolutions from all volumes to a few volumes each, and a gate.

    Parameters
    ----------
    convs : sequence of nn.Conv3d
        Channels in (i, r), channels out (q, o).
    counts : sequence of int
        Number of q_out of each.
    gate : PlainGate
    coefficients : Tensor, shape (dim_out or 1, Q_out)
        Of a sum over q_out; None to keep all maps.
    """

    def __init__(self, convs: list[nn.Conv3d], counts: list[int], gate: PlainGate, coefficients: Tensor | None):
        super().__init__()
        self.convs, self.counts, self.gate = nn.ModuleList(convs), counts, gate
        self.register_buffer("coefficients", coefficients)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain(self.convs[:1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim_out · Q_out, X, Y, Z), or the sum over q_out (B, dim_out, X, Y, Z)."""
        maps = (
            self.gate(conv(x).unflatten(1, (count, -1)).transpose(1, 2))
            for conv, count in zip(self.convs, self.counts, strict=True)
        )
        if self.coefficients is None:
            return torch.cat(list(maps), dim=2).flatten(1, 2)
        parts = self.coefficients.split(self.counts, dim=1)
        return sum((c[None, :, :, None, None, None] * y).sum(2) for c, y in zip(parts, maps, strict=True))


class FoldedNet(nn.Module):
    """Plain convolutions and gates, for the volumes of one gradient table; made by `fold`.

    Parameters
    ----------
    layers : sequence of Module
    q : Tensor, shape (Q, 3)
        The q-vectors of these volumes, in the voxel frame.
    """

    def __init__(self, layers: list[nn.Module], q: Tensor):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.register_buffer("q", q)

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain(self.layers)

    def forward(self, image: Tensor, q: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            (B, irreps_in.dim, Q, X, Y, Z) where the values are no scalars.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Compared with the q-vectors that the network was folded for.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)

        Raises
        ------
        ValueError
            When q is another gradient table.
        """
        if q is not None and (q.shape[-2:] != self.q.shape or (q - self.q).abs().max() > 1e-4):
            raise ValueError("this network was folded for another gradient table; fold it again, for this scan's")
        return self.layers(image.flatten(1, 2) if image.ndim == 6 else image)


@torch.no_grad()
def fold(network: PQNet | GradualPQNet, q: Tensor) -> FoldedNet:
    """Write a network, for one gradient table, as plain convolutions.

    Parameters
    ----------
    network : PQNet or GradualPQNet
        With gates and without normalisation.
    q : Tensor, shape (Q, 3)
        In the voxel frame.

    Returns
    -------
    FoldedNet
        In evaluation mode; equal to the network but for rounding. Its weights grow with Q².

    Raises
    ------
    ValueError
        When a layer of the network has no plain form.

    Source
    ------
    Müller et al., B.4 and eq. 53; Weiler et al. 2018, 3.5.2.
    """
    layers, q_in = [], QSampling.of(q.to(network.pq_convs[0].lattice)).q
    for i, (conv, gate) in enumerate(zip(network.pq_convs, network.pq_nonlinearities, strict=True)):
        last = i == len(network.pq_convs) - 1
        if isinstance(network, GradualPQNet):
            q_out = torch.zeros_like(q[:1]) if last else q_in[spread_subset(q_in, network.q_counts[i])]
            coefficients = conv.lattice.new_ones(1, 1)
        else:
            q_out, coefficients = None, network.pool.coefficients(QSampling.of(q_in))
        weight = conv.grid_kernel(q_in, q_out, closed=conv.antipodal and i > 0)
        if last:
            signs = len(weight) // coefficients.shape[1]
            coefficients = torch.cat(signs * [coefficients / signs], dim=1)
        layers.append(_pq_layer(conv, gate, weight, coefficients if last else None))
        q_in = q_in if q_out is None else q_out
    return FoldedNet([*layers, *plain_p_layers(network.p_layers)], q.clone()).eval()


@torch.no_grad()
def fold_steerable(network: SteerableCNN3d) -> nn.Sequential:
    """Convert a trained 3D Steerable CNN to an ordinary CNN.

    Parameters
    ----------
    network : SteerableCNN3d

    Returns
    -------
    nn.Sequential
        Convolutions, gates and linear maps of torch alone, in evaluation mode.

    Source
    ------
    Weiler et al. 2018, 3.5.2.
    """
    return nn.Sequential(*map(_plain, network)).eval()


class PlainResidual(nn.Module):
    """`ResidualBlock` without e3nn: plain layers, and a 1 × 1 × 1 convolution beside them.

    Parameters
    ----------
    branch, shortcut, gate : Module
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Conv3d, gate: nn.Module):
        super().__init__()
        self.branch, self.shortcut, self.gate = branch, shortcut, gate

    @property
    def receptive_field(self) -> ReceptiveField:
        """Return how far it sees."""
        return chain(self.branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', X', Y', Z') of (B, C, X, Y, Z)."""
        return self.gate(0.5**0.5 * (self.branch(x) + self.shortcut(x)))


def _plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, SteerableConv3d):
        return _conv3d(layer.grid_kernel(), layer.scalar_bias(), stride=layer.stride)
    if isinstance(layer, ResidualBlock):
        matrix = layer.shortcut.matrix()
        shortcut = _conv3d(matrix[:, :, None, None, None], torch.zeros(len(matrix)).to(matrix), stride=layer.stride)
        return PlainResidual(nn.Sequential(*map(_plain, layer.branch)), shortcut, plain_gate(layer.gate))
    return plain_gate(layer) if isinstance(layer, Gate) else copy.deepcopy(layer)


def _pq_layer(conv: PQConv, gate: nn.Module, weight: Tensor, coefficients: Tensor | None) -> PlainPQLayer:
    count = max(1, CHUNK // weight[0].numel())
    parts = weight.split(count)
    convs = [
        _conv3d(part.flatten(0, 1).transpose(1, 2).flatten(1, 2), conv.scalar_bias().repeat(len(part)))
        for part in parts
    ]
    return PlainPQLayer(convs, [len(part) for part in parts], plain_gate(gate), coefficients)


def plain_p_layers(net: PStack) -> list[nn.Module]:
    layers = []
    for layer in net:
        if isinstance(layer, PConv):
            layers.append(_conv3d(layer.grid_kernel(), layer.scalar_bias()))
        elif not (isinstance(layer, ChannelsFirst) and isinstance(layer.module, Dropout)):
            layers.append(plain_gate(layer))
    return layers


def _conv3d(weight: Tensor, bias: Tensor, *, stride: int = 1) -> nn.Conv3d:
    size = weight.shape[-1]
    conv = nn.Conv3d(weight.shape[1], weight.shape[0], size, stride=stride, padding=size // 2)
    conv.weight, conv.bias = (nn.Parameter(x.contiguous(), requires_grad=False) for x in (weight, bias))
    return conv


def plain_gate(gate: nn.Module) -> PlainGate:
    if not isinstance(gate, Gate):
        raise ValueError(f"a {type(gate).__name__} cannot be folded; use a network with gates and no normalisation")
    return PlainGate(gate.num_scalars, gate.blocks, silu_scale=gate.silu.cst, sigmoid_scale=gate.sigmoid.cst)

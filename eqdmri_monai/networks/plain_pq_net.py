"""A trained `PQNet` in torch operations alone, for any gradient table: the form that is exported.

Image and q-vectors are its inputs, so that one file serves all scans; it needs neither e3nn nor this package at run
time. Shells are found by comparing b-values pairwise, which is what `gradients.shells` does wherever shells are apart;
where they are not, and where items of a batch differ in q, the answer is not a number rather than a wrong one.
"""

import copy

import torch
from torch import Tensor, nn

from eqdmri_monai.bases.angular import ZERO_OFFSET, harmonics
from eqdmri_monai.gradients import B0_THRESHOLD, B_UNIT, SHELL_WIDTH
from eqdmri_monai.networks.folded import PlainGate, plain_gate, plain_p_layers
from eqdmri_monai.networks.pq_net import PQNet
from eqdmri_monai.nn import PQConv, QLengthPool
from eqdmri_monai.nn.filters import Filters
from eqdmri_monai.nn.q_plan import REFERENCE_DIRECTIONS


class PlainPQNet(nn.Module):
    """What `plain_form` makes of a `PQNet`; scriptable and exportable, with all sizes dynamic.

    With G the kernel between radial functions a of |q_out| and b of |q_in|, and harmonic m, the map at ±q_out is E ± O,
    E the convolution of all even degrees and O that of all odd ones::

        h[q_out, a b m] = Σ_q_in w R_a(|q_out|) R_b(|q_in|) ½ (Y_m(q_out - q_in) + Y_m(q_out + q_in)) x[q_in]

    Parameters
    ----------
    network : PQNet
        See `plain_form`.
    """

    def __init__(self, network: PQNet):
        super().__init__()
        conv: PQConv = network.pq_convs[0]
        pool: QLengthPool = network.pool
        self.lmax = conv.lmax_q
        self.b_unit, self.b0_threshold, self.zero = B_UNIT, B0_THRESHOLD, ZERO_OFFSET
        self.shell_width, self.shell_share = SHELL_WIDTH
        self.gain = REFERENCE_DIRECTIONS**0.5
        kernel = sum(_kernel_by_radial(filters, conv.lattice) for filters in conv.filters)  # [a, b, o, m, n]
        kernel = kernel.permute(2, 0, 1, 3, 4).unflatten(-1, 3 * (conv.kernel_size,))
        degree = torch.tensor([l for l in range(self.lmax + 1) for _ in range(2 * l + 1)])
        even, odd = (degree % 2 == 0).nonzero().flatten(), (degree % 2 == 1).nonzero().flatten()
        self.register_buffer("even_kernel", kernel[:, :, :, even].flatten(1, 3).contiguous())
        self.register_buffer("odd_kernel", kernel[:, :, :, odd].flatten(1, 3).contiguous())
        self.register_buffer("even", even)
        self.register_buffer("odd", odd)
        self.register_buffer("polynomials", _polynomials(self.lmax).to(kernel))
        self.register_buffer("bias", conv.scalar_bias().clone())
        self.register_buffer("self_connection", conv.self_matrix()[:, 0].clone())
        self.register_buffer("pool_weight", pool.weight.repeat_interleave(pool.repeats, dim=1).clone())
        filters: Filters = conv.filters[0]
        for name, radial in (("out", filters.radial_q_out), ("in", filters.radial_q_in), ("pool", pool.radial)):
            self.register_buffer(f"centers_{name}", radial.centers.detach().clone())
            self.register_buffer(f"width_{name}", radial.width.detach().clone())
        self.gate: PlainGate = plain_gate(network.pq_nonlinearities[0])
        self.p_layers = nn.Sequential(*plain_p_layers(network.p_layers))
        self.receptive_field = network.receptive_field

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
        q : Tensor, shape (B, Q, 3)
            Along the voxel axes, the same for all items.

        Returns
        -------
        Tensor, shape (B, irreps_out.dim, X, Y, Z)
            Logits; not a number where the table is none that it can answer for.
        """
        length = q[0].square().sum(1).sqrt()
        b = self.b_unit * length.square()
        weighted = b > self.b0_threshold
        lesser = torch.minimum(b[:, None], b[None])
        close = (b[:, None] - b[None]).abs() <= (self.shell_share * lesser).clamp(min=self.shell_width)
        close = (close & (weighted[:, None] == weighted[None])).to(length.dtype)
        clear = ((close @ close > 0.5) == (close > 0.5)).all() & (q == q[:1]).all()
        count, on = close.sum(1), weighted.to(length.dtype)
        mean = on * (close @ length) / count
        vector = q[0] * (mean / length.clamp(min=1e-12))[:, None]
        share = torch.where(weighted, 1.0 / ((on / count).sum().clamp(min=1.0) * count), 1.0 / count)
        weight = torch.where(weighted, self.gain * share, share)

        sh = 0.5 * (self.harmonics(vector[:, None] - vector[None]) + self.harmonics(vector[:, None] + vector[None]))
        r_out = torch.exp(-0.5 * ((mean[:, None] - self.centers_out) / self.width_out).square())
        r_in = torch.exp(-0.5 * ((mean[:, None] - self.centers_in) / self.width_in).square())
        by_length = r_out[:, :, None, None, None] * (weight[:, None] * r_in).T[None, None, :, None]
        mix = by_length * sh.transpose(1, 2)[:, None, None]  # [q, a, b, m, r]

        even = self.mixed(image, mix[:, :, :, self.even], self.even_kernel, self.bias)
        even = even + self.self_connection[:, None, None, None] * image[:, :, None]
        if self.lmax > 0:
            odd = self.mixed(image, mix[:, :, :, self.odd], self.odd_kernel, torch.zeros_like(self.bias))
            y = self.gate((even + odd).flatten(0, 1)) + self.gate((even - odd).flatten(0, 1))
        else:
            y = 2.0 * self.gate(even.flatten(0, 1))
        r_pool = torch.exp(-0.5 * ((mean[:, None] - self.centers_pool) / self.width_pool).square())
        coefficients = 0.5 * share[:, None] * (r_pool @ self.pool_weight)
        y = torch.einsum("qi,bqixyz->bixyz", coefficients, y.unflatten(0, (image.shape[0], image.shape[1])))
        logits = self.p_layers(y)
        return torch.where(clear, logits, torch.full_like(logits, float("nan")))

    def mixed(self, image: Tensor, mix: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Mix volumes with (Q, a, b, m, Q) and convolve each of the Q results; (B, Q, dim, X, Y, Z)."""
        h = torch.einsum("qcr,brxyz->bqcxyz", mix.flatten(1, 3), image).flatten(0, 1)
        y = nn.functional.conv3d(h, kernel, bias, padding=kernel.shape[-1] // 2)
        return y.unflatten(0, (image.shape[0], image.shape[1]))

    def harmonics(self, vector: Tensor) -> Tensor:
        """See `bases.angular.harmonics`; as polynomials, shape (..., (lmax + 1)²)."""
        length = vector.square().sum(-1, keepdim=True).sqrt()
        unit = torch.where(length > self.zero, vector / length.clamp(min=self.zero), torch.zeros_like(vector))
        power = torch.ones_like(length)
        powers = [power]
        for _ in range(self.lmax):
            power = (power[..., :, None] * unit[..., None, :]).flatten(-2)
            powers.append(power)
        return torch.cat(powers, dim=-1) @ self.polynomials


def plain_form(network: PQNet) -> PlainPQNet:
    """Write a trained network in torch operations alone.

    Parameters
    ----------
    network : PQNet
        With one pq layer of product bases over q, closed under q -> -q; late reduction by length; gates, and no
        normalisation; one scalar for each volume. That is the default network, and that of the bundle.

    Returns
    -------
    PlainPQNet
        In evaluation mode; equal to the network but for rounding. It computes all q at a time; windows bound memory.

    Raises
    ------
    ValueError
        When the network is of another kind.
    """
    conv = network.pq_convs[0]
    reasons = {
        "it has more than one pq layer": len(network.pq_convs) > 1,
        "a volume holds more than one scalar": conv.irreps_in.dim != 1,
        "a basis does not factor, or does not depend on q": not all(
            f.basis.separable and f.basis.over_q for f in conv.filters
        ),
        "it is not closed under q -> -q": not conv.antipodal,
        "its q-reduction is no function of length": not isinstance(network.pool, QLengthPool),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"this network has no plain form for all gradient tables: {reason}; see fold")
    with torch.no_grad():
        return PlainPQNet(network).eval().requires_grad_(False)


class _Each(nn.Module):
    """In place of radial functions: each by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(len(x)).to(x)


def _kernel_by_radial(filters: Filters, lattice: Tensor) -> Tensor:
    """Kernels between radial functions of |q_out| and of |q_in|, shape (a, b, dim_out, (lmax_q + 1)², N)."""
    each = copy.deepcopy(filters)
    num_out, num_in = each.radial_q_out.num, each.radial_q_in.num
    each.radial_q_out, each.radial_q_in = _Each(), _Each()
    return each.by_shell(lattice, lattice.new_zeros(num_out), lattice.new_zeros(num_in))[:, :, :, 0]


def _polynomials(lmax: int) -> Tensor:
    """Matrix from the tensor powers 0 to lmax of a unit vector to its harmonics, float64."""
    v = torch.nn.functional.normalize(
        torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    power, rows = torch.ones(400, 1, dtype=torch.float64), []
    sh = harmonics(lmax, v)
    for l in range(lmax + 1):
        block = torch.zeros(power.shape[1], sh.shape[1], dtype=torch.float64)
        degree = slice(l**2, (l + 1) ** 2)
        block[:, degree] = torch.linalg.pinv(power) @ sh[:, degree]
        rows.append(block)
        power = (power[:, :, None] * v[:, None]).flatten(1)
    return torch.cat(rows)

"""A basis of another kind: a class with what `bases.filters` names is all that layers ask for."""

from dataclasses import dataclass

import pytest
import torch
from e3nn import o3

from eqdmri_monai.bases import Radial, p_space, pq_diff
from eqdmri_monai.bases.angular import coupling, degree_slice, harmonics, triangle
from eqdmri_monai.nn import PQConv
from eqdmri_monai.symmetry import quarter_turns, random_scheme, turn_features


@dataclass(frozen=True)
class SumBasis:
    """Harmonics of Δp + (q_out - q_in), not separable: `pq_diff` with every q reversed."""

    name: str = "pq-sum"
    over_p = over_q = True
    separable = False

    def paths(self, l_out, l_in):
        return [(l, None, None) for l in triangle(l_out, l_in)]

    def harmonics(self, pairs, offset, difference, *, radius, q_max):
        return (harmonics(max(map(sum, pairs)), offset[:, None, None] / radius + difference / q_max),)

    def angular(self, l_out, l_in, sh):
        for l, _, _ in self.paths(l_out, l_in):
            yield torch.einsum("ofi,nqrf->nqroi", coupling(l, l_in, l_out), sh[0][..., degree_slice(l)])

    def gain(self, l_out, l_in, lattice, radial):
        return pq_diff.gain(l_out, l_in, lattice, radial)


def layer(*bases, **options) -> PQConv:
    return PQConv("1x0e+1x1e", "1x0e+1x1e", bases=bases, kernel_size=3, radial=Radial("Gaussian"), **options)


def test_its_filters_are_those_that_it_names():
    ours, theirs = layer(SumBasis()), layer(pq_diff)
    theirs.load_state_dict(ours.state_dict())
    offset, q_out, q_in, R = torch.randn(4, 3), torch.randn(2, 3), torch.randn(3, 3), o3.rand_matrix()
    kernel = ours.kernel(offset, q_out, q_in)
    torch.testing.assert_close(kernel, theirs.kernel(offset, -q_out, -q_in), rtol=0, atol=1e-12)
    D = ours.irreps_in.D_from_matrix(R)
    turned = ours.kernel(offset @ R.T, q_out @ R.T, q_in @ R.T)
    torch.testing.assert_close(turned, torch.einsum("oi,nqirj,kj->nqork", D, kernel, D), rtol=0, atol=1e-9)


@pytest.mark.parametrize("antipodal", [False, True])
def test_a_layer_with_it_is_its_kernel_and_equivariant(antipodal):
    conv, q = layer(SumBasis(), p_space, antipodal=antipodal), random_scheme(3, 1.0)
    x = torch.randn(1, 4, len(q), 3, 4, 5)
    with torch.no_grad():
        y = conv(x, q)
        weight = conv.grid_kernel(q).flatten(0, 1).transpose(1, 2).flatten(1, 2)  # [(q o), (i r), ...]
        dense = torch.nn.functional.conv3d(x.flatten(1, 2), weight, padding=1).unflatten(1, (-1, 4)).transpose(1, 2)
        torch.testing.assert_close(y, dense, rtol=0, atol=1e-9)
        for R in quarter_turns():
            turned = conv(turn_features(x, R, conv.irreps_in), q @ R.T)
            torch.testing.assert_close(turned, turn_features(y, R, conv.irreps_out), rtol=0, atol=1e-9)

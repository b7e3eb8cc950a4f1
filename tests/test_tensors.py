import nibabel as nib
import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs
from dipy.reconst import dti
from e3nn import o3

from eqdmri_monai.gradients import q_vectors
from eqdmri_monai.nn.cartesian import symmetric_components, symmetric_matrix
from eqdmri_monai.symmetry import random_scheme
from eqdmri_monai.tensors import (
    fit_tensor,
    fractional_anisotropy,
    mean_diffusivity,
    principal_direction,
    q_squares,
    squared_norm,
)


@pytest.mark.parametrize(("weighted", "method"), [(True, "WLS"), (False, "OLS")])
def test_the_fit_is_dipys(weighted, method):
    image, bval, bvec = get_fnames(name="small_25")
    bvals, bvecs = read_bvals_bvecs(str(bval), str(bvec))
    signal = np.maximum(nib.load(image).get_fdata(), 1.0)
    table = gradient_table(bvals, bvecs=bvecs)
    theirs = dti.TensorModel(table, fit_method=method).fit(signal)
    q = q_vectors(torch.from_numpy(bvals), torch.from_numpy(bvecs))
    ours, _ = fit_tensor(torch.from_numpy(signal).log().movedim(-1, 0)[None], q, weighted=weighted)
    expected = 1000 * torch.from_numpy(theirs.quadratic_form)
    definite = torch.from_numpy(theirs.evals.min(-1) > 1e-5)  # dipy raises negative eigenvalues
    torch.testing.assert_close(symmetric_matrix(ours)[0][definite], expected[definite], rtol=0, atol=1e-6)
    ours = symmetric_components(expected[None])
    torch.testing.assert_close(fractional_anisotropy(ours)[0], torch.from_numpy(theirs.fa), rtol=0, atol=1e-9)
    torch.testing.assert_close(mean_diffusivity(ours)[0], 1000 * torch.from_numpy(theirs.md), rtol=0, atol=1e-9)
    cosine = (principal_direction(ours)[0].movedim(0, -1) * torch.from_numpy(theirs.evecs[..., 0])).sum(-1).abs()
    clear = torch.from_numpy(theirs.evals[..., 0] > 1.01 * theirs.evals[..., 1])
    assert (1 - cosine[clear]).max() < 1e-6


@pytest.mark.parametrize("directions", [6, 20])
def test_a_tensor_is_found_in_its_own_signal_and_turns_with_the_q_vectors(directions):
    q, R = random_scheme(directions, 1.0), o3.rand_matrix()
    matrix = torch.randn(1, 4, 5, 2, 3, 3)
    matrix = 0.3 * matrix @ matrix.mT
    tensor = symmetric_components(matrix)
    log_s0 = torch.randn(1, 4, 5, 2)
    found, found_s0 = fit_tensor(log_s0[:, None] - torch.einsum("qc,bc...->bq...", q_squares(q), tensor), q)
    torch.testing.assert_close(found, tensor)
    torch.testing.assert_close(found_s0, log_s0)
    noisy = torch.randn(1, len(q), 4, 5, 2)
    turned = symmetric_components(R @ symmetric_matrix(fit_tensor(noisy, q)[0]) @ R.T)
    torch.testing.assert_close(fit_tensor(noisy, q @ R.T)[0], turned)
    torch.testing.assert_close(squared_norm(tensor), matrix.square().sum((-1, -2)))


def test_directions_in_a_plane_are_refused():
    q = random_scheme(8, 1.0)
    with pytest.raises(ValueError, match="9 q-vectors do not determine a tensor"):
        fit_tensor(torch.zeros(1, 9, 2, 2, 2), q * torch.tensor([1.0, 1.0, 0.0]))

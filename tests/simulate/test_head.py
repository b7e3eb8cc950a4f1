import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel, fractional_anisotropy, mean_diffusivity
from heads import ball

from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.head import (
    TISSUE_MD,
    Head,
    fit_head,
    implant_measured,
    md_and_fa,
    regions,
    with_lesions,
)
from eqdmri_monai.simulate.lesions import LesionEffect


@pytest.fixture
def table():
    return single_shell(20, 1000.0, np.random.default_rng(1))


def test_a_fit_finds_the_tensors_that_made_the_signal_at_any_b():
    head = ball()
    solid = head.brain & (head.fluid == 0)
    for b in (700.0, 2500.0):
        table = single_shell(20, b, np.random.default_rng(1))
        fit = fit_head(head.signal(table), table, head.affine, head.brain)
        np.testing.assert_allclose(fit.tensor[solid], head.tensor[solid], atol=2e-6 * 1e-3 * 1e3)
        assert fit.fluid[solid].max() < 1e-3


def test_the_plain_tensor_model_is_dipys(table):
    head = ball()
    rng = np.random.default_rng(0)
    dwi = head.signal(table) * rng.uniform(0.95, 1.05, (*head.brain.shape, len(table))).astype(np.float32)
    dwi[..., table.b0_mask.numpy()] = dwi[..., :1]  # b0s that agree: dipy fits them, and here they are S0
    white = head.brain & (head.fluid == 0)
    fit = fit_head(dwi, table, head.affine, white, theta=0)
    gtab = gradient_table(table.bvals.numpy(), bvecs=table.bvecs.numpy())
    weighted = dwi / dwi[..., :1].clip(1e-6)
    theirs = TensorModel(gtab, fit_method="OLS").fit(weighted[white])
    md, fa = md_and_fa(fit.tensor[white])
    np.testing.assert_allclose(md, theirs.md, rtol=0.02)  # they fit S0 too
    np.testing.assert_allclose(fa, theirs.fa, atol=0.03)


def test_water_is_found_where_tissue_would_diffuse_too_fast(table):
    affine, brain = np.eye(4), np.ones((3, 1, 1), bool)
    tensor = np.broadcast_to(TISSUE_MD * np.diag([1.6, 0.7, 0.7]), (3, 1, 1, 3, 3)).astype(np.float32)
    fluid = np.array([0.0, 0.4, 0.9], np.float32).reshape(3, 1, 1)
    head = Head(np.full((3, 1, 1), 100, np.float32), fluid, tensor, brain, affine)
    fit = fit_head(head.signal(table), table, affine, brain)
    np.testing.assert_allclose(fit.fluid, fluid, atol=0.005)
    np.testing.assert_allclose(fit.signal(table), head.signal(table), rtol=0.01)


def test_md_and_fa_are_dipys():
    tensor = np.random.default_rng(0).standard_normal((9, 3, 3))
    tensor = tensor @ tensor.transpose(0, 2, 1)
    md, fa = md_and_fa(tensor)
    evals = np.linalg.eigvalsh(tensor)
    np.testing.assert_allclose(md, mean_diffusivity(evals))
    np.testing.assert_allclose(fa, fractional_anisotropy(evals))


def test_regions_do_not_overlap_and_lie_in_brain():
    head = ball(33, 4.0)
    masks = regions(head)
    assert set(masks) == {"periventricular", "juxtacortical", "infratentorial", "deep white", "deep grey"}
    assert max(sum(mask.astype(int) for mask in masks.values()).flat) == 1
    assert not (masks["deep white"] & ~head.brain).any()
    assert masks["juxtacortical"].sum() > 100  # white matter near the surface is not left out


def test_a_lesion_changes_s0_diffusivity_and_anisotropy_by_its_effect():
    head = ball()
    n = tuple(np.argwhere(head.brain & (head.fluid == 0))[5])
    weight = np.zeros(head.brain.shape, np.float32)
    weight[n] = 1
    new = with_lesions(head, [(weight, LesionEffect(gain=0.3, diffusivity=0.5, roundness=0.4))])
    (md, fa), (md_new, fa_new) = md_and_fa(head.tensor[n]), md_and_fa(new.tensor[n])
    assert new.S0[n] == pytest.approx(1.3 * head.S0[n], rel=1e-6)
    assert md_new == pytest.approx(1.5 * md, rel=1e-5)
    assert 0.55 * fa < fa_new < 0.72 * fa
    weight[n] = 0
    np.testing.assert_array_equal(new.tensor[weight == 0][:5], head.tensor[weight == 0][:5])


def test_an_implant_is_the_models_ratio_and_nothing_elsewhere(table):
    head, rng = ball(), np.random.default_rng(0)
    dwi = rng.uniform(1, 2, (*head.brain.shape, len(table))).astype(np.float32)
    np.testing.assert_array_equal(implant_measured(dwi, table, head, with_lesions(head, [])), dwi)
    weight = np.zeros(head.brain.shape, np.float32)
    weight[8, 4:6, 8] = 0.7, 1.0
    no_effect = with_lesions(head, [(weight, LesionEffect(0, 0, 0))])
    np.testing.assert_array_equal(implant_measured(dwi, table, head, no_effect), dwi)
    changed = with_lesions(head, [(weight, LesionEffect(0.3, 0.5, 0.4))])
    out = implant_measured(dwi, table, head, changed)
    np.testing.assert_array_equal(out[weight == 0], dwi[weight == 0])
    inside = weight > 0
    ratio = changed.signal(table)[inside] / head.signal(table)[inside]
    np.testing.assert_allclose(out[inside] / dwi[inside], ratio, rtol=1e-5)
    clean = head.signal(table)
    np.testing.assert_allclose(implant_measured(clean, table, head, changed), changed.signal(table), rtol=1e-4)


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = ball()
    head.save(tmp_path / "head.npz")
    again = Head.load(tmp_path / "head.npz")
    for name in ("S0", "fluid", "tensor", "brain", "affine"):
        np.testing.assert_array_equal(getattr(again, name), getattr(head, name))

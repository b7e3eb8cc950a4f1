from dataclasses import replace

import numpy as np
import pytest
import torch
from heads import ball

from eqdmri_monai.gradients import check_table, shells
from eqdmri_monai.simulate.acquisition import T2, Acquisition, acquire, random_table
from eqdmri_monai.simulate.deformation import no_waves


@pytest.fixture
def plain():
    """No coils, no distortion, no blur, hardly any noise."""
    acquisition = Acquisition.draw(np.random.default_rng(2))
    return replace(acquisition, echo=0.0, snr=1e6, blur=0.0, coil=no_waves(), shift=no_waves())


def test_a_perfect_scanner_shows_the_heads_signal(plain):
    head = ball()
    dwi = acquire(head, plain, np.random.default_rng(0))
    np.testing.assert_allclose(dwi, head.signal(plain.table), atol=1e-5)


def test_noise_is_rician_of_the_level_that_is_asked_for(plain):
    head = ball(33, 4.0)
    dwi = acquire(head, replace(plain, snr=20.0), np.random.default_rng(0))
    sigma = np.sqrt((dwi[head.S0 == 0] ** 2).mean() / 2)
    white = head.brain & (head.fluid < 0.1)
    assert np.median(head.S0[white]) / sigma == pytest.approx(20, rel=0.03)


def test_a_longer_echo_darkens_tissue_by_its_t2_and_leaves_water(plain):
    head = ball()
    head = replace(head, fluid=np.where(head.fluid > 0.9, 1, 0).astype(np.float32))
    short, long = (acquire(head, replace(plain, echo=e), np.random.default_rng(0))[..., 0] for e in (0.0, 30.0))
    tissue, water = head.brain & (head.fluid == 0), head.brain & (head.fluid == 1)
    np.testing.assert_allclose(long[tissue] / short[tissue], np.exp(-30 / T2["white"]), rtol=1e-3)
    np.testing.assert_allclose(long[water] / short[water], np.exp(-30 / T2["fluid"]), rtol=1e-3)


def test_schemes_are_valid_and_as_many_sided_as_asked():
    rng = np.random.default_rng(0)
    tables = [random_table(rng) for _ in range(30)]
    for table in tables:
        torch.testing.assert_close(check_table(table.bvals, table.bvecs), table.bvecs, atol=1e-9, rtol=0)
        assert 700 <= table.bvals[~table.b0_mask].min() <= table.bvals.max() <= 3000
        assert 6 <= int((~table.b0_mask).sum()) <= 64
    assert {int(shells(table.bvals).max()) for table in tables} >= {1, 2}


def test_the_grid_holds_the_points(plain):
    points = np.random.default_rng(0).normal(0, 60, (100, 3))
    shape, affine = plain.grid(points)
    ijk = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    assert (ijk > 0).all()
    assert (ijk < np.array(shape) - 1).all()
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), plain.spacing)

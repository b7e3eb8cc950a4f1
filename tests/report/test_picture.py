import numpy as np

from eqdmri_monai.report import colour_fa
from eqdmri_monai.simulate import make_phantom, single_shell


def test_colours_are_the_fibres_directions():
    shell = single_shell(12, 1000.0, np.random.default_rng(0))
    phantom = make_phantom(1, shell, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=3, snr=100)
    fibre, table = phantom.fibre, phantom.table
    white = np.linalg.norm(fibre, axis=-1) > 0.5
    rgb = colour_fa(phantom.dwi, table.bvals.numpy(), table.bvecs.numpy(), white)[white]
    fa = np.linalg.norm(rgb, axis=-1)
    strong = fa > np.percentile(fa, 80)  # one bundle, no crossing
    cosine = (rgb[strong] / fa[strong, None] * np.abs(fibre[white][strong])).sum(-1)
    assert np.median(cosine) > 0.97

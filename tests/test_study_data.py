"""What is planned for the cohort, and scans with other schemes; the science is tested in tests/simulate."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from heads import ball

from eqdmri_monai.simulate import single_shell
from eqdmri_monai.simulate.cohort import implanted


@pytest.fixture(scope="module")
def cohort():
    spec = importlib.util.spec_from_file_location("make_cohort", Path(__file__).parents[1] / "scripts/make_cohort.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_view_of_every_head_is_planned_once(cohort):
    rows = cohort.plan(implanted=4, simulated=3, sets=2, seed=0)
    assert len({row["name"] for row in rows}) == len(rows)
    views = {view for _, worlds in cohort.HEADS.values() for world in worlds for view in world}
    assert len(views) == 12
    for kind, number in (("healthy", 1), ("implanted", 2)):
        testing = [row["view"] for row in rows if row["section"] == "testing" and row["kind"] == kind]
        assert sorted(testing) == sorted(number * list(views))
    training = [row for row in rows if row["section"] == "training"]
    for head in cohort.HEADS:
        kinds = [row["kind"] for row in training if row["head"] == head]
        assert (kinds.count("implanted"), kinds.count("simulated")) == (4, 3)
    galan = {row["head"] for row in rows if row["scanner"] == "galan"}
    assert galan == {"toshiba", "canon"}  # one scanner, left out together


def test_other_schemes_are_of_the_same_signal(cohort):
    head, table = ball(), single_shell(12, 1000.0, np.random.default_rng(0))
    scan = implanted(head.signal(table), table, head, [])
    assert cohort.other_scheme(scan, "") is scan
    signs, shuffled, six = (cohort.other_scheme(scan, scheme) for scheme in ("signs", "shuffled", "6"))
    np.testing.assert_array_equal(signs.dwi, scan.dwi)
    torch.testing.assert_close((signs.table.bvecs * table.bvecs).sum(1).abs(), table.bvecs.norm(dim=1))
    assert (signs.table.bvecs != table.bvecs).any()
    assert (shuffled.table.bvecs != table.bvecs).any()
    for other in (shuffled, six):
        np.testing.assert_allclose(other.dwi, head.signal(other.table), atol=1e-6)
    assert len(six.table) == 2 + 6
    assert len(cohort.other_scheme(scan, "15").table) == 2 + 12  # as many as there are

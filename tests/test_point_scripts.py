"""The experiments on points: their laws, and each in a form of seconds or minutes."""

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from eqdmri_monai.files.writing import read_rows
from eqdmri_monai.symmetry import quarter_turns, turn_grid

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, folder, *options) -> list[dict[str, str]]:
    table = folder / "table.csv"
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / f"{name}.py"), *map(str, options)]
    command += ["--table", str(table), "--figure", str(folder / "figure.png")]
    subprocess.run(command, check=True)
    assert (folder / "figure.png").stat().st_size > 5000
    return read_rows(table)


@pytest.fixture(scope="module")
def springs():
    return script("springs")


def test_a_potential_of_so2_keeps_linear_and_angular_momentum(springs):
    m, k, state = springs.systems(4, torch.Generator().manual_seed(0))
    net = springs.LieHamiltonian(springs.SO2(), 8, 1).eval()
    found = net.motion(m, k, state, 100)
    for now, before in zip(springs.momenta(found), springs.momenta(state), strict=True):
        assert (now - before).abs().max() < 1e-10
    linear, angular = springs.momenta(springs.HFC(16).eval().motion(m, k, state, 100))
    assert linear.abs().max() > 1e-4  # a network without the symmetry keeps neither
    assert (angular - springs.momenta(state)[1]).abs().max() > 1e-4


def test_the_true_springs_keep_energy_and_momenta(springs):
    m, k, state = springs.systems(3, torch.Generator().manual_seed(0))
    q, p = springs.leapfrog(m, state, lambda q: springs.true_force(q, k), 100)
    for now, before in zip(springs.momenta((q, p)), springs.momenta(state), strict=True):
        assert (now - before).abs().max() < 1e-12
    assert state[1].sum(1).abs().max() < 1e-12  # no system drifts away


def test_an_unstable_step_is_refused(springs):
    m, k, state = springs.systems(1, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"unstable at a step of 0\.01 s"):
        springs.leapfrog(m, state, lambda q: 1e6 * springs.true_force(q, k), 100)


def test_the_physics_that_is_learned_is_that_of_newton():
    physics = script("point_physics")
    masses, places = physics.cloud(5, torch.Generator().manual_seed(0))
    masses, places = masses.double(), places.double()
    pull = physics.acceleration(masses, places)
    torch.testing.assert_close((masses * pull).sum(2), torch.zeros(1, 3), atol=1e-12, rtol=0)  # Newton's third law
    offset = places[0] - places[0, 0]
    tensor = (
        masses[0, 0, :, None, None]
        * (offset.square().sum(1)[:, None, None] * torch.eye(3) - offset[:, :, None] * offset[:, None])
    ).sum(0)
    found = physics.inertia(masses, places)[0, :, 0]
    torch.testing.assert_close(found[0], tensor.trace() / 3)
    anisotropic = tensor - tensor.trace() / 3 * torch.eye(3)
    torch.testing.assert_close(found[1:].square().sum(), 7.5 * anisotropic.square().sum())  # component normalisation


def test_directions_of_healpix_have_equal_areas_and_quarter_turns():
    q = script("r3s2_mnist").healpix(4).double()
    assert q.shape == (192, 3)
    torch.testing.assert_close(q.norm(dim=1), torch.ones(192), atol=1e-6, rtol=0)
    assert q.sum(0).abs().max() < 1e-4
    assert (q.T @ q / 192 - torch.eye(3) / 3).abs().max() < 2e-3
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for other in (-q, q @ quarter.T):
        assert torch.cdist(other, q).amin(1).max() < 1e-6
    assert q[:4, 2].unique(return_counts=True)[0].item() == pytest.approx(1 - 1 / 48)  # Górski et al., eq. 4


def test_a_volume_of_digits_turns_as_grids_and_spheres_do():
    mnist, rng = script("r3s2_mnist"), np.random.default_rng(0)
    labels = np.arange(30) % 10
    label, digits = mnist.volume(rng.integers(0, 255, (30, 28, 28)).astype(np.uint8), labels, rng)
    assert label.flatten().bincount().tolist() == [16**3 - 9 * 256, *9 * [256]]
    R, none = quarter_turns()[2], torch.eye(3)  # about z, which maps the directions onto each other
    image, _ = mnist.rendered(label, digits, none, none)
    grid_turned, label_turned = mnist.rendered(label, digits, R, none)
    torch.testing.assert_close(grid_turned, turn_grid(image, R))
    torch.testing.assert_close(label_turned, turn_grid(label, R))
    spheres_turned, _ = mnist.rendered(label, digits, none, R)
    place = torch.cdist(mnist.Q, mnist.Q @ R.T).argmin(1)  # where each direction came from
    torch.testing.assert_close(spheres_turned, image[place])
    assert (image[mnist.Q[:, 2] < -1e-3] == 0).all()


def test_forces_turn_along_with_a_molecule_and_add_up_to_nothing():
    qm7 = script("qm7")
    torch.manual_seed(0)
    kinds = torch.nn.functional.one_hot(torch.randint(0, 5, (3, 7)), 5).double().mT
    kinds[0, :, 5:] = 0
    places = 3 * torch.rand(3, 7, 3) * (kinds.sum(1) > 0)[..., None]
    found = {name: qm7.symmetry(name, make(torch.randn(5), 10.0), kinds, places) for name, make in qm7.MODELS.items()}
    assert all(row["force_sum"] < 1e-10 for row in found.values())  # translations are in all three groups
    assert found["PointNet"]["energy_change"] < 1e-10
    assert found["PointNet"]["force_change"] < 1e-10
    assert found["PointNet"]["largest_force"] > 1e-2
    for name in ("LieConv-T3", "LieConv-SE3"):  # turned copies in training, or lifts not turned along, are not exact
        assert found[name]["force_change"] > 1e-2 * found[name]["largest_force"] > 0


def test_molecules_are_read_and_unknown_elements_refused(tmp_path):
    (tmp_path / "ml_qm7").mkdir()

    def load(element):
        texts = {
            "qm7/1.xyz": f"2\ncharge = 0\n C 0.0 0.5 1.0\n {element} 1.0 0.0 -2.0\n",
            "hof_qm7.txt": "1.xyz -7.5 -8.0\n",
        }
        with tarfile.open(tmp_path / "ml_qm7" / "qm7_xyz.tar.xz", "w:xz") as archive:
            for name, text in texts.items():
                (tmp_path / "text").write_text(text)
                archive.add(tmp_path / "text", name)
        return script("qm7").load(tmp_path)

    kinds, places, energy = load("H")
    assert kinds[0].argmax(0).tolist() == [1, 0]
    assert places.tolist() == [[[0.0, 0.5, 1.0], [1.0, 0.0, -2.0]]]
    assert energy.tolist() == [-7.5]
    with pytest.raises(ValueError, match="element Zz is unknown; it must be one of H, C, N, O, S"):
        load("Zz")


def test_one_random_lift_a_point_makes_neighbourhoods_wide():
    rotmnist = script("rotmnist")

    def distance(group, radius):
        _, places = rotmnist.pixels(radius)
        net = rotmnist.LieResNet(rotmnist.GROUPS[group], 1, 10, channels=4, blocks=1, share=0.7).eval()
        geometry = net.geometry(net.lift(places))
        (pairs,), (kept,) = geometry.pairs, geometry.kept
        apart = (places[0][pairs.index[0]] - places[0][kept[0], None]).norm(dim=-1)
        return float(apart[pairs.mask[0]].mean()) / radius

    assert distance("T2", 1.0) == pytest.approx(0.15, abs=0.01)
    assert distance("SE2", 1.0) == pytest.approx(0.41, abs=0.02)  # near in angle as well
    assert distance("SE2", 4.0) == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_shapes_of_points_are_recognised_in_all_rotations(tmp_path):
    rows = run("point_shapes", tmp_path, "--seeds", 1, "--rotations", 100)
    assert float(rows[0]["accuracy"]) == 100.0
    assert float(rows[0]["chiral_pair"]) == 100.0
    assert float(rows[1]["chiral_pair"]) == 50.0  # scalars alone cannot tell mirror images apart


@pytest.mark.slow
def test_gravity_and_inertia_are_learned(tmp_path):
    rows = run("point_physics", tmp_path, "--steps", 500, "--inertia-steps", 500)
    assert all(float(row["last_loss"]) < 0.5 * float(row["first_loss"]) for row in rows)


@pytest.mark.slow
def test_springs_are_learned(tmp_path):
    rows = run("springs", tmp_path, "--trajectories", 50, "--epochs", 60, "--test", 20)
    drift = {row["model"]: float(row["angular_drift"]) for row in rows}
    assert drift["HLieConv-SO2*"] < 1e-10 < drift["FC"]


@pytest.mark.slow
def test_digits_are_learned(tmp_path, data):
    options = ["--data", data, "--groups", "SO2", "--train", 1000, "--test", 200, "--epochs", 3, "--channels", 32]
    rows = run("rotmnist", tmp_path, *options)
    assert float(rows[0]["error_turned"]) < 60  # chance is 90 %


@pytest.mark.slow
def test_bundles_are_found_in_any_pose(tmp_path):
    subprocess.run(
        [sys.executable, str(SCRIPTS / "make_tractograms.py"), "--folder", str(tmp_path / "heads")], check=True
    )
    options = ["--folder", tmp_path / "heads", "--steps", 60, "--heads", 1, "--poses", 5, "--slow-poses", 1]
    rows = {row["method"]: row for row in run("bundles", tmp_path, *options, "--methods", "StreamlineNet", "MDF")}
    assert float(rows["StreamlineNet"]["same_labels"]) == 1.0
    assert float(rows["StreamlineNet"]["logit_change_64"]) < 1e-9
    assert float(rows["MDF"]["upright"]) > 0.99 > 0.6 > float(rows["MDF"]["turned"])


@pytest.mark.slow
def test_energies_of_molecules_are_learned(tmp_path, data):
    (row,) = run("qm7", tmp_path, "--data", data, "--models", "PointNet", "--train", 500, "--epochs", 3)
    assert float(row["mae"]) < float(row["mae_composition"])
    assert float(row["force_change"]) < 1e-10


@pytest.mark.slow
def test_digits_in_voxels_are_learned(tmp_path, data):
    options = ["--data", data, "--models", "harmonics", "--train", 16, "--test", 1, "--epochs", 2]
    (row,) = run("r3s2_mnist", tmp_path, *options)
    assert float(row["norot"]) > 15  # chance is 11 %
    assert row["quarter_turns_same"] == "True"

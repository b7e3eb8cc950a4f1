"""Energies of molecules, and forces that turn along: QM7 with a tensor field network.

python scripts/qm7.py --data DATA --epochs 8      # DATA/ml_qm7/qm7_xyz.tar.xz

A network of `PointConv` layers sees the elements and places of atoms and gives the energy of atomization, a sum over
atoms on top of a linear fit of the composition. Its forces are minus the gradient. A row goes to
results/points/qm7.csv, what is predicted against what is true to docs/points/qm7.png. The set has no forces to
learn from or to compare with: that they turn with the molecule, and add up to nothing, is what is tested.
Source: Thomas et al. 2018; data: Rupp et al. 2012, 7,101 molecules of up to 23 atoms, PBE0, kcal/mol.
"""

import argparse
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from e3nn import o3
from matplotlib.figure import Figure
from torch import Tensor, nn

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row
from eqdmri_monai.networks import PointNet

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = "HCNOS"
SPLIT = 5000, 680, 1421  # molecules to learn from, to choose on (unused here), to test on
# kcal/mol, on another random split of these sizes: the composition alone; kernel ridge regression of sorted Coulomb
# matrices with a Laplacian kernel
BASELINES = {"composition": 14.95, "Coulomb matrices, kernel ridge": 3.39}


def load(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return elements (M, 5, N) one-hot, places (M, N, 3) in Å with 0 for padding, and energies (M,), in file order.

    Raises
    ------
    ValueError
        When a molecule has an unknown element.
    """
    with tarfile.open(data / "ml_qm7" / "qm7_xyz.tar.xz") as archive:
        texts = {
            Path(member.name).name: archive.extractfile(member).read().decode() for member in archive if member.isfile()
        }
    table = [line.split() for line in texts.pop("hof_qm7.txt").splitlines() if line.strip()]
    most = max(int(text.split(maxsplit=1)[0]) for text in texts.values())
    kinds, places = torch.zeros(len(table), len(ELEMENTS), most), torch.zeros(len(table), most, 3)
    for i, (name, *_) in enumerate(table):
        for j, line in enumerate(texts[Path(name).stem + ".xyz"].splitlines()[2:]):
            element, *place = line.split()
            if element not in ELEMENTS:
                raise ValueError(f"{name}: element {element} is unknown; it must be one of {', '.join(ELEMENTS)}")
            kinds[i, ELEMENTS.index(element), j] = 1
            places[i, j] = torch.tensor([float(x) for x in place])
    return kinds, places, torch.tensor([float(row[1]) for row in table])


class EnergyNet(nn.Module):
    """Energy of atomization in kcal/mol: a linear function of the composition, and what a network adds to it."""

    def __init__(self, composition: Tensor, scale: float):
        super().__init__()
        hidden = ["32x0e+8x1e+4x2e", "32x0e+8x1e+4x2e", "32x0e"]
        self.net = PointNet("5x0e", hidden, "0e", radius=4.0, pool="sum", num_radial=12, lmax=2, z=30.0)
        self.register_buffer("composition", composition)
        self.scale = scale

    def forward(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Return energies (B,) of elements (B, 5, N), zeros for padding, at places (B, N, 3)."""
        added = self.net(kinds, places, kinds.sum(1) > 0)[:, 0]
        return kinds.sum(2) @ self.composition + self.scale * added

    def forces(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Return minus the gradient, shape (B, N, 3), kcal/mol/Å."""
        places = places.detach().requires_grad_()
        return -torch.autograd.grad(self(kinds, places).sum(), places)[0]


def batches(kinds: Tensor, rows: Tensor, size: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Return rows in batches of molecules of about one size, so that little is padding; in random order on request."""
    count = kinds[rows].sum((1, 2))
    if generator is None:
        return list(rows[count.argsort()].split(size))
    parts = rows[(count + torch.rand(len(rows), generator=generator)).argsort()].split(size)
    return [parts[i] for i in torch.randperm(len(parts), generator=generator)]


def cut(kinds: Tensor, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return some molecules, without the padding that all of them have."""
    atoms = int(kinds[rows].sum((1, 2)).max())
    return kinds[rows, :, :atoms], places[rows, :atoms]


def train(net: EnergyNet, data: tuple[Tensor, ...], rows: Tensor, *, epochs: int, batch: int, seed: int) -> None:
    kinds, places, energy = data
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=5e-3), torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(rows) // batch)
    schedule, start = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps), time.time()
    for epoch in range(epochs):
        total = 0.0
        for part in batches(kinds, rows, batch, generator):
            optimizer.zero_grad()
            error = net(*cut(kinds, places, part)) - energy[part]
            nn.functional.huber_loss(error / net.scale, torch.zeros_like(error), delta=0.5).backward()
            optimizer.step()
            schedule.step()
            total += error.detach().abs().sum().item() / len(rows)
        print(f"epoch {epoch + 1}: mean error {total:.2f} kcal/mol, {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def predict(net: EnergyNet, kinds: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return the energies of some molecules."""
    found = torch.empty(len(kinds))
    for part in batches(kinds, rows, 100):
        found[part] = net(*cut(kinds, places, part))
    return found[rows]


def symmetry(trained: EnergyNet, kinds: Tensor, places: Tensor) -> dict[str, float]:
    """Return how far energies and forces are from turning along, in float64, and what forces add up to, kcal/mol/Å."""
    torch.set_default_dtype(torch.float64)  # e3nn's couplings are made in the default type
    net = EnergyNet(trained.composition.double(), trained.scale)
    with torch.no_grad():
        for exact, found in zip(net.parameters(), trained.parameters(), strict=True):
            exact.copy_(found)
    kinds, places, R, shift = kinds.double(), places.double(), o3.rand_matrix(), torch.randn(3)
    there = (kinds.sum(1) > 0)[..., None]
    moved = (places @ R.T + shift) * there
    force, energy = net.forces(kinds, places), net(kinds, places)
    result = {
        "energy_change": float((net(kinds, moved) - energy).abs().max().detach()),
        "force_change": float((net.forces(kinds, moved) - force @ R.T).abs().max()),
        "force_sum": float(force.sum(1).abs().max()),
        "largest_force": float(force.abs().max()),
    }
    torch.set_default_dtype(torch.float32)
    return result


def draw(true: Tensor, found: Tensor, error: float, path: Path) -> None:
    """Draw predicted against true energies, and the mean error beside the baselines'."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(true, found, ".", markersize=2)
    left.axline((float(true.min()),) * 2, slope=1, color="grey", linewidth=0.5)
    left.set_xlabel("energy of atomization, kcal/mol")
    left.set_ylabel("predicted")
    values = BASELINES | {"PointNet": error}
    right.bar_label(right.barh(list(values), list(values.values())), fmt="%.2f")
    right.set_xlabel("mean absolute error, kcal/mol")
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ml_qm7/qm7_xyz.tar.xz")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--train", type=int, default=SPLIT[0], help="molecules to learn from, up to 5,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "qm7.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "qm7.png")
    options = parser.parse_args()
    kinds, places, energy = load(options.data)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(kinds)))
    rows, test = order[: options.train], order[-SPLIT[2] :]
    count = kinds.sum(2)
    composition = torch.linalg.lstsq(count[rows], energy[rows, None]).solution[:, 0]
    rest = energy - count @ composition
    torch.manual_seed(options.seed)
    net, start = EnergyNet(composition, float(rest[rows].std())), time.time()
    train(net, (kinds, places, energy), rows, epochs=options.epochs, batch=options.batch, seed=options.seed)
    minutes, found = (time.time() - start) / 60, predict(net.eval(), kinds, places, test)
    error = float((found - energy[test]).abs().mean())
    row = {"train": len(rows), "test": len(test), "epochs": options.epochs, "seed": options.seed}
    row |= {"mae": f"{error:.2f}", "mae_composition": f"{rest[test].abs().mean():.2f}"}
    row |= {key: f"{value:.1e}" for key, value in symmetry(net, *cut(kinds, places, test[:20])).items()}
    row |= {"parameters": sum(p.numel() for p in net.parameters()), "minutes": f"{minutes:.1f}"}
    append_row(options.table, row)
    print(row, flush=True)
    draw(energy[test], found, error, options.figure)


if __name__ == "__main__":
    main()

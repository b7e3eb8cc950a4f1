"""Energies of molecules, and forces that turn along: QM7 with a tensor field network, and with LieConv.

python scripts/qm7.py --data DATA --models PointNet --epochs 14      # DATA/ml_qm7/qm7_xyz.tar.xz

A network of `PointConv` layers sees the elements and places of atoms and gives the energy of atomization, a sum over
atoms on top of a linear fit of the composition. Its forces are minus the gradient. `LieResNet` does the same on
translations, with molecules turned at random in training, and on rigid motions, with lifts drawn anew in each step. A
row for each model goes to results/points/qm7.csv, its predictions against what is true to docs/points/qm7.png. The set
has no forces to learn from or to compare with: that they turn with the molecule, and add up to nothing, is what is
tested.
Source: Thomas et al. 2018; Finzi et al. 2020, Table 3; data: Rupp et al. 2012, 7,101 molecules of up to 23 atoms, PBE0,
kcal/mol.
"""

import argparse
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from e3nn import o3
from matplotlib.figure import Figure
from torch import Tensor, nn

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row, read_rows
from eqdmri_monai.groups import SE3, Group, T
from eqdmri_monai.networks import LieResNet, PointNet

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = "HCNOS"
SPLIT = 5000, 680, 1421  # molecules to learn from, to choose settings by, to test on
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


class Energy(nn.Module):
    """Energy of atomization in kcal/mol: a linear function of the composition, and what a network adds to it."""

    def __init__(self, composition: Tensor, scale: float):
        super().__init__()
        self.register_buffer("composition", composition)
        self.scale = scale

    def forward(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Return energies (B,) of elements (B, 5, N), zeros for padding, at places (B, N, 3)."""
        return kinds.sum(2) @ self.composition + self.scale * self.added(kinds, places, kinds.sum(1) > 0)

    def forces(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Return minus the gradient, shape (B, N, 3), kcal/mol/Å."""
        places = places.detach().requires_grad_()
        return -torch.autograd.grad(self(kinds, places).sum(), places)[0]


class PointEnergy(Energy):
    """The sum over atoms of what a `PointNet` gives."""

    alike = True  # in a batch molecules are of about one size
    turned = False  # the network is the same in all poses

    def __init__(self, composition: Tensor, scale: float):
        super().__init__(composition, scale)
        hidden = ["32x0e+8x1e+4x2e", "32x0e+8x1e+4x2e", "32x0e"]
        self.net = PointNet("5x0e", hidden, "0e", radius=4.0, pool="sum", num_radial=12, lmax=2, z=30.0)

    def added(self, kinds: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        return self.net(kinds, places, mask)[:, 0]


class LieEnergy(Energy):
    """The mean over atoms of what a `LieResNet` gives, times their number."""

    alike = False  # normalisation needs batches whose statistics are those of all molecules

    def __init__(self, group: Group, composition: Tensor, scale: float):
        super().__init__(composition, scale)
        self.turned = isinstance(group, T)
        self.net = LieResNet(group, len(ELEMENTS), 1, channels=96, blocks=4, neighbours=None)

    def added(self, kinds: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        return mask.sum(1) / 15 * self.net(kinds, places, mask)[:, 0]  # 15 atoms are usual


MODELS: dict[str, Callable[[Tensor, float], Energy]] = {
    "LieConv-T3": lambda *options: LieEnergy(T(3), *options),
    "LieConv-SE3": lambda *options: LieEnergy(SE3(), *options),
    "PointNet": PointEnergy,  # last, so that the figure shows what it predicts
}


def batches(kinds: Tensor, rows: Tensor, size: int, generator: torch.Generator, *, alike: bool) -> list[Tensor]:
    """Return rows in batches at random; alike, of molecules of about one size, so that little is padding."""
    order = torch.rand(len(rows), generator=generator)
    if alike:
        order = order + kinds[rows].sum((1, 2))
    parts = rows[order.argsort()].split(size)
    return [parts[i] for i in torch.randperm(len(parts), generator=generator)]


def cut(kinds: Tensor, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return some molecules, without the padding that all of them have."""
    atoms = int(kinds[rows].sum((1, 2)).max())
    return kinds[rows, :, :atoms], places[rows, :atoms]


def train(
    net: Energy,
    data: tuple[Tensor, ...],
    rows: Tensor,
    chosen: Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
) -> None:
    """Train with Adam and one cycle of the rate; the error on the molecules to choose by is shown, and nothing more."""
    kinds, places, energy = data
    generator = torch.Generator().manual_seed(seed)
    optimizer, steps = torch.optim.Adam(net.parameters(), lr=rate), epochs * -(-len(rows) // batch)
    schedule, start = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps), time.time()
    for epoch in range(epochs):
        total = 0.0
        for part in batches(kinds, rows, batch, generator, alike=net.alike):
            some, where = cut(kinds, places, part)
            if net.turned:
                where = where @ o3.rand_matrix(len(where)).mT
            optimizer.zero_grad()
            error = net(some, where) - energy[part]
            nn.functional.huber_loss(error / net.scale, torch.zeros_like(error), delta=0.1).backward()
            optimizer.step()
            schedule.step()
            total += error.detach().abs().sum().item() / len(rows)
        other = (predict(net.eval(), kinds, places, chosen) - energy[chosen]).abs().mean()
        net.train()
        print(
            f"epoch {epoch + 1}: mean error {total:.2f}, elsewhere {other:.2f} kcal/mol, {time.time() - start:.0f} s",
            flush=True,
        )


@torch.no_grad()
def predict(net: Energy, kinds: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return the energies of some molecules."""
    found = torch.empty(len(kinds))
    for part in rows[kinds[rows].sum((1, 2)).argsort()].split(100):
        found[part] = net(*cut(kinds, places, part))
    return found[rows]


def symmetry(model: str, trained: Energy, kinds: Tensor, places: Tensor) -> dict[str, float]:
    """Return how far energies and forces are from turning along, in float64, and what forces add up to, kcal/mol/Å."""
    torch.set_default_dtype(torch.float64)  # e3nn's couplings are made in the default type
    net = MODELS[model](trained.composition.double(), trained.scale).eval()
    with torch.no_grad():
        for mine, its in ((net.parameters(), trained.parameters()), (net.buffers(), trained.buffers())):
            for exact, found in zip(mine, its, strict=True):
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


def draw(true: Tensor, found: Tensor, rows: list[dict], path: Path) -> None:
    """Draw predicted against true energies of the latest model, and mean errors beside the baselines'."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(true, found, ".", markersize=2)
    left.axline((float(true.min()),) * 2, slope=1, color="grey", linewidth=0.5)
    left.set_xlabel("energy of atomization, kcal/mol")
    left.set_ylabel(f"predicted by {rows[-1]['model']}")
    values = BASELINES | {row["model"]: float(row["mae"]) for row in rows}
    right.bar_label(right.barh(list(values), list(values.values())), fmt="%.2f")
    right.margins(x=0.15)
    right.set_xlabel("mean absolute error, kcal/mol")
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ml_qm7/qm7_xyz.tar.xz")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--train", type=int, default=SPLIT[0], help="molecules to learn from, up to 5,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "qm7.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "qm7.png")
    options = parser.parse_args()
    kinds, places, energy = load(options.data)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(kinds)))
    rows, chosen, test = order[: options.train], order[SPLIT[0] : SPLIT[0] + SPLIT[1]], order[-SPLIT[2] :]
    count = kinds.sum(2)
    composition = torch.linalg.lstsq(count[rows], energy[rows, None]).solution[:, 0]
    rest = energy - count @ composition
    for name in options.models:
        torch.manual_seed(options.seed)
        net, start = MODELS[name](composition, float(rest[rows].std())), time.time()
        how = {key: getattr(options, key) for key in ("epochs", "batch", "rate", "seed")}
        train(net, (kinds, places, energy), rows, chosen, **how)
        minutes = (time.time() - start) / 60
        found = predict(net.eval(), kinds, places, test)
        row = {"model": name, "train": len(rows), "test": len(test)} | how
        row |= {
            "mae": f"{(found - energy[test]).abs().mean():.2f}",
            "mae_composition": f"{rest[test].abs().mean():.2f}",
        }
        row |= {key: f"{value:.1e}" for key, value in symmetry(name, net, *cut(kinds, places, test[:20])).items()}
        row |= {"parameters": sum(p.numel() for p in net.parameters()), "minutes": f"{minutes:.1f}"}
        append_row(options.table, row)
        print(row, flush=True)
        draw(energy[test], found, read_rows(options.table), options.figure)


if __name__ == "__main__":
    main()

"""Gravity and the tensor of inertia, learned from points: what the radial functions become.

python scripts/point_physics.py               # ten minutes on one core; --steps 1000 --inertia-steps 3000 is shorter

One layer of a tensor field network maps masses to accelerations (1e), another to the tensor of inertia about each point
(0e + 2e). Physics says what their radial functions must be: -1/r² for the one, 2r²/3 and -r² for the other. Rows go to
results/points/physics.csv, the functions to docs/points/physics.png.
Source: Thomas et al. 2018, section 5.2, and the authors' notebooks: loss of gravity 5621 → 1.36 in 1,000 steps, 30
bumps up to 2 (here to 3.5), trained on up to 10 points and tested on up to 50; loss of inertia 136.9 → 0.002 in 10,000
steps.
"""

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from eqdmri_monai.bases.angular import harmonics
from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row
from eqdmri_monai.neighbours import everyone
from eqdmri_monai.nn import PointConv

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.5  # between two points: the pull grows without bound below
NUM_RADIAL, RADIUS = 30, 3.5  # the box's diagonal


def cloud(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return masses (1, 1, N) from 0.5 to 1.5 and places (1, N, 3) in a box of side 2, apart from each other."""
    places = torch.empty(0, 3)
    while len(places) < count:
        new = 2 * torch.rand(1, 3, generator=generator) - 1
        if not len(places) or (places - new).norm(dim=1).min() > LEAST:
            places = torch.cat([places, new])
    return 0.5 + torch.rand(1, 1, count, generator=generator), places[None]


def pairs(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return offsets (N, N, 3) from each point to the others, and their lengths, 1 on the diagonal."""
    offset = places[0][None] - places[0][:, None]
    return offset, offset.norm(dim=-1) + torch.eye(len(offset))


def acceleration(masses: Tensor, places: Tensor) -> Tensor:
    """Return the pull on each point, shape (1, 3, N), with G = 1."""
    offset, length = pairs(places)
    return (masses[0, 0][None, :, None] * offset / length[..., None] ** 3).sum(1).T[None]


def inertia(masses: Tensor, places: Tensor) -> Tensor:
    """Return the tensor of inertia about each point as 0e + 2e, shape (1, 6, N): m (2r²/3) and m r² Y_2 / √5.

    It is Σ m (r² 1 - r r), whose isotropic part is 2r²/3 and whose other part is minus the traceless r r.
    """
    offset, length = pairs(places)
    square = masses[0, 0][None] * length.square() * (1 - torch.eye(len(offset)))
    sh = harmonics(2, offset)[..., 4:]
    return torch.cat([(2 / 3 * square).sum(1)[:, None], -(square[..., None] * sh).sum(1)], 1).T[None]


TASKS = {"gravity": ("1e", acceleration), "inertia": ("0e+2e", inertia)}


def layer(task: str) -> PointConv:
    return PointConv(
        "0e", TASKS[task][0], radius=RADIUS, num_radial=NUM_RADIAL, hidden=(30,), z=1.0, self_connection=False
    )


def predict(conv: PointConv, masses: Tensor, places: Tensor) -> Tensor:
    mask = torch.ones(places.shape[:2], dtype=torch.bool)
    return conv(masses, places, everyone(mask, mask, own=False))


def loss_of(conv: PointConv, task: str, count: int, generator: torch.Generator) -> Tensor:
    """Return half the summed squared error of one cloud, as the notebooks do."""
    masses, places = cloud(count, generator)
    return 0.5 * (predict(conv, masses, places) - TASKS[task][1](masses, places)).square().sum()


def train(task: str, steps: int, seed: int) -> tuple[PointConv, list[float]]:
    torch.manual_seed(seed)
    generator, conv = torch.Generator().manual_seed(seed), layer(task)
    optimizer, losses = torch.optim.Adam(conv.parameters(), lr=1e-2), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    for _ in range(steps):
        optimizer.zero_grad()
        count = int(torch.randint(2, 11, (), generator=generator))
        loss = loss_of(conv, task, count, generator)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return conv, losses


def radial_functions(conv: PointConv, length: Tensor) -> Tensor:
    """Return the functions (paths, lengths) that masses are multiplied with, per unit of a unit vector or r̂r̂ harmonics.

    The sign of odd degrees is that of the offset: `PointConv` counts it from the neighbour to the point.
    """
    radial = conv.scale * conv.radial(length)  # [n, paths]
    mixed = [w.flatten()[0] * radial[:, k] for k, w in enumerate(conv.mix.weights)]
    return torch.stack(mixed)


@torch.no_grad()
def test(conv: PointConv, task: str, counts: tuple[int, ...], seed: int) -> float:
    """Return the root mean square error relative to the target's root mean square."""
    generator, error, size = torch.Generator().manual_seed(1000 + seed), 0.0, 0.0
    for _ in range(20):
        for count in counts:
            masses, places = cloud(count, generator)
            target = TASKS[task][1](masses, places)
            error += (predict(conv, masses, places) - target).square().sum().item()
            size += target.square().sum().item()
    return (error / size) ** 0.5


@torch.no_grad()
def draw(layers: dict[str, PointConv], path: Path) -> None:
    """Draw the learned radial functions over the physical ones."""
    r = torch.linspace(LEAST, 2.5, 200)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    curves = [("gravity", 0, -(3**-0.5) / r**2, "gravity, l = 1"), ("inertia", 0, 2 / 3 * r**2, "inertia, l = 0")]
    curves.append(("inertia", 1, -(r**2), "inertia, l = 2"))
    for ax, (task, k, physical, title) in zip(figure.subplots(1, 3), curves, strict=True):
        if task not in layers:
            continue
        ax.plot(r, physical, "k", linewidth=3, alpha=0.3, label="physics")
        ax.plot(r, radial_functions(layers[task], r)[k], "--", label="learned")
        ax.set_title(title)
        ax.set_xlabel("distance")
        ax.legend()
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of gravity")
    parser.add_argument("--inertia-steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "physics.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "physics.png")
    options = parser.parse_args()
    layers = {}
    for task, steps in (("gravity", options.steps), ("inertia", options.inertia_steps)):
        start = time.time()
        layers[task], losses = train(task, steps, options.seed)
        row = {
            "task": task, "steps": steps, "seed": options.seed, "first_loss": f"{sum(losses[:10]) / 10:.4g}",
            "last_loss": f"{sum(losses[-50:]) / 50:.3g}",
            "error_up_to_10": f"{test(layers[task], task, (2, 5, 10), options.seed):.4f}",
            "error_up_to_50": f"{test(layers[task], task, (20, 50), options.seed):.4f}",
            "seconds": f"{time.time() - start:.0f}",
        }  # fmt: skip
        append_row(options.table, row)
        print(row, flush=True)
    draw(layers, options.figure)


if __name__ == "__main__":
    main()

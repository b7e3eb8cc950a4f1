"""Digits turned by any angle, by group: LieConv on the pixels as points.

python scripts/rotmnist.py --data DATA --groups T2 SO2 --epochs 6     # DATA/ml_mnist/mnist.npz
python scripts/rotmnist.py --data DATA --groups T2 SO2 --upright      # train upright, test turned

A row for each group goes to results/points/rotmnist.csv, a figure of all rows to docs/points/rotmnist.png. The official
RotMNIST is a set of 12,000 turned MNIST digits; here digits of MNIST are turned by angles from the seed (bilinear).
Source: Finzi et al. 2020, section 5.1, Table 1 and appendix C.5 (k = 128, 500 epochs, error 1.24 to 1.58 %).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor, nn

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row, read_rows
from eqdmri_monai.groups import SE2, SO2, Group, ScaleRotation, T, Trivial
from eqdmri_monai.networks import LieResNet

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "Trivial": Trivial(2),
    "T1y": T(2, axes=(0,)),
    "T2": T(2),
    "SO2": SO2(),
    "SO2xR": ScaleRotation(),
    "SE2": SE2(),
}
SAME_LIFTS = 8  # batches; new neighbours cost as much as a few steps
PAPER = {"Trivial": 1.58, "T1y": 1.49, "T2": 1.44, "SO2": 1.42, "SO2xR": 1.27, "SE2": 1.24}  # error in %


def pixels(radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return which of the 28 × 28 pixels lie in the inscribed circle, and where (1, N, 2), given its radius."""
    axis = (torch.arange(28.0) - 13.5) / 13.5
    places = torch.cartesian_prod(axis, axis)
    inside = places.norm(dim=1) <= 1.0
    return inside, radius * places[inside][None]


def digits(images: np.ndarray, rng: np.random.Generator, *, turned: bool) -> Tensor:
    """Return the pixels (n, 1, N) inside the circle, scaled to mean 0 and deviation 1 over MNIST."""
    if turned:
        turn = lambda image: ndimage.rotate(image, rng.uniform(0, 360), reshape=False, order=1)  # noqa: E731
        images = np.stack([turn(image) for image in images])
    inside, _ = pixels()
    return (torch.from_numpy(images).float().flatten(1)[:, inside][:, None] / 255 - 0.1307) / 0.3081


def train(
    net: LieResNet, places: Tensor, x: Tensor, y: Tensor, *, epochs: int, batch: int, rate: float, seed: int
) -> None:
    """Train with Adam and a cosine schedule, as the paper does; the grid's geometry is the same for all images."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    geometry = net.geometry(net.lift(places, generator=generator))
    for epoch in range(epochs):
        start, total = time.time(), 0.0
        parts = torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch)
        for step, part in enumerate(parts):
            if not net.group.single_valued and step % SAME_LIFTS == 0:  # fresh lifts
                geometry = net.geometry(net.lift(places, generator=generator))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net.convolve(x[part], geometry), y[part])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * batch
        print(f"epoch {epoch + 1}: loss {total / len(x):.4f}, {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def error(net: LieResNet, places: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the share of digits that are named wrongly, in %."""
    net.eval()
    geometry = net.geometry(net.lift(places))
    wrong = sum(
        int((net.convolve(a, geometry).argmax(1) != b).sum()) for a, b in zip(x.split(200), y.split(200), strict=True)
    )
    net.train()
    return 100 * wrong / len(x)


def run(name: str, group: Group, data: Path, options: argparse.Namespace) -> dict:
    """Train and test with one group; return the row."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    file = np.load(data / "ml_mnist" / "mnist.npz")
    order = rng.permutation(60000)[: options.train]
    x = digits(file["x_train"][order], rng, turned=not options.upright)
    test = slice(options.test)
    y, y_test = (torch.from_numpy(a.astype(np.int64)) for a in (file["y_train"][order], file["y_test"][test]))
    net = LieResNet(group, 1, 10, channels=options.channels, share=0.1, neighbours=25, alpha=options.alpha)
    start, (_, places) = time.time(), pixels(options.radius)
    train(net, places, x, y, epochs=options.epochs, batch=options.batch, rate=3e-3, seed=options.seed)
    seconds = time.time() - start
    turned = error(net, places, digits(file["x_test"][test], rng, turned=True), y_test)
    upright = error(net, places, digits(file["x_test"][test], rng, turned=False), y_test)
    return {
        "group": name, "trained": "upright" if options.upright else "turned", "train": options.train,
        "epochs": options.epochs, "channels": options.channels, "radius": options.radius,
        "seed": options.seed, "test": len(y_test),
        "error_turned": f"{turned:.2f}", "error_upright": f"{upright:.2f}", "paper": PAPER[name],
        "parameters": sum(p.numel() for p in net.parameters()), "minutes": f"{seconds / 60:.1f}",
    }  # fmt: skip


def draw(table: Path, path: Path) -> None:
    """Draw the errors of all rows of the table, beside the paper's."""
    rows = read_rows(table)
    kinds = sorted({row["trained"] for row in rows})
    figure = Figure(figsize=(4.5 * len(kinds), 4), layout="constrained")
    for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        chosen = {row["group"]: row for row in rows if row["trained"] == kind}  # the latest of each group
        names = [name for name in GROUPS if name in chosen]
        places = np.arange(len(names))
        for k, (key, label) in enumerate((("error_turned", "test turned"), ("error_upright", "test upright"))):
            ax.bar(places + 0.27 * k, [float(chosen[n][key]) for n in names], 0.27, label=label)
        if kind == "turned":
            ax.bar(places + 0.54, [PAPER[n] for n in names], 0.27, label="paper, 500 epochs", color="grey")
        ax.set_xticks(places + 0.27, names)
        ax.set_ylabel("error, %")
        ax.set_title(f"trained on {kind} digits")
        ax.legend()
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ml_mnist/mnist.npz")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--upright", action="store_true", help="train on upright digits")
    parser.add_argument("--train", type=int, default=10000, help="digits to train on")
    parser.add_argument("--test", type=int, default=10000, help="digits to test on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the distance between orbits")
    parser.add_argument("--radius", type=float, default=1.0, help="of the disc: what a shift counts beside an angle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "rotmnist.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "rotmnist.png")
    options = parser.parse_args()
    for name in options.groups:
        row = run(name, GROUPS[name], options.data, options)
        append_row(options.table, row)
        print(row, flush=True)
    draw(options.table, options.figure)


if __name__ == "__main__":
    main()

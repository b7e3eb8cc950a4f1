"""R³×S² MNIST: tubes of digits, one function on the sphere in each voxel, when grid and spheres are turned.

python scripts/r3s2_mnist.py --data DATA --models harmonics --epochs 6     # DATA/ml_mnist/mnist.npz

In a volume of 16³ voxels lie nine tubes with the digits 1 to 9; each voxel of a tube holds a digit of that class of its
own, projected onto one hemisphere of 192 directions. Networks are trained on volumes as they stand, and name the digit
of each voxel when the grid, the spheres or both are turned at random, both by the same rotation among them: what
happens to a diffusion scan when a head turns. A row for each network goes to results/points/r3s2_mnist.csv, a figure to
docs/points/r3s2_mnist.png.
Source: Elaldi et al. 2023 (E(3) × SO(3)-equivariant networks), who turn grid and spheres independently.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from e3nn import o3
from matplotlib.figure import Figure
from monai.losses import DiceCELoss
from torch import Tensor, nn

from eqdmri_monai.bases import Radial
from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row, read_rows
from eqdmri_monai.networks import PQNet, SphereNet
from eqdmri_monai.nn import PConv, PStack, ShellHarmonics, TensorProductNonlinearity
from eqdmri_monai.symmetry import cube_rotations, turn_grid

ROOT = Path(__file__).resolve().parents[1]
SIZE, CROP = 16, 14  # voxels of a volume, pixels of a digit's part
STARTS = 1, 6, 11  # of the tubes, 4 voxels wide
NSIDE = 4
# Volumes are turned as (grid, spheres); in "gridvoxel" by two rotations, in "same" by one.
VARIANTS = {"norot": (0, 0), "grid": (1, 0), "voxel": (0, 1), "gridvoxel": (1, 2), "same": (1, 1)}
# Read off a bar chart, ± 2: trained without rotation. Nothing is published for "same".
PUBLISHED = {
    "E(3) × SO(3)": {"norot": 100, "grid": 42, "voxel": 80, "gridvoxel": 35},
    "SO(3)": {"norot": 49, "grid": 49, "voxel": 17, "gridvoxel": 17},
    "E(3) + SH": {"norot": 100, "grid": 65, "voxel": 11, "gridvoxel": 11},
}


def healpix(nside: int) -> Tensor:
    """Return the centres of the 12 nside² pixels in rings from north to south, Górski et al. 2005, eq. 4 to 9."""
    rings = []
    for i in range(1, 4 * nside):
        cap = min(i, 4 * nside - i)  # rings of the caps have 4 · cap pixels, all others 4 · nside
        count = 4 * min(cap, nside)
        if cap < nside:
            z = (1 - cap**2 / (3 * nside**2)) * (1 if i < 2 * nside else -1)
            shift = 0.5
        else:
            z, shift = 4 / 3 - 2 * i / (3 * nside), 0.5 * ((i - nside + 1) % 2)
        angle = 2 * torch.pi * (torch.arange(count) + shift) / count
        r = (1 - z**2) ** 0.5
        rings.append(torch.stack([r * angle.cos(), r * angle.sin(), torch.full_like(angle, z)], 1))
    return torch.cat(rings)


Q = healpix(NSIDE)  # a shell of b = 1000 s/mm²


def volume(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return labels (SIZE, SIZE, SIZE), 0 outside the tubes, and digits (SIZE³, CROP, CROP), uint8."""
    label, digits = np.zeros(3 * (SIZE,), int), np.zeros((*3 * (SIZE,), CROP, CROP), np.uint8)
    corners = [(x, y) for x in STARTS for y in STARTS]
    for digit, (x, y) in zip(rng.permutation(np.arange(1, 10)), corners, strict=True):
        tube = slice(x, x + 4), slice(y, y + 4)
        label[tube] = digit
        chosen = images[rng.choice(np.flatnonzero(labels == digit), 16 * SIZE)]
        low = rng.integers(0, 28 - CROP + 1, (2, 16 * SIZE, 1)) + np.arange(CROP)
        parts = chosen[np.arange(16 * SIZE)[:, None, None], low[0][:, :, None], low[1][:, None]]
        digits[tube] = parts.reshape(4, 4, SIZE, CROP, CROP)
    return torch.from_numpy(label), torch.from_numpy(digits).flatten(0, 2)


def rendered(label: Tensor, digits: Tensor, of_grid: Tensor, of_spheres: Tensor) -> tuple[Tensor, Tensor]:
    """Return a volume (192, SIZE, SIZE, SIZE) and labels, turned: the grid by nearest neighbour, spheres exactly."""
    seen = Q @ of_spheres  # R⁻¹ of each direction
    place = (seen[:, :2] / (1 + seen[:, 2:]).clamp(min=1e-3) + 1) * (CROP - 1) / 2  # stereographic, in pixels
    low = place.floor().clamp(0, CROP - 2).long()
    part, image = place - low, 0.0
    for a, b in itertools.product((0, 1), repeat=2):  # bilinear
        weight = (part[:, 0] if a else 1 - part[:, 0]) * (part[:, 1] if b else 1 - part[:, 1]) * (seen[:, 2] > -1e-6)
        image = image + weight * digits[:, low[:, 0] + a, low[:, 1] + b]
    image = 4 / 255 * image  # a mean square near 1 in the tubes
    middle = (SIZE - 1) / 2
    place = torch.cartesian_prod(*3 * (torch.arange(SIZE),)) - middle
    source = (place @ of_grid + middle).round().long()
    inside = ((source >= 0) & (source < SIZE)).all(1)
    x, y, z = source.clamp(0, SIZE - 1).T
    flat = (x * SIZE + y) * SIZE + z
    image = (image[flat] * inside[:, None]).T.reshape(-1, *3 * (SIZE,))
    return image, (label.flatten()[flat] * inside).reshape(3 * (SIZE,))


class HarmonicNet(nn.Module):
    """Harmonics of the shell; a layer over voxels whose features are multiplied with each other; gated layers."""

    def __init__(self, lmax: int):
        super().__init__()
        self.harmonics = ShellHarmonics(lmax, even=False, radial=Radial(num_q=1))
        self.product = TensorProductNonlinearity("8x0e+4x1e+4x2e+2x3e+2x4e")
        self.first = PConv(self.harmonics.irreps_out, self.product.irreps_in, kernel_size=3)
        self.layers = PStack([self.product.irreps_out, "24x0e+4x1e", "10x0e"], kernel_size=3)

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """Return logits (B, 10, X, Y, Z) of an image (B, Q, X, Y, Z)."""
        return self.layers(self.product(self.first(self.harmonics(image, q))))


def sphere_net() -> SphereNet:
    return SphereNet(
        (4, 4), ("24x0e+6x1e", "24x0e+6x1e"), "10x0e", lmax=4, even=False, kernel_size=3, radial=Radial(num_q=1)
    )


def pq_net() -> PQNet:
    return PQNet(("8x0e+4x1e",), ("24x0e+6x1e", "24x0e+6x1e"), "10x0e", kernel_size=3, antipodal=False, recompute=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "harmonics": lambda: HarmonicNet(6),
    "SphereNet": sphere_net,
    "PQNet": pq_net,
}


def train(net: nn.Module, volumes: list[tuple[Tensor, Tensor]], *, epochs: int, batch: int, seed: int) -> None:
    """Train with half Dice, half cross entropy, as the paper does, on half a volume at a time: tubes run along z."""
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5)
    optimizer, steps = torch.optim.Adam(net.parameters(), lr=1e-2), epochs * (len(volumes) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    generator, start = torch.Generator().manual_seed(seed), time.time()
    for epoch in range(epochs):
        total = 0.0
        for part in torch.randperm(len(volumes), generator=generator)[: len(volumes) // batch * batch].split(batch):
            z = int(torch.randint(SIZE // 2 + 1, (), generator=generator))
            image, label = (torch.stack([volumes[i][k][..., z : z + SIZE // 2] for i in part]) for k in (0, 1))
            optimizer.zero_grad()
            loss = loss_of(net(image, Q), label[:, None])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * batch / len(volumes)
        print(f"epoch {epoch + 1}: loss {total:.3f}, {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def score(net: nn.Module, volumes: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the share of the tubes' voxels that are named rightly, and the mean Dice of the ten classes, in %."""
    count = torch.zeros(10, 10)
    for image, label in volumes:
        found = net(image[None], Q)[0].argmax(0)
        count += torch.bincount(10 * label.flatten() + found.flatten(), minlength=100).view(10, 10)
    right = count.diagonal()
    dice = 2 * right / (count.sum(0) + count.sum(1))
    return {"accuracy": 100 * float(right[1:].sum() / count[1:].sum()), "dice": 100 * float(dice.mean())}


@torch.no_grad()
def change_by_quarter_turns(net: nn.Module, image: Tensor) -> tuple[float, bool]:
    """Return how far logits change when grid and directions turn alike, all 24 ways, and whether all labels stay."""
    logits, change, same = net(image[None], Q)[0], 0.0, True
    for R in cube_rotations()[1:]:
        found, wanted = net(turn_grid(image, R)[None], Q @ R.T.to(Q))[0], turn_grid(logits, R)
        change = max(change, float((found - wanted).abs().max()))
        same = same and torch.equal(found.argmax(0), wanted.argmax(0))
    return change, same


def turned(volumes: list[tuple[Tensor, Tensor]], variant: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Render volumes, each turned by rotations of its own."""
    torch.manual_seed(seed)
    found = []
    for label, digits in volumes:
        rotations = [torch.eye(3), *o3.rand_matrix(2)]
        of_grid, of_spheres = (rotations[k] for k in VARIANTS[variant])
        found.append(rendered(label, digits, of_grid, of_spheres))
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Draw the accuracies of the latest row of each network, and what is published."""
    shown = {row["model"]: {name: float(row[name]) for name in VARIANTS} for row in rows if row["trained"] == "norot"}
    shown |= {f"{name}, published": values for name, values in PUBLISHED.items()}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    ax, width = figure.subplots(), 0.8 / len(shown)
    for k, (name, values) in enumerate(shown.items()):
        places = [i + k * width for i, variant in enumerate(VARIANTS) if variant in values]
        alpha = 0.4 if "published" in name else 1.0
        ax.bar(places, [values[v] for v in VARIANTS if v in values], width, label=name, alpha=alpha)
    ax.set_xticks([i + 0.4 - width / 2 for i in range(len(VARIANTS))], ["as trained", *list(VARIANTS)[1:]])
    ax.set_ylabel("voxels of tubes named rightly, %")
    ax.legend(fontsize=8)
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ml_mnist/mnist.npz")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--trained", choices=VARIANTS, default="norot", help="how training volumes are turned")
    parser.add_argument("--train", type=int, default=72, help="volumes to train on")
    parser.add_argument("--test", type=int, default=14, help="volumes to test on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "r3s2_mnist.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "r3s2_mnist.png")
    options = parser.parse_args()
    file, rng = np.load(options.data / "ml_mnist" / "mnist.npz"), np.random.default_rng(options.seed)
    seen = [volume(file["x_train"], file["y_train"], rng) for _ in range(options.train)]
    unseen = [volume(file["x_test"], file["y_test"], rng) for _ in range(options.test)]
    learned = turned(seen, options.trained, options.seed)
    for name in options.models:
        torch.manual_seed(options.seed)
        start, net = time.time(), MODELS[name]()
        train(net, learned, epochs=options.epochs, batch=options.batch, seed=options.seed)
        minutes, net = (time.time() - start) / 60, net.eval()
        scores = {v: score(net, turned(unseen, v, 1000 + options.seed)) for v in VARIANTS}
        change, same = change_by_quarter_turns(net, turned(unseen[:1], "norot", 0)[0][0])
        row = {"model": name, "trained": options.trained, "train": options.train, "epochs": options.epochs}
        row |= {"test": options.test, "seed": options.seed, **{v: f"{s['accuracy']:.1f}" for v, s in scores.items()}}
        row |= {f"dice_{v}": f"{scores[v]['dice']:.1f}" for v in ("norot", "same")}
        row |= {"quarter_turns_change": f"{change:.1e}", "quarter_turns_same": same}
        row |= {"parameters": sum(p.numel() for p in net.parameters()), "minutes": f"{minutes:.1f}"}
        append_row(options.table, row)
        print(row, flush=True)
        draw(read_rows(options.table), options.figure)


if __name__ == "__main__":
    main()

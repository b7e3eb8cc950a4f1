"""The Tetris experiment: eight shapes learned in one orientation, recognised in all.

python scripts/tetris.py                # a table; a minute on 2 cores
python scripts/tetris.py --seeds 5 --json tetris.json

A 3D Steerable CNN and an ordinary CNN with about as many parameters see each shape once, in one orientation. They are
tested on the 24 rotations of the cube, then, trained on blurred shapes, on random rotations of these.
Source: Weiler et al. 2018, section 4.1 (100 % and 18 %), after Thomas et al. 2018.
"""

import argparse
import json
from pathlib import Path

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.networks import SteerableCNN3d
from eqdmri_monai.networks.steerable_cnn import GlobalMean
from eqdmri_monai.symmetry import cube_rotations, turn_grid

# The eight ways to glue four cubes together; the first two are mirror images.
SHAPES = torch.tensor(
    [
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, -1, 0]],
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 1]],
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0]],
    ]
)
SIZE = 7  # voxels of the grid along each axis
BLURRED_SIZE = 11
BLUR = 1.0  # voxels; standard deviation of a cube that is turned by any angle
SPREAD = 1.5  # voxels between the cubes of a blurred shape
CLASSES = torch.arange(8)


def voxels() -> Tensor:
    """Return the shapes on a grid, mean square 1, shape (8, 1, SIZE, SIZE, SIZE)."""
    grid = torch.zeros(8, 1, SIZE, SIZE, SIZE)
    for k, cubes in enumerate(SHAPES):
        x, y, z = (cubes + SIZE // 2 - cubes.float().mean(0).round().int()).T
        grid[k, 0, x, y, z] = (SIZE**3 / 4) ** 0.5
    return grid


def blurred(R: Tensor) -> Tensor:
    """Return the shapes as sums of Gaussians, mean square 1, turned by R about their centres, on the larger grid."""
    centres = SPREAD * (SHAPES.float() - SHAPES.float().mean(1, keepdim=True)) @ R.T
    points = torch.cartesian_prod(*3 * (torch.arange(BLURRED_SIZE) - BLURRED_SIZE // 2,)).float()
    square = (points[None, :, None] - centres[:, None]).square().sum(-1)
    grid = torch.exp(-0.5 * square / BLUR**2).sum(-1)
    return (grid / grid.square().mean(1, keepdim=True).sqrt()).reshape(8, 1, *3 * (BLURRED_SIZE,))


def steerable() -> nn.Module:
    """Return a 3D Steerable CNN; mirror images need three layers (vector, axial vector, pseudoscalar)."""
    return SteerableCNN3d(fields=[(6, 4, 3, 0), (8, 4, 3, 0), (16, 0, 0, 0)], irreps_out="8x0e", whole=True)


def plain() -> nn.Module:
    """Return an ordinary CNN of about the same size, with the same kernels and the same mean over voxels."""
    layers = [nn.Conv3d(1, 5, 5, padding=2), nn.LeakyReLU(), nn.Conv3d(5, 3, 5, padding=2), nn.LeakyReLU()]
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(3, 8))


def train(network: nn.Module, grid: Tensor, steps: int) -> nn.Module:
    """Learn the eight shapes in the orientation that they are given in."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(grid), CLASSES).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, grids: list[Tensor]) -> float:
    return torch.stack([(network(grid).argmax(1) == CLASSES).float().mean() for grid in grids]).mean().item()


def experiment(make, seed: int, steps: int) -> dict[str, float]:
    """Return a network's accuracies; 1/8 is chance."""
    torch.manual_seed(seed)
    network, grid = train(make(), voxels(), steps), voxels()
    turned = [turn_grid(grid, R) for R in cube_rotations()]
    result = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "as trained": accuracy(network, [grid]),
        "24 cube rotations": accuracy(network, turned),
    }
    network = train(make(), blurred(torch.eye(3)), steps)
    torch.manual_seed(seed)
    any_angle = [blurred(R) for R in o3.rand_matrix(50)]
    result["blurred, as trained"] = accuracy(network, [blurred(torch.eye(3))])
    result["blurred, random rotations"] = accuracy(network, any_angle)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, with seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    results = {}
    for name, make in {"3D Steerable CNN": steerable, "ordinary CNN": plain}.items():
        results[name] = [experiment(make, seed, options.steps) for seed in range(options.seeds)]
        for row in results[name]:
            numbers = (f"{key} {value if key == 'parameters' else f'{value:.0%}'}" for key, value in row.items())
            print(f"{name:17}", ", ".join(numbers), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""Springs: learn the energy of six masses from short pieces of their motion, and keep their momenta.

python scripts/springs.py --trajectories 100 300          # --epochs 3 is seconds a model

`HLieConv` is a potential V(q; m, k) of a `LieResNet`, its kinetic energy |p|²/2m known; with SO(2) and centred
positions it is invariant under rigid motions, so that linear and angular momentum are kept. It is compared with T(2),
with a fully connected Hamiltonian network (HFC) and with a fully connected network of the motion itself (FC). A row for
each model and number of trajectories goes to results/points/springs.csv, drifts and errors to docs/points/springs.png.
Source: Finzi et al. 2020, section 6, appendix C.4, Figures 7 and 8 (384 channels, 4 blocks, 100 epochs at 1,000).
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.writing import append_row, read_rows
from eqdmri_monai.groups import SO2, T
from eqdmri_monai.networks import LieResNet

ROOT = Path(__file__).resolve().parents[1]
BODIES = 6
STEP = 0.01  # s between states; leapfrog's step too: the stiffest springs have 28 rad/s, stable below 2/28 s
TRUTH_STEP = 0.001  # s; RK4 drifts by 6e-4 of the energy in 5 s at 0.01
LENGTH = 5.0  # s of a trajectory
PIECE = 5  # states of a training example
ROLLOUT = 4, 10, 20, 50, 100  # steps after which errors are measured

State = tuple[Tensor, Tensor]  # q and p, each (B, BODIES, 2)


def systems(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, State]:
    """Return masses and spring constants (B, BODIES), and initial states with no momentum of the whole."""
    m = 0.1 + 3 * torch.rand(count, BODIES, generator=generator, dtype=torch.float64)
    k = 5 * torch.rand(count, BODIES, generator=generator, dtype=torch.float64)
    q, p = (s * torch.randn(count, BODIES, 2, generator=generator, dtype=torch.float64) for s in (0.4, 0.6))
    return m, k, (q, p - p.mean(1, keepdim=True))  # each system's own mean


def true_force(q: Tensor, k: Tensor) -> Tensor:
    """Return the force of springs k_i k_j between all bodies, shape (B, BODIES, 2)."""
    return (k[:, :, None, None] * k[:, None, :, None] * (q[:, None] - q[:, :, None])).sum(2)


def true_motion(m: Tensor, k: Tensor, state: State) -> State:
    """Return states at STEP apart over LENGTH by RK4, each (steps + 1, B, BODIES, 2)."""
    q, p = state
    every, found = round(STEP / TRUTH_STEP), [state]
    rate = lambda q, p: (p / m[..., None], true_force(q, k))  # noqa: E731
    for i in range(1, round(LENGTH / TRUTH_STEP) + 1):
        h, a = TRUTH_STEP, rate(q, p)
        b = rate(q + h / 2 * a[0], p + h / 2 * a[1])
        c = rate(q + h / 2 * b[0], p + h / 2 * b[1])
        d = rate(q + h * c[0], p + h * c[1])
        q, p = (x + h / 6 * (a[j] + 2 * b[j] + 2 * c[j] + d[j]) for j, x in enumerate((q, p)))
        if i % every == 0:
            found.append((q, p))
    return torch.stack([q for q, _ in found]), torch.stack([p for _, p in found])


def leapfrog(m: Tensor, state: State, force: Callable[[Tensor], Tensor], steps: int) -> State:
    """Return the states after 1 to `steps` steps of kick, drift, kick, each (steps, B, BODIES, 2).

    Forces that add up to nothing and turn nothing leave linear and angular momentum as they were, to rounding.

    Raises
    ------
    ValueError
        When the motion grows without bound.
    """
    q, p = state
    f, found = force(q), []
    for _ in range(steps):
        p = p + STEP / 2 * f
        q = q + STEP * p / m[..., None]
        f = force(q)
        p = p + STEP / 2 * f
        if not q.detach().abs().max() < 1e4:
            raise ValueError(f"leapfrog is unstable at a step of {STEP} s; take a smaller one")
        found.append((q, p))
    return torch.stack([q for q, _ in found]), torch.stack([p for _, p in found])


class LieHamiltonian(nn.Module):
    """Motion of a potential V(q; m, k) that is a LieResNet over the bodies, centred where the group has no shifts."""

    def __init__(self, group: SO2 | T, channels: int, blocks: int):
        super().__init__()
        self.centred = isinstance(group, SO2)
        options = {"channels": channels, "blocks": blocks, "neighbours": None, "batch_norm": False}
        self.potential = LieResNet(group, 2, 1, **options)

    def energy(self, q: Tensor, m: Tensor, k: Tensor) -> Tensor:
        q = q - q.mean(1, keepdim=True) if self.centred else q
        return BODIES * self.potential(torch.stack([m, k], 1), q)[:, 0]

    def motion(self, m: Tensor, k: Tensor, state: State, steps: int) -> State:
        return leapfrog(m, state, lambda q: -gradient(lambda x: self.energy(x, m, k), q, self.training), steps)


class FullyConnected(nn.Module):
    """Four layers on all positions, masses and constants of the bodies together."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        widths = [inputs, width, width, width, outputs]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, *parts: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1) for x in parts], 1))


class HFC(nn.Module):
    """Motion of a fully connected potential."""

    def __init__(self, width: int):
        super().__init__()
        self.potential = FullyConnected(4 * BODIES, 1, width)

    def motion(self, m: Tensor, k: Tensor, state: State, steps: int) -> State:
        energy = lambda q: self.potential(q, m, k)[:, 0]  # noqa: E731
        return leapfrog(m, state, lambda q: -gradient(energy, q, self.training), steps)


class FC(nn.Module):
    """Motion whose rate is a fully connected network of the state, by the midpoint rule."""

    def __init__(self, width: int):
        super().__init__()
        self.rate = FullyConnected(6 * BODIES, 4 * BODIES, width)

    def motion(self, m: Tensor, k: Tensor, state: State, steps: int) -> State:
        (q, p), found = state, []
        rate = lambda q, p: self.rate(q, p, m, k).view(-1, 2, BODIES, 2).unbind(1)  # noqa: E731
        for _ in range(steps):
            dq, dp = rate(q, p)
            dq, dp = rate(q + STEP / 2 * dq, p + STEP / 2 * dp)
            q, p = q + STEP * dq, p + STEP * dp
            found.append((q, p))
        return torch.stack([q for q, _ in found]), torch.stack([p for _, p in found])


def gradient(energy: Callable[[Tensor], Tensor], q: Tensor, training: bool) -> Tensor:
    with torch.enable_grad():
        x = q if q.requires_grad else q.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x, create_graph=training)[0]


def models(channels: int, blocks: int, width: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "HLieConv-SO2*": lambda: LieHamiltonian(SO2(), channels, blocks),
        "HLieConv-T2": lambda: LieHamiltonian(T(2), channels, blocks),
        "HFC": lambda: HFC(width),
        "FC": lambda: FC(width),
    }


def momenta(state: State) -> tuple[Tensor, Tensor]:
    """Return linear (..., 2) and angular (...) momentum of states (..., BODIES, 2)."""
    q, p = state
    return p.sum(-2), (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(-1)


def mean_square(found: State, true: State) -> Tensor:
    return torch.stack([(a - b).square().mean() for a, b in zip(found, true, strict=True)]).mean()


def train(net: nn.Module, m: Tensor, k: Tensor, motion: State, epochs: int, seed: int) -> None:
    """Learn one piece of each trajectory, in batches of 100 at most, with Adam and a cosine schedule."""
    generator = torch.Generator().manual_seed(seed)
    count = m.shape[0]
    start = torch.randint(len(motion[0]) - PIECE + 1, (count,), generator=generator)
    rows = torch.arange(count)
    pieces = [torch.stack([x[start + i, rows] for i in range(PIECE)]) for x in motion]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    batches = (count + 99) // 100
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(count, generator=generator).chunk(batches):
            optimizer.zero_grad()
            first, rest = [x[0, part] for x in pieces], [x[1:, part] for x in pieces]
            loss = mean_square(net.motion(m[part], k[part], tuple(first), PIECE - 1), tuple(rest))
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def score(net: nn.Module, m: Tensor, k: Tensor, motion: State) -> dict[str, str]:
    """Return mean square errors after some times, and how far momenta have drifted after the last, in float64."""
    net.double()
    first = tuple(x[0] for x in motion)
    found = net.motion(m, k, first, ROLLOUT[-1])
    at = lambda steps: mean_square([x[steps - 1] for x in found], [x[steps] for x in motion])  # noqa: E731
    result = {f"mse_{STEP * steps:.2f}s": f"{at(steps):.3g}" for steps in ROLLOUT}
    (linear, angular), (linear_0, angular_0) = momenta(found), momenta(first)
    result["linear_drift"] = f"{(linear - linear_0).abs().max():.1e}"
    result["angular_drift"] = f"{(angular - angular_0).abs().max():.1e}"
    return result


def draw(rows: list[dict], path: Path) -> None:
    """Draw drifts of momenta and errors along the motion of what saw the most, and errors by number of trajectories."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    drifts, times, counts = figure.subplots(1, 3)
    latest = {(row["model"], int(row["trajectories"])): row for row in rows}
    models = list(dict.fromkeys(row["model"] for row in rows))
    most = {name: latest[name, max(n for model, n in latest if model == name)] for name in models}
    for k, kind in enumerate(("linear", "angular")):
        values = [max(float(most[name][f"{kind}_drift"]), 1e-17) for name in models]
        drifts.bar([i + 0.4 * k for i in range(len(models))], values, 0.4, label=f"{kind} momentum")
    drifts.set_xticks([i + 0.2 for i in range(len(models))], models, fontsize=7)
    drifts.set_yscale("log")
    drifts.set_ylabel(f"largest drift in {STEP * ROLLOUT[-1]:.0f} s")
    drifts.legend()
    for name in models:
        columns = [column for column in most[name] if column.startswith("mse_")]
        errors = [float(most[name][column]) for column in columns]
        times.loglog([float(c.removeprefix("mse_").removesuffix("s")) for c in columns], errors, "o-", label=name)
        points = sorted((n, float(row[columns[-1]])) for (model, n), row in latest.items() if model == name)
        counts.loglog(*zip(*points, strict=True), "o-", label=name)
    times.set_xlabel("time, s")
    times.set_ylabel("mean square error of the state")
    counts.set_xlabel("trajectories to learn from")
    counts.set_ylabel(f"mean square error after {STEP * ROLLOUT[-1]:.0f} s")
    counts.legend()
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--models", nargs="+", help="those to run; all where left out")
    parser.add_argument("--epochs", type=int, help="100 · sqrt(1000 / trajectories) where left out, as in the paper")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=256, help="of fully connected layers")
    parser.add_argument("--test", type=int, default=100, help="trajectories to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "springs.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "springs.png")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    m, k, state = systems(max(options.trajectories) + options.test, generator)
    motion = true_motion(m, k, state)
    for count in options.trajectories:
        epochs = options.epochs or round(100 * (1000 / count) ** 0.5)
        for name, make in models(options.channels, options.blocks, options.width).items():
            if options.models and name not in options.models:
                continue
            torch.manual_seed(options.seed)
            start, net = time.time(), make()
            seen = [x[..., :count, :, :].float() for x in motion]
            train(net, m[:count].float(), k[:count].float(), tuple(seen), epochs, options.seed)
            test = slice(-options.test, None)
            row = {"model": name, "trajectories": count, "epochs": epochs, "channels": options.channels}
            row |= {"blocks": options.blocks, "seed": options.seed}
            row |= score(net, m[test], k[test], tuple(x[:, test] for x in motion))
            row |= {"parameters": sum(p.numel() for p in net.parameters()), "seconds": f"{time.time() - start:.0f}"}
            append_row(options.table, row)
            print(row, flush=True)
            draw(read_rows(options.table), options.figure)


if __name__ == "__main__":
    main()

"""Bundles in any pose: streamlines of five heads, each labelled by what was learned on the other four.

python scripts/make_tractograms.py --folder tractograms
python scripts/bundles.py --folder tractograms          # 30 minutes on one core; --steps 60 --heads 1 is a minute
python scripts/bundles.py --folder tractograms --weights bundle/models/bundles.pt     # on head 5, not learned from

`StreamlineNet` sees every head as it lies in the scanner, without registration and without turned copies. It is
compared with the nearest neighbour by MDF distance, with and without a rigid streamline registration (SLR),
RecoBundles, and a 1D CNN on coordinates about the head's centre, with and without turned copies. A row for each method
and held-out head goes to results/points/bundles.csv, a figure to docs/points/bundles.png; one for each file of weights
to results/points/bundles_weights.csv.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dipy.align.streamlinear import StreamlineLinearRegistration
from dipy.segment.bundles import RecoBundles
from dipy.segment.clustering import QuickBundles
from dipy.tracking.distances import bundles_distances_mdf
from dipy.tracking.streamline import Streamlines
from e3nn import o3
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from eqdmri_monai.files.figures import save_figure
from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.files.writing import append_row, read_rows
from eqdmri_monai.networks import StreamlineNet
from eqdmri_monai.transforms import (
    LoadTractogramd,
    RandDropBundlesd,
    RandSpliceStreamlinesd,
    RandStretchStreamlinesd,
    RandTruncateStreamlinesd,
    ResampleStreamlinesd,
)
from eqdmri_monai.transforms.streamlines import spliced, truncated

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["AF_L", "AF_R", "CST_L", "CST_R", "CC_ForcepsMajor"]
OTHER = len(NAMES)
POINTS = 20
COLUMNS = (
    "upright",
    "turned",
    "poses",
    "same_labels",
    "logit_change_32",
    "logit_change_64",
    "spliced_ap",
    "truncated",
    "missing",
)


def load(folder: Path) -> list[dict[str, Tensor]]:
    """Return streamlines (S, 20, 3) and labels (S,) of each head."""
    listed = json.loads((folder / "tractograms.json").read_text())
    read, resample = LoadTractogramd("image", names=NAMES), ResampleStreamlinesd("image", POINTS)
    heads = [resample(read({"image": str(folder / i["image"])})) for i in listed["training"] + listed["validation"]]
    return [{"image": torch.as_tensor(head["image"].as_tensor()), "label": head["label"]} for head in heads]


def turned(image: Tensor, R: Tensor, shift: Tensor) -> Tensor:
    """Turn a head about its centre and move it, mm."""
    centre = image.mean((0, 1))
    return (image - centre) @ R.T.to(image) + centre + shift.to(image)


def poses(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return rotations, evenly drawn, and shifts of 50 mm along each axis, float64."""
    generator = torch.Generator().manual_seed(seed)
    quaternions = nn.functional.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=1)
    return list(zip(o3.quaternion_to_matrix(quaternions), 50 * torch.randn(count, 3, generator=generator), strict=True))


def train_network(heads: list[dict], steps: int, seed: int) -> StreamlineNet:
    """Train as `bundle/configs/bundles_train.yaml` does."""
    torch.manual_seed(seed)
    net = StreamlineNet(len(NAMES) + 1)
    vary = [
        RandStretchStreamlinesd("image"),
        RandDropBundlesd(["image", "label"]),
        RandTruncateStreamlinesd("image"),
        RandSpliceStreamlinesd(["image", "label"], other=OTHER),
    ]
    for k, transform in enumerate(vary):
        transform.set_random_state(seed=10 * seed + k)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        item = heads[step % len(heads)]
        for transform in vary:
            item = transform(item)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(item["image"][None]), item["label"][None])
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"  step {step}: loss {loss.item():.3f}", flush=True)
    return net.eval()


@torch.no_grad()
def score_network(net: StreamlineNet, head: dict, count: int, seed: int) -> dict[str, float]:
    """Return what the table says of the network on a head it has not seen."""
    image, label = head["image"], head["label"]
    right = lambda image, label: float((net(image[None])[0].argmax(0) == label).float().mean())  # noqa: E731
    logits, where = net(image[None])[0], poses(count, seed)
    moved = [net(turned(image, *pose)[None])[0] for pose in where]
    change = max(float((m - logits).abs().max()) for m in moved)
    torch.set_default_dtype(torch.float64)  # e3nn's couplings are made in the default type, and kept in state dicts
    double = StreamlineNet(len(NAMES) + 1)
    for exact, trained in zip(double.parameters(), net.parameters(), strict=True):
        exact.copy_(trained)
    exact = double(image.double()[None])[0]
    change_64 = max(float((double(turned(image.double(), *pose)[None])[0] - exact).abs().max()) for pose in where[:20])
    torch.set_default_dtype(torch.float32)
    rng = np.random.RandomState(seed)
    precision = spliced_precision(lambda x: 1 - net(x[None])[0].softmax(0)[OTHER].numpy(), image, label, rng)
    return {
        "upright": right(image, label),
        "turned": float(np.mean([float((m.argmax(0) == label).float().mean()) for m in moved])),
        "poses": count,
        "same_labels": float(all(torch.equal(m.argmax(0), logits.argmax(0)) for m in moved)),
        "logit_change_32": change,
        "logit_change_64": change_64,
        "spliced_ap": precision,
        **harmed(right, image, label, rng),
    }


def spliced_precision(trust: Callable[[Tensor], np.ndarray], image: Tensor, label: Tensor, rng) -> float:
    """Return how well true streamlines are told from 20, 35 and 50 % of spliced ones: the worst average precision."""
    precision = []
    for share in (0.2, 0.35, 0.5):
        added = spliced(image, label, round(share / (1 - share) * len(image)), rng)
        true = np.r_[np.ones(len(image)), np.zeros(len(added))]
        precision.append(average_precision_score(true, trust(torch.cat([image, added]))))
    return min(precision)


class CNN(nn.Module):
    """1D CNN on one streamline's coordinates about the head's centre; the mean over both directions of travel."""

    def __init__(self):
        super().__init__()
        widths, layers = (3, 32, 64, 64), []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv1d(a, b, 5, padding=2), nn.ReLU()]
        self.layers, self.last = nn.Sequential(*layers), nn.Linear(64, len(NAMES))

    def forward(self, image: Tensor, some: Tensor | slice = slice(None)) -> Tensor:
        """Return logits of some streamlines of a head."""
        x = ((image - image.mean((0, 1))) / 50)[some].mT
        return 0.5 * sum(self.last(self.layers(y).mean(-1)) for y in (x, x.flip(-1)))


def train_cnn(heads: list[dict], steps: int, seed: int, *, augment: bool) -> CNN:
    torch.manual_seed(seed)
    net = CNN()
    optimizer, where = torch.optim.Adam(net.parameters(), lr=3e-3), poses(steps, 77 + seed)
    for step in range(steps):
        head = heads[step % len(heads)]
        image = turned(head["image"], *where[step]) if augment else head["image"]
        some = torch.randperm(len(image))[:100]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(image, some), head["label"][some]).backward()
        optimizer.step()
    return net.eval()


def nearest(image: Tensor, heads: list[dict]) -> tuple[Tensor, np.ndarray]:
    """Return the label of the nearest streamline of the other heads by MDF distance, and minus that distance, mm."""
    known = torch.cat([head["image"] for head in heads]).numpy().astype(np.float32)
    distance = bundles_distances_mdf(list(image.numpy().astype(np.float32)), list(known))
    label = torch.cat([head["label"] for head in heads])[torch.from_numpy(distance.argmin(1))]
    return label, -distance.min(1)


def aligned(image: Tensor, static: Tensor) -> Tensor:
    """Move a head onto another: centre on centre, then a rigid SLR of the centroids of QuickBundles."""
    image = image + static.mean((0, 1)) - image.mean((0, 1))
    centroids = [
        Streamlines(QuickBundles(threshold=10.0).cluster(Streamlines(x.numpy().astype(np.float32))).centroids)
        for x in (static, image)
    ]
    moved = StreamlineLinearRegistration(x0="rigid").optimize(*centroids).transform(Streamlines(image.numpy()))
    return torch.from_numpy(np.stack(list(moved)))


def recobundles(image: Tensor, heads: list[dict]) -> Tensor:
    """Return labels by RecoBundles after `aligned`, models being the bundles of one other head; the closest of two."""
    lines = Streamlines(aligned(image, heads[0]["image"]).numpy().astype(np.float32))
    finder = RecoBundles(lines, greater_than=0, less_than=10**6, rng=np.random.default_rng(0))
    label, best = torch.full((len(image),), OTHER), np.full(len(image), np.inf)
    for c in range(len(NAMES)):
        model = Streamlines(heads[0]["image"][heads[0]["label"] == c].numpy().astype(np.float32))
        found, members = finder.recognize(model_bundle=model, model_clust_thr=5.0, reduction_thr=15, pruning_thr=10)
        if not len(members):
            continue
        distance = bundles_distances_mdf(list(found), list(model)).min(1)
        closer = distance < best[members]
        best[members[closer]] = distance[closer]
        label[torch.from_numpy(members[closer].astype(np.int64))] = c
    return label


def score(classify, head: dict, count: int, seed: int, trust=None) -> dict[str, float]:
    """Return the shares of right labels upright, in random poses, and upright with cut streamlines or a bundle less.

    `trust` tells true streamlines from spliced ones, upright as well.
    """
    image, label = head["image"], head["label"]
    right = lambda image, label: float((classify(image) == label).float().mean())  # noqa: E731
    rng = np.random.RandomState(seed)
    return {
        "upright": right(image, label),
        "turned": float(np.mean([right(turned(image, *pose), label) for pose in poses(count, seed)])),
        "poses": count,
        **({"spliced_ap": spliced_precision(trust, image, label, rng)} if trust else {}),
        **harmed(right, image, label, np.random.RandomState(seed)),
    }


def harmed(right, image: Tensor, label: Tensor, rng: np.random.RandomState) -> dict[str, float]:
    """Return the shares of right labels with 30 % of each streamline cut off an end, and with a bundle missing."""
    cut, flip = torch.full((len(image),), 0.3, dtype=torch.float64), torch.from_numpy(rng.rand(len(image)) < 0.5)
    missing = [right(image[label != c], label[label != c]) for c in range(len(NAMES))]
    return {"truncated": right(truncated(image, cut, flip), label), "missing": min(missing)}


def shown(found: dict[str, float]) -> dict[str, str]:
    """Return the columns of a table; empty what was not measured."""
    digits = {c: 3 if c.startswith("logit") else 4 for c in COLUMNS}
    return {c: f"{found[c]:.{digits[c]}g}" if c in found else "" for c in COLUMNS}


def draw(rows: list[dict], path: Path) -> None:
    """Draw the scores of all methods, mean and worst head."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    ax = figure.subplots()
    for k, key in enumerate(("upright", "turned")):
        values = [[100 * float(r[key]) for r in rows if r["method"] == m] for m in methods]
        bars = ax.bar([i + 0.4 * k for i in range(len(methods))], [np.mean(v) for v in values], 0.4, label=key)
        ax.bar_label(bars, fmt="%.1f", fontsize=8)
        ax.plot([i + 0.4 * k for i in range(len(methods))], [min(v) for v in values], "k_")
    ax.set_xticks([i + 0.2 for i in range(len(methods))], methods)
    ax.set_ylabel("right labels, % (line: worst head)")
    ax.legend(loc="lower right")
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what make_tractograms.py wrote")
    parser.add_argument("--steps", type=int, default=400, help="of training, one head each")
    parser.add_argument("--heads", type=int, default=5, help="how many of the heads are held out, one at a time")
    parser.add_argument("--poses", type=int, default=100)
    parser.add_argument("--slow-poses", type=int, default=10, help="of SLR and RecoBundles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", help="those to run; all where left out")
    parser.add_argument("--weights", type=Path, nargs="+", help="measure these, in place of all else")
    parser.add_argument("--table", type=Path, default=ROOT / "results" / "points" / "bundles.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "points" / "bundles.png")
    options = parser.parse_args()
    heads, few, seed = load(options.folder), options.slow_poses, options.seed
    for path in options.weights or []:
        net = StreamlineNet(len(NAMES) + 1)
        load_weights(net, path)
        row = {"weights": path.stem, "head": len(heads)} | shown(
            score_network(net.eval(), heads[-1], options.poses, seed)
        )
        append_row(options.table.with_name("bundles_weights.csv"), row)
        print(row, flush=True)
    if options.weights:
        return

    def cnn(rest: list[dict], *, augment: bool):
        net = train_cnn(rest, 10 * options.steps, seed, augment=augment)
        return lambda image: net(image).argmax(1).detach()

    def by_distance(find, head: dict, count: int) -> dict[str, float]:
        return score(lambda x: find(x)[0], head, count, seed, trust=lambda x: find(x)[1])

    methods = {
        "StreamlineNet": lambda rest, head: score_network(
            train_network(rest, options.steps, seed), head, options.poses, seed
        ),
        "MDF": lambda rest, head: by_distance(lambda x: nearest(x, rest), head, min(options.poses, 20)),
        "SLR + MDF": lambda rest, head: by_distance(
            lambda x: nearest(aligned(x, rest[0]["image"]), rest[:1]), head, few
        ),
        "RecoBundles": lambda rest, head: score(lambda x: recobundles(x, rest), head, few, seed),
        "CNN": lambda rest, head: score(cnn(rest, augment=False), head, options.poses, seed),
        "CNN, turned copies": lambda rest, head: score(cnn(rest, augment=True), head, options.poses, seed),
    }
    for name in options.methods or methods:
        for k in range(options.heads):
            start = time.time()
            found = methods[name]([head for i, head in enumerate(heads) if i != k], heads[k])
            row = {"method": name, "held_out": k + 1, "steps": options.steps, "seed": seed}
            row |= shown(found) | {"seconds": f"{time.time() - start:.0f}"}
            append_row(options.table, row)
            print(row, flush=True)
            draw(read_rows(options.table), options.figure)


if __name__ == "__main__":
    main()

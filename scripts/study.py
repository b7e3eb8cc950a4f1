"""The study: every contender is trained with one scanner left out and scored on that scanner's heads, in turn.

    python scripts/make_cohort.py study/cohort --data folder/of/scans
    python scripts/study.py study                        # short form, two cores
    python scripts/study.py study --steps 20000 --long   # long form, a GPU
    python scripts/study.py study --contenders forest --left_out none   # weights to ship: all heads
    python scripts/study.py study --schemes      # what was trained, on the same heads with other gradient schemes
    python scripts/study.py study --thresholds   # ... and what is called lesion at other thresholds

What to do is in configs/study/plan.yaml. Each finished run adds a line to results/study/runs.csv, and one for each
scan to scans.csv; a run that has its line is not done again, and one that was cut off goes on from its checkpoint.
The same command in a second process takes the runs that the first is not doing.
Thresholds and calibration come from scans of the heads that were trained on ("choice" in the cohort), nothing from
those left out.
"""

import argparse
import contextlib
import csv
import hashlib
import itertools
import json
import math
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import Dataset, MetaTensor
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from torch import nn

from eqdmri_monai.files.checkpoints import hold_folder
from eqdmri_monai.files.writing import read_rows, written_whole
from eqdmri_monai.metrics import calibration_error, ranking, scan_scores
from eqdmri_monai.networks import InvariantForest
from eqdmri_monai.nn.forest import Forest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "study"
STRENGTHS = ("faint", "medium", "strong")
SIZES = {"small": (0, 0.2), "middle": (0.2, 1.0), "large": (1.0, math.inf)}  # ml
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the calibrated probability


@dataclass(frozen=True)
class Run:
    """One training: a contender, its data, the scanner left out, a seed, how many steps, and how long ones.

    A contender is a file of configs/study, or several joined by +, each laid over those before. The learning rate is
    that of the config where it is "own".
    """

    contender: str
    data: str
    left_out: str
    seed: int
    steps: int
    learning_rate: str
    cohort: str

    @property
    def name(self) -> str:
        """A name for its folder."""
        return "_".join(str(value) for value in asdict(self).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the cohort; trainings and prepared scans go there too")
    parser.add_argument("--plan", type=Path, default=CONFIGS / "plan.yaml")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "study")
    parser.add_argument("--steps", type=int, default=400, help="of training, where the plan does not say how many")
    parser.add_argument("--long", action="store_true", help="all lines of the plan")
    parser.add_argument("--contenders", nargs="*", help="these alone")
    parser.add_argument("--left_out", nargs="*", help="these scanners alone")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--schemes", action="store_true", help="score finished runs on other schemes: schemes.csv")
    again.add_argument("--thresholds", action="store_true", help="... and at other thresholds: thresholds.csv")
    parser.add_argument("--set", nargs="*", default=[], help="of the configs, such as crops=8 amp=True; in every run")
    options = parser.parse_args()

    rows = json.loads((options.folder / "cohort" / "scans.json").read_text())
    options.results.mkdir(parents=True, exist_ok=True)
    scanners = options.left_out or sorted({row["scanner"] for row in rows})
    settings = dict(word.split("=", 1) for word in options.set)
    table = "schemes" if options.schemes else "thresholds" if options.thresholds else "runs"
    for run in planned(options.plan, scanners, options.steps, cohort_of(rows), long=options.long):
        if run.contender not in (options.contenders or [run.contender]):
            continue
        if table != "runs" and not finished(asdict(run), options.results / "runs.csv"):
            continue
        if finished(asdict(run), options.results / f"{table}.csv"):
            continue
        with alone_in(options.folder / "runs" / run.name) as alone:
            if alone and not finished(asdict(run), options.results / f"{table}.csv"):  # by another process just now
                print(f"{time.strftime('%H:%M')} {run.name}", flush=True)
                do(run, rows, options.folder, options.results, settings, table)


def cohort_of(rows: list[dict]) -> str:
    """Return a name for a list of scans: a hash of all but the lesions' volumes, which differ by a voxel by machine."""
    listed = [{key: value for key, value in row.items() if key != "lesions"} for row in rows]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:8]


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[bool]:
    """Give whether no other process does the run of a folder, and keep others from it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = hold_folder(out)
    except ValueError:
        yield False
        return
    try:
        yield True
    finally:
        if held is not None:
            held.close()


def planned(plan: Path, scanners: list[str], steps: int, cohort: str, *, long: bool) -> Iterator[Run]:
    """Yield the runs of a plan; each once, though it may answer several questions."""
    seen = set()
    for line in yaml.safe_load(plan.read_text()):
        if line.get("form") == "long" and not long:
            continue
        rates = [str(rate) for rate in line.get("learning_rates", ["own"])]
        left_out = [scanner for scanner in scanners if scanner in line.get("left_out", scanners)]
        for words in itertools.product(line["seeds"], line["data"], rates, line["contenders"], left_out):
            seed, data, rate, contender, scanner = words
            run = Run(contender, data, scanner, seed, line.get("steps", steps), rate, cohort)
            if run not in seen:
                seen.add(run)
                yield run


def finished(keys: dict, file: Path) -> bool:
    """Whether a table has a line with these values."""
    return any(all(line[key] == str(value) for key, value in keys.items()) for line in read_rows(file))


def training_rows(rows: list[dict], run: Run) -> list[dict]:
    """Return the scans that a run is trained on."""
    rows = [row for row in rows if row["section"] == "training" and row["scanner"] != run.left_out]
    if run.data in ("implanted", "simulated"):
        kinds = (run.data, "healthy") if run.data == "implanted" else (run.data,)
        return [row for row in rows if row["kind"] in kinds]
    order = np.random.default_rng(run.seed).permutation(len(rows))
    if run.data.startswith("share"):  # evenly from all heads
        share, count = int(run.data.removeprefix("share")) / 100, {}
        total = {head: sum(row["head"] == head for row in rows) for head in {row["head"] for row in rows}}
        kept = []
        for k in order:
            head = rows[k]["head"]
            if count.get(head, 0) < max(1, round(share * total[head])):
                count[head] = count.get(head, 0) + 1
                kept.append(rows[k])
        return kept
    if run.data.startswith("heads"):
        heads = list(dict.fromkeys(rows[k]["head"] for k in order))[: int(run.data.removeprefix("heads"))]
        return [row for row in rows if row["head"] in heads]
    if run.data != "both":
        raise ValueError(f"{run.data!r} is no kind of training data; see configs/study/plan.yaml")
    return rows


def do(run: Run, rows: list[dict], folder: Path, results: Path, options: dict[str, str], table: str) -> None:
    """Train, predict, score, and write the lines of a table: runs, schemes or thresholds."""
    out = folder / "runs" / run.name
    section = "schemes" if table == "schemes" else "testing"
    scans = {
        "training": training_rows(rows, run),
        "validation": [row for row in rows if row["section"] == "choice" and row["scanner"] != run.left_out],
        section: [row for row in rows if row["section"] == section and row["scanner"] == run.left_out],
    }
    datalist = out / "scans.json"
    with written_whole(datalist) as part:
        part.write_text(json.dumps({key: [files(row, folder) for row in value] for key, value in scans.items()}))
    options = options | {
        "bundle_root": str(ROOT / "bundle"), "datalist": str(datalist.absolute()), "seed": str(run.seed),
        "cache": str((folder / "prepared" / f"{code()}_{run.cohort}").absolute()),
    }  # fmt: skip
    if run.learning_rate != "own":
        options["learning_rate"] = run.learning_rate
    network, config, costs = trained(run, options, out, [row["head"] for row in scans["training"]])
    network.eval()

    choice = [predict(network, config, folder, row) for row in scans["validation"]]
    (scale, shift), threshold = chosen(choice)
    calibrate = partial(calibrated, scale=scale, shift=shift)
    scored, seconds = [], []
    for row in scans[section]:
        start = time.monotonic()
        prediction = predict(network, config, folder, row)
        seconds.append(time.monotonic() - start)
        if table == "thresholds":
            scored += [asdict(run) | line for line in at_thresholds(row, prediction, folder, calibrate)]
        else:
            scored.append(asdict(run) | score(row, prediction, folder, calibrate, threshold))
    if table != "runs":
        for row in scored:
            append(results / f"{table}.csv", row)
        return
    summary = asdict(run) | {
        "scans": len(scans["training"]),
        "parameters": sum(p.numel() for p in network.parameters()),
        **costs,
        "threshold": threshold,
        "choice_average_precision": np.mean([ranking("average_precision", p[b], t[b]) for p, t, b in choice]),
    }
    if scored:  # not where no scanner is left out
        for row in scored:
            append(results / "scans.csv", row)
        summary |= {"seconds_per_scan": round(float(np.mean(seconds)), 1)} | over_heads(scored)
        append(results / "runs.csv", summary)
    else:
        (out / "summary.json").write_text(json.dumps(summary | {"scale": scale, "shift": shift}, indent=1))
        if isinstance(network, InvariantForest):  # as it is used: calibrated
            network.second.rescale(scale, shift)
            torch.save(network.state_dict(), out / "model.pt")


def code() -> str:
    """Return a hash of the package: what another one prepared of the scans is not taken for its own."""
    sources = sorted((ROOT / "eqdmri_monai").rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:8]


def files(row: dict, folder: Path) -> dict:
    """Return the paths of a scan, for a datalist."""
    stem = (folder / "cohort" / "scans" / row["name"]).absolute()
    return {"image": f"{stem}.nii", "label": f"{stem}_lesion.nii.gz", "brain_mask": f"{stem}_brain.nii.gz"}


def trained(run: Run, options: dict[str, str], out: Path, heads: list[str]) -> tuple[nn.Module, ConfigParser, dict]:
    """Return the trained network, its config, and what training took: seconds, and memory in GB at most.

    Of a training that was cut off and went on, the seconds are those of its last part.
    """
    names = [ROOT / "bundle/configs/train.yaml", CONFIGS / "study.yaml"]
    names += [CONFIGS / f"{name}.yaml" for name in run.contender.split("+")]
    names = [str(name) for name in names if yaml.safe_load(name.read_text())]  # pqnet.yaml changes nothing
    config = ConfigParser()
    config.read_config(names)
    config.update({key: yaml.safe_load(value) for key, value in options.items()})
    config.get_parsed_content("imports")
    done, start = out / "finished.json", time.monotonic()
    if "trees" in config:
        network = grown(config, out, heads, run.seed)
        usage = resource.getrusage(resource.RUSAGE_SELF)
    elif not done.exists():
        epochs = math.ceil(run.steps / len(heads))
        settings = options | {"output_dir": str(out.absolute()), "epochs": epochs, "save_interval": max(1, epochs // 8)}
        if begun := checkpoints(out):
            settings["resume"] = str(begun[-1].absolute())
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(names), *words]
        with (out / "log.txt").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise RuntimeError(f"{run.name}: the training failed; see {out / 'log.txt'}")
    if not done.exists():
        seconds, memory = round(time.monotonic() - start), round(usage.ru_maxrss / 1e6, 2)  # kB, as Linux counts
        done.write_text(json.dumps({"training_seconds": seconds, "training_gb": memory}))
    if "trees" not in config:
        network = config.get_parsed_content("network_def")
        weights = torch.load(checkpoints(out)[-1], map_location="cpu", weights_only=False)
        network.load_state_dict(weights["network"] if "network" in weights else weights)
    return network, config, json.loads(done.read_text())


def checkpoints(out: Path) -> list[Path]:
    """Return a run's checkpoints, the newest last."""
    return sorted((out / "models").glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime)


class Trees(nn.Module):
    """A classifier of voxels in the place of a network: logits (1, 1, X, Y, Z) of features (1, F, X, Y, Z)."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = image[0].flatten(1).T.numpy()
        logits = np.full(len(features), -20.0, np.float32)
        inside = (features != 0).any(1)
        logits[inside] = self.classifier.decision_function(features[inside])
        return torch.from_numpy(logits).reshape(1, 1, *image.shape[2:])


def grown(config: ConfigParser, out: Path, heads: list[str], seed: int) -> nn.Module:
    """Return trees grown on voxels of the brains of all scans, as a network of a scan or of the numbers of boosting.

    Heads are those of the scans, in their order.
    """
    file = out / "trees.pkl"
    network = config.get_parsed_content("network_def")
    if not file.exists():
        dataset = config.get_parsed_content("train#dataset")
        parts = [voxels_of(dataset, k, config, network, seed) for k in range(len(dataset))]
        forests = [fitted(config, parts)]
        if network is not None:
            forests.append(fitted(config, seen_twice(dataset, parts, heads, config, network, seed)))
        with written_whole(file) as part:
            part.write_bytes(pickle.dumps(forests))
    forests = pickle.loads(file.read_bytes())
    if network is None:
        return Trees(*forests)
    network.first, network.second = (Forest.of(forest) for forest in forests)
    return network


def fitted(config: ConfigParser, parts: Sequence[tuple[np.ndarray, np.ndarray]]):
    """Return a classifier of numbers (N, C) and labels (N,) of all parts."""
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return clone(config.get_parsed_content("trees")).fit(x, y)


@torch.no_grad()
def seen_twice(
    dataset: Dataset, parts: list, heads: list[str], config: ConfigParser, network: nn.Module, seed: int
) -> list:
    """Return voxels with what a first forest, grown on other heads as it will be in use, makes of their scans."""
    rng, out = np.random.default_rng(seed), []
    names = sorted(set(heads))
    for group in (names[k :: config["groups"]] for k in range(config["groups"])):
        others = [(x[::2], y[::2]) for (x, y), head in zip(parts, heads, strict=True) if head not in group]
        forest = fitted(config, others)
        ours = rng.permutation([k for k, head in enumerate(heads) if head in group])
        for k in ours[: config["seen_twice"] // config["groups"]]:
            item = dataset[k]
            numbers = network.invariants(plain(item["image"])[None], item["q"])
            label, brain = (torch.as_tensor(np.asarray(item[key])[:1]) > 0.5 for key in ("label", "brain_mask"))
            inside = numbers[0].movedim(0, -1)[brain[0]]
            logits = torch.zeros(brain.shape)
            logits[brain] = torch.from_numpy(forest.decision_function(inside.numpy())).float()
            context = network.context(logits[None], brain[None])[0].movedim(0, -1)[brain[0]]
            x, y = torch.cat([inside, context], dim=1).numpy(), label[brain].numpy()
            rows = drawn(y, config["voxels"], rng)
            out.append((x[rows], y[rows]))
    return out


def drawn(y: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return which voxels are drawn: a quarter of them lesion where there are as many."""
    lesion, other = np.flatnonzero(y), np.flatnonzero(~y)
    return np.concatenate([rng.permutation(lesion)[: total // 4], rng.permutation(other)[: total - total // 4]])


@torch.no_grad()
def voxels_of(
    dataset: Dataset, k: int, config: ConfigParser, network: nn.Module | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers (N, C) and labels (N,) of voxels of one scan; those that a network computes are kept."""
    name, kept = Path(dataset.data[k]["image"]).stem, None
    if network is not None:
        kept = Path(config["cache"]) / f"{config['representation']}_voxels_{seed}" / f"{name}.npz"
        if kept.exists():
            with np.load(kept) as arrays:
                return arrays["x"], arrays["y"]
    item, rng = dataset[k], np.random.default_rng([seed, *name.encode()])
    image = plain(item["image"])
    maps = image.float() if network is None else network.invariants(image[None], item["q"])[0]
    label, brain = (np.asarray(item[key])[0] > 0.5 for key in ("label", "brain_mask"))
    x, y = np.moveaxis(maps.numpy(), 0, -1)[brain], label[brain]
    rows = drawn(y, config["voxels"], rng)
    x, y = x[rows], y[rows]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(kept) as part, part.open("wb") as file:
            np.savez(file, x=x, y=y)
    return x, y


@torch.no_grad()
def predict(network: nn.Module, config: ConfigParser, folder: Path, row: dict) -> tuple[np.ndarray, ...]:
    """Return probability, label and brain (X, Y, Z) on the scan's own grid."""
    dataset = config.get_parsed_content("validate#dataset")
    dataset.data = [files(row, folder)]
    item = dataset[0]
    inputs = {"inputs": plain(item["image"])[None]} | ({"q": plain(item["q"])[None]} if takes_q(config) else {})
    if not isinstance(network, Trees):
        device = config.get_parsed_content("device")
        network, inputs = network.to(device), {key: value.to(device) for key, value in inputs.items()}
    item["pred"] = config.get_parsed_content("validate#inferer")(network=network, **inputs)[0].cpu()
    item = config.get_parsed_content("validate#postprocessing")(item)
    brain = np.asarray(item["brain_mask"])[0] > 0.5
    return np.asarray(item["pred"], dtype=np.float32)[0], np.asarray(item["label"])[0] > 0.5, brain


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def takes_q(config: ConfigParser) -> bool:
    return "ExtraInput" in str(config["validate::evaluator::prepare_batch"])


def log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def calibrated(probability: np.ndarray, *, scale: float, shift: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(scale * log_odds(probability) + shift)))


def chosen(choice: list[tuple[np.ndarray, ...]]) -> tuple[tuple[float, float], float]:
    """Return a calibration of probabilities (Platt's: two numbers) and the threshold of the best mean Dice."""
    x = np.concatenate([log_odds(p[b]) for p, _, b in choice])[:, None]
    y = np.concatenate([t[b] for _, t, b in choice])
    platt = LogisticRegression(C=1e6).fit(x, y)
    scale, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    thresholds = np.linspace(0.02, 0.8, 40)
    dice = np.zeros(len(thresholds))
    for p, t, b in choice:
        p = calibrated(p[b], scale=scale, shift=shift)
        dice += [2 * (t[b] & (p >= k)).sum() / max((p >= k).sum() + t[b].sum(), 1) for k in thresholds]
    return (scale, shift), float(thresholds[dice.argmax()].round(3))


def score(row: dict, prediction: tuple[np.ndarray, ...], folder: Path, calibrate, threshold: float) -> dict:
    """Return the scores of one scan."""
    probability, label, brain = prediction
    probability = calibrate(probability)
    numbers = nib.load(folder / "cohort" / "scans" / f"{row['name']}_numbers.nii.gz")
    voxel_ml = float(np.prod(numbers.header.get_zooms()[:3])) / 1000
    numbers = np.asarray(numbers.dataobj) * brain
    out = {key: row.get(key, "") for key in ("head", "view", "kind", "number", "scheme")}
    out |= scan_scores(probability, label, brain, voxel_ml=voxel_ml, threshold=threshold)
    out["calibration_error"] = calibration_error(probability[brain], label[brain])
    classes = {strength: lambda lesion, s=strength: lesion["strength"] == s for strength in STRENGTHS}
    classes |= {size: lambda lesion, b=bounds: b[0] <= lesion["ml"] < b[1] for size, bounds in SIZES.items()}
    for name, belongs in classes.items():
        ours = [lesion["number"] for lesion in row["lesions"] if belongs(lesion)]
        these = np.isin(numbers, ours)
        others = brain & (these | ~label)
        out[f"average_precision_{name}"] = ranking("average_precision", probability[others], these[others])
        seen = [k for k in ours if (numbers == k).any()]
        found = sum(bool((probability[numbers == k] >= threshold).any()) for k in seen)
        out[f"lesion_sensitivity_{name}"] = found / len(seen) if seen else float("nan")
    return out


def at_thresholds(row: dict, prediction: tuple[np.ndarray, ...], folder: Path, calibrate) -> Iterator[dict]:
    """Yield what is called lesion in one scan at each of `THRESHOLDS`."""
    for threshold in THRESHOLDS:
        scores = score(row, prediction, folder, calibrate, threshold)
        kept = ("head", "view", "kind", "number", "dice", "lesion_precision", "predicted_ml")
        scores = {key: x for key, x in scores.items() if key in kept or key.startswith("lesion_sensitivity")}
        yield {"threshold": threshold} | scores


def over_heads(scored: list[dict]) -> dict:
    """Return means over heads of the means over each head's scans; ml called in scans without lesions apart."""
    heads = sorted({row["head"] for row in scored})
    out = {"heads": " ".join(heads)}

    def mean(key: str, kind: str) -> float:
        of_heads = [[r[key] for r in scored if r["head"] == head and r["kind"] == kind] for head in heads]
        return defined_mean([defined_mean(values) for values in of_heads])

    for key in scored[0]:
        if isinstance(scored[0][key], float) and not key.endswith("_ml"):
            out[key] = mean(key, "implanted")
    return out | {"healthy_ml": mean("predicted_ml", "healthy")}


def defined_mean(values: list[float]) -> float:
    """Return the mean of the values that are numbers; not a number where there is none."""
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else float("nan")


def append(file: Path, row: dict) -> None:
    """Add a line to a CSV file, with a header where it is new; it is not rewritten, since two runs may add at once."""
    row = {key: f"{value:.5g}" if isinstance(value, float | np.floating) else value for key, value in row.items()}
    new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()

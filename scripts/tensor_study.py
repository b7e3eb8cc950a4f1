"""Tensors from few directions, judged on real scans: fits, denoised fits and networks, a scanner left out in turn.

    python scripts/tensor_study.py tensors --data folder/of/scans
    python scripts/tensor_study.py tensors --data folder/of/scans --contenders tensor_mean --left_out none  # to ship
    python scripts/tensor_study.py tensors --data folder/of/scans --contenders tensor_mean --known  # on known heads

Of each scan some directions are given to a contender, and dipy's weighted fit of all the others is the reference, so
that the two share no noise but that of the b0. Each line of results/tensors/scans.csv is one contender on one such
choice; a line that is there is not done again. Networks are trained by the bundle (configs/tensors) without the
scanner that they are scored on. tensor_report.py makes tables and figures.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.denoise.localpca import mppca
from dipy.denoise.nlmeans import nlmeans
from dipy.denoise.noise_estimate import estimate_sigma
from dipy.denoise.patch2self import patch2self
from dipy.reconst.dti import TensorModel, decompose_tensor, fractional_anisotropy
from make_cohort import HEADS
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged
from scipy.ndimage import gaussian_filter, map_coordinates
from study import append, finished

from eqdmri_monai.files.reader import ScanReader
from eqdmri_monai.gradients import MIN_DIRECTIONS, GradientTable
from eqdmri_monai.networks import TensorMeanNet
from eqdmri_monai.nn.cartesian import SQUARE
from eqdmri_monai.tensors import deviator, fit_tensor, q_squares, squared_norm
from eqdmri_monai.transforms import AverageB0d, BrainMaskd, LoadGradientsd, RandSplitVolumesd, TensorToWorldd
from eqdmri_monai.transforms.scan import table_of, with_volumes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, TRAIN = ROOT / "configs" / "tensors", ROOT / "bundle" / "configs"
FITS = ("wls", "ols", "nlls")
NETWORKS = ("tensor_mean", "tensor_net", "unet", "unet_turned")
CONTENDERS = ("halves", *FITS, "mppca", "nlmeans", "patch2self", *NETWORKS)
TURNED = ("wls", "mppca", "nlmeans", *NETWORKS)  # whose agreement in turned fields of view is measured
SUBSETS = {6: 2, 10: 1, 15: 1}  # directions: choices of them in each scan
ANISOTROPIC = 0.3  # FA of the reference in what counts as white matter
ENOUGH = 20  # directions
WIDTH = 1.5  # voxels, of the Gaussian that white matter is chosen by
FLUID = 1.2  # µm²/ms
LOWEST = 0.01  # of the mean b0, as in LogSignald


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where trainings and parts of scans are kept")
    parser.add_argument("--data", type=Path, required=True, help="folder of real scans")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "tensors")
    parser.add_argument("--steps", type=int, default=600, help="of training, each of four crops of one scan")
    parser.add_argument("--contenders", nargs="*", default=CONTENDERS)
    parser.add_argument("--left_out", nargs="*", help="these scanners alone; none: train on all")
    parser.add_argument("--known", action="store_true", help="score what was trained on all heads: known.csv")
    options = parser.parse_args()
    scanners = options.left_out or sorted({scanner for scanner, _ in HEADS.values()})
    options.results.mkdir(parents=True, exist_ok=True)
    for contender, scanner in itertools.product(options.contenders, scanners):
        left_out = "none" if options.known else scanner
        if contender in NETWORKS:
            trained(options.folder / f"{contender}_{left_out}", options.data, contender, left_out, options.steps)
        judge(options, contender, scanner, left_out)


def views_of(scanner: str) -> Iterator[tuple[str, str]]:
    """Yield the heads of a scanner, with each of their scans."""
    for head, (theirs, worlds) in HEADS.items():
        if theirs == scanner:
            yield from ((head, view) for world in worlds for view in world)


def trained(out: Path, data: Path, contender: str, left_out: str, steps: int) -> None:
    """Train a network without the scans of one scanner; goes on where it stopped."""
    if (out / "finished.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    views = [view for scanner, _ in HEADS.values() if scanner != left_out for _, view in views_of(scanner)]
    scans = [{"image": str((data / f"{view}.nii.gz").absolute())} for view in dict.fromkeys(views)]
    (out / "scans.json").write_text(json.dumps({"training": scans, "validation": scans[:1]}))
    settings = {
        "bundle_root": ROOT / "bundle", "datalist": out.absolute() / "scans.json", "output_dir": out.absolute(),
        "epochs": max(1, steps // len(scans)), "val_interval": 1_000_000, "resume": "auto",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    start = time.monotonic()
    with (out / "log.txt").open("a") as log:
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file"]
        subprocess.run([*command, str(config_files(contender)), *words], check=True, stdout=log, stderr=log)
    done = {"training_seconds": round(time.monotonic() - start)}
    network = Network(out / "models" / "checkpoint.pt", out, contender)
    if isinstance(network.network, TensorMeanNet):
        done["lengthened"] = factor = 1 / length_of(network, data, left_out)
        network.network.lengthen(factor)
    torch.save(network.network.state_dict(), out / "model.pt")
    (out / "finished.json").write_text(json.dumps(done))


def length_of(network: "Network", data: Path, left_out: str) -> float:
    """Return how long a network makes the anisotropic parts of tensors, on the heads that it was trained on."""
    lengths = []
    for head, (scanner, worlds) in HEADS.items():
        if scanner != left_out:
            parts = [Part.of(data, world[0], 6, 0) for world in worlds]
            found = [part.squares(*part.tensors(network), part.brain) for part in parts]
            lengths.append(np.mean([np.log(row["square"] / row["plain_with_reference"]) / 2 for row in found]))
            print(head, np.exp(lengths[-1]).round(3), flush=True)
    return float(np.exp(np.mean(lengths)))


def config_files(contender: str) -> list[str]:
    """Return the configs of a network's training."""
    own = CONFIGS / f"{contender}.yaml"
    return [str(TRAIN / "train.yaml"), str(TRAIN / "tensor_train.yaml")] + [str(own)] * own.exists()


def judge(options: argparse.Namespace, contender: str, scanner: str, left_out: str) -> None:
    """Score a contender on all scans of a scanner, and how well turned fields of view of a head agree."""
    method = contender
    if contender in NETWORKS:
        run = options.folder / f"{contender}_{left_out}"
        method = Network(run / "model.pt", run, contender)
    scans, turned = options.results / ("known.csv" if options.known else "scans.csv"), options.results / "turned.csv"
    for head, view in views_of(scanner):
        row = {"contender": contender, "left_out": left_out, "head": head, "view": view}
        for directions, subsets in SUBSETS.items():
            for subset in range(subsets):
                choice = row | {"directions": directions, "subset": subset}
                if finished(choice, scans):
                    continue
                part = Part.of(options.data, view, directions, subset)
                if part is None or not part.suits(contender):
                    continue
                start = time.monotonic()
                tensor, reference = part.tensors(method)
                choice["seconds"] = round(time.monotonic() - start, 1)
                seen = part.seen(contender)
                choice |= scores(tensor, reference, seen) | part.squares(tensor, reference, seen)
                append(scans, choice)
                print(time.strftime("%H:%M"), *list(choice.values())[:9], flush=True)
        world = next(world for _, worlds in HEADS.values() for world in worlds if view in world)
        if view != world[0] and contender in TURNED and not (options.known or finished(row, turned)):
            pair = [Part.of(options.data, v, 6, 0) for v in (world[0], view)]
            agreed = agreement(*pair, *(part.tensors(method)[0] for part in pair))
            append(turned, row | agreed)


@dataclass
class Part:
    """Some directions of a scan and the others; signals (X, Y, Z, Q), tables in the world frame."""

    affine: np.ndarray
    brain: np.ndarray
    signal: np.ndarray
    table: GradientTable
    rest: np.ndarray
    rest_table: GradientTable

    @classmethod
    def of(cls, data: Path, view: str, directions: int, subset: int) -> "Part | None":
        """Return a part; nothing where a scan has too few directions."""
        load = LoadImaged("image", ensure_channel_first=True, reader=ScanReader)
        split = RandSplitVolumesd("image", minimum=directions, maximum=directions, choices=100, seed=subset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            read = Compose([load, LoadGradientsd("image"), AverageB0d("image"), BrainMaskd("image")])
            d = read({"image": str(data / f"{view}.nii.gz")})
        d["image"] = unmoved(d["image"], d["brain_mask"])
        if len(table_of(d["image"])) - 1 < directions + MIN_DIRECTIONS:
            return None
        d = split(d)
        signals = [np.moveaxis(d[key].numpy(), 0, -1).astype(float) for key in ("image", "rest")]
        tables = [table_of(d[key]) for key in ("image", "rest")]
        brain = d["brain_mask"][0].numpy() > 0.5
        return cls(d["image"].affine.numpy(), brain, signals[0], tables[0], signals[1], tables[1])

    def suits(self, contender: str) -> bool:
        """Whether this is more than what another contender does here."""
        directions = len(self.table) - 1
        if contender == "halves":
            return len(self.rest_table) - 1 >= 2 * MIN_DIRECTIONS
        if contender == "patch2self":  # each volume is predicted from the others
            return directions >= 10
        return directions > 6 or contender not in ("ols", "nlls")  # seven unknowns, seven volumes: as wls

    def seen(self, contender: str) -> np.ndarray:
        """Return the voxels that are scored: those of the brain; of a slow fit, some."""
        some = np.zeros_like(self.brain)
        some[::2, ::2, ::2] = True
        return self.brain & some if contender == "nlls" else self.brain

    @cached_property
    def plain(self) -> np.ndarray:
        """Return dipy's fit of the few directions."""
        return fit(self.signal, self.table, self.brain)

    @cached_property
    def reference(self) -> np.ndarray:
        """Return dipy's fit of the other directions."""
        return fit(self.rest, self.rest_table, self.brain)

    def squares(self, tensor: np.ndarray, reference: np.ndarray, seen: np.ndarray) -> dict:
        """Return what tells the reference's noise from a contender's error: sums over white matter, anisotropic parts.

        Squares of the distance from the reference, of the contender and of the plain fit; squares of both, and products
        with the reference, which expect the square of the truth, since the noise of both is independent; and the share
        of the reference in the noise of the two fits, by their schemes. White matter is where blurred tensors of all
        volumes are anisotropic, so that no voxel's noise chooses it.
        """
        both = gaussian_filter((self.plain + self.reference) / 2, (*3 * (WIDTH,), 0, 0))
        fa, md, _ = measures(both)
        white = seen & (fa > ANISOTROPIC) & (md < FLUID)
        own, plain, truth = (anisotropic(x[white]) for x in (tensor, self.plain, reference))
        noise, rest_noise = (design_noise(table) for table in (self.table, self.rest_table))
        return {
            "square_error": ((own - truth) ** 2).sum(),
            "square_error_plain": ((plain - truth) ** 2).sum(),
            "square": (own**2).sum(),
            "with_reference": (own * truth).sum(),
            "plain_with_reference": (plain * truth).sum(),
            "noise_share": rest_noise / (noise + rest_noise),
        }

    def tensors(self, method: "str | Network") -> tuple[np.ndarray, np.ndarray]:
        """Return tensors (X, Y, Z, 3, 3) of the few directions, and the reference."""
        if isinstance(method, Network):
            return method(self), self.reference
        if method == "halves":  # of the rest, one against the other
            order = np.random.default_rng(0).permutation(len(self.rest_table) - 1) + 1
            volumes = [np.sort([0, *order[k::2]]) for k in (0, 1)]
            fits = [fit(self.rest[..., v], self.rest_table[torch.from_numpy(v)], self.brain) for v in volumes]
            return fits[0], fits[1]
        if method == "wls":
            return self.plain, self.reference
        signal = DENOISED.get(method, lambda part: part.signal)(self)
        fitted = fit(signal, self.table, self.seen(method), method.upper() if method in FITS else "WLS")
        return fitted, self.reference


def unmoved(image: MetaTensor, brain: MetaTensor) -> MetaTensor:
    """Return a scan without the volumes in which the head had moved, where there are directions to spare.

    Those are, in the brain, 1.4 times as far from the tensor that fits all volumes as the median volume is.
    """
    table, inside = table_of(image), brain[0] > 0.5
    signal = image.as_tensor()[:, inside]
    tensor, log_s0 = fit_tensor(signal.clamp(min=1.0).log()[None].double(), table.q.double())
    expected = torch.exp(log_s0[0] - q_squares(table.q.double()) @ tensor[0])
    distance = (signal - expected).square().mean(1).sqrt()[1:]
    keep = torch.cat([torch.tensor([True]), distance < 1.4 * distance.median()])
    if keep.sum() - 1 < ENOUGH:
        return image
    return with_volumes(image, image.as_tensor()[keep], table[keep])


def by_mppca(part: Part) -> np.ndarray:
    return np.nan_to_num(mppca(part.signal, mask=part.brain, patch_radius=2))


def by_nlmeans(part: Part) -> np.ndarray:
    options = {"mask": part.brain, "patch_radius": 1, "block_radius": 2, "rician": True}
    sigma = estimate_sigma(part.signal, N=1)
    volumes = [nlmeans(part.signal[..., k], sigma=sigma[k], **options) for k in range(part.signal.shape[-1])]
    return np.stack(volumes, axis=-1)


def by_patch2self(part: Part) -> np.ndarray:
    return patch2self(part.signal, part.table.bvals.numpy(), b0_denoising=False, verbose=False)


DENOISED = {"mppca": by_mppca, "nlmeans": by_nlmeans, "patch2self": by_patch2self}


def fit(signal: np.ndarray, table: GradientTable, mask: np.ndarray, method: str = "WLS") -> np.ndarray:
    """Return dipy's tensors (X, Y, Z, 3, 3), µm²/ms, in the world frame."""
    signal = np.maximum(signal, LOWEST * signal[..., 0][mask].mean())  # what denoising leaves below 0 has no logarithm
    model = TensorModel(gradient_table(table.bvals.numpy(), bvecs=table.bvecs.numpy()), fit_method=method)
    return 1e3 * np.nan_to_num(model.fit(signal, mask=mask).quadratic_form)


class Network:
    """What a trained network gives, on the scan's own grid and in the world frame."""

    def __init__(self, weights: Path, run: Path, contender: str):
        self.config = ConfigParser()
        self.config.read_config(config_files(contender))
        self.config.update({"bundle_root": str(TRAIN.parent), "datalist": str(run / "scans.json")})
        self.config.get_parsed_content("imports")
        self.network = self.config.get_parsed_content("network_def").eval()
        state = torch.load(weights, map_location="cpu", weights_only=False)
        self.network.load_state_dict(state.get("network", state))

    @torch.no_grad()
    def __call__(self, part: Part) -> np.ndarray:
        """Return tensors (X, Y, Z, 3, 3), µm²/ms."""
        to_grid = self.config.get_parsed_content("scan#prepare")
        finish = [self.config.get_parsed_content(key) for key in ("normalize", "scan#write_q")]
        prepare = Compose([*to_grid, *finish])
        image = MetaTensor(
            torch.from_numpy(np.moveaxis(part.signal, -1, 0).astype(np.float32)), affine=torch.from_numpy(part.affine)
        )
        brain = MetaTensor(torch.from_numpy(part.brain[None].astype(np.float32)), affine=image.affine)
        item = prepare({"image": with_volumes(image, image.as_tensor(), part.table), "brain_mask": brain})
        out = self.network(item["image"].as_tensor()[None], torch.as_tensor(item["q"]))[0]
        item["pred"] = MetaTensor(out, meta=item["image"].meta, applied_operations=item["image"].applied_operations)
        item = TensorToWorldd("pred")(item)
        back = Invertd("pred", transform=prepare, orig_keys="image", nearest_interp=False)
        return np.moveaxis(back(item)["pred"].numpy(), 0, -1)[..., SQUARE].reshape(*part.brain.shape, 3, 3)


def scores(tensor: np.ndarray, reference: np.ndarray, seen: np.ndarray) -> dict:
    """Return errors: of the direction in degrees (median), FA, MD and elements in µm²/ms (means), and biases of FA."""
    (fa, md, first), (true_fa, true_md, true_first) = measures(tensor[seen]), measures(reference[seen])
    white = (true_fa > ANISOTROPIC) & (true_fa < 0.99)
    elements = np.abs(tensor[seen] - reference[seen])[(slice(None), *np.triu_indices(3))].mean(1)
    return {
        "angle": np.median(angles(first, true_first)[white]),
        "fa_white": np.abs(fa - true_fa)[white].mean(),
        "fa": np.abs(fa - true_fa).mean(),
        "md": np.abs(md - true_md).mean(),
        "md_white": np.abs(md - true_md)[white].mean(),
        "elements": elements.mean(),
        "elements_white": elements[white].mean(),
        "fa_bias_white": (fa - true_fa)[white].mean(),
        "fa_bias": (fa - true_fa).mean(),
    }


def measures(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return FA, MD and the principal direction of tensors (N, 3, 3); negative eigenvalues count as 0, as in dipy."""
    values, vectors = decompose_tensor(tensor)
    return np.nan_to_num(fractional_anisotropy(values)), values.mean(-1), vectors[..., 0]


def anisotropic(tensor: np.ndarray) -> np.ndarray:
    """Return the traceless parts of tensors (N, 3, 3)."""
    return tensor - np.trace(tensor, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)


def design_noise(table: GradientTable) -> float:
    """Return the expected square of a fit's noise in its anisotropic part, for noise of 1 in each logarithm."""
    q = table.q.double()
    inverse = torch.linalg.pinv(torch.cat([-q_squares(q), torch.ones(len(q), 1, dtype=q.dtype)], dim=1))[:6]
    return float(squared_norm(deviator(inverse.T)).sum())


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return degrees between directions of either sign."""
    return np.degrees(np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1)))


def agreement(first: Part, other: Part, tensor: np.ndarray, turned: np.ndarray) -> dict:
    """Return how far tensors of one head in two fields of view are apart, in white matter of the first."""
    to_other = np.linalg.inv(other.affine) @ first.affine
    white = first.brain & (fractional_anisotropy(decompose_tensor(first.reference)[0]) > ANISOTROPIC)
    where = np.argwhere(white) @ to_other[:3, :3].T + to_other[:3, 3]

    def there(volume: np.ndarray) -> np.ndarray:
        return map_coordinates(volume, where.T, order=1, mode="constant")

    inside = there(other.brain.astype(float)) > 0.99
    moved = np.stack([there(turned[..., i, j]) for i in range(3) for j in range(3)], -1).reshape(-1, 3, 3)[inside]
    (fa, _, direction), (other_fa, _, other_direction) = measures(tensor[white][inside]), measures(moved)
    return {
        "voxels": int(inside.sum()),
        "angle": np.median(angles(direction, other_direction)),
        "fa": np.abs(fa - other_fa).mean(),
    }


if __name__ == "__main__":
    main()

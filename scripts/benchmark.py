"""Measure time and memory: this machine's roof, the pq-convolution in its dense form, and ours.

python scripts/benchmark.py                             # a table; about half an hour on 2 cores
python scripts/benchmark.py --quick                     # one small size, a minute
python scripts/benchmark.py --data scans --json out.json
python scripts/benchmark.py --cases points --threads 1 --table results/points/benchmark.csv       # a minute

The dense form (Müller et al., B.4) is one conv3d from all volumes to all volumes. It is shown at its best: with a free
kernel in place of one that is built from weights, in the faster of two memory formats; gates, sum over q and layers
over p as in ours. Ours builds all kernels from the weights in every step. Ratios are to the dense form in fp32 with the
same voxels and volumes in the same run, below 1 where ours needs less. The bound is the ratio of multiply-adds of
direct convolutions; ours convolves in Fourier space where that is faster, and may come below it.

On points, `LieConv` keeps N·k pairs and makes no matrix for any of them (the PointConv trick); the naive form makes one
for each pair, and its time and memory are shown as multiples of the trick's. Time and memory of both, and of
`PointConv`, grow linearly with the number of points; `--table` writes them as CSV.

Every measurement has a process of its own: memory first (one step, above what the process had before it), then the
median time after a warm-up. The image does not require a gradient; the loss is the mean square of the logits.

bfloat16 is left out on a CPU without instructions for it, where a step may take minutes, unless --bfloat16 asks for it.
"""

import argparse
import ctypes
import io
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases import Radial
from eqdmri_monai.files.writing import append_row
from eqdmri_monai.groups import SE3
from eqdmri_monai.neighbours import euclidean, knn, take
from eqdmri_monai.networks import PQNet
from eqdmri_monai.nn import Gate, LieConv, PConv, PointConv, PQConv, QLengthPool
from eqdmri_monai.nn.lie_conv import LiePairs, lie_pairs
from eqdmri_monai.precision import bfloat16_is_fast, cpu_flags

ROOT = Path(__file__).resolve().parents[1]
IRREPS_PQ, IRREPS_P, IRREPS_OUT = "7x0e+4x1e", ("20x0e+5x1e", "10x0e+3x1e", "5x0e+2x1e"), "1x0e"
TAPS = 5**3
MODELS = {"paper": Radial(num_q=16, num_reduction=39), "bundle": Radial()}  # Table 2, l_TP1_1+4; our default
SCANS = ("dwi_philips_elition16_t1", "dwi_philips_bangalore32")
COMMON = {"size": 24, "directions": 42, "shells": 1, "b0": 0, "antipodal": True, "bf16": False, "recompute": False}
CASES = ("roof", "networks", "kernels", "volumes", "scans", "points")
NEIGHBOURS, CHANNELS = 25, 32  # of points


class DenseNet(nn.Module):
    """The network of the paper's best model with a free kernel from all volumes to all volumes, and free p-kernels."""

    def __init__(self, volumes: int, *, channels_last: bool):
        super().__init__()
        self.format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.gates = nn.ModuleList(Gate(irreps) for irreps in (IRREPS_PQ, *IRREPS_P))
        out = [gate.irreps_in.dim for gate in self.gates] + [o3.Irreps(IRREPS_OUT).dim]
        wide = [volumes * out[0], *out[1:]]
        inputs = [volumes] + [gate.irreps_out.dim for gate in self.gates]
        self.convs = nn.ModuleList(nn.Conv3d(i, o, 5, padding=2) for i, o in zip(inputs, wide, strict=True))
        self.pool = QLengthPool(IRREPS_PQ)
        self.to(memory_format=self.format)

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        y = self.convs[0](image.contiguous(memory_format=self.format))
        x = self.pool(self.gates[0](y.unflatten(1, (-1, len(q)))), q)
        for conv, gate in zip(self.convs[1:], self.gates[1:], strict=False):
            x = gate(conv(x.contiguous(memory_format=self.format)))
        return self.convs[-1](x.contiguous(memory_format=self.format))


def multiply_adds(case: dict) -> dict[str, int]:
    """Count the multiply-adds of a network's convolutions and of the sum over q_in; building kernels counts nothing.

    A convolution's backward pass takes as many for its weight, and as many again for its input but in the first layer.
    """
    voxels, volumes, shells = case["size"] ** 3, case["directions"] + case["b0"], case["shells"]
    gates = [Gate(irreps) for irreps in (IRREPS_PQ, *IRREPS_P)]
    first, maps, mixing = gates[0].irreps_in.dim, 8, 0  # maps: components of l_q = 1 and 2
    if case["model"] == "dense":
        convs = volumes**2 * first
    else:
        shared = (shells + case["b0"]) * (shells + case["b0"] + case["b0"] * maps)  # l_q = 0, and b0
        convs = (volumes * shells * maps + shared) * first
        mixing = volumes * case["directions"] * maps
    widths = [gate.irreps_in.dim for gate in gates[1:]] + [o3.Irreps(IRREPS_OUT).dim]
    over_p = sum(gate.irreps_out.dim * width for gate, width in zip(gates, widths, strict=True))
    return {
        "forward": voxels * (TAPS * (convs + over_p) + mixing),
        "step": voxels * (TAPS * (2 * convs + 3 * over_p) + mixing),
    }


def scheme(case: dict) -> Tensor:
    """Return the same random q-vectors (Q, 3) each time, b0 first, shells of b = 1000, 2000, ... s/mm²."""
    directions = torch.randn(case["directions"], 3, generator=torch.Generator().manual_seed(0))
    length = (1.0 + torch.arange(case["directions"]) % case["shells"]).sqrt()
    q = nn.functional.normalize(directions, dim=1) * length[:, None]
    return torch.cat([q.new_zeros(case["b0"], 3), q])


def build(case: dict) -> nn.Module:
    torch.manual_seed(0)
    if case["model"] == "dense":
        return DenseNet(case["directions"] + case["b0"], channels_last=case["channels_last"])
    options = {"antipodal": case["antipodal"], "recompute": case["recompute"], "radial": MODELS[case["model"]]}
    return PQNet([IRREPS_PQ], IRREPS_P, IRREPS_OUT, **options)


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """Return the median time of a call, after one that does not count."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def reset_peak(device: str) -> None:
    """Forget the peak that imports and construction had; what is held now is the least that `peak` returns."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # else what construction freed is still held, and the step takes it unseen
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc


def peak(device: str) -> float:
    """Return the most memory that was held since `reset_peak`, in MB; NaN where the system does not say."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "linux":
        return math.nan
    status = Path("/proc/self/status").read_text().split()  # getrusage would count the parent's memory as well
    return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6


def held(function: Callable[[], object], device: str) -> float:
    """Return the peak memory of a call above what was held before, in MB."""
    reset_peak(device)
    base = peak(device)
    function()
    return peak(device) - base


def timed(forward: Callable[[], Tensor], step: Callable[[], None], case: dict) -> dict[str, float]:
    """Return the peak memory of one step and the times of a forward pass and of a step."""
    device, repeats = case["device"], case["repeats"]
    memory = held(step, device)
    with torch.no_grad():
        alone = seconds(forward, repeats, device)
    return {"forward_s": alone, "step_s": seconds(step, repeats, device), "peak_MB": memory}


def roof(case: dict) -> dict[str, float]:
    """Measure the rate of matmul, in 1e9 floating-point operations per second, and of a copy, in GB/s."""
    n, device = case["matrix"], case["device"]
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))[: 1 + case["with_bf16"]]:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates[f"{name}_gflops"] = 2e-9 * n**3 / seconds(lambda a=a, b=b: a @ b, case["repeats"], device)
    a = torch.zeros(8 * n**2, device=device)  # far more than any cache holds
    b = torch.empty_like(a)
    return {**rates, "copy_GB_s": 2 * 4e-9 * a.numel() / seconds(lambda: b.copy_(a), case["repeats"], device)}


def network(case: dict) -> dict[str, float]:
    """Measure a whole network, forward and forward + backward."""
    device, q = case["device"], scheme(case).to(case["device"])
    image = torch.randn(1, len(q), *3 * (case["size"],)).to(device)
    net = build(case).to(device)

    def forward() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16) if case["bf16"] else nullcontext():
            return net(image, q)

    def step() -> None:
        net.zero_grad()
        forward().float().square().mean().backward()

    return {**timed(forward, step, case), "multiply_adds": multiply_adds(case)}


def kernels(case: dict) -> dict[str, float]:
    """Measure how a network and its kernels alone are built, and how large it is in memory and on disk."""
    start = time.perf_counter()
    net = build(case).to(case["device"])
    construction = time.perf_counter() - start
    q = scheme(case).to(case["device"])

    def forward() -> Tensor:
        pq = [m.shell_kernels(m.plan(q)).square().mean() for m in net.modules() if isinstance(m, PQConv)]
        return sum(pq + [m.grid_kernel().square().mean() for m in net.modules() if isinstance(m, PConv)])

    def step() -> None:
        net.zero_grad()
        forward().backward()

    measured, file = timed(forward, step, case), io.BytesIO()
    torch.save(net.state_dict(), file)
    count = sum(p.numel() for p in net.parameters())
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    return {
        **measured, "construction_s": construction, "parameters": count, "parameters_MB": size / 1e6,
        "state_dict_MB": len(file.getvalue()) / 1e6,
    }  # fmt: skip


def prepare(case: dict) -> dict[str, float]:
    """Write what the bundle's inference gives to the network: normalised image, cropped to the brain, and q."""
    from monai.bundle import ConfigParser  # takes seconds to import, and the other cases do without

    start, parser = time.perf_counter(), ConfigParser()
    parser.read_config(ROOT / "bundle" / "configs" / "inference.yaml")
    parser.update({"bundle_root": str(ROOT / "bundle"), "dwi": case["scan"], "device": "cpu"})
    parser["imports"] = None
    (item,) = parser.get_parsed_content("dataset")
    torch.save((item["image"].as_tensor()[None], torch.as_tensor(item["q"])), case["prepared"])
    return {"prepare_s": time.perf_counter() - start}


def scan(case: dict) -> dict[str, float]:
    """Measure one forward pass over a whole brain."""
    device = case["device"]
    image, q = (x.float().to(device) for x in torch.load(case["prepared"]))
    net = build(case).to(device)

    def forward() -> Tensor:
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16) if case["bf16"] else nullcontext():
            return net(image, q)

    memory = held(forward, device)
    return {"shape": list(image.shape[1:]), "forward_s": seconds(forward, case["repeats"], device), "peak_MB": memory}


def points(case: dict) -> dict[str, float]:
    """Measure one convolution of a cloud of points whose neighbours are known."""
    places = torch.rand(1, case["points"], 3)
    mask = torch.ones(1, case["points"], dtype=torch.bool)
    near = knn(euclidean(places), NEIGHBOURS, mask=mask, centres=mask, own=case["model"] != "PointConv")
    if case["model"] == "PointConv":
        irreps = "8x0e+8x1e"  # 32 channels as well
        conv, x = PointConv(irreps, irreps, radius=1.0, z=NEIGHBOURS), torch.randn(1, CHANNELS, case["points"])
        forward = lambda: conv(x, places, near)  # noqa: E731
    else:
        conv, x = LieConv(CHANNELS, CHANNELS, SE3()), torch.randn(1, CHANNELS, case["points"])
        elements = SE3().lift(places)
        pairs = lie_pairs(SE3(), elements, elements, near)
        forward = (lambda: conv(x, pairs)) if case["model"] == "trick" else (lambda: naive(conv, x, pairs))

    def step() -> None:
        conv.zero_grad()
        forward().square().mean().backward()

    return timed(forward, step, {**case, "repeats": 4 * case["repeats"]})  # of milliseconds each


def naive(conv: LieConv, x: Tensor, pairs: LiePairs) -> Tensor:
    """Return what a LieConv gives, by a matrix for each pair."""
    weight = conv.out.weight.unflatten(1, (-1, x.shape[1]))  # [o, s, c]
    matrices = torch.einsum("bmks,osc->bmkoc", conv.kernel(pairs), weight)
    share = pairs.mask / pairs.mask.sum(-1, keepdim=True)
    values = share[..., None] * take(x.mT, pairs.index)  # [b, m, k, c]
    return (matrices @ values[..., None]).sum((2, 4)).mT + conv.out.bias[:, None]


MEASUREMENTS = {
    "roof": roof,
    "network": network,
    "kernels": kernels,
    "prepare": prepare,
    "scan": scan,
    "points": points,
}


def run(case: dict) -> dict:
    """Do one measurement in a fresh process; where it fails, what it failed of is the result."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}; out of memory?"]
        causes = [text for text in lines if text.partition(":")[0].endswith("Error")]  # MONAI wraps the first one
        return {**case, "error": (causes or lines[-1:])[0]}
    return {**case, **json.loads(done.stdout.splitlines()[-1])}


def networks(size: int) -> list[dict]:
    """List the networks to compare at one size, the dense form first; 42 volumes, in the bundle's a b0 among them."""
    common = {**COMMON, "measure": "network", "size": size}
    dense = [{"bf16": bf16, "channels_last": last} for bf16 in (False, True) for last in (False, True)]
    paper = [
        {"model": "paper", "antipodal": antipodal, "bf16": bf16, "recompute": recompute}
        for antipodal in (False, True)
        for bf16 in (False, True)
        for recompute in (False, True)
    ]
    bundle = [
        {"model": "bundle", "b0": 1, "directions": 41, "antipodal": antipodal, "bf16": bf16}
        for antipodal in (False, True)
        for bf16 in (False, True)
    ]
    return [{**common, "model": "dense", **new} for new in dense] + [{**common, **new} for new in paper + bundle]


def volumes(size: int) -> list[dict]:
    """List how time and memory grow with the number of volumes; 270 are three shells. No dense form beyond 90."""
    common, cases = {**COMMON, "measure": "network", "size": size}, []
    for count in (16, 42, 90, 270):
        sampled = {**common, "directions": count, "shells": 3 if count == 270 else 1}
        if count <= 90:
            cases += [{**sampled, "model": "dense", "channels_last": last} for last in (False, True)]
        cases += [{**sampled, "model": "paper", "recompute": recompute} for recompute in (False, True)]
    return cases


def scans(folder: Path, prepared: Path) -> list[dict]:
    """List what to do with each scan: write what the network is given, then measure the network."""
    cases = []
    for name in SCANS:
        common = {
            **COMMON,
            "model": "bundle",
            "scan": str(folder / name / "dwi.nii.gz"),
            "prepared": f"{prepared}/{name}.pt",
        }
        cases += [{**common, "measure": "prepare"}]
        cases += [{**common, "measure": "scan", "bf16": bf16} for bf16 in (False, True)]
    return cases


def clouds() -> list[dict]:
    """List convolutions of clouds by their number of points."""
    return [
        {**COMMON, "measure": "points", "model": model, "points": count}
        for model in ("trick", "naive", "PointConv")
        for count in (175, 350, 700, 1400, 2800)
    ]


def plain(case: dict) -> bool:
    """Return whether a case is one of the few that `--quick` keeps."""
    return not any(case.get(name) for name in ("bf16", "b0", "channels_last", "recompute")) and case.get(
        "antipodal", True
    )


def compare(results: list[dict]) -> None:
    """Add to each network its time and memory relative to the faster dense form, to a naive form the trick's."""

    def alike(case: dict) -> tuple:
        return case["size"], case["directions"] + case["b0"], case["shells"]

    clouds = [r for r in results if r["measure"] == "points" and "error" not in r]
    for result in clouds:
        trick = [r for r in clouds if r["model"] == "trick" and r["points"] == result["points"]]
        if trick and result["model"] == "naive":
            result["ratio"] = {name: result[name] / trick[-1][name] for name in ("forward_s", "step_s", "peak_MB")}
    good = [r for r in results if r["measure"] == "network" and "error" not in r]
    for result in good:
        dense = [d for d in good if d["model"] == "dense" and not d["bf16"] and alike(d) == alike(result)]
        if dense:
            best = min(dense, key=lambda d: d["step_s"])
            result["ratio"] = {name: result[name] / best[name] for name in ("forward_s", "step_s", "peak_MB")}
            result["bound"] = {name: n / best["multiply_adds"][name] for name, n in result["multiply_adds"].items()}


def machine() -> dict:
    """Return the number of cores, what they can multiply, the version of torch, and how busy the machine is already."""
    flags = cpu_flags()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
    instructions = [name for flag, name in known.items() if flag in flags]
    return {
        "cores": os.cpu_count(),
        "instructions": instructions,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def line(result: dict) -> str:
    """Return one line of the tables."""
    text = f"{result['measure']:8}"
    if result["measure"] == "points":
        text = f"{result['model']:10}{result['points']:6} points  "
    elif result["measure"] != "roof":
        options = ("channels_last",) if result["model"] == "dense" else ("antipodal", "recompute")
        marks = [name for name in options if result.get(name)]
        where = Path(result["scan"]).parent.name if "scan" in result else f"{result['size']}³"
        q = "" if "scan" in result else f"{result['b0']}+{result['directions']}"
        text = f"{result['model']:7}{where:4}{q:6}{'bf16' if result['bf16'] else 'fp32'} {' '.join(marks):20}"
    if "error" in result:
        return text + result["error"]
    if result["measure"] != "network":
        names = [name for name in result if name.endswith(("_s", "_MB", "_gflops", "parameters", "shape"))]
        text += "  ".join(f"{n} {result[n]:.3g}" if n != "shape" else f"{result[n]}" for n in names)
        times = result.get("ratio", {})
        return text + (f"  ({', '.join(f'{r:.3g}' for r in times.values())} times the trick's)" if times else "")
    ratio, bound = result.get("ratio", {}), result.get("bound", {})
    for name, digits in (("forward_s", 3), ("step_s", 3), ("peak_MB", 0)):
        text += f"{result[name]:9.{digits}f}{ratio.get(name, math.nan):7.2f}"
        text += f"{bound.get(name[:-2], math.nan):7.2f}" if name != "peak_MB" else ""
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[24, 32, 48], help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=5, help="each time is the median of so many")
    parser.add_argument("--quick", action="store_true", help="one repeat, the first size, few networks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="default: where it is fast")
    parser.add_argument("--data", type=Path, help=f"folder that holds {' and '.join(SCANS)}")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--table", type=Path, help="CSV file for the convolutions of points")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:  # one measurement, printed as one line of JSON
        torch.set_num_threads(options.child["threads"])
        print(json.dumps(MEASUREMENTS[options.child["measure"]](options.child)))
        return

    quick, about, bfloat16 = options.quick, machine(), options.bfloat16
    if bfloat16 is None:
        bfloat16 = bfloat16_is_fast(options.device)
    common = {"device": options.device, "threads": options.threads, "repeats": 1 if quick else options.repeats}
    header = (
        f"{'network, voxels, b0 + directions':38}{'forward s':>9}  ratio  bound   step s  ratio  bound  peak MB  ratio"
    )
    with tempfile.TemporaryDirectory() as prepared:
        tables = {
            "roof": [("This machine", [{"measure": "roof", "matrix": 512 if quick else 4096, "with_bf16": bfloat16}])],
            "kernels": [("Kernels alone", [{**COMMON, "measure": "kernels", "model": model} for model in MODELS])],
            "networks": [(header, networks(size)) for size in options.sizes[: 1 if quick else None]],
            "volumes": [(header, volumes(options.sizes[0]))],
            "points": [("Points", clouds())],
            "scans": [("Whole brains", scans(options.data, Path(prepared)))] if options.data else [],
        }
        results: list[dict] = []
        print(f"{about['cores']} cores, load {about['load']:.1f}; {options.threads} threads; {about['instructions']}")
        if not bfloat16:
            print(
                "bfloat16 is left out" + ("" if options.bfloat16 is False else "; this CPU has no instructions for it")
            )
        for title, cases in itertools.chain.from_iterable(tables[case] for case in options.cases):
            print(f"\n{title}", flush=True)
            for case in cases:
                if (quick and not plain(case)) or (case.get("bf16") and not bfloat16):
                    continue
                results.append(run({**case, **common}))
                compare(results)
                print(line(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1))
    if options.table:
        options.table.unlink(missing_ok=True)
        for r in results:
            if r["measure"] == "points" and "error" not in r:
                row = {"form": r["model"], "points": r["points"], "threads": r["threads"], "repeats": r["repeats"]}
                row |= {name: f"{r[name]:.3g}" for name in ("forward_s", "step_s", "peak_MB")}
                append_row(options.table, row)


if __name__ == "__main__":
    main()

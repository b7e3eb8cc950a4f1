"""Write trained weights as models that run without this package: model.pt2 (torch.export), model.ts and model.onnx.

Each takes image (B, Q, X, Y, Z) as `preprocessing` leaves it and q (B, Q, 3) along its axes, of any sizes, and gives
logits; see eqdmri_monai/networks/plain_pq_net.py. Each is compared with the network that it was made of.
"""

import argparse
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import save_net_with_metadata

from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.networks.plain_pq_net import PlainPQNet, plain_form
from eqdmri_monai.symmetry import random_scheme

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-5  # of the largest logit
FORMATS = ("pt2", "ts", "onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle_root", type=Path, default=ROOT / "bundle")
    parser.add_argument("--weights", type=Path, help="model.pt of the bundle, if left out")
    parser.add_argument("--folder", type=Path, help="where they are written; models of the bundle, if left out")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    options = parser.parse_args()
    models = options.bundle_root / "models"
    config = ConfigParser()
    config.read_config(options.bundle_root / "configs" / "inference.yaml")
    config.read_meta(options.bundle_root / "configs" / "metadata.json")
    network = load_weights(config.get_parsed_content("network_def"), options.weights or models / "model.pt").eval()
    plain = plain_form(network)
    folder = options.folder or models
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in options.formats:
        path = folder / f"model.{name}"
        answer = {"pt2": as_program, "ts": as_script, "onnx": as_onnx}[name](plain, path, config.get("_meta_"))
        difference = max(compared(network, answer, directions) for directions in (6, 30))
        if not difference < TOLERANCE:
            path.unlink()
            raise SystemExit(f"{path}: differs from the network by {difference:.1e} of its largest logit")
        print(f"{path}: equal to the network to {difference:.1e}")


def example(directions: int, size: tuple[int, int, int] = (9, 8, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random input of two shells and two b0."""
    q = random_scheme(directions, 1.0, 1.4)
    q = torch.cat([q, q[:1]])[None]
    return torch.randn(1, q.shape[1], *size), q


@torch.no_grad()
def compared(network, answer, directions: int) -> float:
    """Return the largest difference over the largest logit."""
    image, q = example(directions)
    logits = network(image, q)
    return float((answer(image, q) - logits).abs().max() / logits.abs().max())


def dynamic_sizes() -> dict:
    """Return the names of all sizes that may differ from call to call."""
    batch, volumes = torch.export.Dim("batch"), torch.export.Dim("volumes")
    x, y, z = (torch.export.Dim(name) for name in "xyz")
    return {"image": {0: batch, 1: volumes, 2: x, 3: y, 4: z}, "q": {0: batch, 1: volumes}}


def as_program(plain: PlainPQNet, path: Path, meta: dict):
    """Write with torch.export; return a function that calls what is read back."""
    image, q = example(6)
    # batch and sizes of 1 would count as fixed
    arguments = image.repeat(2, 1, 1, 1, 1), q.repeat(2, 1, 1)
    torch.export.save(torch.export.export(plain, arguments, dynamic_shapes=dynamic_sizes()), path)
    return torch.export.load(path).module()


def as_script(plain: PlainPQNet, path: Path, meta: dict):
    """Write with torch.jit.script and the bundle's metadata; return what is read back."""
    save_net_with_metadata(torch.jit.script(plain), path, meta_values=meta, append_timestamp=False)
    return torch.jit.load(path)


def as_onnx(plain: PlainPQNet, path: Path, meta: dict):
    """Write as ONNX; return a function that calls onnxruntime."""
    import onnxruntime

    image, q = example(6)
    arguments = image.repeat(2, 1, 1, 1, 1), q.repeat(2, 1, 1)
    program = torch.onnx.export(
        plain, arguments, dynamic_shapes=dynamic_sizes(), dynamo=True, verbose=False, input_names=["image", "q"],
        output_names=["pred"],
    )  # fmt: skip
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image, q: torch.from_numpy(session.run(None, {"image": image.numpy(), "q": q.numpy()})[0])


if __name__ == "__main__":
    main()

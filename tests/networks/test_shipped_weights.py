"""What the shipped weights compute: no change of code may change it; weights trained anew bring new numbers."""

from pathlib import Path

import torch

from eqdmri_monai.files.weights import load_weights
from eqdmri_monai.networks import PQNet

WEIGHTS = Path(__file__).parents[2] / "bundle" / "models" / "model.pt"

EXPECTED = [-5.377928329, 1.346911239, -3.415984713, -9.337697751, -3.434203419]  # mean, deviation, three voxels


def wave(*size: int) -> torch.Tensor:
    return (torch.arange(torch.Size(size).numel()) * 0.7).sin().view(size)


def test_the_map_of_the_shipped_weights_is_what_it_was():
    network = load_weights(PQNet().float(), WEIGHTS).double()
    q = torch.nn.functional.pad(torch.nn.functional.normalize(wave(12, 3), dim=1), (0, 0, 1, 0))
    with torch.no_grad():
        logits = network(1 + 0.3 * wave(1, 13, 6, 7, 8), q)[0, 0]
    values = torch.stack([logits.mean(), logits.std(), logits[0, 0, 0], logits[3, 3, 3], logits[5, 6, 7]])
    torch.testing.assert_close(values, torch.tensor(EXPECTED), rtol=0, atol=1e-6)

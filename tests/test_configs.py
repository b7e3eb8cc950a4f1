"""The zoo: every file of configs/paper/ that is a row of the paper's Table 2."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from eqdmri_monai.symmetry import quarter_turns, random_scheme, turn_grid

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "configs" / "paper"
SHARED = {"l": "late", "g": "gradual", "n": "plain"}
ROW = re.compile(r"\| \[`(\S+)\.yaml`\]\((\S+)\.yaml\) \| (\d+)")
COUNTS = {  # parameters, of the paper's Table 2 but for n_5_many: the channels of Table 5, not the 622820 printed there
    "l_TP1_1+2": 461344,
    "l_TP1_1+3": 585114,
    "l_TP1_1+4": 662398,
    "l_TP1_1+4_l2": 671887,
    "l_TP1_1+4_l3": 674795,
    "l_TP1_1l2+4l2": 655748,
    "l_TP1_1l3+4l3": 802396,
    "l_TPvec_1+4": 367998,
    "l_pq-diff-p_1+4": 271509,
    "l_pq-diff-q_1+4": 269449,
    "l_TP1_1+4_Gfc": 662398,
    "l_TP1_1+4_c": 39184,
    "l_TP1_1+4_G": 39184,
    "l_TP1_1+5": 510594,
    "g_TP1_0+3": 54951,
    "g_TP1_1+2": 329640,
    "g_TP1_1+3": 355968,
    "g_TP1_2+1": 133579,
    "n_3_few": 31009,
    "n_3_many": 64391,
    "n_4_few": 97899,
    "n_4_many": 216921,
    "n_5_few": 49779,
    "n_5_many": 139431,
    "n_6_few": 52909,
    "n_6_many": 116936,
    "n_6_fm_small": 12720208,
    "n_6_fm_large": 19590724,
}
EQUIVARIANT = [name for name in COUNTS if name[0] in "lg"]


def config(name: str) -> ConfigParser:
    """Lay a row's files over the training's, as the README says."""
    parser = ConfigParser()
    shared = (PAPER / f"{file}.yaml" for file in ("paper", SHARED[name[0]], name))
    parser.read_config([ROOT / "bundle" / "configs" / "train.yaml", *shared])
    parser["device"] = "cpu"
    return parser


@cache
def network(name: str) -> torch.nn.Module:
    """Build a row's network, in double precision, as the training does."""
    parser = config(name)
    parser["spacing"] = [1.8, 1.8, 1.8]
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").double()


def smallest_scheme(name: str) -> torch.Tensor:
    """Return b0 and directions, as few as the row's network takes."""
    return random_scheme(max([3, *getattr(network(name), "q_counts", [])]), 1.2**0.5)


def test_every_row_of_table_2_has_a_file():
    files = {path.stem for path in PAPER.glob("*.yaml")} - {"paper", "paper_inference", *SHARED.values()}
    assert files == set(COUNTS)


def test_the_table_of_the_readme_has_these_numbers():
    rows = ROW.findall((PAPER / "README.md").read_text())
    assert [(name, link, int(count)) for name, link, count in rows] == [(n, n, count) for n, count in COUNTS.items()]


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_papers_number_of_parameters(name):
    assert sum(p.numel() for p in network(name).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_rows_commute_with_quarter_turns(name):
    net, q = network(name), smallest_scheme(name)
    image = torch.randn(1, len(q), 3, 3, 4)  # small, yet it meets the corner taps of a 5³ kernel
    with torch.no_grad():
        logits = net(image, q)
        for R in quarter_turns()[:2]:  # all others are products of these
            torch.testing.assert_close(net(turn_grid(image, R), q @ R.T), turn_grid(logits, R), rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVARIANT)
def test_rows_train_two_steps_and_predict(name):
    torch.set_default_dtype(torch.float32)
    parser = config(name)
    parser.update({"positive_weight": 20.0, "imports": None})
    net, loss, optimizer = (parser.get_parsed_content(key) for key in ("network", "task#loss", "optimizer"))
    q = smallest_scheme(name).float()
    image, label = torch.randn(1, len(q), 16, 16, 16), (torch.rand(1, 2, 16, 16, 16) < 0.5).float()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss(net(image, q), label))
        losses[-1].backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    assert losses[2] < losses[0]
    with torch.no_grad():
        logits = net.eval()(image, q)
    assert logits.shape == (1, 1, 16, 16, 16)
    assert logits.isfinite().all()


def test_ordinary_networks_take_their_46_volumes():
    net = network("n_3_few")
    assert net(torch.randn(1, 46, 5, 5, 5)).shape == (1, 1, 5, 5, 5)
    with pytest.raises(ValueError, match="takes 46 volumes of one scheme but the scan has 33"):
        net(torch.randn(1, 33, 5, 5, 5))

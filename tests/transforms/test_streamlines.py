import json

import numpy as np
import pytest
import torch
from nibabel.streamlines import ArraySequence

from eqdmri_monai.files.tractograms import Tractogram, read_tractogram, write_trx
from eqdmri_monai.report import SaveTractogramd, sha256
from eqdmri_monai.transforms import (
    LoadTractogramd,
    RandDropBundlesd,
    RandSpliceStreamlinesd,
    RandStretchStreamlinesd,
    RandTruncateStreamlinesd,
    ResampleStreamlinesd,
)
from eqdmri_monai.transforms.streamlines import truncated

NAMES = ["A", "B", "C"]


@pytest.fixture
def path(tmp_path):
    """Twelve streamlines of 3 to 14 points along arcs, four in each of three groups."""
    rng, lines = np.random.default_rng(0), []
    for n in range(3, 15):
        t = np.linspace(0, rng.uniform(0.5, 2), n)[:, None]
        lines.append(np.float32(30 + rng.normal(scale=5, size=3) + 15 * np.c_[np.cos(t), np.sin(t), t]))
    tractogram = Tractogram(ArraySequence(lines), np.eye(4), np.array([100, 100, 100]))
    groups = {name: np.arange(4 * k, 4 * k + 4) for k, name in enumerate(NAMES)}
    write_trx(tmp_path / "head.trx", tractogram, groups=groups, per_streamline={"length": np.arange(12.0)})
    return tmp_path / "head.trx"


def item(path, points=10):
    load, resample = LoadTractogramd("image", names=NAMES), ResampleStreamlinesd("image", points)
    return resample(load({"image": str(path)}))


def test_streamlines_come_evenly_spaced_with_their_labels(path):
    d = item(path)
    assert d["image"].shape == (12, 10, 3)
    assert d["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    steps = d["image"].as_tensor().diff(dim=1).norm(dim=-1)
    assert (steps.std(1) / steps.mean(1)).max() < 0.05  # chords of unequal arcs differ a little
    original = read_tractogram(path).streamlines
    for ours, theirs in zip(d["image"].as_tensor(), original, strict=True):
        np.testing.assert_allclose(ours[[0, -1]], theirs[[0, -1]], atol=1e-4)


def test_a_streamline_and_its_reverse_are_resampled_alike(path):
    d = item(path)
    trx = read_tractogram(path)
    trx.streamlines._data[:3] = trx.streamlines._data[:3][::-1].copy()
    again = ResampleStreamlinesd("image", 10)({"image": trx, "image_path": str(path)})["image"]
    torch.testing.assert_close(again[0].flip(0).as_tensor(), d["image"][0].as_tensor(), atol=1e-4, rtol=0)


def test_streamlines_without_length_are_refused(path):
    trx = read_tractogram(path)
    trx.streamlines._data[:3] = trx.streamlines._data[0]
    with pytest.raises(ValueError, match="1 streamlines have one point or no length, such as number 0"):
        ResampleStreamlinesd("image", 10)({"image": trx, "image_path": str(path)})
    with pytest.raises(ValueError, match="must be 2 or more"):
        ResampleStreamlinesd("image", 1)


def test_truncation_keeps_one_end_and_the_share_of_the_length():
    straight = torch.linspace(0, 1, 11)[None, :, None] * torch.tensor([10.0, 0, 0])
    cut = truncated(straight.expand(2, -1, -1), torch.tensor([0.3, 0.3]), torch.tensor([False, True]))
    torch.testing.assert_close(cut[0, :, 0], torch.linspace(0, 7, 11))
    torch.testing.assert_close(cut[1, :, 0], torch.linspace(3, 10, 11))


def test_a_head_is_stretched_about_its_centre_along_axes_at_right_angles():
    lines = torch.randn(5, 4, 3) + 100
    found = RandStretchStreamlinesd("image", most=0.2).set_random_state(seed=0)({"image": lines})["image"]
    centre = lines.mean((0, 1))
    torch.testing.assert_close(found.mean((0, 1)), centre)
    stretch = torch.linalg.lstsq((lines - centre).flatten(0, 1), (found - centre).flatten(0, 1)).solution
    torch.testing.assert_close((lines - centre) @ stretch + centre, found)
    torch.testing.assert_close(stretch, stretch.T)
    factors = torch.linalg.eigvalsh(stretch)
    assert 0.8 <= factors.min() < 0.99
    assert 1.0 < factors.max() <= 1.2
    with pytest.raises(ValueError, match="the largest stretch"):
        RandStretchStreamlinesd("image", most=1.0)


def test_variations_are_seeded_and_keep_labels_right(path):
    def varied(seed):
        transforms = [
            RandStretchStreamlinesd("image"),
            RandDropBundlesd(["image", "label"], prob=1.0, minimum=2),
            RandTruncateStreamlinesd("image"),
            RandSpliceStreamlinesd(["image", "label"], other=3, least=0.3, most=0.3),
        ]
        d = item(path)
        for k, transform in enumerate(transforms):
            d = transform.set_random_state(seed=seed + k)(d)
        return d

    d, again = varied(0), varied(0)
    torch.testing.assert_close(d["image"], again["image"])
    assert len(d["image"]) == len(d["label"])
    count = d["label"].bincount(minlength=4)
    assert (count[:3] == 0).sum() == 1  # one bundle was left out
    assert count[3] == round(0.3 / 0.7 * int(count[:3].sum()))
    assert d["image"].isfinite().all()


def test_spliced_streamlines_start_in_one_bundle_and_end_in_another(path):
    d = item(path)
    added = RandSpliceStreamlinesd(["image", "label"], other=3, least=0.5, most=0.5).set_random_state(seed=0)(d)
    ends = torch.cat([d["image"][:, :1], d["image"][:, -1:]], 1).as_tensor()  # [s, 2, 3]
    for line in torch.as_tensor(added["image"])[12:]:
        where = [(ends - line[k]).norm(dim=-1).amin(1).argmin() for k in (0, -1)]
        assert d["label"][where[0]] != d["label"][where[1]]


def test_a_tractogram_is_saved_with_groups_probabilities_a_picture_and_a_record(path, tmp_path):
    d = item(path)
    d["pred"] = torch.nn.functional.one_hot(torch.arange(12) % 4, 4).T * 0.6 + 0.1
    (tmp_path / "model.pt").write_bytes(b"weights")
    made = {"output_dir": tmp_path, "weights": tmp_path / "model.pt", "settings": {"points": 20}}
    made |= {"details": {"device": "cpu"}, "data_root_dir": path.parent}
    SaveTractogramd("pred", names=NAMES, prefix="new_", **made)(d)
    out, original = read_tractogram(tmp_path / "head_bundles.trx"), read_tractogram(path)
    np.testing.assert_array_equal(out.streamlines._data, original.streamlines._data)
    assert sorted(out.groups) == ["A", "B", "C", "new_A", "new_B", "new_C"]
    assert out.groups["new_B"].tolist() == [1, 5, 9]
    np.testing.assert_allclose(out.per_streamline["new_A"][:, 0], np.where(np.arange(12) % 4 == 0, 0.7, 0.1), atol=1e-6)
    np.testing.assert_allclose(out.per_streamline["new_probability"], 0.7, atol=1e-6)
    np.testing.assert_array_equal(out.per_streamline["length"][:, 0], np.arange(12.0))
    assert (tmp_path / "head_bundles.png").stat().st_size > 10000
    record = json.loads((tmp_path / "head_bundles.json").read_text())
    assert (record["input"], record["input_sha256"]) == ("head.trx", sha256(path))
    assert record["weights_sha256"] == sha256(tmp_path / "model.pt")
    assert record["streamlines_per_bundle"] == {"new_A": 3, "new_B": 3, "new_C": 3}
    assert record["points"] == 20
    assert {"eqdmri_monai", "packages", "finished"} <= record.keys()
    assert str(tmp_path) not in str(record)
    made["output_dir"] = tmp_path / "other"
    with pytest.raises(ValueError, match="has A already"):
        SaveTractogramd("pred", names=NAMES, **made)(d)
    with pytest.raises(ValueError, match="names must be those of the network's 4 classes"):
        SaveTractogramd("pred", names=["A"], **made)(d)
    assert not list(made["output_dir"].iterdir())


def test_shares_of_false_positives_that_are_none_are_refused():
    with pytest.raises(ValueError, match="shares must be"):
        RandSpliceStreamlinesd(["image", "label"], other=3, least=0.5, most=0.2)

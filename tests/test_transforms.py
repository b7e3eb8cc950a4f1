import numpy as np
import pytest
import torch
from e3nn import o3
from monai.data import MetaTensor
from monai.transforms import (
    Affined,
    CenterSpatialCropd,
    Compose,
    Flipd,
    Orientationd,
    RandAffined,
    RandRotate90d,
    Rotate90d,
    Rotated,
    Spacingd,
    Zoomd,
)
from rotation import scheme

from eqdmri_monai.frames import fsl_to_world, world_to_fsl, world_to_voxel
from eqdmri_monai.gradients import GradientTable
from eqdmri_monai.io import write_fsl, write_nifti
from eqdmri_monai.simulate.phantom import spread_directions
from eqdmri_monai.simulate.signal import fibre_tensor, tensor_signal
from eqdmri_monai.transforms import (
    AverageB0d,
    BrainMaskd,
    CheckLabeld,
    CheckScand,
    LoadGradientsd,
    NormalizeChannelsd,
    NormalizeShellsd,
    RandSubsampleVolumesd,
    WriteQd,
    q_world,
)


def image(q, affine=None, size=6) -> MetaTensor:
    volumes = torch.rand(len(q), size, size, size, dtype=torch.float32) + 0.5
    return MetaTensor(volumes, affine=torch.eye(4) if affine is None else affine, meta={"q_world": q.numpy()})


# --- gradients follow the data through MONAI's spatial transforms


def fibre_image(affine: np.ndarray, fibre: np.ndarray, bvecs: np.ndarray, size: int = 30) -> np.ndarray:
    """A spindle of parallel fibres in a round medium, shape (Q, X, Y, Z); b0 first."""
    ijk = np.stack(np.mgrid[3 * (slice(size),)], axis=-1)
    world = (ijk - (size - 1) / 2) @ affine[:3, :3].T
    along = world @ fibre
    across = np.linalg.norm(world - along[..., None] * fibre, axis=-1)
    inside = ((along / 20) ** 2 + (across / 6) ** 2 < 1)[..., None]
    bvals = np.full(len(bvecs), 1000.0)
    spindle = tensor_signal(fibre_tensor(fibre, 1.7e-3, 0.3e-3), bvals, bvecs)
    return np.moveaxis(np.where(inside, spindle, np.exp(-1000 * 0.8e-3)), -1, 0)


def principal_axes(x: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Axis of the tensor that fits the data with these q-vectors, and long axis of the spindle in the array."""
    x = x.as_tensor().double()
    weight = x.std(dim=0) * (x.std(dim=0) > 0.5 * x.std(dim=0).max())
    design = torch.stack(
        [q[:, a] * q[:, b] * (1 if a == b else 2) for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], 1
    )
    mean = (x.clamp(min=1e-3).log() * weight).flatten(1).sum(1) / weight.sum()
    d = torch.linalg.lstsq(design, -mean[:, None]).solution.flatten()
    tensor = torch.stack([d[0], d[3], d[4], d[3], d[1], d[5], d[4], d[5], d[2]]).reshape(3, 3)
    where = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in x.shape[1:]])
    w = weight.flatten()[:, None]
    centred = where - (w * where).sum(0) / w.sum()
    return torch.linalg.eigh(tensor)[1][:, -1], torch.linalg.eigh(centred.T @ (w * centred))[1][:, -1]


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.rad2deg(torch.arccos((a @ b).abs().clamp(max=1))))


KEY, EDGE = {"keys": "image"}, {"keys": "image", "padding_mode": "border"}
CHAINS = {
    "as stored": [],
    "RAS": [Orientationd(**KEY, axcodes="RAS", labels=None)],
    "PIR": [Orientationd(**KEY, axcodes="PIR", labels=None)],
    "spacing": [Spacingd(**KEY, pixdim=(1.5, 1.5, 1.5), mode="bilinear")],
    "flip": [Flipd(**KEY, spatial_axis=0)],
    "rotate 90": [Rotate90d(**KEY, k=1, spatial_axes=(0, 2))],
    "random rotate 90": [RandRotate90d(**KEY, prob=1.0, spatial_axes=(1, 2))],
    "rotate": [Rotated(**EDGE, angle=(0.3, -0.4, 0.2), keep_size=True)],
    "random rigid": [RandAffined(**EDGE, prob=1.0, rotate_range=(0.5, 0.5, 0.5), translate_range=2)],
    "isotropic zoom": [Zoomd(**KEY, zoom=0.9, mode="trilinear", padding_mode="edge")],
    "scale and turn": [Affined(**EDGE, rotate_params=(0.2, 0.1, -0.3), scale_params=(0.9, 0.9, 0.9))],
    "a whole pipeline": [
        Orientationd(**KEY, axcodes="RAS", labels=None),
        Spacingd(**KEY, pixdim=(1.8, 1.8, 1.8), mode="bilinear"),
        Rotated(**EDGE, angle=(0.2, 0.3, -0.4), keep_size=True),
        RandRotate90d(**KEY, prob=1.0),
        CenterSpatialCropd(**KEY, roi_size=(28, 28, 28)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_turn_with_the_data(chain, mirror):
    """What FSL's file says is read with the file's affine, and meets the data after each chain within a degree."""
    R = o3.matrix_x(torch.tensor(0.2)) @ o3.matrix_z(torch.tensor(-0.15))
    affine = torch.eye(4)
    affine[:3, :3] = R @ torch.diag(torch.tensor([2.0 * mirror, 2.0, 2.0]))
    bvecs = spread_directions(12, np.random.default_rng(0))
    fibre = np.array([0.5, 0.7, -0.4]) / np.linalg.norm([0.5, 0.7, -0.4])
    stored = world_to_fsl(torch.from_numpy(bvecs), affine)  # what a scanner writes next to the file
    meta = {"q_world": fsl_to_world(stored, affine).numpy()}
    x = MetaTensor(torch.from_numpy(fibre_image(affine.numpy(), fibre, bvecs)).float(), affine=affine, meta=meta)
    transform = Compose(CHAINS[chain]).set_random_state(seed=1)
    out = transform({"image": x})["image"]
    q = world_to_voxel(q_world(out), out.affine)
    assert angle(*principal_axes(out, q)) < 1.0
    if chain == "a whole pipeline":  # the check itself sees vectors that were left behind
        assert angle(*principal_axes(out, stored)) > 10.0


# --- the transforms one by one


@pytest.fixture
def scan(tmp_path):
    """A scan on disk, with sidecars."""
    table = GradientTable(torch.tensor([0.0] + 7 * [1000.0]), scheme(7, 1.0))
    affine = np.diag([-2.0, 2, 2, 1])
    rng = np.random.default_rng(0)
    write_nifti(tmp_path / "dwi.nii.gz", rng.random((4, 5, 6, 8), dtype=np.float32), affine)
    write_fsl(table, affine, tmp_path / "dwi")
    return tmp_path / "dwi.nii.gz", table, affine


def test_loaded_gradients_are_in_the_world(scan):
    path, table, affine = scan
    meta = {"filename_or_obj": str(path), "original_affine": affine}
    x = MetaTensor(torch.rand(8, 4, 5, 6), affine=torch.from_numpy(affine), meta=meta)
    out = LoadGradientsd("image")({"image": x})["image"]
    torch.testing.assert_close(q_world(out), table.q, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(out.meta["q_file"], out.meta["q_world"])


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "voxels are not finite"), (0.0, "every voxel is 0")])
def test_a_scan_without_a_signal_is_refused(scan, value, words):
    x = MetaTensor(torch.full((8, 4, 5, 6), value), meta={"filename_or_obj": "a.nii.gz"})
    with pytest.raises(ValueError, match=rf"a.nii.gz: .*{words}"):
        LoadGradientsd("image")({"image": x})


def test_check_passes_a_scan_with_a_mask_on_its_grid(scan, tmp_path):
    path, _, affine = scan
    mask = write_nifti(tmp_path / "mask.nii.gz", np.ones((4, 5, 6), np.uint8), affine)
    off = write_nifti(tmp_path / "off.nii.gz", np.ones((4, 5, 5), np.uint8), affine)
    check = CheckScand(["image", "brain_mask"], allow_missing_keys=True)
    assert check({"image": str(path)}) == {"image": str(path)}
    check({"image": str(path), "brain_mask": str(mask)})
    with pytest.raises(ValueError, match=r"off\.nii\.gz: another grid than .*dwi\.nii\.gz"):
        check({"image": str(path), "brain_mask": str(off)})


def test_b0s_are_averaged_into_the_first_volume():
    q = scheme(6, 1.0)[[1, 0, 2, 0, 3, 4, 5, 6]]
    x = image(q)
    out = AverageB0d("image")({"image": x})["image"]
    torch.testing.assert_close(out[0].as_tensor(), x.as_tensor()[[1, 3]].mean(0))
    torch.testing.assert_close(out[1:].as_tensor(), x.as_tensor()[[0, 2, 4, 5, 6, 7]])
    torch.testing.assert_close(q_world(out), torch.cat([q[1:2], q[[0, 2, 4, 5, 6, 7]]]))


def test_a_scan_without_b0_is_refused():
    with pytest.raises(ValueError, match="at least one b0 is needed"):
        AverageB0d("image")({"image": image(scheme(6, 1.0)[1:])})


def test_an_image_without_a_table_is_refused():
    with pytest.raises(ValueError, match="use LoadGradientsd after LoadImaged"):
        AverageB0d("image")({"image": MetaTensor(torch.rand(3, 4, 4, 4))})


def test_a_volume_that_was_dropped_by_hand_is_noticed():
    x = image(scheme(6, 1.0))
    with pytest.raises(ValueError, match="7 q-vectors for 6 volumes"):
        AverageB0d("image")({"image": x[:6]})


def test_the_brain_of_a_bright_ball_is_the_ball():
    ball = torch.stack(torch.meshgrid(*3 * [torch.arange(-12.0, 12)], indexing="ij")).norm(dim=0) < 8
    x = image(scheme(6, 1.0), size=24)
    x[0] = 100.0 * ball + torch.rand(24, 24, 24)
    mask = BrainMaskd("image")({"image": x})["brain_mask"]
    assert mask.shape == (1, 24, 24, 24)
    assert (mask[0].as_tensor().bool() ^ ball).sum() < 0.1 * ball.sum()


def test_a_given_mask_is_kept_and_an_empty_one_refused():
    x, mask = image(scheme(6, 1.0)), MetaTensor(torch.zeros(1, 6, 6, 6))
    mask[:, :3] = 1
    out = BrainMaskd("image")({"image": x, "brain_mask": mask.clone()})["brain_mask"]
    torch.testing.assert_close(out.as_tensor(), mask.as_tensor().float())
    with pytest.raises(ValueError, match="the brain mask is empty"):
        BrainMaskd("image")({"image": x, "brain_mask": 0 * mask})
    with pytest.raises(ValueError, match="resample it"):
        BrainMaskd("image")({"image": x, "brain_mask": mask[:, :4]})


def test_each_shell_gets_mean_zero_and_deviation_one_in_the_brain():
    q = scheme(6, 1.0, 1.5)
    x, mask = 10 * image(q), torch.zeros(1, 6, 6, 6)
    mask[:, 1:5] = 1
    out = NormalizeShellsd("image")({"image": x, "brain_mask": mask})["image"].as_tensor()
    for volumes in (slice(0, 1), slice(1, 7), slice(7, 13)):
        values = out[volumes][:, mask[0] > 0]
        assert abs(values.mean()) < 1e-5
        assert abs(values.std(correction=0) - 1) < 1e-5
    assert out[:, mask[0] == 0].abs().max() == 0


def test_normalisation_does_not_depend_on_order_or_sign_of_gradients():
    q, mask = scheme(6, 1.0, 1.5), torch.ones(1, 6, 6, 6)
    x, order = image(q), torch.randperm(13)
    shuffled = MetaTensor(x.as_tensor()[order], meta={"q_world": -q[order].numpy()})
    a, b = (NormalizeShellsd("image")({"image": i, "brain_mask": mask})["image"].as_tensor() for i in (x, shuffled))
    torch.testing.assert_close(b, a[order])


def test_a_constant_shell_is_refused():
    x = image(scheme(6, 1.0))
    x[1:] = 1.0
    with pytest.raises(ValueError, match="constant inside the brain"):
        NormalizeShellsd("image")({"image": x, "brain_mask": torch.ones(1, 6, 6, 6)})


def test_channel_means_give_the_papers_normalisation():
    x = image(scheme(6, 1.0))
    means = 1.0 + torch.arange(7)
    out = NormalizeChannelsd("image", means.tolist())({"image": x})["image"].as_tensor()
    scaled = x.as_tensor() / means.float()[:, None, None, None]
    torch.testing.assert_close(out, scaled / scaled.mean())
    with pytest.raises(ValueError, match="7 volumes but 6 channel means"):
        NormalizeChannelsd("image", means[:6].tolist())({"image": x})
    with pytest.raises(ValueError, match="mean intensity is 0"):
        NormalizeChannelsd("image", means.tolist())({"image": 0 * x})


def test_a_subset_of_volumes_keeps_its_own_q_vectors():
    q = scheme(12, 1.0)
    x = image(q)
    x[:] = torch.arange(13.0)[:, None, None, None]
    transform = RandSubsampleVolumesd("image", minimum=6, maximum=8).set_random_state(seed=3)
    sizes = set()
    for _ in range(20):
        out = transform({"image": x})["image"]
        which = out[:, 0, 0, 0].as_tensor().long()
        assert which[0] == 0
        torch.testing.assert_close(q_world(out), q[which])
        sizes.add(len(which) - 1)
    assert sizes == {6, 7, 8}


@pytest.mark.parametrize(("label", "outputs"), [(2 * torch.ones(1, 4, 4, 4), 1), (torch.zeros(1, 4, 4, 4), 3)])
def test_labels_for_another_number_of_classes_are_refused(label, outputs):
    with pytest.raises(ValueError, match=f"the network has {outputs} outputs"):
        CheckLabeld("label", outputs=outputs)({"label": label})
    CheckLabeld("label")({"label": torch.eye(4)[None, None]})


def test_q_is_written_along_the_current_axes():
    q, affine = scheme(6, 1.0), torch.eye(4)
    affine[:3, :3] = 2 * o3.rand_matrix()
    out = WriteQd("image")({"image": image(q, affine)})["q"]
    torch.testing.assert_close(out, (q @ (affine[:3, :3] / 2)).float(), rtol=0, atol=1e-6)


def test_left_handed_axes_are_refused():
    with pytest.raises(ValueError, match="left-handed"):
        WriteQd("image")({"image": image(scheme(6, 1.0), torch.diag(torch.tensor([-1.0, 1, 1, 1])))})


def test_a_scan_without_a_demanded_shell_is_refused():
    load = LoadGradientsd("image", shells=[0, 1000])
    one, other = image(scheme(6, 1.01)), image(scheme(6, 1.2))
    for x in (one, other):
        x.meta["filename_or_obj"] = "scan.nii.gz"
    assert load({"image": one})["image"].shape[0] == 7
    with pytest.raises(ValueError, match=r"scan.nii.gz: no shell of b = 1000 s/mm², only 0, 1440"):
        load({"image": other})

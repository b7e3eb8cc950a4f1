"""One scan in every storage order and obliqueness, through files: the same map in the world, on the file's own grid."""

import dataclasses
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from test_bundle import NETWORK, run

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.networks import PQNet
from eqdmri_monai.simulate import make_phantom, single_shell

SPACING = [9.0, 9.0, 9.0]
ORDERS = ["".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)]
ANGLES = (0.0, 0.3, 15.0)  # degrees


@pytest.fixture(autouse=True)
def _float32():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def heads():
    """The same kind of head at each angle."""
    table = single_shell(6, 1000.0, np.random.default_rng(0), b0s=1)
    turned = {"shape": (14, 16, 12), "spacing": (11.0, 11.5, 12.0), "lesions": 3}
    return {a: make_phantom(0, table, angles=(a, -0.6 * a, 0.4 * a), **turned) for a in ANGLES}


def stored(array: np.ndarray, affine: np.ndarray, codes: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return an array and its affine in a storage order; None: as they are."""
    if codes is None:
        return array, affine
    to = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(array, to), affine @ inv_ornt_aff(to, array.shape[:3])


def maps(heads, cases, folder):
    """Map the scans of these cases (angle, codes) in one run; return their probability, from the files."""
    torch.manual_seed(0)
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), folder / "model.pt")
    scans = []
    for angle, codes in cases:
        head, name = heads[angle], f"{codes}{angle}"
        dwi, affine = stored(head.dwi, head.affine, codes)
        write_nifti(folder / f"{name}.nii", dwi, affine)
        write_nifti(folder / f"{name}_mask.nii", stored(head.brain.astype(np.uint8), head.affine, codes)[0], affine)
        write_fsl(head.table, affine, folder / name)
        scans.append({"image": f"{name}.nii", "brain_mask": f"{name}_mask.nii"})
    (folder / "scans.json").write_text(json.dumps({"testing": scans}))
    run(
        ["inference.yaml"], datalist=str(folder / "scans.json"), weights=str(folder / "model.pt"), spacing=SPACING,
        output_dir=str(folder / "out"), **{"save_together#transforms": "$@task#save[-1:]"},  # the map alone
    )  # fmt: skip
    found = []
    for scan in scans:
        image, source = (nib.load(folder / n) for n in (f"out/{scan['image'][:-4]}_probability.nii.gz", scan["image"]))
        assert image.shape == source.shape[:3]
        np.testing.assert_array_equal(image.affine, source.affine)
        found.append(image)
    return found


def test_every_storage_order_gets_the_same_map(heads, tmp_path):
    cases = list(itertools.product(ANGLES, ORDERS))
    assert len(cases) == 3 * 48
    found = [nib.as_closest_canonical(image).get_fdata() for image in maps(heads, cases, tmp_path)]
    found = dict(zip(cases, found, strict=True))
    for (angle, _), one in found.items():
        np.testing.assert_allclose(one, found[angle, "RAS"], rtol=0, atol=1e-5)
    assert all(found[angle, "RAS"].std() > 0.01 for angle in ANGLES)


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LIP"])  # axial, sagittal and coronal slices
@pytest.mark.parametrize("slices", [1, 3])
def test_one_slice_and_a_slab_get_maps_and_a_picture(heads, tmp_path, codes, slices):
    head = heads[0.0]
    dwi, affine = stored(head.dwi, head.affine, codes)
    dwi = dwi[:, :, 5 : 5 + slices]
    affine = affine @ nib.affines.from_matvec(np.eye(3), [0, 0, 5])
    write_nifti(tmp_path / "dwi.nii.gz", dwi, affine)
    write_fsl(head.table, affine, tmp_path / "dwi")
    torch.save(PQNet(spacing=SPACING, **NETWORK).state_dict(), tmp_path / "model.pt")
    options = {"weights": str(tmp_path / "model.pt"), "spacing": SPACING, "output_dir": str(tmp_path / "out")}
    run(["inference.yaml"], dwi=str(tmp_path / "dwi.nii.gz"), **options)
    for name in ("probability", "lesion", "brain"):
        image = nib.load(tmp_path / "out" / f"dwi_{name}.nii.gz")
        assert image.shape == dwi.shape[:3]
        np.testing.assert_array_equal(image.affine, nib.load(tmp_path / "dwi.nii.gz").affine)
        assert image.get_fdata().any() or name == "lesion"
    assert (tmp_path / "out" / "dwi_report.png").stat().st_size > 10_000


@pytest.mark.parametrize("angles", [(0, 0, 0), (12, -7, 5), (45, 0, 0), (0, 0, -45)])
def test_a_change_of_1e_6_in_the_affine_does_not_change_the_map(tmp_path, angles):
    """At sizes of voxels where numbers of voxels, and mask voxels, are ties; and where two axes are equally near."""
    table = single_shell(6, 1000.0, np.random.default_rng(0), b0s=1)
    head = make_phantom(0, table, angles=angles, shape=(14, 12, 24), spacing=(13.5, 18.0, 7.2), lesions=3)
    rng = np.random.default_rng(0)
    heads = {"as it is": head}
    for k in range(7):
        changed = head.affine.copy()
        changed[:3] += 10.0 ** rng.integers(-9, -5) * rng.choice([-1, 1], (3, 4))
        heads[str(k)] = dataclasses.replace(head, affine=changed)
    first, *others = (image.get_fdata() for image in maps(heads, [(name, None) for name in heads], tmp_path))
    assert first.std() > 0.01
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-3)

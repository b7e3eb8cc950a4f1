"""Malformed and odd scans: each is refused in one sentence that names the file, or right, or right with a warning.

A row is a name, what is done to a good scan in a folder, and what must come of it: words of the refusal, words of the
warning (after "warns: "), or "right".
"""

import bz2
import gzip
import json
import re
import warnings
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from eqdmri_monai.files.nifti import write_nifti
from eqdmri_monai.files.scans import scan_list
from eqdmri_monai.files.tables import write_fsl
from eqdmri_monai.simulate import make_phantom, single_shell
from eqdmri_monai.transforms.scan import table_of

CONFIG = Path(__file__).parents[1] / "bundle" / "configs" / "inference.yaml"
SHAPE, SPACING, VOLUMES = (16, 18, 14), 8, 9  # one b0 and eight directions
START = 352  # of the voxels in a NIfTI-1 file


@pytest.fixture(scope="module")
def phantom():
    table = single_shell(8, 1000.0, np.random.default_rng(0), b0s=1)
    return make_phantom(0, table, shape=SHAPE, spacing=(SPACING,) * 3, lesions=0)


@pytest.fixture(scope="module")
def prepare():
    """All transforms of inference before the network."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser.update({"spacing": [8.0, 8.0, 8.0], "device": "cpu"})
    return parser.get_parsed_content("preprocessing")


@pytest.fixture
def folder(phantom, tmp_path):
    """s.nii with its table, and a mask of its brain."""
    torch.set_default_dtype(torch.float32)
    write_nifti(tmp_path / "s.nii", phantom.dwi.astype(np.float32), phantom.affine)
    write_fsl(phantom.table, phantom.affine, tmp_path / "s")
    write_nifti(tmp_path / "brain.nii", phantom.brain.astype(np.uint8), phantom.affine)
    return tmp_path


# --- what is done to the files; each returns the scan if it is not {"image": s.nii}


def head(folder, name="s.nii", **fields):
    """Set fields of the header as they are in the file, checked by nobody; "dim1" is an entry of dim."""
    path = folder / name
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for field, value in fields.items():
        if field.rstrip("0123456789") in ("dim", "pixdim"):
            header[field.rstrip("0123456789")][int(field[len(field.rstrip("0123456789")) :])] = value
        else:
            header[field] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)


def affine(folder, matrix, *, code=1):
    """Give the scan an sform alone."""
    matrix = np.asarray(matrix, float)
    head(folder, qform_code=0, sform_code=code, srow_x=matrix[0], srow_y=matrix[1], srow_z=matrix[2])


def voxels(folder, change):
    """Change the array of the scan, (X, Y, Z, Q) float32."""
    image = nib.load(folder / "s.nii")
    array = image.get_fdata(dtype=np.float32)
    change(array)
    write_nifti(folder / "s.nii", array, image.affine)


def content(folder, data, name="s.nii"):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data((folder / name).read_bytes()))


def zipped(folder, data=lambda b: b, name="s.nii.gz"):
    """Keep the scan as another file, and take that."""
    packed = gzip.compress((folder / "s.nii").read_bytes(), 1, mtime=0)
    (folder / name).write_bytes(data(packed))
    return {"image": folder / name}


def text(folder, change, name="s.bvec", encoding="utf-8"):
    (folder / name).write_bytes(change((folder / name).read_text()).encode(encoding))


def numbers(folder, change, name="s.bvec"):
    """Change the numbers of a table: s.bvec has 3 rows, s.bval one."""
    rows = np.loadtxt(folder / name, ndmin=2)
    changed = change(rows)
    rows = rows if changed is None else changed
    (folder / name).write_text("\n".join(" ".join(f"{x:.9g}" for x in row) for row in rows) + "\n")


def put(folder, index, value, name="s.bvec"):
    def change(rows):
        rows[index] = value

    numbers(folder, change, name)


def gone(folder, *names):
    for name in names:
        (folder / name).unlink()


def mrtrix(folder, change=lambda rows: rows):
    """Write s.b in place of bval and bvec; `change` gets its lines."""
    from eqdmri_monai.files.tables import read_fsl

    table = read_fsl(folder / "s.bval", folder / "s.bvec", nib.load(folder / "s.nii").affine)
    lines = [" ".join(f"{x:.8g}" for x in row) for row in table.rows.tolist()]
    gone(folder, "s.bval", "s.bvec")
    (folder / "s.b").write_text("\n".join(change(lines)) + "\n")


def mask(folder, change=None, affine=None, name="brain.nii"):
    image = nib.load(folder / "brain.nii")
    array = image.get_fdata(dtype=np.float32)
    array = array if change is None else change(array)
    write_nifti(folder / name, array, image.affine if affine is None else affine)
    return {"brain_mask": folder / name}


def volume(index, value):
    def change(array):
        array[..., index] = value

    return partial(voxels, change=change)


def voxel(value):
    def change(array):
        array[8, 9, 7, 3] = value

    return partial(voxels, change=change)


def scaled(factor):
    def change(array):
        array *= factor

    return partial(voxels, change=change)


def weighted_brighter(array):
    array[..., 1:] *= 20


def noise(array):
    array[:] = np.random.default_rng(0).random(array.shape) * 100


def plane(rows):
    rows[2] = 0
    norm = np.linalg.norm(rows, axis=0)
    rows[:, norm > 0] /= norm[norm > 0]


def half(data):
    return data[: len(data) // 2]


def flipped(at):
    def change(data):
        data = bytearray(data)
        data[int(at * len(data))] ^= 0xFF
        return bytes(data)

    return change


DIAGONAL = np.diag([SPACING, SPACING, SPACING, 1.0])
SHEARED = DIAGONAL + np.array([[0, 4, 0, 0], *3 * [[0] * 4]])
CASES = {
    # headers
    "as it is": (lambda f: None, "right"),
    "as .nii.gz": (zipped, "right"),
    "ending in capitals": (partial(zipped, name="s.NII.GZ"), "in lower case"),
    **{f"dim0 = {n}": (partial(head, dim0=n), "axes") for n in (-1, 0, 1, 2, 3, 5, 8, 300)},
    **{f"dim{k} = {n}": (partial(head, **{f"dim{k}": n}), "s.nii") for k in (1, 2, 3, 4) for n in (-16, 0)},
    "more voxels than there are": (partial(head, dim1=300), "bytes"),
    "more volumes than there are": (partial(head, dim4=30), "bytes"),
    "fewer volumes than there are": (partial(head, dim4=8), "bytes"),
    "fewer slices than there are": (partial(head, dim3=13), "bytes"),
    **{
        f"datatype {n}": (partial(head, datatype=n, bitpix=bits), words)
        for n, bits, words in (
            (128, 24, "RGB"), (2304, 32, "RGB"), (32, 64, "complex"), (1792, 128, "complex"), (0, 0, "type"),
            (1, 1, "type"), (9999, 32, "type"), (-5, 32, "type"),
        )
    },
    **{f"scl_slope {x}": (partial(head, scl_slope=x), "scaled by") for x in (-1.0, -1e-9, np.inf, -np.inf)},
    "scl_slope not a number": (partial(head, scl_slope=np.nan), "right"),
    "scl_slope 0": (partial(head, scl_slope=0.0), "right"),
    "scl_slope 1e-3": (partial(head, scl_slope=1e-3, scl_inter=0.0), "right"),
    **{f"scl_inter {x}": (partial(head, scl_slope=1, scl_inter=x), "shifted by") for x in (1e9, -1e9, np.inf, np.nan)},
    **{f"vox_offset {x}": (partial(head, vox_offset=x), "vox_offset") for x in (0, 100, 348, -352, np.nan, np.inf)},
    "vox_offset behind the end": (partial(head, vox_offset=1e7), "bytes"),
    "in metres": (partial(head, xyzt_units=1), "metres"),
    "in micrometres": (partial(head, xyzt_units=3), "micrometres"),
    "in nothing said": (partial(head, xyzt_units=0), "right"),
    **{
        f"pixdim1 {x}, qform alone": (partial(head, sform_code=0, pixdim1=x), "s.nii: ")
        for x in (0.0, -8.0, np.nan, np.inf, 1e-20, 1e9)
    },
    "sform twice pixdim": (partial(affine, matrix=2 * DIAGONAL), "by the sform"),
    "sform of 0": (partial(affine, matrix=0 * DIAGONAL), "s.nii: "),
    "sform of 1e-20": (partial(affine, matrix=1e-20 * DIAGONAL), "s.nii: "),
    "sform not a number": (partial(affine, matrix=np.nan * DIAGONAL), "not finite"),
    "sform infinite": (partial(affine, matrix=np.inf * np.ones((4, 4))), "not finite"),
    "sform sheared": (partial(affine, matrix=SHEARED), "sheared"),
    "sform of one axis twice": (partial(affine, matrix=DIAGONAL[[0, 0, 2, 3]]), "singular"),
    "sform_code 9": (partial(affine, matrix=DIAGONAL, code=9), "sform_code"),
    "sform_code -1": (partial(affine, matrix=DIAGONAL, code=-1), "sform_code"),
    "quaternion twice as long": (partial(head, sform_code=0, quatern_b=2.0), "quaternion"),
    "quaternion not a number": (partial(head, sform_code=0, quatern_c=np.nan), "s.nii: "),
    "quaternion of another turn": (partial(head, quatern_b=1.0, quatern_c=0.0, quatern_d=0.0), "differently"),
    "neither sform nor qform": (partial(head, sform_code=0, qform_code=0), "warns: sform_code and qform_code are 0"),
    **{f"magic {m!r}": (partial(head, magic=m), w) for m, w in ((b"xyz", "NIfTI"), (b"ni1", "pair"), (b"", "NIfTI"))},
    **{f"sizeof_hdr {n}": (partial(head, sizeof_hdr=n), "s.nii: ") for n in (0, 1, 540, -348)},
    # bytes
    "empty": (partial(content, data=b""), "empty"),
    "text": (partial(content, data=b"nothing of the kind\n" * 50), "NIfTI"),
    "zeros": (partial(content, data=bytes(1000)), "NIfTI"),
    **{f"cut after {n}": (partial(content, data=lambda b, n=n: b[:n]), "s.nii") for n in (4, 100, 348, 352, 5000)},
    "cut by a voxel": (partial(content, data=lambda b: b[:-4]), "bytes"),
    "longer by a voxel": (partial(content, data=lambda b: b + bytes(4)), "bytes"),
    "twice": (partial(content, data=lambda b: b + b), "bytes"),
    "compressed without .gz": (partial(content, data=gzip.compress), "compressed"),
    "not compressed with .gz": (partial(zipped, data=lambda b: gzip.decompress(b)), "s.nii.gz: "),
    "compressed twice": (partial(zipped, data=gzip.compress), "s.nii.gz: "),
    "empty .gz": (partial(zipped, data=lambda b: b""), "empty"),
    "nothing compressed": (partial(zipped, data=lambda b: gzip.compress(b"")), "s.nii.gz: "),
    "half of a .gz": (partial(zipped, data=half), "cut short|damaged"),
    "a .gz without its end": (partial(zipped, data=lambda b: b[:-4]), "cut short|damaged"),
    **{f".gz damaged at {at}": (partial(zipped, data=flipped(at)), "s.nii.gz: ") for at in (0, 0.1, 0.5, 0.9, 0.9999)},
    ".nii.bz2": (partial(zipped, data=lambda b: bz2.compress(gzip.decompress(b)), name="s.nii.bz2"), "s.nii.bz2: "),
    "a folder": (lambda f: (gone(f, "s.nii"), (f / "s.nii").mkdir())[0], "s.nii: "),
    # intensities
    "one voxel not a number": (voxel(np.nan), "not finite"),
    "one voxel infinite": (voxel(np.inf), "not finite"),
    "one voxel of 1e9": (voxel(1e9), "variance"),
    "one voxel of -1e9": (voxel(-1e9), "variance"),
    "all 0": (scaled(0), "0( in every voxel|; this is no scan)"),
    "all negative": (scaled(-1), "on average"),
    "the b0 is 0": (volume(0, 0), "volume 0 is 0 in every voxel"),
    "a weighted volume is 0": (volume(3, 0), "volume 3 is 0 in every voxel"),
    "a weighted volume is constant": (volume(5, 7), "volume 5 is 7 in every voxel"),
    "a thousand times brighter": (scaled(1000), "right"),
    "a millionth as bright": (scaled(1e-6), "right"),
    "noise alone": (partial(voxels, change=noise), "warns: nothing in common"),
    "weighted volumes brighter": (partial(voxels, change=weighted_brighter), "warns: brighter than the b0"),
    # FSL tables
    "no bval": (lambda f: gone(f, "s.bval"), "no gradient table"),
    "no bvec": (lambda f: gone(f, "s.bvec"), "no gradient table"),
    "no table": (lambda f: gone(f, "s.bval", "s.bvec"), "no gradient table"),
    "bval alone named": (lambda f: {"bval": f / "s.bval"}, "together"),
    "a table that is missing": (lambda f: {"bval": f / "no.bval", "bvec": f / "s.bvec"}, "no.bval: no such file"),
    "empty bval": (partial(content, data=b"", name="s.bval"), "s.bval: "),
    "empty bvec": (partial(content, data=b"", name="s.bvec"), "s.bvec: "),
    "blank bvec": (partial(content, data=b" \n \n", name="s.bvec"), "s.bvec: "),
    "words in bval": (partial(text, change=lambda t: "b-values: " + t, name="s.bval"), "s.bval: not a table"),
    "words in bvec": (partial(text, change=lambda t: t + "the end\n"), "s.bvec: not a table"),
    "bytes in bvec": (partial(content, data=bytes(range(128, 256)), name="s.bvec"), "s.bvec: not a table"),
    "bvec in UTF-16": (partial(text, change=str, encoding="utf-16"), "s.bvec: not a table"),
    "with a byte-order mark": (partial(text, change=str, encoding="utf-8-sig"), "right"),
    "commas": (partial(text, change=lambda t: t.replace(" ", ", ")), "right"),
    "tabs": (partial(text, change=lambda t: t.replace(" ", "\t")), "right"),
    "line ends of DOS": (partial(text, change=lambda t: t.replace("\n", "\r\n")), "right"),
    "blanks at the ends": (partial(text, change=lambda t: t.replace("\n", "   \n") + "\n\n"), "right"),
    "bval in one column": (partial(text, change=lambda t: t.replace(" ", "\n"), name="s.bval"), "right"),
    "bvec in columns": (partial(numbers, change=np.transpose), "right"),
    "bvec of 2 rows": (partial(numbers, change=lambda r: r[:2]), "s.bvec: "),
    "bvec of 4 rows": (partial(numbers, change=lambda r: np.concatenate([r, r[:1]])), "s.bvec: "),
    "bvec in one row": (partial(text, change=lambda t: t.replace("\n", " ")), "s.bvec: "),
    "ragged bvec": (partial(text, change=lambda t: t.rstrip().rsplit(" ", 1)[0]), "equally long"),
    "a direction too few": (partial(numbers, change=lambda r: r[:, 1:]), "different scans"),
    "a b-value too many": (partial(text, change=lambda t: t.strip() + " 1000", name="s.bval"), "different scans"),
    "a table of another scan": (
        lambda f: (numbers(f, lambda r: r[:, :8]), numbers(f, lambda r: r[:, :8], "s.bval"))[0], "9 volumes",
    ),
    **{
        f"b-value {x}": (partial(put, index=(0, 2), value=x, name="s.bval"), words)
        for x, words in ((-1000, "negative"), (np.nan, "not a number"), (np.inf, "not a number"), (1e300, "s.b"))
    },
    **{
        f"b-values of {x:g}": (lambda f, x=x: numbers(f, lambda r: r * x / 1000, "s.bval"), words)
        for x, words in ((0, "no diffusion"), (1, "no diffusion|ms/µm²"), (20, "no diffusion"), (20000, "s.b|q_max"))
    },
    "beyond what the network is made for": (lambda f: numbers(f, lambda r: 3.5 * r, "s.bval"), "warns: |3500"),
    "b-values off by 1 %": (lambda f: numbers(f, lambda r: 1.01 * r, "s.bval"), "right"),
    "no b0": (partial(put, index=(0, 0), value=1000.0, name="s.bval"), "s.bv"),
    "three directions": (partial(put, index=(0, slice(4, 9)), value=0.0, name="s.bval"), "directions"),
    "one direction throughout": (lambda f: numbers(f, lambda r: r[:, [0] + 8 * [1]]), "directions"),
    "directions in a plane": (partial(numbers, change=plane), "s.bvec"),
    "a direction of length 2": (lambda f: numbers(f, lambda r: r * np.where(np.arange(9) == 4, 2, 1)), "length 2"),
    "a direction of length 0": (partial(put, index=(slice(None), 4), value=0.0), "length 0"),
    "a direction not a number": (partial(put, index=(1, 4), value=np.nan), "not a number"),
    "a direction infinite": (partial(put, index=(1, 4), value=np.inf), "not a number"),
    "directions to two digits": (lambda f: numbers(f, lambda r: np.round(r, 2)), "right"),
    "no direction of the b0": (partial(put, index=(slice(None), 0), value=np.nan), "right"),
    "a direction at b0": (partial(put, index=(slice(None), 0), value=3**-0.5), "warns: direction"),
    "a direction twice": (lambda f: numbers(f, lambda r: r[:, [0, 1, 2, 3, 4, 5, 6, 7, 1]]), "warns: same direction"),
    "all signs turned": (lambda f: numbers(f, lambda r: -r), "right"),
    # MRtrix tables
    "MRtrix": (mrtrix, "right"),
    "MRtrix with its history": (partial(mrtrix, change=lambda r: ["# command_history: mrconvert a b", *r]), "right"),
    "MRtrix of 3 columns": (partial(mrtrix, change=lambda r: [x.rsplit(" ", 1)[0] for x in r]), "has 4"),
    "MRtrix of 5 columns": (partial(mrtrix, change=lambda r: [x + " 1" for x in r]), "has 4"),
    "MRtrix ragged": (partial(mrtrix, change=lambda r: [r[0] + " 1", *r[1:]]), "equally long"),
    "MRtrix of a row too few": (partial(mrtrix, change=lambda r: r[:-1]), "9 volumes"),
    "MRtrix of words": (partial(mrtrix, change=lambda r: ["x y z b", *r]), "not a table"),
    "MRtrix empty": (partial(mrtrix, change=lambda r: []), "s.b: "),
    # masks
    "a mask": (mask, "right"),
    "a mask of 0.7": (partial(mask, change=lambda a: 0.7 * a), "right"),
    "a mask of one volume": (partial(mask, change=lambda a: a[..., None]), "right"),
    "an empty mask": (partial(mask, change=lambda a: 0 * a), "empty"),
    "a mask not a number": (partial(mask, change=lambda a: np.nan * a), "brain.nii|s.nii"),
    "a mask of volumes": (partial(mask, change=lambda a: np.stack([a, a], -1)), "brain.nii: "),
    "a mask of a slice": (partial(mask, change=lambda a: a[..., 0]), "brain.nii: "),
    "a mask of another size": (partial(mask, change=lambda a: a[1:]), "another grid"),
    "a mask elsewhere": (partial(mask, affine=DIAGONAL), "another grid"),
    "a mask that is text": (lambda f: (content(f, b"text", "brain.nii"), {"brain_mask": f / "brain.nii"})[1], "NIfTI"),
    "a mask that is missing": (lambda f: {"brain_mask": f / "no.nii"}, "no.nii: no such file"),
}  # fmt: skip

LISTS = {
    "no JSON": ("{", 'no list "testing"'),
    "empty file": ("", 'no list "testing"'),
    "another list": ('{"training": []}', 'no list "testing"'),
    "a list alone": ("[]", 'no list "testing"'),
    "null": ("null", 'no list "testing"'),
    "null as a list": ('{"testing": null}', "must be a list of scans"),
    "a number as a list": ('{"testing": 3}', "must be a list of scans"),
    "a word as a list": ('{"testing": "a.nii"}', "must be a list of scans"),
    "an empty list": ('{"testing": []}', "is empty"),
    "null as a scan": ('{"testing": [null]}', "must be a mapping"),
    "a word as a scan": ('{"testing": ["a.nii"]}', "must be a mapping"),
    "no image": ('{"testing": [{"label": "a.nii"}]}', "must be a mapping"),
    "another key": ('{"testing": [{"image": "a.nii", "dwi": "a.nii"}]}', "must be a mapping"),
    "null as an image": ('{"testing": [{"image": null}]}', "must be a path"),
    "a number as an image": ('{"testing": [{"image": 3}]}', "must be a path"),
    "null as a table": ('{"testing": [{"image": "s.nii", "bval": null}]}', "must be a path"),
    "a file that is missing": ('{"testing": [{"image": "no.nii"}]}', "no.nii: no such file"),
    "a folder as an image": ('{"testing": [{"image": "."}]}', "no such file"),
}


def cause_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def check_sentence(error: BaseException, words: str) -> None:
    cause = cause_of(error)
    said = str(cause)
    assert isinstance(cause, ValueError | FileNotFoundError), f"{type(cause).__name__}: {said}"
    assert "\n" not in said
    assert len(said) < 500
    assert re.search(words, said), said


def outcome(folder, prepare, scan):
    """Run the transforms; return what they raise, or what they warn of and the prepared scan."""
    items = {"image": folder / "s.nii", **(scan if isinstance(scan, dict) else {})}
    before = {path.name for path in folder.iterdir()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            out = prepare({key: str(value) for key, value in items.items()})
        except Exception as error:
            return error, [], None
    assert {path.name for path in folder.iterdir()} == before  # nothing is written
    return None, [str(w.message) for w in caught if issubclass(w.category, UserWarning)], out


@pytest.mark.parametrize("name", CASES)
def test_a_scan_is_refused_in_a_sentence_or_right(folder, prepare, name):
    change, expected = CASES[name]
    error, warned, out = outcome(folder, prepare, change(folder))
    if expected == "right":
        assert error is None, cause_of(error)
        assert not warned
    elif expected.startswith("warns: ") and error is None:
        words = expected.removeprefix("warns: ")
        assert any(words in sentence for sentence in warned), warned
        assert all("\n" not in sentence for sentence in warned)
        assert out["image"].meta["warnings"]
    else:
        assert error is not None, "accepted without a word"
        check_sentence(error, expected.removeprefix("warns: "))
        return
    image = out["image"]
    assert len(table_of(image)) == image.shape[0] == VOLUMES
    assert torch.isfinite(image).all()
    assert image.as_tensor().std() > 0.1


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_refused_in_a_sentence(folder, name):
    text, words = LISTS[name]
    (folder / "scans.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        scan_list(datalist=str(folder / "scans.json"))
    check_sentence(error.value, words)


def test_there_are_at_least_150():
    assert len(CASES) + len(LISTS) >= 150
    assert json.loads(LISTS["null as a list"][0]) == {"testing": None}

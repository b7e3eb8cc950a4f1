"""Five labelled heads to learn bundles from, made of dipy's `minimal_bundles`.

python scripts/make_tractograms.py --folder tractograms

Each of five subjects, not registered to each other, has left arcuate fascicle, right corticospinal tract and forceps
major, 50 streamlines of 20 points each. The first two are mirrored about the plane through the centre of the forceps,
so that each head has five bundles, of which right AF and left CST are mirror images; without them, which bundle is
which would show without telling left from right. Writes head_1.trx to head_5.trx, and tractograms.json with head 5 for
validation.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

import dipy.data
import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence

from eqdmri_monai.files.tractograms import Tractogram, write_trx

NAMES = "AF_L", "AF_R", "CST_L", "CST_R", "CC_ForcepsMajor"
HEADS = 5
MARGIN = 10  # mm around the streamlines


def head(subject: int) -> dict[str, list[np.ndarray]]:
    """Return the five bundles of a head, mm."""
    file = zipfile.ZipFile(Path(dipy.data.__file__).parent / "files" / "minimal_bundles.zip")

    def read(name: str) -> list[np.ndarray]:
        return list(nib.streamlines.load(io.BytesIO(file.read(f"sub_{subject}/{name}.trk"))).streamlines)

    af, cst, forceps = (read(name) for name in ("AF_L", "CST_R", "CC_ForcepsMajor"))
    middle = np.concatenate(forceps)[:, 0].mean()
    mirrored = lambda lines: [np.array([2 * middle, 0, 0]) + s * [-1, 1, 1] for s in lines]  # noqa: E731
    return dict(zip(NAMES, (af, mirrored(af), mirrored(cst), cst, forceps), strict=True))


def write_head(path: Path, bundles: dict[str, list[np.ndarray]]) -> None:
    """Write bundles as the groups of a .trx, on a grid of 1 mm around them."""
    lines = ArraySequence(np.float32(s) for bundle in bundles.values() for s in bundle)
    low = np.floor(lines.get_data().min(0)) - MARGIN
    size = np.int64(np.ceil(lines.get_data().max(0)) + MARGIN - low)
    tractogram = Tractogram(lines, nib.affines.from_matvec(np.eye(3), low), size)
    ends = np.cumsum([0, *(len(bundle) for bundle in bundles.values())])
    groups = {name: np.arange(a, b) for name, a, b in zip(bundles, ends, ends[1:], strict=False)}
    write_trx(path, tractogram, groups=groups, per_streamline={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for subject in range(1, HEADS + 1):
        write_head(folder / f"head_{subject}.trx", head(subject))
    items = [{"image": f"head_{subject}.trx"} for subject in range(1, HEADS + 1)]
    (folder / "tractograms.json").write_text(json.dumps({"training": items[:-1], "validation": items[-1:]}, indent=1))


if __name__ == "__main__":
    main()

"""MONAI dictionary transforms for diffusion scans.

The gradient table travels as ``image.meta["q_world"]``: q-vectors (Q, 3) in the world frame, which no flip, crop or
rotation of the voxel grid changes. The last transform writes ``q``, along the axes of the array as it is then.
``image.meta["q_file"]`` keeps those of all volumes of the file, when some were averaged or left out since.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from dipy.segment.mask import median_otsu
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform

from eqdmri_monai.frames import world_to_voxel
from eqdmri_monai.gradients import B_UNIT, SHELL_WIDTH, QSampling
from eqdmri_monai.io import check_nifti, read_table, same_grid


def file_of(image: torch.Tensor) -> str:
    """Name of the file that an image came from, for messages."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", "image"))


def q_world(image: MetaTensor) -> torch.Tensor:
    """Return the q-vectors of an image in the world frame, shape (Q, 3), float64.

    Raises
    ------
    ValueError
        When the image has none, or not one for each volume.
    """
    q = getattr(image, "meta", {}).get("q_world")
    if q is None:
        raise ValueError(f"{file_of(image)}: no gradient table; use LoadGradientsd after LoadImaged")
    q = torch.as_tensor(np.asarray(q), dtype=torch.float64)
    if len(q) != image.shape[0]:
        raise ValueError(
            f"{file_of(image)}: {len(q)} q-vectors for {image.shape[0]} volumes; was a volume dropped by hand?"
        )
    return q


class CheckScand(MapTransform):
    """Check files before they are loaded; items that are no paths pass.

    Parameters
    ----------
    keys : keys
        The diffusion scan (4D) first, then masks (3D), which must have its grid.

    Raises
    ------
    FileNotFoundError, ValueError
        See `io.check_nifti`; besides, when a mask lies on another grid.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        grid = None
        for key in self.key_iterator(dict(data)):
            if not isinstance(data[key], str | Path):
                continue
            shape, affine = check_nifti(data[key], ndim=4 if key == self.keys[0] else 3)
            if key == self.keys[0]:
                grid = shape[:3], affine, data[key]
            elif grid and not same_grid(shape, affine, *grid[:2]):
                raise ValueError(
                    f"{data[key]}: another grid than {grid[2]} (shape {shape} against {grid[0]}); resample it "
                    f"to the scan"
                )
        return dict(data)


class LoadGradientsd(MapTransform):
    """Read the gradient table of a loaded scan into ``image.meta["q_world"]``.

    The table is named by ``data["bval"]`` and ``data["bvec"]``, or ``data["mrtrix"]``, or lies next to the image. An
    image that has ``meta["q_world"]`` already keeps it.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z) as `LoadImaged` gives them with ``ensure_channel_first``.
    shells : sequence of float
        b-values in s/mm² that every scan must have, within the width of a shell; any scan will do where left out.

    Raises
    ------
    FileNotFoundError, ValueError
        See `io.read_table`; besides, when a shell is missing, or the image has values that are not finite, or none but
        zeros.
    """

    def __init__(self, keys: KeysCollection, shells: Sequence[float] | None = None):
        super().__init__(keys)
        self.shells = shells or ()

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with the table in the images' meta, as a numpy array (Q, 3)."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if not torch.isfinite(image).all():
                raise ValueError(
                    f"{file_of(image)}: {int((~torch.isfinite(image)).sum())} voxels are not finite; repair the "
                    f"scan first"
                )
            if not image.any():
                raise ValueError(f"{file_of(image)}: every voxel is 0; this is no scan")
            if "q_world" not in image.meta:
                scan = {name: d.get(name) for name in ("bval", "bvec", "mrtrix")} | {"image": file_of(image)}
                table = read_table(scan, np.asarray(image.meta["original_affine"]), volumes=image.shape[0])
                image.meta["q_world"] = table.q.numpy()
            present = QSampling.of(q_world(image)).length.square() * B_UNIT
            for b in self.shells:
                if (present - b).abs().min() > max(SHELL_WIDTH[0], SHELL_WIDTH[1] * b):
                    found = ", ".join(f"{value:.0f}" for value in present)
                    raise ValueError(
                        f"{file_of(image)}: no shell of b = {b:g} s/mm², only {found}; use a scan that has it, or "
                        "take it out of the option shells"
                    )
            image.meta["q_file"] = image.meta["q_world"]
        return d


class AverageB0d(MapTransform):
    """Replace all volumes of b <= 50 by their mean, which becomes the first volume.

    Source
    ------
    Müller et al., section 4.2.
    """

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with images (1 + weighted volumes, X, Y, Z).

        Raises
        ------
        ValueError
            When an image has no b0.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image, q = d[key], q_world(d[key])
            b0 = q.norm(dim=1) == 0
            if not b0.any():
                raise ValueError(f"{file_of(image)}: no volume with b <= 50 s/mm²; at least one b0 is needed")
            d[key] = with_volumes(
                image,
                torch.cat([image[b0].mean(0, keepdim=True), image[~b0]]),
                torch.cat([q[:1] * 0, q[~b0]]),
            )
        return d


def with_volumes(image: MetaTensor, volumes: torch.Tensor, q: torch.Tensor) -> MetaTensor:
    """Return other volumes on the grid of an image, with its history and their own q-vectors (world frame)."""
    plain = volumes.as_tensor() if isinstance(volumes, MetaTensor) else volumes
    out = MetaTensor(plain, meta=dict(image.meta), applied_operations=list(image.applied_operations))
    out.meta["q_world"] = q.numpy()
    return out


class BrainMaskd(MapTransform):
    """See that there is a brain mask: the one given, else dipy's `median_otsu` of the b0.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    mask_key : str
        Where the mask is, or goes.
    median_radius, numpass : int
        See `dipy.segment.mask.median_otsu`.

    Raises
    ------
    ValueError
        When the mask is empty.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask", *, median_radius: int = 2, numpass: int = 2):
        super().__init__(keys)
        self.mask_key, self.median_radius, self.numpass = mask_key, median_radius, numpass

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with a mask (1, X, Y, Z), float32, on the image's grid."""
        d = dict(data)
        image = d[self.keys[0]]
        if d.get(self.mask_key) is None:
            b0 = image[0].numpy().astype(np.float32)
            _, mask = median_otsu(b0, median_radius=self.median_radius, numpass=self.numpass, finalize_mask=True)
            d[self.mask_key] = with_volumes(image, torch.from_numpy(mask[None].astype(np.float32)), torch.zeros(1, 3))
        mask = d[self.mask_key]
        if mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{file_of(mask)}: brain mask {tuple(mask.shape[1:])} for a scan {tuple(image.shape[1:])}; resample it"
            )
        d[self.mask_key] = mask = (mask > 0.5).to(torch.float32)
        if not mask.any():
            raise ValueError(f"{file_of(mask)}: the brain mask is empty; give one as brain_mask")
        mask.meta["filename_or_obj"] = file_of(image)  # results are named after the scan
        return d


class NormalizeShellsd(MapTransform):
    """Give each shell mean 0 and standard deviation 1 inside the brain, and 0 outside.

    The two numbers are taken over all voxels of the brain and all volumes of a shell, so that they do not depend on the
    order, the sign or the frame of the directions.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z).
    mask_key : str
        Brain mask (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask"):
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with normalised images.

        Raises
        ------
        ValueError
            When a shell is constant inside the brain.
        """
        d = dict(data)
        brain = d[self.mask_key][0] > 0.5
        brain = brain.as_tensor() if isinstance(brain, MetaTensor) else brain
        for key in self.key_iterator(d):
            image, shell = d[key], QSampling.of(q_world(d[key])).shell
            out = torch.zeros_like(image.as_tensor())
            for s in shell.unique():
                volumes = image.as_tensor()[shell == s]
                values = volumes[:, brain].double()
                if values.std(correction=0) == 0:
                    raise ValueError(
                        f"{file_of(image)}: the volumes of one shell are constant inside the brain; check the "
                        f"scan and its mask"
                    )
                out[shell == s] = (volumes - values.mean().float()) / values.std(correction=0).float() * brain
            d[key] = with_volumes(image, out, q_world(image))
        return d


class NormalizeChannelsd(MapTransform):
    """The paper's normalisation: divide each volume by its mean over the data set, then the scan by its own mean.

    It ties a model to one order of one gradient scheme; it is here to reproduce the paper.

    Parameters
    ----------
    keys : keys
        Images (Q, X, Y, Z).
    means : sequence of float
        Mean of each volume over all scans of the data set.

    Source
    ------
    Müller et al., section 4.1.
    """

    def __init__(self, keys: KeysCollection, means: Sequence[float]):
        super().__init__(keys)
        self.means = torch.as_tensor(means, dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with normalised images.

        Raises
        ------
        ValueError
            When the number of means is not the number of volumes, or the scan's mean is 0.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if len(self.means) != image.shape[0]:
                raise ValueError(
                    f"{file_of(image)}: {image.shape[0]} volumes but {len(self.means)} channel means; they "
                    f"belong to another scheme"
                )
            out = image.as_tensor() / self.means[:, None, None, None]
            if out.mean() == 0:
                raise ValueError(f"{file_of(image)}: the mean intensity is 0; check the scan")
            d[key] = with_volumes(image, out / out.mean(), q_world(image))
        return d


class RandSubsampleVolumesd(RandomizableTransform, MapTransform):
    """Keep b0 and a random subset of the other volumes, so that a network meets many gradient schemes.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z) after `AverageB0d`.
    minimum, maximum : int
        Bounds of the number of weighted volumes that are kept (all, where the scan has fewer).
    """

    def __init__(self, keys: KeysCollection, *, minimum: int, maximum: int):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.minimum, self.maximum = minimum, maximum

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with fewer volumes."""
        d = dict(data)
        for key in self.key_iterator(d):
            image, q = d[key], q_world(d[key])
            weighted = (q.norm(dim=1) > 0).nonzero().flatten().numpy()
            count = min(int(self.R.randint(self.minimum, self.maximum + 1)), len(weighted))
            keep = np.sort(np.concatenate([[0], self.R.choice(weighted, count, replace=False)]))
            d[key] = with_volumes(image, image.as_tensor()[keep], q[keep])
        return d


class CheckLabeld(MapTransform):
    """Refuse label images that do not fit a network's outputs.

    Parameters
    ----------
    keys : keys
        Label images.
    outputs : int
        Number of outputs of the network: each is one class, told from the rest.

    Raises
    ------
    ValueError
        When a label has other values than 0 and 1, or another number of channels than the network has outputs.
    """

    def __init__(self, keys: KeysCollection, outputs: int = 1):
        super().__init__(keys)
        self.outputs = outputs

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data unchanged."""
        for key in self.key_iterator(dict(data)):
            label = data[key]
            values = torch.as_tensor(label).unique()
            if label.shape[0] != self.outputs or not ((values == 0) | (values == 1)).all():
                shown = [round(v, 3) for v in values[:6].tolist()]
                raise ValueError(
                    f"{file_of(label)}: label of {label.shape[0]} channels with values {shown}; "
                    f"the network has {self.outputs} outputs and needs as many channels of 0 and 1"
                )
        return dict(data)


class WriteQd(MapTransform):
    """Write the q-vectors along the axes of the array as it is now; the last transform before the network.

    Parameters
    ----------
    keys : keys
        One image (Q, X, Y, Z).
    q_key : str
        Where q (Q, 3), float32, goes.
    """

    def __init__(self, keys: KeysCollection, q_key: str = "q"):
        super().__init__(keys)
        self.q_key = q_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with q.

        Raises
        ------
        ValueError
            When the array is stored left-handed: the networks are not equivariant under mirrors.
        """
        d = dict(data)
        image = d[self.keys[0]]
        if torch.linalg.det(image.affine[:3, :3]) < 0:
            raise ValueError(
                f'{file_of(image)}: voxel axes are left-handed here; put Orientationd(axcodes="RAS") before WriteQd'
            )
        d[self.q_key] = world_to_voxel(q_world(image), image.affine).to(torch.float32)
        return d

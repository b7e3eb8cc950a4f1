"""Tractograms on their way to `StreamlineNet`: read, resample, vary for training.

Streamlines are a tensor (S, P, 3) in world mm after `ResampleStreamlinesd`; labels are (S,), the last class being
whatever belongs to no bundle.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from dipy.tracking.streamline import set_number_of_points
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from nibabel.streamlines import ArraySequence
from scipy.spatial.transform import Rotation

from eqdmri_monai.files.tractograms import bundle_labels, read_tractogram


class LoadTractogramd(MapTransform):
    """Read tractograms (.trk, .tck, .trx), and the labels of their streamlines where they are wanted.

    Parameters
    ----------
    keys : keys
        Paths.
    reference_key : str
        Where an item may name an image whose grid the tractogram lies in.
    names : sequence of str
        Bundles; without them no labels are read. They are the groups of a .trx; streamlines in no group get the label
        len(names).
    label_key : str
        Where labels (S,) go.

    Raises
    ------
    FileNotFoundError, ValueError
        See `read_tractogram` and `bundle_labels`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        reference_key: str = "reference",
        names: Sequence[str] | None = None,
        label_key: str = "label",
    ):
        super().__init__(keys)
        self.reference_key, self.names, self.label_key = reference_key, names, label_key

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with a `Tractogram` for each path, and labels."""
        d = dict(data)
        for key in self.key_iterator(d):
            path = d[key]
            d[key] = read_tractogram(path, d.get(self.reference_key))
            d[f"{key}_path"] = str(path)
            if self.names is not None:
                d[self.label_key] = bundle_labels(d[key], self.names, path)
        return d


class ResampleStreamlinesd(MapTransform):
    """Bring each streamline to the same number of points, evenly spaced along it.

    Parameters
    ----------
    keys : keys
        `Tractogram`, as `LoadTractogramd` gives them.
    points : int
        Of each streamline.

    Raises
    ------
    ValueError
        When points is below 2, or a streamline has one point or no length.

    Source
    ------
    `dipy.tracking.streamline.set_number_of_points`.
    """

    def __init__(self, keys: KeysCollection, points: int = 20):
        super().__init__(keys)
        if points < 2:
            raise ValueError(f"points of a streamline must be 2 or more, got {points}")
        self.points = points

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with tensors (S, points, 3), float32, mm, whose meta names the file."""
        d = dict(data)
        for key in self.key_iterator(d):
            path, streamlines = d[f"{key}_path"], d[key].streamlines
            short = [i for i, s in enumerate(streamlines) if len(s) < 2 or not np.ptp(s, axis=0).any()]
            if short:
                raise ValueError(
                    f"{path}: {len(short)} streamlines have one point or no length, such as number {short[0]}; remove "
                    "them"
                )
            lines = set_number_of_points(ArraySequence(np.asarray(s, np.float32) for s in streamlines), self.points)
            array = np.asarray(lines._data, np.float32).reshape(-1, self.points, 3)
            d[key] = MetaTensor(torch.from_numpy(array), meta={"filename_or_obj": path})
        return d


class RandDropBundlesd(RandomizableTransform, MapTransform):
    """Leave out bundles, and streamlines of the others, so that no network counts on all of a head being there.

    Parameters
    ----------
    keys : keys
        Streamlines (S, P, 3), then labels (S,).
    prob : float
        With which one bundle is left out.
    least : float
        Share of each other bundle's streamlines that stays at least; drawn evenly from there to 1.
    minimum : int
        Streamlines that must stay; where fewer would, nothing is left out.
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.3, least: float = 0.4, minimum: int = 40):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.least, self.minimum = least, minimum

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with fewer streamlines."""
        d = dict(data)
        lines, label = (d[key] for key in self.keys)
        self.randomize(None)
        classes = label.unique().tolist()
        gone = classes[self.R.randint(len(classes))] if self._do_transform and len(classes) > 1 else None
        kept = []
        for c in classes:
            members = np.flatnonzero((label == c).numpy())
            count = int(np.ceil(self.R.uniform(self.least, 1) * len(members)))
            kept.append(self.R.permutation(members)[: 0 if c == gone else count])
        index = torch.from_numpy(np.sort(np.concatenate(kept)))
        if len(index) >= self.minimum:
            d[self.keys[0]], d[self.keys[1]] = lines[index], label[index]
        return d


class RandStretchStreamlinesd(RandomizableTransform, MapTransform):
    """Stretch a head about its centre along three axes at right angles, drawn at random: heads differ in their shape.

    Parameters
    ----------
    keys : keys
        Streamlines (S, P, 3), all of one head.
    most : float
        Axes are stretched by factors drawn evenly from 1 - most to 1 + most.

    Raises
    ------
    ValueError
        When `most` is not from 0 to below 1.
    """

    def __init__(self, keys: KeysCollection, *, most: float = 0.15):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        if not 0 <= most < 1:
            raise ValueError(f"most, the largest stretch, must be 0 <= most < 1, got {most}")
        self.most = most

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with streamlines at other places."""
        d = dict(data)
        axes = Rotation.random(random_state=self.R).as_matrix()
        stretch = torch.from_numpy((axes * self.R.uniform(1 - self.most, 1 + self.most, 3)) @ axes.T)
        for key in self.key_iterator(d):
            centre = d[key].mean((0, 1))
            d[key] = (d[key] - centre) @ stretch.to(d[key].dtype) + centre
        return d


class RandTruncateStreamlinesd(RandomizableTransform, MapTransform):
    """Cut a part off one end of some streamlines, as tracking that stops early does, and resample the rest.

    Parameters
    ----------
    keys : keys
        Streamlines (S, P, 3).
    prob : float
        With which a head has streamlines that are cut: a share of them that is drawn evenly from 0 to 1.
    most : float
        Share of a streamline that is cut off at most, drawn evenly from 0.
    """

    def __init__(self, keys: KeysCollection, *, prob: float = 0.7, most: float = 0.4):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.most = most

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with some streamlines shorter; all keep their number of points."""
        d = dict(data)
        self.randomize(None)
        for key in self.key_iterator(d) if self._do_transform else ():
            lines = d[key]
            chosen = self.R.rand(len(lines)) < self.R.rand()
            cut = torch.from_numpy(chosen * self.R.uniform(0, self.most, len(lines)))
            flip = torch.from_numpy(self.R.rand(len(lines)) < 0.5)
            d[key] = truncated(lines, cut, flip)
        return d


class RandSpliceStreamlinesd(RandomizableTransform, MapTransform):
    """Add false positives: the beginning of one bundle's streamline joined to the end of another's, where near.

    Parameters
    ----------
    keys : keys
        Streamlines (S, P, 3), then labels (S,).
    other : int
        Label of what is added.
    least, most : float
        Share of all streamlines afterwards that was added, drawn evenly from least to most.
    """

    def __init__(self, keys: KeysCollection, *, other: int, least: float = 0.0, most: float = 0.5):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        if not 0 <= least <= most < 1:
            raise ValueError(f"shares must be 0 <= least <= most < 1, got {least} and {most}")
        self.other, self.least, self.most = other, least, most

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        """Return data with more streamlines, at the end."""
        d = dict(data)
        lines, label = (d[key] for key in self.keys)
        share = self.R.uniform(self.least, self.most)
        count = round(share / (1 - share) * len(lines))
        if count and len(label.unique()) > 1:
            added = spliced(torch.as_tensor(lines), label, count, self.R)
            d[self.keys[0]] = torch.cat([torch.as_tensor(lines), added])
            d[self.keys[1]] = torch.cat([label, label.new_full((count,), self.other)])
        return d


def truncated(lines: torch.Tensor, cut: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Cut a share (S,) off the end of streamlines (S, P, 3), or off the beginning where flip (S,); P points stay."""
    points = lines.shape[1]
    place = torch.linspace(0, 1, points, dtype=torch.float64) * (1 - cut[:, None])  # [s, p]
    place = torch.where(flip[:, None], 1 - place.flip(1), place) * (points - 1)
    low = place.floor().clamp(max=points - 2).long()
    part = (place - low).to(lines.dtype)[..., None]
    rows = torch.arange(len(lines))[:, None]
    return (1 - part) * lines[rows, low] + part * lines[rows, low + 1]


def spliced(lines: torch.Tensor, label: torch.Tensor, count: int, rng: np.random.RandomState) -> torch.Tensor:
    """Join streamlines of different bundles where they come nearest in their middle halves; shape (count, P, 3)."""
    points, out = lines.shape[1], []
    middle = slice(points // 4, points - points // 4)
    while len(out) < count:
        a, b = rng.randint(len(lines), size=2)
        if label[a] == label[b]:
            continue
        first, second = (x.flip(0) if rng.rand() < 0.5 else x for x in (lines[a], lines[b]))
        gap = torch.cdist(first[middle], second[middle])
        i, j = divmod(int(gap.argmin()), gap.shape[1])
        path = torch.cat([first[: middle.start + i + 1], second[middle.start + j :]])
        out.append(set_number_of_points(path.numpy().astype(np.float32), points))
    return torch.from_numpy(np.stack(out)).to(lines.dtype)

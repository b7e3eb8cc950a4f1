"""Gradient tables: b-values in s/mm², unit directions in the world frame, and the q-vectors made of them.

Rows are volumes. A direction at b <= 50 has no meaning and is zero. ``q = sqrt(b / 1000 s/mm²) · direction`` is
absolute, so that q-vectors of different scans compare. A shell is a group of volumes with about the same b-value.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

B0_THRESHOLD = 50.0  # s/mm²; the value of dipy, nifreeze and qsiprep
B_UNIT = 1000.0  # s/mm²; a q-vector of length 1
SHELL_WIDTH = 50.0, 0.05  # b-values of one shell agree within 50 s/mm² or 5 %, whichever is more
MAX_B = 1e5  # s/mm²; the strongest scanners reach half of it
MIN_DIRECTIONS = 6  # a diffusion tensor needs six
# How well directions see the tensor that they see worst, relative to the best: refused, and doubted, below. Ten schemes
# of scanners had 0.36 to 0.63; directions within 3 degrees of a plane have 0.001.
MIN_SPREAD, GOOD_SPREAD = 1e-3, 0.05
NORM_TOLERANCE = 0.01  # of a unit direction; dipy's value
TIE = 1e-5  # relative; above what a rotation in single precision changes
SAME_DIRECTION = 0.9998  # cosine of 1.1 degrees: two volumes count as one direction


@dataclass(frozen=True)
class GradientTable:
    """Diffusion weighting of each volume of a scan.

    Parameters
    ----------
    bvals : Tensor, shape (Q,)
        s/mm².
    bvecs : Tensor, shape (Q, 3)
        World frame, unit rows, zero rows at b <= 50.
    """

    bvals: Tensor
    bvecs: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor) -> "GradientTable":
        """Read rows x y z b, shape (Q, 4), as MRtrix writes them."""
        rows = torch.as_tensor(rows, dtype=torch.float64)
        return cls(rows[:, 3], rows[:, :3])

    @property
    def rows(self) -> Tensor:
        """Rows x y z b, shape (Q, 4), float64: how a table travels with an image."""
        return torch.cat([self.bvecs, self.bvals[:, None]], dim=1).to(torch.float64)

    def __len__(self) -> int:
        return len(self.bvals)

    def __getitem__(self, volumes: Tensor) -> "GradientTable":
        """Return the table of some volumes (indices or a mask)."""
        return GradientTable(self.bvals[volumes], self.bvecs[volumes])

    @property
    def b0_mask(self) -> Tensor:
        """Which volumes have no diffusion weighting, shape (Q,) bool."""
        return self.bvals <= B0_THRESHOLD

    @property
    def q(self) -> Tensor:
        """q-vectors in the world frame, shape (Q, 3)."""
        return q_vectors(self.bvals, self.bvecs)


def q_vectors(bvals: Tensor, bvecs: Tensor) -> Tensor:
    """Return ``sqrt(b / 1000) · direction``, shape (Q, 3), zero at b <= 50."""
    length = (bvals / B_UNIT).clamp(min=0).sqrt() * (bvals > B0_THRESHOLD)
    return length[:, None] * bvecs


def shells(bvals: Tensor) -> Tensor:
    """Group volumes by b-value.

    b-values are taken in rising order; one opens a new shell where it exceeds the mean of the shell so far by more than
    50 s/mm² and by more than 5 %. Volumes of b <= 50 are shell 0, which exists only where there are such volumes.

    Parameters
    ----------
    bvals : Tensor, shape (Q,)
        s/mm².

    Returns
    -------
    Tensor, shape (Q,), int64
        Index of each volume's shell, rising with b.
    """
    values = bvals.tolist()
    order = sorted(range(len(values)), key=values.__getitem__)
    index = torch.zeros(len(values), dtype=torch.int64)
    shell, members = -1, []
    for i in order:
        b = values[i]
        if not members:
            new = True
        elif members[0] <= B0_THRESHOLD:
            new = b > B0_THRESHOLD
        else:
            mean = sum(members) / len(members)
            new = b - mean > max(SHELL_WIDTH[0], SHELL_WIDTH[1] * mean)
        if new:
            shell, members = shell + 1, []
        members.append(b)
        index[i] = shell
    return index


@dataclass(frozen=True)
class QSampling:
    """A set of q-vectors with their lengths replaced by the mean length of their shell.

    Parameters
    ----------
    q : Tensor, shape (Q, 3)
    shell : Tensor, shape (Q,), int64
    length : Tensor, shape (shells,)
        Mean q-length of each shell; exactly 0 for b <= 50.
    """

    q: Tensor
    shell: Tensor
    length: Tensor

    @classmethod
    def of(cls, q: Tensor) -> "QSampling":
        """Group q-vectors (Q, 3) into shells and even out their lengths: noise in b then changes nothing."""
        lengths = q.detach().to("cpu", torch.float64).norm(dim=-1)
        shell = shells(B_UNIT * lengths**2)
        mean = torch.stack([lengths[shell == s].mean() for s in range(int(shell.max()) + 1)])
        mean[B_UNIT * mean**2 <= B0_THRESHOLD] = 0.0
        scale = mean[shell] / lengths.clamp(min=1e-12)
        return cls(q * scale.to(q)[:, None], shell.to(q.device), mean.to(q))

    def weights(self) -> Tensor:
        """Quadrature weights, shape (Q,): a mean over each shell, then over the shells of b > 50; b0 is one value more.

        A sum over q with these weights does not depend on how many directions a scan has.
        """
        count = torch.bincount(self.shell, minlength=len(self.length)).to(self.length)
        weighted = self.length > 0
        share = torch.ones_like(self.length)
        share[weighted] /= max(int(weighted.sum()), 1)
        return (share / count)[self.shell]


def spread_subset(q: Tensor, count: int) -> Tensor:
    """Choose b0 and well-spread q-vectors from a scan's own.

    Starts at the most isolated q-vector (least electrostatic energy among all ±q) and goes on with the one farthest
    from all that were chosen. Only products q·q' enter, so that a rotation, the order and the signs of q do not matter
    (where two q-vectors are equivalent to 1e-5, the earlier one is taken).

    Parameters
    ----------
    q : Tensor, shape (Q, 3)
    count : int
        Number to keep; the first is b0 where there is one.

    Returns
    -------
    Tensor, shape (count,), int64
        Indices.

    Raises
    ------
    ValueError
        When count is not between 1 and the number of q-vectors.

    Source
    ------
    Müller et al., 4.2, "gradual"; farthest-point sampling: Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5.
    """
    if not 1 <= count <= len(q):
        raise ValueError(f"count must be between 1 and the number of q-vectors, {len(q)}, got {count}")
    sampling = QSampling.of(q.detach().to("cpu", torch.float64))
    product = sampling.q @ sampling.q.T
    square = product.diagonal()
    distance = (square[:, None] + square - 2 * product.abs()).clamp(min=0).sqrt()  # to the nearer one of ±q
    other = (square[:, None] + square + 2 * product.abs()).sqrt()
    energy = (1 / distance.clamp(min=1e-3) + 1 / other.clamp(min=1e-3)).fill_diagonal_(0).sum(1)
    weighted = sampling.length[sampling.shell] > 0
    b0 = (~weighted).nonzero().flatten().tolist()
    chosen = b0[:1]
    while len(chosen) < min(count, len(q) - len(b0[1:])):
        seeds = [i for i in chosen if weighted[i]]
        nearest = distance[:, seeds].min(dim=1).values if seeds else torch.ones_like(energy)
        nearest[chosen + b0] = -1.0
        candidates = torch.where(nearest > nearest.max() - TIE, energy, torch.inf)
        chosen.append(int((candidates <= (1 + TIE) * candidates.min()).nonzero()[0]))
    return torch.tensor((chosen + b0[1:])[:count], device=q.device)


def check_table(
    bvals: Tensor,
    bvecs: Tensor,
    *,
    volumes: int | None = None,
    name: str = "gradient table",
    bval_name: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Tensor:
    """Refuse a gradient table that cannot be right and warn about one that may be wrong.

    Parameters
    ----------
    bvals : Tensor, shape (Q,)
        s/mm².
    bvecs : Tensor, shape (Q, 3)
        Any frame.
    volumes : int
        Number of volumes of the scan, where known.
    name, bval_name : str
        Named in messages: the path of the file, and that of the b-values where it is another one.
    warn : callable
        Called with each doubt, a sentence.

    Returns
    -------
    Tensor, shape (Q, 3)
        The directions, of length exactly 1, or 0 at b <= 50.

    Raises
    ------
    ValueError
        When lengths differ, a value is not finite, a b-value is negative, above 100000 or all are 0, there is no b0,
        fewer than six distinct directions or none out of a plane or cone, or a direction is not of unit length.

    Warns
    -----
    UserWarning
        When a volume of b <= 50 has a direction, directions are spread badly, or one occurs twice on a shell.
    """
    if bvecs.ndim != 2 or bvecs.shape[1] != 3 or len(bvals) != len(bvecs):
        raise ValueError(
            f"{name}: {len(bvals)} b-values but directions of shape {tuple(bvecs.shape)}; the two files belong "
            f"to different scans"
        )
    if volumes is not None and len(bvals) != volumes:
        raise ValueError(f"{name}: {len(bvals)} entries for a scan of {volumes} volumes; give the table of this scan")
    b_name = bval_name or name
    if not torch.isfinite(bvals).all():
        raise ValueError(f"{b_name}: b-value of volume {_first(~bvals.isfinite())} is not a number; correct the file")
    if bvals.min() < 0:
        raise ValueError(f"{b_name}: b-value of volume {_first(bvals < 0)} is negative; correct the file")
    if bvals.max() > MAX_B:
        raise ValueError(
            f"{b_name}: b-value of volume {_first(bvals > MAX_B)} is over {MAX_B:g} s/mm², beyond any scanner; "
            f"correct the file"
        )
    if bvals.max() <= B0_THRESHOLD:
        hint = " (they may be in ms/µm²: multiply by 1000)" if bvals.max() > 0.3 else ""
        raise ValueError(f"{b_name}: all b-values are {B0_THRESHOLD:g} s/mm² or less{hint}; this is no diffusion scan")
    weighted = bvals > B0_THRESHOLD
    if weighted.all():
        raise ValueError(f"{b_name}: no volume has b <= {B0_THRESHOLD:g} s/mm²; at least one b0 is needed")
    bad = weighted & ~bvecs.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(f"{name}: direction of volume {_first(bad)} is not a number; correct the file")
    norm = bvecs.nan_to_num(nan=0.0).norm(dim=1)
    bad = weighted & ((norm - 1).abs() > NORM_TOLERANCE)
    if bad.any():
        i = _first(bad)
        raise ValueError(
            f"{name}: direction of volume {i} has length {norm[i]:.4g}, not 1 (b = {bvals[i]:g} s/mm²); correct "
            f"the file"
        )
    if (~weighted & (norm > 0)).any():
        i = _first(~weighted & (norm > 0))
        warn(f"{b_name}: volume {i} has b = {bvals[i]:g} s/mm² and a direction; it is read as a b0")
    unit = torch.where(weighted[:, None], bvecs / norm.clamp(min=1e-12)[:, None], torch.zeros_like(bvecs))
    _check_directions(unit[weighted], shells(bvals)[weighted], weighted.nonzero().flatten(), name, warn)
    return unit


def _check_directions(unit: Tensor, shell: Tensor, volume: Tensor, name: str, warn: Callable[[str], None]) -> None:
    """Count distinct directions, a direction and its opposite being one, and see that they tell tensors apart."""
    same = (unit @ unit.T).abs() > SAME_DIRECTION
    earlier = same.tril(diagonal=-1)
    distinct = int((~earlier.any(dim=1)).sum())
    if distinct < MIN_DIRECTIONS:
        raise ValueError(f"{name}: {distinct} distinct directions; at least {MIN_DIRECTIONS} are needed")
    i, j = torch.triu_indices(3, 3)
    seen = torch.linalg.svdvals(unit[:, i] * unit[:, j] * torch.where(i == j, 1.0, 2.0**0.5))
    spread = float(seen[-1] / seen[0])
    if spread < MIN_SPREAD:
        raise ValueError(
            f"{name}: the directions lie in one plane or on one cone, where diffusion tensors cannot be told apart; "
            "correct the file, or use a scan with directions all around"
        )
    if spread < GOOD_SPREAD:
        warn(f"{name}: the directions are spread badly (condition {1 / spread:.0f}; 3 is good); check the file")
    repeated = (earlier & (shell[:, None] == shell[None])).nonzero()
    if len(repeated):
        i, j = volume[repeated[0]].tolist()
        warn(
            f"{name}: volumes {j} and {i} have the same direction on one shell ({len(repeated)} such pairs); "
            f"each counts in full"
        )


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0])

"""Lie groups that act on points: exp, log, the lift of points to the group, and a distance that the group keeps.

Elements are matrices (..., m, m). A point x is written as x = u o: u in the group, o the origin of the orbit that x
lies in. What names the orbit travels beside u. Where several u do this (SO(3), SE(2), SE(3)), they are drawn at random
from all of them; where only one does, the group is single-valued.

Source: Finzi et al. 2020 (LieConv), sections 3.2, 4.1, 4.3, 4.5 and appendix C.2; closed forms: Eade 2014, "Lie groups
for 2D and 3D transformations".
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

# Below these the closed forms of exp and log lose digits, and series of two terms are exact in float64.
SMALL_ANGLE = 1e-2
SMALL_SINE = 1e-4


@dataclass(frozen=True)
class Elements:
    """Lifted points.

    Parameters
    ----------
    u : Tensor, shape (B, N, m, m)
        Group elements.
    orbit : Tensor, shape (B, N, group.orbit_size)
        What names the orbit of each.
    mask : Tensor, shape (B, N), bool
        Which are no padding.
    """

    u: Tensor
    orbit: Tensor
    mask: Tensor

    def take(self, index: Tensor, mask: Tensor) -> "Elements":
        """Return some of the elements: index (B, M) and which of them are no padding (B, M)."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return Elements(self.u[rows, index], self.orbit[rows, index], mask)


class Group(ABC):
    """A group of transformations of R^dim.

    Attributes
    ----------
    dim : int
        Of the space that it acts on.
    size : int
        Of its Lie algebra.
    orbit_size : int
        How many numbers name an orbit.
    single_valued : bool
        Whether a point has one lift only.
    frobenius : tuple of float
        Weights of the algebra's components in the squared Frobenius norm of the matrix that they stand for.
    """

    dim: int
    size: int
    orbit_size: int
    single_valued: bool
    frobenius: tuple[float, ...]

    @abstractmethod
    def exp(self, a: Tensor) -> Tensor:
        """Return elements (..., m, m) of algebra components (..., size)."""

    @abstractmethod
    def log(self, u: Tensor) -> Tensor:
        """Return algebra components (..., size) of elements (..., m, m); exp(log(u)) = u. Angles are up to π."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """Return the inverse of elements (..., m, m)."""

    @abstractmethod
    def act(self, u: Tensor, x: Tensor) -> Tensor:
        """Return the points (..., dim) that elements (..., m, m) move points x (..., dim) to."""

    @abstractmethod
    def origin(self, orbit: Tensor) -> Tensor:
        """Return the point (..., dim) that the lifts of an orbit (..., orbit_size) are counted from."""

    @abstractmethod
    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return one lift of each point and its orbit; points at the origin were sorted out."""

    def lift(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        lifts: int = 1,
        generator: torch.Generator | None = None,
    ) -> Elements:
        """Lift points to the group.

        Parameters
        ----------
        x : Tensor, shape (B, N, dim)
        mask : Tensor, shape (B, N), bool
            Which points are no padding.
        lifts : int
            Of each point; lift k of point n is element n · lifts + k.
        generator : torch.Generator
            Source of the lifts of groups that are not single-valued.

        Returns
        -------
        Elements
            B × N · lifts of them.

        Raises
        ------
        ValueError
            When points have another dimension or no fractional type, when there is more than one lift for a
            single-valued group or less than one, or when a point lies at the origin, where rotations have no lift.

        Source
        ------
        Finzi et al., algorithm 1.
        """
        if x.shape[-1] != self.dim or not x.is_floating_point():
            raise ValueError(
                f"{self} acts on points of {self.dim} floating-point coordinates, got {tuple(x.shape)}, {x.dtype}"
            )
        if lifts < 1 or (lifts > 1 and self.single_valued):
            raise ValueError(f"lifts must be {'1' if self.single_valued else '1 or more'} for {self}, got {lifts}")
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        x, mask = x.repeat_interleave(lifts, 1), mask.repeat_interleave(lifts, 1)
        x = torch.where(mask[..., None], x, torch.ones_like(x))  # padding, which may be anywhere
        if self._turns_about_origin and not (x.detach().norm(dim=-1) > 0).all():
            raise ValueError(f"a point lies at the origin, where {self} has no lift; centre the cloud elsewhere")
        return Elements(*self._lift(x, generator), mask)

    @property
    def _turns_about_origin(self) -> bool:
        return False

    def between(self, v: Tensor, u: Tensor) -> Tensor:
        """Return log(v⁻¹ u), shape (..., size): the same when both are moved by an element of the group."""
        return self.log(self.inverse(v) @ u)

    def norm(self, a: Tensor) -> Tensor:
        """Return the Frobenius norm of what algebra components (..., size) stand for, shape (...)."""
        return (a.square() * a.new_tensor(self.frobenius)).sum(-1).sqrt()

    def distance(self, u: Tensor, v: Tensor) -> Tensor:
        """Return ‖log(u⁻¹ v)‖, shape (...).

        Source
        ------
        Finzi et al., eq. 5.
        """
        return self.norm(self.between(u, v))


@dataclass(frozen=True)
class Trivial(Group):
    """The group of nothing but the identity: every point is an orbit of its own."""

    dim: int = 2
    size, single_valued, frobenius = 0, True, ()

    @property
    def orbit_size(self) -> int:
        return self.dim

    def exp(self, a: Tensor) -> Tensor:
        return a.new_ones(*a.shape[:-1], 1, 1)

    def log(self, u: Tensor) -> Tensor:
        return u.new_zeros(*u.shape[:-2], 0)

    def inverse(self, u: Tensor) -> Tensor:
        return u

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return x.expand(*torch.broadcast_shapes(u.shape[:-2], x.shape[:-1]), self.dim)

    def origin(self, orbit: Tensor) -> Tensor:
        return orbit

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return x.new_ones(*x.shape[:-1], 1, 1), x


@dataclass(frozen=True)
class T(Group):
    """Translations of R^dim along some of its axes; all where left out. The other coordinates name the orbit.

    Raises
    ------
    ValueError
        When axes repeat, or are none of the space's.
    """

    dim: int = 3
    axes: tuple[int, ...] | None = None
    single_valued = True

    def __post_init__(self):
        axes = tuple(range(self.dim)) if self.axes is None else tuple(self.axes)
        if not axes or len(set(axes)) != len(axes) or not set(axes) <= set(range(self.dim)):
            raise ValueError(f"axes must be different ones of the {self.dim} axes 0 to {self.dim - 1}, got {axes}")
        object.__setattr__(self, "axes", axes)

    @property
    def size(self) -> int:
        return len(self.axes)

    @property
    def orbit_size(self) -> int:
        return self.dim - len(self.axes)

    @property
    def frobenius(self) -> tuple[float, ...]:
        return (1.0,) * self.size

    @property
    def _fixed(self) -> list[int]:
        return [axis for axis in range(self.dim) if axis not in self.axes]

    def exp(self, a: Tensor) -> Tensor:
        return _homogeneous(torch.eye(self.size, dtype=a.dtype, device=a.device).expand(*a.shape, self.size), a)

    def log(self, u: Tensor) -> Tensor:
        return u[..., :-1, -1]

    def inverse(self, u: Tensor) -> Tensor:
        return self.exp(-self.log(u))

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        shift = u.new_zeros(*u.shape[:-2], self.dim)
        shift[..., list(self.axes)] = self.log(u)
        return x + shift

    def origin(self, orbit: Tensor) -> Tensor:
        x = orbit.new_zeros(*orbit.shape[:-1], self.dim)
        x[..., self._fixed] = orbit
        return x

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return self.exp(x[..., list(self.axes)]), x[..., self._fixed]


@dataclass(frozen=True)
class SO2(Group):
    """Rotations of the plane about the origin; the distance from it names the orbit."""

    dim, size, orbit_size, single_valued, frobenius = 2, 1, 1, True, (2.0,)
    _turns_about_origin = True

    def exp(self, a: Tensor) -> Tensor:
        return _rotation_2d(a[..., 0])

    def log(self, u: Tensor) -> Tensor:
        return torch.atan2(u[..., 1, 0], u[..., 0, 0])[..., None]

    def inverse(self, u: Tensor) -> Tensor:
        return u.mT

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return (u @ x[..., None])[..., 0]

    def origin(self, orbit: Tensor) -> Tensor:
        return torch.cat([orbit, torch.zeros_like(orbit)], -1)

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        length = x.norm(dim=-1, keepdim=True)
        c, s = (x / length).unbind(-1)
        return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2)), length


@dataclass(frozen=True)
class ScaleRotation(Group):
    """Rotations and scalings of the plane about the origin, R* × SO(2); every point but the origin is in one orbit."""

    dim, size, orbit_size, single_valued, frobenius = 2, 2, 0, True, (2.0, 2.0)
    _turns_about_origin = True

    def exp(self, a: Tensor) -> Tensor:
        return a[..., 0, None, None].exp() * _rotation_2d(a[..., 1])

    def log(self, u: Tensor) -> Tensor:
        c, s = u[..., 0, 0], u[..., 1, 0]
        return torch.stack([0.5 * (c.square() + s.square()).log(), torch.atan2(s, c)], -1)

    def inverse(self, u: Tensor) -> Tensor:
        return u.mT / u[..., :, :1].square().sum(-2, keepdim=True)

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return (u @ x[..., None])[..., 0]

    def origin(self, orbit: Tensor) -> Tensor:
        return orbit.new_tensor([1.0, 0.0]).expand(*orbit.shape[:-1], 2)

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        c, s = x.unbind(-1)
        return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2)), x[..., :0]


@dataclass(frozen=True)
class SE2(Group):
    """Rigid motions of the plane; components of the algebra are the two of a translation, then an angle."""

    dim, size, orbit_size, single_valued, frobenius = 2, 3, 0, False, (1.0, 1.0, 2.0)

    def exp(self, a: Tensor) -> Tensor:
        angle = a[..., 2]
        sine, cosine = _sinc(angle), 0.5 * angle * _sinc(0.5 * angle).square()  # sin θ / θ, (1 - cos θ) / θ
        V = torch.stack([sine, -cosine, cosine, sine], -1).unflatten(-1, (2, 2))
        return _homogeneous(_rotation_2d(angle), (V @ a[..., :2, None])[..., 0])

    def log(self, u: Tensor) -> Tensor:
        angle = torch.atan2(u[..., 1, 0], u[..., 0, 0])
        a, b = _half_cotangent(angle), 0.5 * angle
        inverse = torch.stack([a, b, -b, a], -1).unflatten(-1, (2, 2))
        return torch.cat([(inverse @ u[..., :2, 2:])[..., 0], angle[..., None]], -1)

    def inverse(self, u: Tensor) -> Tensor:
        return _rigid_inverse(u)

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return (u[..., :2, :2] @ x[..., None])[..., 0] + u[..., :2, 2]

    def origin(self, orbit: Tensor) -> Tensor:
        return orbit.new_zeros(*orbit.shape[:-1], 2)

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return _homogeneous(_rotation_2d(_random_angles(x[..., 0], generator)), x), x[..., :0]


@dataclass(frozen=True)
class SO3(Group):
    """Rotations of space about the origin; the distance from it names the orbit.

    A lift turns the z axis into the direction of a point, after a turn about z by an angle drawn evenly from 0 to 2π.
    """

    dim, size, orbit_size, single_valued, frobenius = 3, 3, 1, False, (2.0, 2.0, 2.0)
    _turns_about_origin = True

    def exp(self, a: Tensor) -> Tensor:
        return _rotation_3d(a)

    def log(self, u: Tensor) -> Tensor:
        return _log_3d(u)

    def inverse(self, u: Tensor) -> Tensor:
        return u.mT

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return (u @ x[..., None])[..., 0]

    def origin(self, orbit: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(orbit), torch.zeros_like(orbit), orbit], -1)

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        length = x.norm(dim=-1, keepdim=True)
        unit = x / length
        least = torch.zeros_like(x).scatter(-1, unit.abs().argmin(-1, keepdim=True), 1.0)
        a = torch.linalg.cross(least, unit)
        a = a / a.norm(dim=-1, keepdim=True)
        frame = torch.stack([a, torch.linalg.cross(unit, a), unit], -1)
        angle = _random_angles(length[..., 0], generator)
        about_z = angle[..., None] * x.new_tensor([0.0, 0.0, 1.0])
        return frame @ _rotation_3d(about_z), length


@dataclass(frozen=True)
class SE3(Group):
    """Rigid motions of space; components of the algebra are the three of a rotation, then those of a translation."""

    dim, size, orbit_size, single_valued, frobenius = 3, 6, 0, False, (2.0, 2.0, 2.0, 1.0, 1.0, 1.0)

    def exp(self, a: Tensor) -> Tensor:
        W, W2, A, B = _powers(a[..., :3])
        square = a[..., :3].square().sum(-1)[..., None, None]
        small = square < SMALL_ANGLE**2
        C = torch.where(small, 1 / 6 - square / 120, (1 - A) / torch.where(small, 1.0, square))
        V = torch.eye(3, dtype=a.dtype, device=a.device) + B * W + C * W2
        return _homogeneous(_rotation_3d(a[..., :3]), (V @ a[..., 3:, None])[..., 0])

    def log(self, u: Tensor) -> Tensor:
        turn = _log_3d(u[..., :3, :3])
        W = _skew(turn)
        square = turn.square().sum(-1)[..., None, None]
        small = square < SMALL_ANGLE**2
        angle = torch.where(small, 1.0, square).sqrt()
        c = torch.where(small, 1 / 12 + square / 720, (1 - _half_cotangent(angle)) / angle.square())
        t = u[..., :3, 3:]
        shift = t - 0.5 * (W @ t) + c * (W @ (W @ t))
        return torch.cat([turn, shift[..., 0]], -1)

    def inverse(self, u: Tensor) -> Tensor:
        return _rigid_inverse(u)

    def act(self, u: Tensor, x: Tensor) -> Tensor:
        return (u[..., :3, :3] @ x[..., None])[..., 0] + u[..., :3, 3]

    def origin(self, orbit: Tensor) -> Tensor:
        return orbit.new_zeros(*orbit.shape[:-1], 3)

    def _lift(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        # a normal quadruple has no preferred direction, so that its unit quaternion is an even rotation
        w, v = torch.randn(*x.shape[:-1], 4, dtype=x.dtype, generator=generator).to(x.device).split([1, 3], -1)
        square = w.square() + v.square().sum(-1, keepdim=True)
        W = _skew(v)
        R = torch.eye(3, dtype=x.dtype, device=x.device) + 2 * (w[..., None] * W + W @ W) / square[..., None]
        return _homogeneous(R, x), x[..., :0]


def _homogeneous(R: Tensor, t: Tensor) -> Tensor:
    """Return matrices (..., d + 1, d + 1) of x → R x + t."""
    bottom = torch.zeros_like(t)[..., None, :], t.new_ones(*t.shape[:-1], 1, 1)
    return torch.cat([torch.cat([R, t[..., None]], -1), torch.cat(bottom, -1)], -2)


def _rigid_inverse(u: Tensor) -> Tensor:
    R, t = u[..., :-1, :-1], u[..., :-1, -1:]
    return _homogeneous(R.mT, -(R.mT @ t)[..., 0])


def _rotation_2d(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))


def _random_angles(like: Tensor, generator: torch.Generator | None) -> Tensor:
    angle = torch.rand(like.shape, dtype=like.dtype, generator=generator)
    return 2 * math.pi * angle.to(like.device)


def _sinc(x: Tensor) -> Tensor:
    """Return sin(x) / x."""
    return torch.sinc(x / math.pi)


def _half_cotangent(angle: Tensor) -> Tensor:
    """Return (θ/2) cot(θ/2), which is 1 at 0 and 0 at π."""
    small = angle.abs() < SMALL_ANGLE
    half = 0.5 * torch.where(small, 1.0, angle)
    return torch.where(small, 1 - angle.square() / 12 - angle**4 / 720, half * half.cos() / half.sin())


def _skew(a: Tensor) -> Tensor:
    """Return matrices W with W b = a × b."""
    x, y, z = a.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _powers(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, W², sin θ / θ and (1 - cos θ) / θ² of rotation vectors (..., 3)."""
    W = _skew(a)
    square = a.square().sum(-1)[..., None, None]
    small = square < SMALL_ANGLE**2
    angle = torch.where(small, 1.0, square).sqrt()
    A = torch.where(small, 1 - square / 6 + square.square() / 120, angle.sin() / angle)
    B = torch.where(small, 0.5 - square / 24 + square.square() / 720, 2 * (0.5 * angle).sin().square() / angle.square())
    return W, W @ W, A, B


def _rotation_3d(a: Tensor) -> Tensor:
    """Return the rotations (..., 3, 3) by rotation vectors (Rodrigues)."""
    W, W2, A, B = _powers(a)
    return torch.eye(3, dtype=a.dtype, device=a.device) + A * W + B * W2


def _log_3d(R: Tensor) -> Tensor:
    """Return rotation vectors (..., 3), by way of quaternions: exact near π, where an arc cosine loses half the digits.

    Of the four ways to a quaternion, that with the largest component is taken (Shepperd 1978).
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = R.flatten(-2).unbind(-1)
    rows = torch.stack(
        [
            torch.stack([1 + r00 + r11 + r22, r21 - r12, r02 - r20, r10 - r01], -1),
            torch.stack([r21 - r12, 1 + r00 - r11 - r22, r01 + r10, r02 + r20], -1),
            torch.stack([r02 - r20, r01 + r10, 1 - r00 + r11 - r22, r12 + r21], -1),
            torch.stack([r10 - r01, r02 + r20, r12 + r21, 1 - r00 - r11 + r22], -1),
        ],
        -2,
    )
    best = rows.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    square = v.square().sum(-1, keepdim=True)
    small = square < SMALL_SINE**2
    sine = torch.where(small, 1.0, square).sqrt()
    return v * torch.where(small, 2 + square / 3, 2 * torch.atan2(sine, w) / sine)

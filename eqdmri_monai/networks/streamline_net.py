"""Streamlines into bundles, for a head in any position: a network on a whole tractogram, without registration."""

import torch
from e3nn import o3
from torch import Tensor, nn

from eqdmri_monai.bases.angular import degree_slice, harmonics
from eqdmri_monai.neighbours import euclidean, everyone, knn
from eqdmri_monai.nn import Gate, Linear, PointConv, TensorProductNonlinearity
from eqdmri_monai.nn.irreps import parse_sorted_irreps
from eqdmri_monai.nn.point_conv import envelope


class StreamlineNet(nn.Module):
    r"""Logits of every streamline of a tractogram, invariant under rigid motions of the whole head.

    A streamline's segments carry :math:`1` and :math:`t \otimes t`, which a reversal does not change; a `PointConv`
    gathers them at the streamline's centroid: a token. Tokens see their nearest neighbours, with weights that fall to 0
    where the next one begins, and the whole head: one more token at the mean of all centroids, which hears every
    streamline and is heard by all. Products of features with themselves make the network one of rotations, not of
    mirrors, so that left and right differ. Lengths are in mm and not scaled by the head's size.

    Parameters
    ----------
    classes : int
        Bundles, and one more for all that is none of them where it is wanted.
    irreps : o3.Irreps
        Type of the tokens; scalars first.
    layers : int
        Of exchange between tokens.
    neighbours : int
        Nearest tokens that a token sees.
    radius : float
        mm; where the last radial bump over a streamline and over the head is centred.
    num_radial : int
        Number of bumps.
    lmax : int
        Largest degree of the harmonics of offsets.

    Raises
    ------
    ValueError
        When a number is below 1 or the irreps are not sorted by degree, or have odd labels.

    Source
    ------
    Ours, of the layers of Thomas et al. 2018. The whole tractogram as context: Xue et al. 2023 (TractCloud), who learn
    poses from turned copies.
    """

    def __init__(
        self,
        classes: int,
        *,
        irreps: o3.Irreps | str = "16x0e+8x1e+4x2e",
        layers: int = 2,
        neighbours: int = 20,
        radius: float = 100.0,
        num_radial: int = 12,
        lmax: int = 2,
    ):
        super().__init__()
        if min(classes, layers, neighbours) < 1:
            raise ValueError(f"classes, layers and neighbours must be 1 or more, got {classes}, {layers}, {neighbours}")
        irreps = parse_sorted_irreps(irreps, "irreps")
        self.neighbours = neighbours
        options = {"num_radial": num_radial, "lmax": lmax}
        far = {"radius": radius, "z": 1.0, "self_connection": False, **options}  # weights are those of a mean
        self.gather = PointConv("0e+2e", irreps, **far)
        self.square = TensorProductNonlinearity(irreps)
        gate = Gate(irreps)
        self.to_head = nn.ModuleList(PointConv(irreps, irreps, **far) for _ in range(layers))
        self.head_square = nn.ModuleList(TensorProductNonlinearity(irreps) for _ in range(layers))
        self.from_head = nn.ModuleList(PointConv(irreps, gate.irreps_in, **far) for _ in range(layers))
        self.near = nn.ModuleList(
            PointConv(irreps, gate.irreps_in, radius=0.4 * radius, z=0.4 * neighbours, **options) for _ in range(layers)
        )
        self.gates = nn.ModuleList(Gate(irreps) for _ in range(layers))
        scalars = o3.Irreps([(irreps.count("0e"), "0e")])
        self.scalars = Linear(irreps, scalars)
        self.last = nn.Sequential(nn.Linear(scalars.dim, scalars.dim), nn.SiLU(), nn.Linear(scalars.dim, classes))

    def forward(self, image: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, S, P, 3)
            S streamlines of P points each, evenly spaced, in mm.

        Returns
        -------
        Tensor, shape (B, classes, S)
            Logits.

        Raises
        ------
        ValueError
            When the image has another shape or is not finite, or there are no more streamlines than neighbours.
        """
        if image.ndim != 4 or image.shape[2] < 2 or image.shape[3] != 3 or not image.is_floating_point():
            raise ValueError(
                f"image must be streamlines (B, S, P, 3) of 2 points or more, got {tuple(image.shape)}, {image.dtype}"
            )
        if not image.isfinite().all():
            raise ValueError("image must be finite; a streamline has a point that is not")
        if image.shape[1] <= self.neighbours:
            raise ValueError(
                f"a tractogram must have more streamlines than the network's {self.neighbours} neighbours, got "
                f"{image.shape[1]}"
            )
        image = image - image.mean((1, 2), keepdim=True)  # single precision is finest near 0
        centroid = image.mean(2)
        x = self.square(self._tokens(image, centroid))
        mask = torch.ones(centroid.shape[:2], dtype=torch.bool, device=image.device)
        near = knn(euclidean(centroid), self.neighbours, mask=mask, centres=mask)
        weight = envelope(centroid, near)
        head = centroid.mean(1, keepdim=True)
        one = mask[:, :1]
        all_to_head, head_to_all = everyone(mask, one), everyone(one, mask)
        share = x.new_full((len(x), 1, mask.shape[1]), 1 / mask.shape[1])
        for to_head, square, from_head, conv, gate in zip(
            self.to_head, self.head_square, self.from_head, self.near, self.gates, strict=True
        ):
            whole = square(to_head(x, centroid, all_to_head, centres=head, weight=share))
            heard = from_head(whole, head, head_to_all, centres=centroid)
            x = x + gate(conv(x, centroid, near, weight=weight) + heard)
        return self.last(self.scalars(x).mT).mT

    def _tokens(self, image: Tensor, centroid: Tensor) -> Tensor:
        """Gather the segments of each streamline at its centroid, shape (B, irreps.dim, S)."""
        segments = image.diff(dim=2).flatten(0, 1)  # [b s, p - 1, 3]
        middle = 0.5 * (image[:, :, 1:] + image[:, :, :-1]).flatten(0, 1)
        sh = harmonics(2, segments)
        features = torch.cat([sh[..., :1], sh[..., degree_slice(2)]], -1).mT
        mask = torch.ones(middle.shape[:2], dtype=torch.bool, device=image.device)
        weight = torch.full(
            (len(middle), 1, middle.shape[1]), 1 / middle.shape[1], dtype=image.dtype, device=image.device
        )
        x = self.gather(
            features, middle, everyone(mask, mask[:, :1]), centres=centroid.flatten(0, 1)[:, None], weight=weight
        )
        return x[..., 0].unflatten(0, image.shape[:2]).mT

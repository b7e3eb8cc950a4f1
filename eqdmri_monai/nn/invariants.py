"""Numbers of a diffusion scan that do not turn with the head, made by fixed filters over p and the tensor of q."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqdmri_monai.nn.cartesian import symmetric_matrix
from eqdmri_monai.nn.scale_space import blur, blur_within, gradient, hessian
from eqdmri_monai.tensors import (
    deviator,
    fit_tensor,
    fractional_anisotropy,
    mean_diffusivity,
    product,
    shrunk,
    squared_norm,
)

MAPS = ("b0", "md", "fa")
# mm, of Gaussians
VALUES, AROUND, DERIVATIVES = (2.0, 4.0, 8.0, 12.0), (8.0, 16.0), (2.5, 5.0)
TENSORS, WHITE, SHARES = (2.5, 5.0, 10.0), (6.0, 12.0, 24.0), (3.0, 6.0)
DEPTHS = (4.0, 8.0, 16.0)
LARGEST = 6.0  # µm²/ms; a tensor of a larger norm than any tissue's or fluid's is shrunk to it


class TensorInvariants(nn.Module):
    """From a scan to maps of what lies in and around each voxel, on the b0, the tensor, and derivatives of both.

    Of log b0, mean diffusivity (MD) and fractional anisotropy (FA) each: their means over neighbourhoods of 0 to 12 mm;
    the value against what lies around, in local standard deviations, and against the white matter around; length of
    the gradient and eigenvalues of the Hessian. Of the tensor: outer eigenvalues; length, shape and alignment of its
    anisotropic part against its mean over neighbourhoods; its divergence. Of both: gradients and Hessians along the
    tensor. Besides the shares of fluid and of brain in neighbourhoods. All are sums of products in which each axis
    meets itself, so that they commute with rotations as Gaussians on voxels do, and with quarter turns exactly.

    Parameters
    ----------
    spacing : three floats
        Voxel sizes in mm.

    Attributes
    ----------
    names : list of str
        Of the maps.
    """

    def __init__(self, spacing: Sequence[float] = (2.0, 2.0, 2.0)):
        super().__init__()
        self.spacing = tuple(float(s) for s in spacing)
        q = torch.cat([torch.zeros(1, 3), torch.eye(3), torch.eye(3)[[0, 0, 1]] + torch.eye(3)[[1, 2, 2]]])
        self.names = list(self.maps(torch.zeros(1, 7, 4, 4, 4, dtype=q.dtype), q))

    def voxels(self, sigma: float) -> list[float]:
        """Return a width in mm in voxels."""
        return [sigma / s for s in self.spacing]

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """
        Parameters
        ----------
        image : Tensor, shape (B, Q, X, Y, Z)
            Logarithm of the signal over one number for the whole scan, as `LogSignald` gives it; 0 outside the brain.
        q : Tensor, shape (B, Q, 3) or (Q, 3)
            Along the voxel axes; the same for all items of a batch.

        Returns
        -------
        Tensor, shape (B, len(names), X, Y, Z)
            0 outside the brain.

        Raises
        ------
        ValueError
            When the q-vectors do not determine a tensor.
        """
        return torch.cat(list(self.maps(image, q).values()), dim=1) * image.any(dim=1, keepdim=True)

    def maps(self, image: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Return the maps (B, 1, X, Y, Z) by name."""
        brain = image.any(dim=1, keepdim=True).to(image.dtype)
        tensor, log_b0 = fit_tensor(image, (q[0] if q.ndim == 3 else q).to(image), weighted=False)
        tensor = shrunk(tensor, LARGEST)
        md, fa = mean_diffusivity(tensor)[:, None], fractional_anisotropy(tensor)[:, None].clamp(max=1) * brain
        scaled = {"b0": log_b0[:, None] / 0.3, "md": (md.clamp(0, 4) - 1.0) / 0.5, "fa": (fa - 0.3) / 0.2}
        scaled = {name: x * brain for name, x in scaled.items()}
        values = eigenvalues(tensor, brain).clamp(0, 4)
        out = {"largest": values[:, 2:], "smallest": values[:, :1]}
        anisotropic = deviator(tensor) * brain
        for name, x in scaled.items():
            out |= {f"{name} {key}": value for key, value in self.around(x, brain, anisotropic).items()}
        out |= self.of_tensor(tensor, anisotropic, brain)
        out |= self.against_white_matter(scaled, md, fa, brain)
        for s in SHARES:
            out[f"fluid {s}"] = blur_within((md - 1.0).clamp(0, 1), brain, self.voxels(s))
        for s in DEPTHS:
            out[f"brain {s}"] = blur(brain, self.voxels(s))
        return out

    def around(self, x: Tensor, brain: Tensor, anisotropic: Tensor) -> dict[str, Tensor]:
        """Return one map's values, contrasts and derivatives."""
        out = {"0": x} | {f"{s}": blur_within(x, brain, self.voxels(s)) for s in VALUES}
        for s in AROUND:
            mean = blur_within(x, brain, self.voxels(s))
            variance = blur_within((x - mean).square(), brain, self.voxels(s))
            out[f"against {s}"] = (x - mean) / (variance + 1e-4).sqrt()
        filled = torch.where(brain > 0, x, blur_within(x, brain, self.voxels(4.0)))  # no cliff at the brain's surface
        length = squared_norm(anisotropic)[:, None].sqrt() + 1e-3
        for s in DERIVATIVES:
            first, second = gradient(filled, self.voxels(s))[:, 0], hessian(filled, self.voxels(s))[:, 0]
            square = first.square().sum(1, keepdim=True)
            out[f"gradient {s}"] = square.sqrt()
            curvatures = eigenvalues(second, brain)
            out |= {f"curvature {k} {s}": curvatures[:, k : k + 1] for k in range(3)}
            along = torch.einsum("bixyz,bxyzij,bjxyz->bxyz", first, symmetric_matrix(anisotropic), first)[:, None]
            out[f"gradient along {s}"] = along / ((square + 1e-4) * length)
            out[f"curvature along {s}"] = product(second, anisotropic)[:, None] / length
        return out

    def of_tensor(self, tensor: Tensor, anisotropic: Tensor, brain: Tensor) -> dict[str, Tensor]:
        """Return the tensor against its neighbourhood."""
        length = squared_norm(anisotropic)[:, None].sqrt() + 1e-3
        out = {"anisotropy": length}
        for s in TENSORS:
            mean = blur_within(anisotropic, brain, self.voxels(s))
            mean_length = squared_norm(mean)[:, None].sqrt() + 1e-3
            out[f"anisotropy {s}"] = mean_length
            out[f"alignment {s}"] = product(anisotropic, mean)[:, None] / (length * mean_length)
            out[f"shape {s}"] = torch.linalg.det(symmetric_matrix(mean / mean_length))[:, None]
            out[f"coherence {s}"] = mean_length / (blur_within(length, brain, self.voxels(s)) + 1e-3)
        filled = torch.where(brain > 0, tensor, blur_within(tensor, brain, self.voxels(4.0)))
        for s in DERIVATIVES:
            d = gradient(filled, self.voxels(s))  # [b, 6, 3, x, y, z]
            rows = ((0, 1, 2), (1, 3, 4), (2, 4, 5))
            divergence = [sum(d[:, row[j], j] for j in range(3)) for row in rows]
            out[f"divergence {s}"] = sum(x.square() for x in divergence).sqrt()[:, None]
        return out

    def against_white_matter(
        self, scaled: dict[str, Tensor], md: Tensor, fa: Tensor, brain: Tensor
    ) -> dict[str, Tensor]:
        """Return maps against their means in what is white matter by its MD and FA around."""
        width = self.voxels(2.0)
        near_md, near_fa = blur_within(md, brain, width), blur_within(fa, brain, width)
        white = brain * torch.exp(-(((near_md - 0.75) / 0.2) ** 2)) * torch.sigmoid((near_fa - 0.25) / 0.04)
        out, white = {"white": white}, white + 1e-4 * brain
        for name, x in scaled.items():
            near = blur_within(x, brain, self.voxels(1.8))
            for s in WHITE:
                share = blur(white, self.voxels(s)).clamp(min=1e-6)
                mean = blur(white * x, self.voxels(s)) / share
                variance = blur(white * x.square(), self.voxels(s)) / share - mean.square()
                deviation = (variance.clamp(min=0) + 0.01).sqrt()
                out[f"{name} against white {s}"] = (x - mean) / deviation
                out[f"{name} near against white {s}"] = (near - mean) / deviation
        return out


def eigenvalues(x: Tensor, brain: Tensor) -> Tensor:
    """Return the eigenvalues (B, 3, X, Y, Z), the least first, of symmetric matrices (B, 6, X, Y, Z) in the brain."""
    matrix, inside = symmetric_matrix(x), brain[:, 0] > 0
    out = x.new_zeros(*matrix.shape[:-1])
    out[inside] = torch.linalg.eigvalsh(matrix[inside])
    return out.movedim(-1, 1)

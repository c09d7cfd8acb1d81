"""What a teacher knows of space: distances, angles, and the vectors by which it says what noise lies on the atoms.

All that is said of a pair is invariant under rotation, translation and reflection, and so is everything built on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from moldistill.core.shapes import Bool, Float, Int
from moldistill.core.vocabulary import ATOM_SIZES

ELEMENTS = ATOM_SIZES[0]

NEAR = 1e-2
"""Å; the length at which directions fade: those of atoms that lie closer are no longer of length 1."""


@dataclass(frozen=True, slots=True)
class Displacements:
    """Of each pair of atoms, in Å.

    difference: x_i - x_j.
    distance:   its length; 1e-6 where atoms coincide.
    """

    difference: Float[Tensor, "batch atoms atoms 3"]
    distance: Float[Tensor, "batch atoms atoms"]

    @classmethod
    def between(cls, positions: Float[Tensor, "batch atoms 3"]) -> Displacements:
        """Those of positions that are finite, in padding, too."""
        difference = positions[:, :, None] - positions[:, None]
        # The square root has no derivative at 0: atoms that coincide, and an atom with itself, are kept off it.
        return cls(difference, difference.square().sum(-1).clamp(min=1e-12).sqrt())

    @property
    def direction(self) -> Float[Tensor, "batch atoms atoms 3"]:
        """From atom i towards j: (x_j - x_i) / √(d² + NEAR²), which is 0, and has a derivative, at d = 0."""
        return -self.difference / (self.distance.square() + NEAR**2).sqrt()[..., None]


def both(real: Bool[Tensor, "batch atoms"]) -> Bool[Tensor, "batch atoms atoms"]:
    """Which pairs are of two atoms that exist."""
    return real[:, :, None] & real[:, None]


class DistanceFeatures(nn.Module):
    """Learned Gaussian kernels of the distance between two atoms, shifted and scaled by their elements.

    After Transformer-M (arXiv 2210.01765): x = m(z_i, z_j) · d_ij + b(z_i, z_j), then Gaussians with learned centres.
    """

    def __init__(self, kernels: int, max_distance: float = 9.0) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(0.0, max_distance, kernels))
        self.log_widths = nn.Parameter(torch.full((kernels,), max_distance / kernels).log())
        self.scale = nn.Embedding(ELEMENTS, 1)
        self.shift = nn.Embedding(ELEMENTS, 1)
        nn.init.constant_(self.scale.weight, 0.5)  # the scales of both atoms add up to 1
        nn.init.zeros_(self.shift.weight)
        self.mix = nn.Linear(kernels, kernels)

    def forward(
        self,
        elements: Int[Tensor, "batch atoms"],
        real: Bool[Tensor, "batch atoms"],
        distance: Float[Tensor, "batch atoms atoms"],
    ) -> Float[Tensor, "batch atoms atoms kernels"]:
        """Features of each pair of atoms from distances in Å; zero where either is padding.

        elements: indices into OGB's atomic numbers; 0 is hydrogen.
        """
        scale, shift = self.scale(elements)[..., 0], self.shift(elements)[..., 0]
        reach = (scale[:, :, None] + scale[:, None]) * distance + shift[:, :, None] + shift[:, None]
        kernels = torch.exp(-0.5 * ((reach[..., None] - self.centres) / self.log_widths.exp()).square())
        mixed = nn.functional.gelu(self.mix(kernels))
        return torch.where(both(real)[..., None], mixed, 0.0)


def harmonics(direction: Float[Tensor, "*pairs 3"]) -> Float[Tensor, "*pairs 12"]:
    """The vector u, and the traceless tensor u uᵀ - |u|² I / 3, row by row.

    Their products with those of another vector v are |u||v| P₁(cos θ) and ⅔ |u|²|v|² P₂(cos θ), Legendre polynomials of
    the angle between both.
    """
    tensor = direction[..., :, None] * direction[..., None, :]
    trace = direction.square().sum(-1)[..., None, None] / 3
    tensor = tensor - trace * torch.eye(3, dtype=direction.dtype, device=direction.device)
    return torch.cat([direction, tensor.flatten(-2)], -1)


class AngleFeatures(nn.Module):
    """Features of a pair (i, j) from the angles between i → j and the bonds i → k of atom i, and those of atom j.

    a_ijcl = Σ_k w_c(i, k) P_l(cos ∠jik) for l = 1, 2 and channels c, where the radial weights w_c are learned functions
    of the features of the pair (i, k). Angles enter pairs as in DimeNet (arXiv 2003.03123); but P_l of an angle is a
    product of a tensor of each direction, so that the sum over k is that of a moment of atom i, once for all j (as in
    moment tensor potentials, arXiv 1512.06054): N² steps in place of N³.
    """

    def __init__(self, kernels: int, channels: int = 8) -> None:
        super().__init__()
        self.radial = nn.Linear(kernels, channels)
        self.mix = nn.Linear(4 * channels, kernels)

    def sums(
        self,
        pairs: Float[Tensor, "batch atoms atoms kernels"],
        direction: Float[Tensor, "batch atoms atoms 3"],
        bonded: Bool[Tensor, "batch atoms atoms"],
    ) -> Float[Tensor, "batch atoms atoms angles"]:
        """a_ijcl, degree after degree: [..., 2 · channels]."""
        weights = torch.where(bonded[..., None], self.radial(pairs), 0.0)
        # Sixteen bits are too few for differences between angles.
        with torch.autocast(direction.device.type, enabled=False):
            tensors = harmonics(direction)
            moments = torch.einsum("bikc,bikt->bict", weights.to(tensors.dtype), tensors)
            first = torch.einsum("bijt,bict->bijc", tensors[..., :3], moments[..., :3])
            second = torch.einsum("bijt,bict->bijc", tensors[..., 3:], moments[..., 3:])
        return torch.cat([first, 1.5 * second], -1)

    def forward(
        self,
        pairs: Float[Tensor, "batch atoms atoms kernels"],
        direction: Float[Tensor, "batch atoms atoms 3"],
        bonded: Bool[Tensor, "batch atoms atoms"],
    ) -> Float[Tensor, "batch atoms atoms kernels"]:
        """What is added to the features of each pair; `bonded` holds bonds of atoms that exist alone."""
        sums = self.sums(pairs, direction, bonded)
        return cast(Tensor, self.mix(torch.cat([sums, sums.transpose(1, 2)], -1)))


class NoiseHead(nn.Module):
    """The noise on each atom, as a sum of vectors from all others (Noisy Nodes, arXiv 2106.07971).

    ε_i = Σ_j φ_ij (x_i - x_j) / (|x_i - x_j| + 1), with attention for φ as in Transformer-M (arXiv 2210.01765):
    φ_ij = Σ_heads softmax_j(q_i · k_j / √d + b_ij) (v_j + g_ij), where b and g read the features of the pair. It turns
    with the molecule, and does not change where that is moved.
    """

    def __init__(self, width: int, heads: int, kernels: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.ends = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, heads)
        self.pair = nn.Linear(kernels, 2 * heads)
        for layer in (self.value, self.pair):
            nn.init.normal_(layer.weight, std=0.02)  # a fraction of an Å at first, as noise is
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        states: Float[Tensor, "batch atoms width"],
        real: Bool[Tensor, "batch atoms"],
        pairs: Float[Tensor, "batch atoms atoms kernels"],
        apart: Displacements,
    ) -> Float[Tensor, "batch atoms 3"]:
        """In Å; zero where padded."""
        batch, atoms, width = states.shape
        normed = self.norm(states)
        query, key = self.ends(normed).view(batch, atoms, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias, gate = self.pair(pairs).permute(0, 3, 1, 2).chunk(2, 1)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        weights = torch.softmax(logits.masked_fill(~real[:, None, None], float("-inf")), -1)
        strength = (weights * (self.value(normed).transpose(1, 2)[:, :, None] + gate)).sum(1)
        vectors = apart.difference / (apart.distance + 1)[..., None]
        noise = (strength[..., None] * vectors).sum(2)
        return torch.where(real[..., None], noise, 0.0)

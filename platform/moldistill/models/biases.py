"""Attention biases: what two atoms are to each other, added to the logits of every layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Molecules
from moldistill.core.shapes import Bool, Float
from moldistill.core.vocabulary import ATOM_SIZES, BOND_CODES, UNREACHABLE

ELEMENTS = ATOM_SIZES[0]


class GraphBias(nn.Module):
    """Bias from shortest path and bond, with learned values between the graph token and the atoms, for one layer.

    After Graphormer (arXiv 2106.05234), with the bond of a pair in place of the mean along its path.
    """

    def __init__(self, heads: int, max_path: int) -> None:
        super().__init__()
        self.max_path = max_path
        self.path = nn.Embedding(max_path + 2, heads)
        self.bond = nn.Embedding(BOND_CODES, heads)
        self.token = nn.Parameter(torch.zeros(3, heads))
        nn.init.normal_(self.path.weight, std=0.02)
        nn.init.normal_(self.bond.weight, std=0.02)

    def forward(self, molecules: Molecules) -> Float[Tensor, "batch tokens tokens heads"]:
        """The bias over graph token (index 0) and atoms."""
        steps = molecules.shortest_paths
        apart = torch.where(steps == UNREACHABLE, self.max_path + 1, steps.clamp(max=self.max_path).long())
        pairs = self.path(apart) + self.bond(molecules.bond_codes.long())
        batch, atoms = pairs.shape[:2]
        to_token, from_token, own = self.token
        first = torch.cat([own.expand(batch, 1, 1, -1), to_token.expand(batch, 1, atoms, -1)], 2)
        rest = torch.cat([from_token.expand(batch, atoms, 1, -1), pairs], 2)
        return torch.cat([first, rest], 1)


class DistanceFeatures(nn.Module):
    """Learned Gaussian kernels of the distance between two atoms, shifted and scaled by their elements.

    After Transformer-M (arXiv 2210.01765): x = m(z_i, z_j) · d_ij + b(z_i, z_j), then Gaussians with learned centres.
    Distances are invariant under rotation, translation and reflection, and so is everything built on them.
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
        self, molecules: Molecules, positions: Float[Tensor, "batch atoms 3"]
    ) -> Float[Tensor, "batch atoms atoms kernels"]:
        """Features of each pair of atoms from positions in Å; zero where either is padding."""
        elements = molecules.atom_features[:, :, 0].long()
        scale, shift = self.scale(elements)[..., 0], self.shift(elements)[..., 0]
        difference = positions[:, :, None] - positions[:, None]
        # The square root has no derivative at 0: atoms that coincide, and an atom with itself, are kept off it.
        distance = difference.square().sum(-1).clamp(min=1e-12).sqrt()
        reach = (scale[:, :, None] + scale[:, None]) * distance + shift[:, :, None] + shift[:, None]
        kernels = torch.exp(-0.5 * ((reach[..., None] - self.centres) / self.log_widths.exp()).square())
        mixed = nn.functional.gelu(self.mix(kernels))
        return torch.where(_pairs(molecules.real)[..., None], mixed, 0.0)


def _pairs(real: Bool[Tensor, "batch atoms"]) -> Bool[Tensor, "batch atoms atoms"]:
    return real[:, :, None] & real[:, None]

"""Atom tokens: OGB's features, plus the bonds that meet at the atom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Molecules
from moldistill.core.shapes import Float
from moldistill.core.vocabulary import ATOM_SIZES, BOND_CODES


class AtomEmbedding(nn.Module):
    """Sum of one learned vector per atom feature and one per incident bond.

    A bond's vector is chosen by its code (type, stereo, conjugation), so that an atom knows its valence pattern before
    the first layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Embedding(sum(ATOM_SIZES), width)
        self.bonds = nn.Parameter(torch.zeros(BOND_CODES, width))
        offsets = torch.tensor([0, *ATOM_SIZES[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor
        nn.init.normal_(self.features.weight, std=len(ATOM_SIZES) ** -0.5)
        nn.init.normal_(self.bonds, std=0.1)

    def forward(self, molecules: Molecules) -> Float[Tensor, "batch atoms width"]:
        """Tokens of all atoms; those of padded atoms mean nothing."""
        features = self.features(molecules.atom_features.long() + self.offsets).sum(2)
        codes = molecules.bond_codes.long()
        counts = torch.zeros(*codes.shape[:2], BOND_CODES, device=codes.device, dtype=features.dtype)
        counts.scatter_add_(2, codes, torch.ones_like(codes, dtype=features.dtype))
        # Code 0 is "no bond": leaving it out keeps padding from being counted.
        tokens: Tensor = features + counts[:, :, 1:] @ self.bonds[1:]
        return tokens

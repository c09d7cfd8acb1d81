"""Atom tokens: OGB's features, plus the bonds that meet at the atom, plus random walks where asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Molecules
from moldistill.core.shapes import Float
from moldistill.core.vocabulary import ATOM_SIZES, BOND_CODES
from moldistill.models.fused import linear
from moldistill.models.walks import WalkEmbedding


class AtomEmbedding(nn.Module):
    """Sum of one learned vector per atom feature and one per incident bond.

    A bond's vector is chosen by its code (type, stereo, conjugation), so that an atom knows its valence pattern before
    the first layer. With `walks`, random walks of up to so many steps join (`models.walks`).
    """

    def __init__(self, width: int, walks: int = 0) -> None:
        super().__init__()
        self.features = nn.Embedding(sum(ATOM_SIZES), width)
        self.bonds = nn.Parameter(torch.zeros(BOND_CODES, width))
        offsets = torch.tensor([0, *ATOM_SIZES[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.offsets: Tensor
        nn.init.normal_(self.features.weight, std=len(ATOM_SIZES) ** -0.5)
        nn.init.normal_(self.bonds, std=0.1)
        self.walks = WalkEmbedding(width, walks) if walks else None

    def forward(self, molecules: Molecules) -> Float[Tensor, "batch atoms width"]:
        """Tokens of all atoms; those of padded atoms mean nothing."""
        # How often each vector is added: a product with the table, whose derivative is a product, too.
        counts = torch.cat([self.feature_counts(molecules), self.bond_counts(molecules)], 2)
        table = torch.cat([self.features.weight, self.bonds[1:]])
        with torch.autocast(counts.device.type, enabled=False):  # the residual stream starts in full precision
            tokens: Tensor = linear(counts, table.t())
        return tokens if self.walks is None else tokens + self.walks(molecules)

    def feature_counts(self, molecules: Molecules) -> Float[Tensor, "batch atoms values"]:
        """1 for each value of a feature that an atom has; padding is given the first of each."""
        places = molecules.atom_features * molecules.real[..., None] + self.offsets
        counts = self.bonds.new_zeros(*places.shape[:2], sum(ATOM_SIZES))
        return counts.scatter_(2, places, 1.0)

    def bond_counts(self, molecules: Molecules) -> Float[Tensor, "batch atoms codes"]:
        """How many bonds of each code, from 1 on, an atom has."""
        codes = (molecules.bond_codes * molecules.real[:, None]).long()
        counts = self.bonds.new_zeros(*codes.shape[:2], BOND_CODES)
        counts.scatter_add_(2, codes * molecules.real[..., None], torch.ones_like(codes, dtype=counts.dtype))
        return counts[..., 1:]

"""Attention biases: what two atoms are to each other, added to the logits of every layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldistill.core.records import Molecules
from moldistill.core.shapes import Float, Int
from moldistill.core.vocabulary import BOND_CODES, UNREACHABLE
from moldistill.models.fused import linear, working_precision

HIDDEN = -3e4
"""Bias of a key that is padding: its weight is 0 in every precision, and 0 times it is 0, which of -inf is NaN."""


def pair_codes(molecules: Molecules, max_path: int) -> Int[Tensor, "batch tokens tokens"]:
    """What the key (last) is to the query, graph token (index 0) and atoms: a column of a table.

    In order: steps up to max_path, no path, each bond (bonded atoms are one step apart, so that one code says both),
    atom to token, token to atom, token to itself, padded key.
    """
    steps, bonds = molecules.shortest_paths.short(), molecules.bond_codes.short()
    apart = torch.where(steps == UNREACHABLE, max_path + 1, steps.clamp(max=max_path))
    pairs = torch.where(bonds > 0, bonds + (max_path + 1), apart)
    to_token = max_path + 1 + BOND_CODES
    codes = nn.functional.pad(pairs, (0, 0, 1, 0), value=to_token)
    codes = nn.functional.pad(codes, (1, 0), value=to_token + 1)
    codes[:, 0, 0] = to_token + 2
    # The graph token is never hidden, so that no row of a softmax is empty.
    hidden = nn.functional.pad(~molecules.real, (1, 0))
    return codes.masked_fill(hidden[:, None], to_token + 3)


def look_up(
    table: Float[Tensor, "rows codes"], codes: Int[Tensor, "batch tokens tokens"]
) -> Float[Tensor, "rows batch tokens tokens"]:
    """Each row's value of each pair, as a product with the codes' indicators.

    A sum of one term each, thus exact in the table's precision; and its derivative is a product again, where that of a
    look-up is a sum scattered over a few places.
    """
    places = torch.arange(table.shape[1], device=codes.device, dtype=codes.dtype)
    indicators = (codes.reshape(-1, 1) == places).to(working_precision(table))
    return linear(table, indicators).view(len(table), *codes.shape)


class GraphBiases(nn.Module):
    """Biases of all layers from shortest path and bond, with learned values between the graph token and the atoms.

    After Graphormer (arXiv 2106.05234), with the bond of a pair in place of the mean along its path.
    """

    def __init__(self, depth: int, heads: int, max_path: int) -> None:
        super().__init__()
        self.depth, self.heads, self.max_path = depth, heads, max_path
        self.path = nn.Parameter(torch.empty(depth * heads, max_path + 2))
        self.bond = nn.Parameter(torch.empty(depth * heads, BOND_CODES))
        self.token = nn.Parameter(torch.zeros(depth * heads, 3))
        nn.init.normal_(self.path, std=0.02)
        nn.init.normal_(self.bond, std=0.02)

    def forward(self, molecules: Molecules) -> Float[Tensor, "depth heads batch tokens tokens"]:
        """The biases of each layer over queries and keys, graph token (index 0) and atoms; `HIDDEN` for padded keys."""
        found = look_up(self.table(), pair_codes(molecules, self.max_path))
        return found.view(self.depth, self.heads, *found.shape[1:])

    def table(self) -> Float[Tensor, "layer_heads codes"]:
        """The value of each of `pair_codes`, for each head of each layer."""
        hidden = torch.full_like(self.path[:, :1], HIDDEN)
        bonded = self.path[:, 1:2] + self.bond[:, 1:]
        return torch.cat([self.path + self.bond[:, :1], bonded, self.token, hidden], 1)

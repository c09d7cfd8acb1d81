"""The hybrid student: messages over bonds beside biased attention over all atoms, in every layer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from moldistill.core.records import ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float
from moldistill.core.vocabulary import BOND_CODES
from moldistill.models.attention import mix
from moldistill.models.biases import GraphBiases, look_up, pair_codes
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import Linear
from moldistill.models.registry import register
from moldistill.models.transformer import Transformer, feed_forward


class BondGates(nn.Module):
    """How much of a neighbour's message passes, by bond and head, for all layers; also the graph token's.

    Gates of bonds and of an atom to itself start at 1, those from and to the graph token at 0; pairs without a bond
    have none.
    """

    def __init__(self, depth: int, heads: int, max_path: int) -> None:
        super().__init__()
        self.max_path = max_path
        self.own = nn.Parameter(torch.ones(depth * heads, 1))
        self.bond = nn.Parameter(torch.ones(depth * heads, BOND_CODES - 1))
        self.token = nn.Parameter(torch.zeros(depth * heads, 3))

    def table(self) -> Float[Tensor, "layer_heads codes"]:
        """The value of each of `pair_codes`, for each head of each layer."""
        none = self.own.new_zeros(len(self.own), self.max_path + 1)
        return torch.cat([self.own, none, self.bond, self.token, none[:, :1]], 1)


class HybridBlock(nn.Module):
    """Pre-norm attention and messages, added to the residual stream together, then a feed-forward.

    After GPS++ (arXiv 2302.02947), where messages over bonds and biased attention stand side by side. A message is the
    neighbour's vector, scaled per head by the bond's gate; the sum over neighbours, the atom's own included (as GIN's,
    arXiv 1810.00826), goes through a nonlinearity. So the messages of a head are one product with a matrix of gates, of
    the size of the attention's, and there are no lists of edges. Bonds have no states of their own: which bonds an atom
    has stands in its token from the start.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm = nn.LayerNorm(width)
        self.projections = Linear(width, 4 * width)
        self.merge = Linear(2 * width, width)
        self.feedforward = feed_forward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "heads batch tokens tokens"],
        gates: Float[Tensor, "heads batch tokens tokens"],
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens after this layer."""
        mixed = mix(self.projections(self.norm(tokens)), bias, gates)
        tokens = tokens + self.dropout(self.merge(mixed))
        return tokens + cast(Tensor, self.dropout(self.feedforward(tokens)))


@register("student", "hybrid")
class HybridStudent(nn.Module):
    """The dense transformer with messages over bonds in every layer."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        self.biases = GraphBiases(settings.depth, settings.heads, settings.max_path)
        self.gates = BondGates(settings.depth, settings.heads, settings.max_path)
        self.body = Transformer(settings, HybridBlock)

    def forward(self, molecules: Molecules) -> ModelOutput:
        """Prediction and states of each layer."""
        codes = pair_codes(molecules, self.biases.max_path)
        pairs = look_up(torch.cat([self.biases.table(), self.gates.table()]), codes)
        biases, gates = pairs.view(2, self.biases.depth, self.biases.heads, *codes.shape).unbind(0)
        output: ModelOutput = self.body(self.embedding(molecules), biases.unbind(0), gates.unbind(0))
        return output

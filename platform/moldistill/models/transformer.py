"""The dense transformer body that teacher and student share: a graph token and atom tokens with attention biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from moldistill.core.records import ModelOutput
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float
from moldistill.models.attention import mix
from moldistill.models.fused import Linear


def feed_forward(settings: ModelSettings) -> nn.Sequential:
    """Norm, expansion, nonlinearity, contraction."""
    width, hidden = settings.width, int(settings.width * settings.feedforward)
    return nn.Sequential(nn.LayerNorm(width), Linear(width, hidden), nn.GELU(), Linear(hidden, width))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(settings.width)
        self.projections = Linear(settings.width, 3 * settings.width)
        self.merge = Linear(settings.width, settings.width)
        self.feedforward = feed_forward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], bias: Float[Tensor, "heads batch tokens tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens after this layer."""
        mixed = mix(self.projections(self.attention_norm(tokens)), bias)
        tokens = tokens + self.dropout(self.merge(mixed))
        return tokens + cast(Tensor, self.dropout(self.feedforward(tokens)))


class Transformer(nn.Module):
    """`depth` blocks over a learned graph token and the atoms, and a head on the graph token."""

    def __init__(self, settings: ModelSettings, block: Callable[[ModelSettings], nn.Module] = Block) -> None:
        super().__init__()
        self.graph_token = nn.Parameter(torch.zeros(settings.width))
        nn.init.normal_(self.graph_token, std=0.02)
        self.blocks = nn.ModuleList(block(settings) for _ in range(settings.depth))
        self.head = nn.Sequential(
            nn.LayerNorm(settings.width),
            Linear(settings.width, settings.width),
            nn.GELU(),
            nn.Linear(settings.width, 1),
        )

    def forward(self, atoms: Float[Tensor, "batch atoms width"], *pairs: Sequence[Tensor]) -> ModelOutput:
        """Run the blocks. Each of `pairs` holds, per block, what the block reads beside the tokens: first its bias.

        Biases are over graph token and atoms, and hide padded keys.
        """
        tokens = torch.cat([self.graph_token.expand(len(atoms), 1, -1), atoms], 1)
        graph_states, atom_states = [], []
        for block, *own in zip(self.blocks, *pairs, strict=True):
            tokens = block(tokens, *own)
            graph_states.append(tokens[:, 0])
            atom_states.append(tokens[:, 1:])
        prediction = self.head(tokens[:, 0])[:, 0].float()
        return ModelOutput(prediction, tuple(graph_states), tuple(atom_states))

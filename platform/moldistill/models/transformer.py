"""The dense transformer body that teacher and student share: a graph token and atom tokens with attention biases."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from moldistill.core.records import ModelOutput
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Bool, Float


def attend(
    query: Float[Tensor, "batch heads tokens head_width"],
    key: Float[Tensor, "batch heads tokens head_width"],
    value: Float[Tensor, "batch heads tokens head_width"],
    bias: Float[Tensor, "batch heads tokens tokens"],
) -> Float[Tensor, "batch heads tokens head_width"]:
    """softmax(q kᵀ / √d + bias) v.

    On CPUs the plain formula is faster than PyTorch's fused one with an additive bias; on GPUs it is the other way.
    """
    if query.is_cuda:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
    return torch.softmax(logits, -1).to(value.dtype) @ value


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden = settings.width, int(settings.width * settings.feedforward)
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], bias: Float[Tensor, "batch heads tokens tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens after this layer."""
        batch, count, width = tokens.shape
        projected = self.projections(self.attention_norm(tokens))
        query, key, value = projected.view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, bias).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.dropout(self.merge(mixed))
        return tokens + cast(Tensor, self.dropout(self.feedforward(tokens)))


class Transformer(nn.Module):
    """`depth` blocks over a learned graph token and the atoms, and a head on the graph token."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.graph_token = nn.Parameter(torch.zeros(settings.width))
        nn.init.normal_(self.graph_token, std=0.02)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.head = nn.Sequential(
            nn.LayerNorm(settings.width),
            nn.Linear(settings.width, settings.width),
            nn.GELU(),
            nn.Linear(settings.width, 1),
        )

    def forward(
        self,
        atoms: Float[Tensor, "batch atoms width"],
        real: Bool[Tensor, "batch atoms"],
        biases: list[Float[Tensor, "batch tokens tokens heads"]],
    ) -> ModelOutput:
        """Run the blocks; `biases` holds one per block, over graph token and atoms."""
        batch = len(atoms)
        tokens = torch.cat([self.graph_token.expand(batch, 1, -1), atoms], 1)
        # Padding is no key for anyone; the graph token always is one, so no row of the softmax is empty.
        hidden = torch.cat([torch.zeros_like(real[:, :1]), ~real], 1)[:, None, None]
        graph_states, atom_states = [], []
        for block, bias in zip(self.blocks, biases, strict=True):
            tokens = block(tokens, bias.permute(0, 3, 1, 2).masked_fill(hidden, float("-inf")))
            graph_states.append(tokens[:, 0])
            atom_states.append(tokens[:, 1:])
        prediction = self.head(tokens[:, 0])[:, 0].float()
        return ModelOutput(prediction, tuple(graph_states), tuple(atom_states))

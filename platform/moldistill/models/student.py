"""The 2D student: everything it reads comes from SMILES."""

from __future__ import annotations

from torch import nn

from moldistill.core.records import ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.models.biases import GraphBiases
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.registry import register
from moldistill.models.transformer import Transformer


@register("student", "transformer")
class TransformerStudent(nn.Module):
    """Dense transformer over the molecular graph, with biases from shortest paths and bonds in every layer."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        self.biases = GraphBiases(settings.depth, settings.heads, settings.max_path)
        self.body = Transformer(settings)

    def forward(self, molecules: Molecules) -> ModelOutput:
        """Prediction and states of each layer."""
        output: ModelOutput = self.body(self.embedding(molecules), self.biases(molecules).unbind(0))
        return output

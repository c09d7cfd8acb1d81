"""The 3D teacher: the student's body, and the distances between atoms."""

from __future__ import annotations

from torch import Tensor, nn

from moldistill.core.records import ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float
from moldistill.models.biases import DistanceFeatures, GraphBias
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.registry import register
from moldistill.models.transformer import Transformer


@register("teacher", "transformer")
class TransformerTeacher(nn.Module):
    """Dense transformer whose atom tokens and attention biases also know the geometry.

    Each atom token gains the sum of its pair features (a 3D centrality), each bias a projection of them. Predictions
    are invariant under rotation, translation and reflection.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(settings.width)
        self.distances = DistanceFeatures(settings.kernels)
        self.surroundings = nn.Linear(settings.kernels, settings.width)
        self.graph_biases = nn.ModuleList(GraphBias(settings.heads, settings.max_path) for _ in range(settings.depth))
        self.distance_biases = nn.ModuleList(
            nn.Linear(settings.kernels, settings.heads, bias=False) for _ in range(settings.depth)
        )
        self.body = Transformer(settings)

    def forward(self, molecules: Molecules, positions: Float[Tensor, "batch atoms 3"]) -> ModelOutput:
        """Prediction and states of each layer, from positions in Å."""
        pairs = self.distances(molecules, positions)
        atoms = self.embedding(molecules) + self.surroundings(pairs.sum(2))
        biases = []
        for graph, distance in zip(self.graph_biases, self.distance_biases, strict=True):
            # Zero rows and columns for the graph token, which lies nowhere in space.
            biases.append(graph(molecules) + nn.functional.pad(distance(pairs), (0, 0, 1, 0, 1, 0)))
        output: ModelOutput = self.body(atoms, molecules.real, biases)
        return output

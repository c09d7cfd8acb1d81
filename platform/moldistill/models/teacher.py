"""The 3D teacher: the student's body, and the geometry: distances, angles, hydrogens, and the noise on positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moldistill.core.records import Hydrogens, ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float
from moldistill.models.biases import GraphBiases
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import Linear, linear
from moldistill.models.geometry import AngleFeatures, Displacements, DistanceFeatures, NoiseHead, both
from moldistill.models.hydrogens import with_hydrogens
from moldistill.models.registry import register
from moldistill.models.transformer import Transformer


@register("teacher", "transformer")
class TransformerTeacher(nn.Module):
    """Dense transformer whose atom tokens and attention biases also know the geometry.

    Each atom token gains the sum of its pair features (a 3D centrality), each bias a projection of them. Predictions
    are invariant under rotation, translation and reflection; the noise turns with the molecule. With
    `settings.hydrogens`, hydrogens are further tokens, whose states stay inside; heavy atoms start as in 2D.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.hydrogens = settings.hydrogens
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        self.hydrogen = nn.Parameter(torch.randn(settings.width)) if settings.hydrogens else None
        self.distances = DistanceFeatures(settings.kernels)
        self.angles = AngleFeatures(settings.kernels) if settings.angles else None
        self.surroundings = nn.Linear(settings.kernels, settings.width)
        self.graph_biases = GraphBiases(settings.depth, settings.heads, settings.max_path)
        self.distance_biases = Linear(settings.kernels, settings.depth * settings.heads, bias=False)
        self.body = Transformer(settings)
        self.noise = NoiseHead(settings.width, settings.heads, settings.kernels) if settings.denoising > 0 else None

    def forward(
        self,
        molecules: Molecules,
        positions: Float[Tensor, "batch atoms 3"],
        hydrogens: Hydrogens | None = None,
    ) -> ModelOutput:
        """Prediction and states of each layer, from positions in Å; padding may hold anything, NaN as well."""
        own, heavy = molecules.real, positions.shape[1]
        tokens = self.embedding(molecules)
        if self.hydrogen is not None and hydrogens is not None:
            known = with_hydrogens(molecules, positions, hydrogens)
            molecules, positions = known.molecules, known.positions
            tokens = nn.functional.pad(tokens, (0, 0, 0, positions.shape[1] - heavy))
            tokens = torch.where(known.hydrogen[..., None], self.hydrogen, tokens)
        real = molecules.real
        apart = Displacements.between(torch.where(real[..., None], positions, 0.0))
        pairs = self.pair_features(molecules, apart)
        tokens = tokens + self.surroundings(pairs.sum(2))
        graph = self.graph_biases(molecules)
        distance = linear(self.distance_biases.weight, pairs.flatten(0, 2)).view(*graph.shape[:2], *pairs.shape[:3])
        # Zero rows and columns for the graph token, which lies nowhere in space.
        biases = graph + nn.functional.pad(distance, (1, 0, 1, 0))
        output: ModelOutput = self.body(tokens, biases.unbind(0))
        noise = None if self.noise is None else self.noise(output.atom_states[-1], real, pairs, apart)[:, :heavy]
        if noise is not None:  # hydrogens stand where smaller molecules are padded
            noise = torch.where(own[..., None], noise, 0.0)
        return replace(output, atom_states=tuple(state[:, :heavy] for state in output.atom_states), noise=noise)

    def pair_features(self, molecules: Molecules, apart: Displacements) -> Float[Tensor, "batch atoms atoms kernels"]:
        """Of distances, and of angles where the model was built with them; zero where either is padding."""
        real, elements = molecules.real, molecules.atom_features[:, :, 0].long()
        pairs: Tensor = self.distances(elements, real, apart.distance)
        if self.angles is None:
            return pairs
        angles = self.angles(pairs, apart.direction, molecules.bonded)
        return torch.where(both(real)[..., None], pairs + angles, 0.0)

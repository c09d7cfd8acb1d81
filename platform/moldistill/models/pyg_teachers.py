"""3D teachers on layers of PyTorch Geometric: SchNet and ViSNet.

Both see geometry as distances and, ViSNet, as vectors whose products are taken. Predictions and states are therefore
invariant under rotation, translation and reflection, and the noise turns with the molecule. Mirror images differ only
in their 2D features. Of the settings, `max_path` and `angles` are not read: ViSNet's layers know angles by themselves,
SchNet's none.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import GaussianSmearing, InteractionBlock
from torch_geometric.nn.models.visnet import (
    CosineCutoff,
    EdgeEmbedding,
    ExpNormalSmearing,
    GatedEquivariantBlock,
    NeighborEmbedding,
    ViS_MP,
)
from torch_geometric.utils import scatter

from moldistill.core.errors import InputError
from moldistill.core.records import Hydrogens, ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float, Int
from moldistill.core.vocabulary import ATOM_SIZES
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import quickened
from moldistill.models.pyg_graphs import FlatAtoms, GraphToken, Pairs, Predictor, without_padding
from moldistill.models.registry import register

CUTOFF = 10.0
"""Å; PyG's own for SchNet. Of the pairs of atoms in the embedded sample 99.8 % are closer, 99.5 % with hydrogens."""

HYDROGEN = 0
"""Index of hydrogen among OGB's atomic numbers, which begin at 1."""

ELEMENTS = ATOM_SIZES[0]


class _Teacher(nn.Module):
    """What both share: atoms in, one graph token that reads them after each layer, and the head.

    Heavy atoms start as our 2D embedding, so that charges and bonds are known, hydrogens as a learned vector.
    """

    self_pairs = False
    """Whether the layers also pass an atom its own message."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        if settings.angles:
            raise InputError(
                f"model.angles: {settings.name} does not read it",
                expected="angles: false",
                remedy="remove the key: visnet knows angles by itself, and so can model.name=transformer",
            )
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        self.hydrogens = settings.hydrogens
        self.hydrogen = nn.Parameter(torch.randn(settings.width)) if settings.hydrogens else None
        self.graph_tokens = nn.ModuleList(GraphToken(settings) for _ in range(settings.depth))
        self.predictor = Predictor(settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def encode(
        self, nodes: Float[Tensor, "nodes width"], elements: Int[Tensor, "nodes"], pairs: Pairs
    ) -> tuple[list[Float[Tensor, "nodes width"]], Float[Tensor, "nodes 3"] | None]:
        """States of all atoms after each layer, and the noise on them if the model denoises."""
        raise NotImplementedError

    def forward(
        self,
        molecules: Molecules,
        positions: Float[Tensor, "batch atoms 3"],
        hydrogens: Hydrogens | None = None,
    ) -> ModelOutput:
        """Prediction and states of each layer, from positions in Å.

        Hydrogens are read by a model that was built with them: they are further atoms, whose states stay inside.
        """
        molecules = without_padding(molecules)
        states, real, elements = self.embedding(molecules), molecules.real, molecules.atom_features[:, :, 0].long()
        heavy = real.shape[1]
        if self.hydrogen is not None and hydrogens is not None:
            more = hydrogens.real
            states = torch.cat([states, self.hydrogen.expand(*more.shape, -1)], 1)
            real, positions = torch.cat([real, more], 1), torch.cat([positions, hydrogens.positions], 1)
            elements = nn.functional.pad(elements, (0, more.shape[1]), value=HYDROGEN)
        atoms = FlatAtoms.of(real)
        pairs = Pairs.of(atoms, atoms.flat(positions), CUTOFF, self.self_pairs)
        layers, noise = self.encode(atoms.flat(states), elements.flatten()[atoms.place], pairs)
        token, graph_states = self.predictor.tokens(atoms.molecules), []
        for layer, read in zip(layers, self.graph_tokens, strict=True):
            token = read(token, layer, atoms)
            graph_states.append(token)
        shift = None if noise is None else atoms.padded(noise.to(positions.dtype))[:, :heavy]
        return cast(ModelOutput, self.predictor(graph_states, [atoms.padded(x)[:, :heavy] for x in layers], shift))


class PairNoise(nn.Module):
    """Noise as a sum over pairs, Σ_j c(d_ij) φ(h_i, h_j, d_ij) (x_i - x_j) / (d_ij + 1), after EGNN (arXiv 2102.09844).

    c is a cosine that falls to 0 at the cutoff, so that no atom that crosses it changes the sum at once.
    """

    def __init__(self, width: int, kernels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.target = nn.Linear(width, width)
        self.source = nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(kernels, width, bias=False)
        last = nn.Linear(width, 1)
        nn.init.normal_(last.weight, std=0.01)  # a fraction of an Å at first, as noise is
        nn.init.zeros_(last.bias)
        self.weight = nn.Sequential(nn.SiLU(), last)
        self.cutoff = CosineCutoff(CUTOFF)

    def forward(
        self, nodes: Float[Tensor, "nodes width"], kernels: Float[Tensor, "edges kernels"], pairs: Pairs
    ) -> Float[Tensor, "nodes 3"]:
        """A vector per atom that turns with the molecule."""
        normed = self.norm(nodes)
        source, target = pairs.edges
        hidden = self.target(normed)[target] + self.source(normed)[source] + self.distance(kernels)
        length = self.cutoff(pairs.distance) * pairs.distance / (pairs.distance + 1)
        shifts = self.weight(hidden) * length[:, None] * -pairs.direction
        return cast(Tensor, scatter(shifts, target, dim_size=len(nodes), reduce="sum"))


def _interaction(width: int, kernels: int) -> nn.Module:
    """A block of SchNet with each weight under one name: safetensors stores no tensor twice."""
    block = InteractionBlock(width, kernels, width, CUTOFF)
    del block.mlp  # also block.conv.nn, by which name alone it is called
    return quickened(block)


@register("teacher", "schnet")
class SchnetTeacher(_Teacher):
    """PyG's SchNet (arXiv 1706.08566): filters over distances, generated from `kernels` Gaussians.

    Layer norms before the interactions, which SchNet lacks, hold its sums over all neighbours in bounds at any depth.
    `feedforward` and `heads` are those of the graph token.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        width, kernels = settings.width, settings.kernels
        self.smearing = GaussianSmearing(0.0, CUTOFF, kernels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(settings.depth))
        self.interactions = nn.ModuleList(_interaction(width, kernels) for _ in range(settings.depth))
        self.denoiser = PairNoise(width, kernels) if settings.denoising > 0 else None

    def encode(
        self, nodes: Float[Tensor, "nodes width"], elements: Int[Tensor, "nodes"], pairs: Pairs
    ) -> tuple[list[Float[Tensor, "nodes width"]], Float[Tensor, "nodes 3"] | None]:
        """States after each interaction; elements are known from the embedding."""
        kernels = self.smearing(pairs.distance)
        states = []
        for norm, interaction in zip(self.norms, self.interactions, strict=True):
            nodes = nodes + self.dropout(interaction(norm(nodes), pairs.edges, pairs.distance, kernels))
            states.append(nodes)
        return states, None if self.denoiser is None else self.denoiser(nodes, kernels, pairs)


class VectorLengths(nn.Module):
    """What the vectors of an atom add to its scalars: lengths of mixtures of them, which do not turn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, vectors: Float[Tensor, "nodes 3 width"]) -> Float[Tensor, "nodes width"]:
        """Scalars of each atom."""
        # Off zero, where the root has no derivative: atoms without neighbours have no vectors.
        return cast(Tensor, self.out((self.mix(vectors).square().sum(1) + 1e-8).sqrt()))


@register("teacher", "visnet")
class VisnetTeacher(_Teacher):
    """PyG's ViSNet (arXiv 2210.16518): scalars and vectors of atoms, which pass each other angles and dihedrals.

    Vectors are of degree 1 (`lmax` 1 of PyG), proper vectors whose components are those of space, so that all holds
    under reflection as well; degree 2 would take 8 components in place of 3. `kernels` are exponential-normal,
    `heads` those of the layers and of the graph token, `feedforward` that of the graph token.
    """

    self_pairs = True

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        width, kernels, depth = settings.width, settings.kernels, settings.depth
        self.smearing = ExpNormalSmearing(CUTOFF, kernels, trainable=False)
        self.neighbours = NeighborEmbedding(width, kernels, CUTOFF, max_z=ELEMENTS)
        self.pair_embedding = EdgeEmbedding(kernels, width)
        # The last layer has no use for new edge features, and PyG's has no parameters for them.
        self.layers = nn.ModuleList(
            ViS_MP(settings.heads, width, CUTOFF, None, False, last_layer=index == depth - 1) for index in range(depth)
        )
        self.lengths = VectorLengths(width)
        self.denoiser = GatedEquivariantBlock(width, 1) if settings.denoising > 0 else None

    def encode(
        self, nodes: Float[Tensor, "nodes width"], elements: Int[Tensor, "nodes"], pairs: Pairs
    ) -> tuple[list[Float[Tensor, "nodes width"]], Float[Tensor, "nodes 3"] | None]:
        """States after each layer; the last also knows the vectors of its layer."""
        kernels = self.smearing(pairs.distance)
        # Back from the 16 bits that autocast leaves: this is the residual stream that the layers add to.
        nodes = self.neighbours(elements, nodes, pairs.edges, pairs.distance, kernels).to(nodes.dtype)
        edges = self.pair_embedding(pairs.edges, kernels, nodes)
        vectors = nodes.new_zeros(len(nodes), 3, nodes.shape[1])
        states = []
        for layer in self.layers:
            more, turned, between = layer(nodes, vectors, pairs.edges, pairs.distance, edges, pairs.direction)
            nodes, vectors = nodes + self.dropout(more), vectors + turned
            edges = edges if between is None else edges + between
            states.append(nodes)
        states[-1] = states[-1] + self.dropout(self.lengths(vectors))
        return states, None if self.denoiser is None else self.denoiser(states[-1], vectors)[1][:, :, 0]

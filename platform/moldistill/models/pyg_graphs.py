"""Between our padded molecules and the flat graphs of PyTorch Geometric, and what its models share here.

PyG's layers see one graph of many parts: nodes [nodes, width] of all molecules behind each other, edges as pairs of
nodes, and the molecule of each node. Nothing here reads a padded place: not its features, its bonds or its position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter, softmax

from moldistill.core.records import ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Bool, Float, Int, UInt8
from moldistill.models.fused import Linear

COINCIDENT = 1e-4
"""Å; atoms that are closer have no direction between them, and the distance 0."""


@dataclass(frozen=True, slots=True)
class FlatAtoms:
    """Where the real places of a padded batch lie among the nodes, molecule after molecule.

    real:     which places exist.
    place:    of each node, its index among all places of the batch.
    molecule: of each node; ascends, as PyG's dense batches demand.
    """

    real: Bool[Tensor, "batch places"]
    place: Int[Tensor, "nodes"]
    molecule: Int[Tensor, "nodes"]

    @classmethod
    def of(cls, real: Bool[Tensor, "batch places"]) -> FlatAtoms:
        """All real places of a batch; they need not lie at the front."""
        place = real.flatten().nonzero()[:, 0]
        return cls(real, place, place // max(real.shape[1], 1))

    @property
    def molecules(self) -> int:
        """Number of molecules in the batch."""
        return len(self.real)

    def flat(self, dense: Float[Tensor, "batch places width"]) -> Float[Tensor, "nodes width"]:
        """The rows of the real places."""
        return dense.flatten(0, 1).index_select(0, self.place)

    def padded(self, nodes: Float[Tensor, "nodes width"]) -> Float[Tensor, "batch places width"]:
        """The nodes at their places, zero elsewhere."""
        batch, places = self.real.shape
        dense = nodes.new_zeros(batch * places, nodes.shape[1])
        return dense.index_copy(0, self.place, nodes).view(batch, places, nodes.shape[1])

    def edges(self, pairs: Bool[Tensor, "batch places places"]) -> Int[Tensor, "2 edges"]:
        """Source and target node of each pair that is marked and real."""
        joined = pairs & self.real[:, :, None] & self.real[:, None]
        molecule, source, target = joined.nonzero().unbind(1)
        node = self.real.flatten().cumsum(0).view_as(self.real) - 1
        return torch.stack([node[molecule, source], node[molecule, target]])

    def edge_values(
        self, dense: UInt8[Tensor, "batch places places"], edges: Int[Tensor, "2 edges"]
    ) -> Int[Tensor, "edges"]:
        """Of a table over pairs, the entries that belong to edges."""
        source, target = self.place[edges]
        return dense.flatten(0, 1)[source, target % self.real.shape[1]].long()


@dataclass(frozen=True, slots=True)
class Bonds:
    """Both directions of every bond, with their codes (`vocabulary.bond_code`)."""

    edges: Int[Tensor, "2 edges"]
    codes: Int[Tensor, "edges"]

    @classmethod
    def of(cls, atoms: FlatAtoms, bond_codes: UInt8[Tensor, "batch places places"]) -> Bonds:
        """The bonds between real places."""
        edges = atoms.edges(bond_codes > 0)
        return cls(edges, atoms.edge_values(bond_codes, edges))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Atoms of one molecule within a cutoff, in both directions; an edge runs from source j to target i.

    distance:  Å; 0 where the atoms coincide.
    direction: (x_j - x_i) / distance; 0 where the atoms coincide, which also keeps the gradients finite.
    """

    edges: Int[Tensor, "2 edges"]
    distance: Float[Tensor, "edges"]
    direction: Float[Tensor, "edges 3"]

    @classmethod
    def of(cls, atoms: FlatAtoms, positions: Float[Tensor, "nodes 3"], cutoff: float, loops: bool) -> Pairs:
        """All pairs that are closer than `cutoff`, and each atom with itself where `loops` is true.

        In place of PyG's `radius_graph`, which needs a compiled extension and takes the nearest neighbours only.
        """
        edges = atoms.edges(atoms.real[:, :, None] & atoms.real[:, None])
        where = positions.detach()
        kept = (where[edges[0]] - where[edges[1]]).square().sum(1) < cutoff**2
        edges = edges[:, kept if loops else kept & (edges[0] != edges[1])]
        difference = positions[edges[0]] - positions[edges[1]]
        squared = difference.square().sum(1)
        apart = squared > COINCIDENT**2
        # The inner choice keeps the derivative of the root finite, the outer one sets the value.
        distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
        direction = torch.where(apart[:, None], difference / torch.where(apart, distance, 1.0)[:, None], 0.0)
        return cls(edges, distance, direction)


class GraphToken(nn.Module):
    """One layer of a graph token that reads the atoms: g ← g + W₂ GELU(W₁ [LN(g), pool(LN(h))]).

    The virtual node of OGB's baselines (arXiv 2005.00687, after 1704.01212) with a softmax over the atoms of a molecule
    (1511.05493) in place of the sum, once per head: its size does not grow with the molecule, as the gap does not, and
    a head may look for one orbital. Every token has read the atoms of its own layer.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden = settings.width, int(settings.width * settings.feedforward)
        self.token_norm = nn.LayerNorm(width)
        self.atom_norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, settings.heads)
        self.update = nn.Sequential(Linear(2 * width, hidden), nn.GELU(), Linear(hidden, width))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self, token: Float[Tensor, "batch width"], nodes: Float[Tensor, "nodes width"], atoms: FlatAtoms
    ) -> Float[Tensor, "batch width"]:
        """The tokens after this layer."""
        normed = self.atom_norm(nodes)
        # In the precision of the residual stream: sums over many atoms lose too much in 16 bits.
        scores = self.score(normed).to(normed.dtype)
        weights = softmax(scores, atoms.molecule, num_nodes=atoms.molecules)
        count, heads = weights.shape
        parts = weights[:, :, None] * normed.view(count, heads, normed.shape[1] // heads)
        pooled = scatter(parts.flatten(1), atoms.molecule, dim_size=atoms.molecules, reduce="sum")
        return token + cast(Tensor, self.dropout(self.update(torch.cat([self.token_norm(token), pooled], 1))))


class Predictor(nn.Module):
    """The first graph token, and the head on the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.token, std=0.02)
        self.head = nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def tokens(self, batch: int) -> Float[Tensor, "batch width"]:
        """One token per molecule, before any layer."""
        return self.token.expand(batch, -1)

    def forward(
        self,
        graph_states: list[Float[Tensor, "batch width"]],
        atom_states: list[Float[Tensor, "batch atoms width"]],
        noise: Float[Tensor, "batch atoms 3"] | None = None,
    ) -> ModelOutput:
        """The output of a model whose layers left these states."""
        prediction = self.head(graph_states[-1])[:, 0].float()
        return ModelOutput(prediction, tuple(graph_states), tuple(atom_states), noise)


def without_padding(molecules: Molecules) -> Molecules:
    """The same with zeros for the features and bonds of padded places, whatever stood there."""
    real = molecules.real
    pairs = real[:, :, None] & real[:, None]
    return replace(
        molecules,
        atom_features=molecules.atom_features.masked_fill(~real[:, :, None], 0),
        bond_codes=molecules.bond_codes.masked_fill(~pairs, 0),
    )

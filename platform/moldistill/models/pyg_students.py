"""2D students on layers of PyTorch Geometric: GINE with a virtual node, and GPS."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import GINEConv, GPSConv

from moldistill.core.records import ModelOutput, Molecules
from moldistill.core.settings import ModelSettings
from moldistill.core.shapes import Float
from moldistill.core.vocabulary import BOND_CODES
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import Linear
from moldistill.models.pyg_graphs import Bonds, FlatAtoms, GraphToken, Predictor, without_padding
from moldistill.models.registry import register


class BondEmbedding(nn.Module):
    """A learned vector per bond code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(BOND_CODES, width)
        nn.init.normal_(self.codes.weight, std=0.1)

    def forward(self, bonds: Bonds) -> Float[Tensor, "edges width"]:
        """Features of the edges."""
        return cast(Tensor, self.codes(bonds.codes))


def _gine(settings: ModelSettings) -> GINEConv:
    """x_i ← MLP((1 + ε) x_i + Σ_j ReLU(x_j + e_ij)), after arXiv 1905.12265."""
    width, hidden = settings.width, int(settings.width * settings.feedforward)
    return GINEConv(nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width)), train_eps=True)


class GineLayer(nn.Module):
    """Atoms hear their graph token and their neighbours; then the token hears the atoms."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.width)
        self.bonds = BondEmbedding(settings.width)
        self.convolution = _gine(settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.graph_token = GraphToken(settings)

    def forward(
        self, nodes: Float[Tensor, "nodes width"], token: Float[Tensor, "batch width"], atoms: FlatAtoms, bonds: Bonds
    ) -> tuple[Float[Tensor, "nodes width"], Float[Tensor, "batch width"]]:
        """Nodes and tokens after this layer."""
        heard = self.norm(nodes + token.index_select(0, atoms.molecule))
        nodes = nodes + self.dropout(self.convolution(heard, bonds.edges, self.bonds(bonds)))
        return nodes, self.graph_token(token, nodes, atoms)


@register("student", "gine")
class GineStudent(nn.Module):
    """PyG's GINEConv with residuals and a virtual node, after OGB's baseline for PCQM4Mv2 (arXiv 2103.09430).

    Two things differ from the baseline. Layer norms before each step stand in for batch norms behind it: these mix the
    molecules of a batch, and make the result depend on the number of workers. The virtual node is updated in the last
    layer, too, so that it is the graph token whose state after each layer is distilled, and the prediction is read
    from it. `heads` are those of the virtual node.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        self.layers = nn.ModuleList(GineLayer(settings) for _ in range(settings.depth))
        self.predictor = Predictor(settings.width)

    def forward(self, molecules: Molecules) -> ModelOutput:
        """Prediction and states of each layer."""
        molecules = without_padding(molecules)
        atoms = FlatAtoms.of(molecules.real)
        bonds = Bonds.of(atoms, molecules.bond_codes)
        nodes, token = atoms.flat(self.embedding(molecules)), self.predictor.tokens(atoms.molecules)
        graph_states, atom_states = [], []
        for layer in self.layers:
            nodes, token = layer(nodes, token, atoms, bonds)
            graph_states.append(token)
            atom_states.append(atoms.padded(nodes))
        return cast(ModelOutput, self.predictor(graph_states, atom_states))


def _gps(settings: ModelSettings) -> GPSConv:
    """A layer whose norms take each node by itself: PyG's default, batch norm, mixes the molecules of a batch."""
    width, hidden, dropout = settings.width, int(settings.width * settings.feedforward), settings.dropout
    layer = GPSConv(
        width, _gine(settings), heads=settings.heads, dropout=dropout, norm="layer_norm", norm_kwargs={"mode": "node"}
    )
    # GPSConv's own is always twice as wide as the layer, and takes no other size.
    layer.mlp = nn.Sequential(
        Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), Linear(hidden, width), nn.Dropout(dropout)
    )
    return layer


@register("student", "gps")
class GpsStudent(nn.Module):
    """PyG's GPSConv (arXiv 2205.12454): GINEConv along the bonds beside attention over the molecule.

    The graph token is one more node of each molecule, without bonds, that takes part in the attention. So it stands to
    the atoms as the token of our transformers does: atoms hear it, it hears them with the weights of the layer's own
    heads, and after l layers both have seen what l layers show. Its states then mean, layer by layer, what those
    of a transformer teacher mean; a readout beside the layers would add a map that distillation trains and the
    atoms never hear. In return, what the last layer passes along bonds reaches the atom states only.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.embedding = AtomEmbedding(settings.width, walks=settings.walks)
        # One for all layers: the graph token hears no bonds, so one of the last layer's own would learn from no label.
        self.bonds = BondEmbedding(settings.width)
        self.layers = nn.ModuleList(_gps(settings) for _ in range(settings.depth))
        self.predictor = Predictor(settings.width)

    def forward(self, molecules: Molecules) -> ModelOutput:
        """Prediction and states of each layer."""
        molecules = without_padding(molecules)
        batch = len(molecules.size)
        # Place 0 of each molecule is its graph token, which is always real.
        nodes = FlatAtoms.of(nn.functional.pad(molecules.real, (1, 0), value=True))
        bonds = Bonds.of(nodes, nn.functional.pad(molecules.bond_codes, (1, 0, 1, 0)))
        states = nodes.flat(torch.cat([self.predictor.tokens(batch)[:, None], self.embedding(molecules)], 1))
        edges = self.bonds(bonds)
        graph_states, atom_states = [], []
        for layer in self.layers:
            if batch:  # PyG's dense batches have no form for none, which a worker may be given
                states = layer(states, bonds.edges, nodes.molecule, edge_attr=edges)
            dense = nodes.padded(states)
            graph_states.append(dense[:, 0])
            atom_states.append(dense[:, 1:])
        return cast(ModelOutput, self.predictor(graph_states, atom_states))

"""Our transformer students in PyTorch's own operators alone, for files that are read without this package.

The models multiply, attend and look up in ways that are fast here (`models.fused`, `models.attention`), and that no
graph of operators can hold. `PlainStudent` has their weights and computes the same by look-ups, products and a softmax.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from moldistill.core.errors import InputError
from moldistill.core.records import Molecules, TargetScale
from moldistill.core.vocabulary import BOND_CODES, UNREACHABLE
from moldistill.models.embeddings import AtomEmbedding
from moldistill.models.fused import Linear
from moldistill.models.hybrid import HybridStudent
from moldistill.models.student import TransformerStudent
from moldistill.models.walks import return_probabilities

__all__ = ["INPUTS", "OUTPUT", "PlainStudent", "inputs_of"]

INPUTS = ("size", "atom_features", "shortest_paths", "bond_codes")
"""Integers of 64 bits: [batch], [batch, atoms, 9], [batch, atoms, atoms] twice; see `core.records.Molecules`."""

OUTPUT = "prediction"
"""eV, [batch]."""


def inputs_of(molecules: Molecules) -> tuple[Tensor, ...]:
    """What `PlainStudent` is called with."""
    return tuple(getattr(molecules, name).long() for name in INPUTS)


def _own_linear(module: nn.Module) -> nn.Module:
    """The module with each of our products replaced by PyTorch's."""
    for name, child in list(module.named_children()):
        if isinstance(child, Linear):
            plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
            plain.weight, plain.bias = child.weight, child.bias
            setattr(module, name, plain)
        else:
            _own_linear(child)
    return module


class PlainAtoms(nn.Module):
    """Atom tokens by look-ups."""

    def __init__(self, embedding: AtomEmbedding) -> None:
        super().__init__()
        self.register_buffer("features", embedding.features.weight.detach().clone())
        bonds = embedding.bonds.detach().clone()
        bonds[0] = 0.0  # no bond adds nothing
        self.register_buffer("bonds", bonds)
        self.register_buffer("offsets", embedding.offsets.clone())
        self.features: Tensor
        self.bonds: Tensor
        self.offsets: Tensor
        self.steps = 0 if embedding.walks is None else embedding.walks.steps
        self.walks = None if embedding.walks is None else nn.Parameter(embedding.walks.weight.detach().clone())

    def forward(self, molecules: Molecules) -> Tensor:
        """Tokens [batch, atoms, width]."""
        real = molecules.real[..., None]
        places = molecules.atom_features * real + self.offsets
        codes = molecules.bond_codes * real * molecules.real[:, None]
        tokens = self.features[places].sum(2) + self.bonds[codes].sum(2)
        if self.walks is None:
            return tokens
        return tokens + return_probabilities(molecules, self.steps, self.walks.dtype) @ self.walks


class PlainStudent(nn.Module):
    """A trained `transformer` or `hybrid` student, and its scale. InputError for any other model."""

    def __init__(self, model: nn.Module, scale: TargetScale) -> None:
        super().__init__()
        if not isinstance(model, TransformerStudent | HybridStudent):
            raise InputError(
                "this student has no form in plain operators",
                got=type(model).__name__,
                expected="the students `transformer` or `hybrid`: others walk along lists of bonds",
                remedy="export it without --format; `predict` reads that",
            )
        model = copy.deepcopy(model).eval()
        self.atoms = PlainAtoms(model.embedding)
        self.depth, self.heads, self.max_path = model.biases.depth, model.biases.heads, model.biases.max_path
        tables = [model.biases.table(), *([model.gates.table()] if isinstance(model, HybridStudent) else [])]
        self.register_buffer("table", torch.cat(tables).detach().clone())
        self.table: Tensor
        body: Any = _own_linear(model.body)
        self.body = body
        self.gated = isinstance(model, HybridStudent)
        self.mean, self.std = scale.mean, scale.std

    def forward(self, size: Tensor, atom_features: Tensor, shortest_paths: Tensor, bond_codes: Tensor) -> Tensor:
        """Predictions in eV, [batch]."""
        molecules = Molecules(size, size, atom_features, shortest_paths, bond_codes)
        found: Any = self.table[:, self.codes(molecules)]
        pairs = found.unflatten(0, (-1, self.depth, self.heads))
        atoms, body = self.atoms(molecules), cast(Any, self.body)
        tokens = torch.cat([torch.zeros_like(atoms[:, :1]) + body.graph_token, atoms], 1)
        for layer, block in enumerate(body.blocks):
            norm = block.norm if self.gated else block.attention_norm
            projected = block.projections(norm(tokens)).unflatten(2, (4 if self.gated else 3, self.heads, -1))
            tokens = tokens + block.merge(_mixed(projected.permute(2, 3, 0, 1, 4), pairs[:, layer]))
            tokens = tokens + block.feedforward(tokens)
        predicted: Tensor = body.head(tokens[:, 0])[:, 0]
        return predicted * self.std + self.mean

    def codes(self, molecules: Molecules) -> Tensor:
        """`biases.pair_codes` in 64 bits, which more runtimes know."""
        steps, bonds, most = molecules.shortest_paths, molecules.bond_codes, self.max_path
        apart = torch.where(steps == UNREACHABLE, most + 1, steps.clamp(max=most))
        pairs = torch.where(bonds > 0, bonds + (most + 1), apart)
        to_token = most + 1 + BOND_CODES
        codes = nn.functional.pad(pairs, (0, 0, 1, 0), value=to_token)
        codes = nn.functional.pad(codes, (1, 0), value=to_token + 1)
        first = torch.arange(codes.shape[1], device=codes.device) == 0
        codes = torch.where(first[:, None] & first, to_token + 2, codes)
        hidden = (torch.arange(codes.shape[1], device=codes.device) > molecules.size[:, None])[:, None]
        return torch.where(hidden, to_token + 3, codes)


def _mixed(parts: Tensor, pairs: Tensor) -> Tensor:
    """`attention.mix` of parts [3 or 4, heads, batch, tokens, width], pairs [1 or 2, heads, batch, tokens, tokens]."""
    logits = parts[0] @ parts[1].transpose(-1, -2) * parts.shape[-1] ** -0.5 + pairs[0]
    mixed = [torch.softmax(logits, -1) @ parts[2]]
    if len(pairs) > 1:
        mixed.append(torch.relu(pairs[1] @ parts[3]))
    return torch.stack(mixed).permute(2, 3, 0, 1, 4).flatten(2)

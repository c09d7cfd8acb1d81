"""Hydrogens as atoms: molecules with their hydrogens behind the heavy atoms, for models that see both alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moldistill.core.records import Hydrogens, Molecules
from moldistill.core.shapes import Bool, Float
from moldistill.core.vocabulary import UNREACHABLE, bond_code
from moldistill.models.geometry import both

SINGLE = bond_code(0, 0, 0)
"""The bond of a hydrogen: single, without stereo, not conjugated."""


@dataclass(frozen=True, slots=True)
class Hydrogenated:
    """Molecules whose hydrogens follow on their heavy atoms without a gap, so that padding is at the end as always.

    molecules:  size counts both kinds; the features of a hydrogen are 0, of which the first names its element.
    positions:  Å; 0 where padded.
    hydrogen:   which atoms are hydrogens.
    """

    molecules: Molecules
    positions: Float[Tensor, "batch all 3"]
    hydrogen: Bool[Tensor, "batch all"]


def with_hydrogens(
    molecules: Molecules, positions: Float[Tensor, "batch atoms 3"], hydrogens: Hydrogens
) -> Hydrogenated:
    """The molecules with these hydrogens as atoms: a step further from everything than their parents.

    As long as both axes together, which asks a GPU for no number. Nothing that stands in padding gets in.
    """
    heavy, more = positions.shape[1], hydrogens.parent.shape[1]
    size = molecules.size + hydrogens.count
    slot = torch.arange(heavy + more, device=positions.device)
    hydrogen = (slot >= molecules.size[:, None]) & (slot < size[:, None])
    # Of each slot, its index among heavy places and hydrogens after one another; that of the first atom for padding.
    source = torch.where(hydrogen, heavy + slot - molecules.size[:, None], slot)
    source = torch.where(slot < size[:, None], source, 0)
    places = torch.arange(heavy, device=positions.device).expand(len(source), heavy)
    owner = torch.cat([places, hydrogens.parent.long()], 1).gather(1, source)
    located = torch.cat([positions, hydrogens.positions.to(positions.dtype)], 1).gather(1, _wide(source, 3))
    atom_features = molecules.atom_features.gather(1, _wide(owner, molecules.atom_features.shape[2]))
    real = slot < size[:, None]
    return Hydrogenated(
        replace(
            molecules,
            size=size,
            atom_features=atom_features.masked_fill((hydrogen | ~real)[..., None], 0),
            shortest_paths=_paths(molecules, owner, hydrogen).masked_fill(~both(real), UNREACHABLE),
            bond_codes=_bonds(molecules, owner, hydrogen).masked_fill(~both(real), 0),
        ),
        torch.where(real[..., None], located, 0.0),
        hydrogen,
    )


def _wide(index: Tensor, width: int) -> Tensor:
    return index[..., None].expand(*index.shape, width)


def _of_owners(table: Tensor, owner: Tensor) -> Tensor:
    """table[b, owner[b, i], owner[b, j]]."""
    rows = table.gather(1, _wide(owner, table.shape[2]))
    return rows.gather(2, owner[:, None].expand(-1, owner.shape[1], -1))


def _paths(molecules: Molecules, owner: Tensor, hydrogen: Tensor) -> Tensor:
    """Paths between parents, and a step for each hydrogen; longer ones than a byte holds stay reachable."""
    paths = _of_owners(molecules.shortest_paths, owner)
    steps = paths.int() + hydrogen[:, :, None].int() + hydrogen[:, None].int()
    further = torch.where(paths == UNREACHABLE, UNREACHABLE, steps.clamp(max=UNREACHABLE - 1))
    itself = torch.eye(owner.shape[1], dtype=torch.bool, device=owner.device)
    return torch.where(itself, 0, further).to(torch.uint8)


def _bonds(molecules: Molecules, owner: Tensor, hydrogen: Tensor) -> Tensor:
    """Bonds between heavy atoms, and one from each hydrogen to its parent."""
    codes = _of_owners(molecules.bond_codes, owner)
    either = hydrogen[:, :, None] | hydrogen[:, None]
    one = hydrogen[:, :, None] ^ hydrogen[:, None]
    joined = one & (owner[:, :, None] == owner[:, None])
    return torch.where(either, torch.where(joined, SINGLE, 0), codes).to(torch.uint8)

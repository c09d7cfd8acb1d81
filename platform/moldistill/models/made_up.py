"""Molecules that no chemist drew: random graphs and geometries by which a model's promises are checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from moldistill.core.records import Batch, Hydrogens, Molecules
from moldistill.core.vocabulary import ATOM_SIZES, BOND_CODES, UNREACHABLE

SIZES = (7, 1, 4, 9, 2, 6)
"""Atoms of each molecule; the one of 2 has no bond, the one of 9 two fragments."""

_HYDROGENS = (3, 0, 4, 2, 1, 0)


def made_up_batch(dtype: torch.dtype, sizes: Sequence[int] = SIZES, seed: int = 0) -> Batch:
    """Random molecules of these sizes with positions (Å), targets and up to four hydrogens each."""
    generator = torch.Generator().manual_seed(seed)
    count, atoms = len(sizes), max(sizes, default=1)
    size = torch.tensor(sizes, dtype=torch.int64)
    real = torch.arange(atoms) < size[:, None]
    codes = torch.zeros(count, atoms, atoms, dtype=torch.uint8)
    for place, length in enumerate(sizes):
        codes[place, :length, :length] = _bonds(length, generator)
    features = torch.stack([torch.randint(top, (count, atoms), generator=generator) for top in ATOM_SIZES], 2)
    molecules = Molecules(
        rows=torch.arange(count),
        size=size,
        atom_features=features.to(torch.uint8).masked_fill(~real[..., None], 0),
        shortest_paths=_paths(codes, real),
        bond_codes=codes,
    )
    positions = 1.5 * torch.randn(count, atoms, 3, generator=generator, dtype=dtype)
    return Batch(
        molecules=molecules,
        target=torch.randn(count, generator=generator),
        positions=positions.masked_fill(~real[..., None], 0.0),
        has_positions=torch.ones(count, dtype=torch.bool),
        hydrogens=_hydrogens(positions, size, generator),
    )


def _bonds(size: int, generator: Generator) -> Tensor:
    """A random tree, cut in two where it has 9 atoms and left out where it has 2, with a ring where there is room."""
    codes = torch.zeros(size, size, dtype=torch.uint8)
    joined = [(child, int(torch.randint(child, (1,), generator=generator))) for child in range(1, size)]
    if size == 9:
        joined = [(child, parent) for child, parent in joined if (child < 5) == (parent < 5)]
    if size in (6, 7):
        joined.append((0, size - 1))
    for one, other in joined if size != 2 else []:
        codes[one, other] = codes[other, one] = int(torch.randint(1, BOND_CODES, (1,), generator=generator))
    return codes


def _paths(codes: Tensor, real: Tensor) -> Tensor:
    """Shortest paths by the algorithm of Floyd and Warshall."""
    atoms = codes.shape[1]
    paths = torch.where(codes > 0, 1, UNREACHABLE)
    paths[:, range(atoms), range(atoms)] = 0
    for over in range(atoms):
        paths = torch.minimum(paths, paths[:, :, over, None] + paths[:, None, over])
    pairs = real[:, :, None] & real[:, None]
    return paths.clamp(max=UNREACHABLE).masked_fill(~pairs, UNREACHABLE).to(torch.uint8)


def _hydrogens(positions: Tensor, size: Tensor, generator: Generator) -> Hydrogens:
    """Each about 1 Å from its heavy atom."""
    count = torch.tensor([_HYDROGENS[place % len(_HYDROGENS)] for place in range(len(size))], dtype=torch.int64)
    most = int(count.max()) if len(count) else 0
    real = torch.arange(most) < count[:, None]
    parent = (torch.rand(len(size), most, generator=generator) * size[:, None]).long().masked_fill(~real, 0)
    away = torch.randn(len(size), most, 3, generator=generator, dtype=positions.dtype)
    away = away / away.norm(dim=2, keepdim=True)
    places = positions.gather(1, parent[..., None].expand(-1, -1, 3)) + away
    return Hydrogens(count, parent.to(torch.uint8), places.masked_fill(~real[..., None], 0.0))


def reordered(batch: Batch, order: Tensor) -> Batch:
    """The same molecules, with place `order[b, i]` at place i of molecule b; hydrogens keep their atoms.

    Shape of order: [batch, atoms]; padding must stay at the end.
    """
    old, each = batch.molecules, torch.arange(len(order))[:, None]
    rows, columns = order[:, :, None], order[:, None]
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        parent = order.argsort(1).gather(1, hydrogens.parent.long())
        hydrogens = Hydrogens(hydrogens.count, parent.to(torch.uint8), hydrogens.positions)
    molecules = Molecules(
        old.rows,
        old.size,
        old.atom_features[each, order],
        old.shortest_paths[each[..., None], rows, columns],
        old.bond_codes[each[..., None], rows, columns],
    )
    return Batch(molecules, batch.target, batch.positions[each, order], batch.has_positions, (), hydrogens)


def widened(batch: Batch, extra: int) -> Batch:
    """The same molecules with more places of padding, where features, paths and positions are rubbish: NaN as well."""
    old, grow = batch.molecules, torch.nn.functional.pad
    real = grow(old.real, (0, extra))
    pairs = real[:, :, None] & real[:, None]
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        there = grow(hydrogens.real, (0, extra))
        places = grow(hydrogens.positions, (0, 0, 0, extra)).masked_fill(~there[..., None], float("nan"))
        hydrogens = Hydrogens(hydrogens.count, grow(hydrogens.parent, (0, extra)).masked_fill(~there, 200), places)
    molecules = Molecules(
        old.rows,
        old.size,
        grow(old.atom_features, (0, 0, 0, extra)).masked_fill(~real[..., None], 1),
        grow(old.shortest_paths, (0, extra, 0, extra)).masked_fill(~pairs, 3),
        grow(old.bond_codes, (0, extra, 0, extra)),
    )
    positions = grow(batch.positions, (0, 0, 0, extra)).masked_fill(~real[..., None], float("nan"))
    return Batch(molecules, batch.target, positions, batch.has_positions, (), hydrogens)


def part(batch: Batch, chosen: slice) -> Batch:
    """Some of the molecules, no wider than the largest of them, at least one place."""
    old = batch.molecules
    size = old.size[chosen]
    width = int(size.max()) if len(size) else 1
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        count = hydrogens.count[chosen]
        most = int(count.max()) if len(count) else 0
        hydrogens = Hydrogens(count, hydrogens.parent[chosen, :most], hydrogens.positions[chosen, :most])
    molecules = Molecules(
        old.rows[chosen],
        size,
        old.atom_features[chosen, :width],
        old.shortest_paths[chosen, :width, :width],
        old.bond_codes[chosen, :width, :width],
    )
    positions = batch.positions[chosen, :width]
    return Batch(molecules, batch.target[chosen], positions, batch.has_positions[chosen], (), hydrogens)


def moved(batch: Batch, turn: Tensor, shift: Tensor) -> Batch:
    """The same with every position x at R x + t."""
    hydrogens = batch.hydrogens
    if hydrogens is not None:
        hydrogens = Hydrogens(hydrogens.count, hydrogens.parent, hydrogens.positions @ turn.T + shift)
    positions = batch.positions @ turn.T + shift
    return Batch(batch.molecules, batch.target, positions, batch.has_positions, (), hydrogens)

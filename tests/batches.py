"""Small batches for tests of models and losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moldistill.core.records import Batch, Molecules, TeacherTargets
from moldistill.data.batches import collate
from moldistill.data.store import Store


def training_batch(store: Path, count: int = 12) -> Batch:
    """The first training rows of a store, with positions."""
    opened = Store.open(store)
    rows = opened.rows("train")
    return collate(opened, rows[opened.has_positions[rows]][:count])


def permuted(batch: Batch, order: Tensor) -> Batch:
    """The same molecules with their (padded) atoms in another order; `order` must keep padding at the end."""
    old = batch.molecules
    molecules = Molecules(
        old.rows,
        old.size,
        old.atom_features[:, order],
        old.shortest_paths[:, order][:, :, order],
        old.bond_codes[:, order][:, :, order],
    )
    return replace(batch, molecules=molecules, positions=batch.positions[:, order])


def padded(batch: Batch, extra: int, fill: int = 7) -> Batch:
    """The same molecules with `extra` more places of padding that hold rubbish."""
    old = batch.molecules
    grow = torch.nn.functional.pad
    molecules = Molecules(
        old.rows,
        old.size,
        grow(old.atom_features, (0, 0, 0, extra), value=1),
        grow(old.shortest_paths, (0, extra, 0, extra), value=fill),
        grow(old.bond_codes, (0, extra, 0, extra), value=0),
    )
    return replace(batch, molecules=molecules, positions=grow(batch.positions, (0, 0, 0, extra), value=float(fill)))


def random_targets(batch: Batch, layers: int, width: int, seed: int = 0) -> TeacherTargets:
    """Normally distributed states for every molecule."""
    generator = torch.Generator().manual_seed(seed)
    count, atoms = batch.positions.shape[:2]
    return TeacherTargets(
        known=torch.ones(count, dtype=torch.bool),
        prediction=torch.randn(count, generator=generator),
        graph_states=torch.randn(layers, count, width, generator=generator),
        atom_states=torch.randn(layers, count, atoms, width, generator=generator),
    )


def rotation(seed: int = 0) -> Tensor:
    """A random rotation matrix, determinant 1, in double precision."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return torch.from_numpy(matrix * np.sign(np.linalg.det(matrix)))

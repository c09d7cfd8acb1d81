"""Hydrogens of a group of batches, padded to the most of each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.records import Hydrogens
from moldistill.data.kernels import count_hydrogens, gather_hydrogens
from moldistill.data.store import Store


class FilledHydrogens:
    """The padded arrays of a group, one batch after another in each; `take` cuts them off in this order.

    Batch k holds rows[bounds[k]:bounds[k + 1]]; `known` says which of them have positions. `memory` gives so many bytes
    that nobody else holds, as an array or what can be one.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        bounds: NDArray[np.int64],
        known: NDArray[np.bool_],
        memory: Callable[[int], Any],
    ) -> None:
        positions, parent = store.hydrogen_positions.reshape(-1), store.hydrogen_parent
        self.count, self.most = np.empty(len(rows), np.int64), np.empty(len(bounds) - 1, np.int64)
        offsets = store.hydrogen_offsets
        count_hydrogens(rows, bounds, known, store.atom_offsets, offsets, positions, parent, self.count, self.most)
        slots = int(np.diff(bounds) @ self.most)
        filled = np.asarray(memory(slots * 13))
        self.positions = filled[: slots * 12].view(np.float32)  # first, where it is aligned
        self.parent = filled[slots * 12 : slots * 13]
        gather_hydrogens(rows, bounds, self.count, self.most, offsets, positions, parent, self.positions, self.parent)
        self.batch = self.row = self.slot = 0

    def take(self, rows: int) -> Hydrogens:
        """Those of the next batch, of so many molecules; as wide as the most that one has, which may be 0."""
        width = int(self.most[self.batch])
        begin, end, first, last = self.slot, self.slot + rows * width, self.row, self.row + rows
        self.batch, self.slot, self.row = self.batch + 1, end, last
        return Hydrogens(
            torch.from_numpy(self.count[first:last]),
            torch.from_numpy(self.parent[begin:end].reshape(rows, width)),
            torch.from_numpy(self.positions[begin * 3 : end * 3].reshape(rows, width, 3)),
        )

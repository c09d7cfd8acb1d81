"""Which rows go together: batches of molecules of like size, in an order that is random and repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.errors import InputError
from moldistill.core.seeds import generator
from moldistill.core.shapes import Int
from moldistill.data.kernels import sort_pools

POOL = 100
"""Batches (up to twice as many) that are cut from one size-sorted pool: more pad less, fewer mix better."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Batches of one epoch: batch k holds the places order[starts[k]:stops[k]] of the rows that were planned for."""

    order: Int[np.ndarray, " rows"]
    starts: Int[np.ndarray, " batches"]
    stops: Int[np.ndarray, " batches"]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, batch: int) -> Int[np.ndarray, " molecules"]:
        return self.order[self.starts[batch] : self.stops[batch]]

    def __iter__(self) -> Iterator[Int[np.ndarray, " molecules"]]:
        return (self[batch] for batch in range(len(self)))


def batch_plan(
    sizes: NDArray[np.integer[Any]],
    batch_size: int | None = None,
    *,
    atoms_per_batch: int | None = None,
    seed: int,
    epoch: int,
    shuffle: bool,
) -> BatchPlan:
    """Batches of molecules of like size: indices into `sizes`, each exactly once.

    Either batch_size molecules each (but one batch, which has the rest), or as many as keep the largest molecule times
    their number within atoms_per_batch, and at least one.

    shuffle: batches come in random order, and which molecules of a size go together is random; all of it by seed and
    epoch alone. batch_size cuts pools of rows, which are drawn at random, sorted by size; atoms_per_batch sorts all
    rows, so that the cuts depend on the sizes alone. Otherwise the rows are sorted by size.
    The number of batches is that of `batch_count` in every epoch.
    """
    cuts = _cuts(sizes, batch_size, atoms_per_batch)
    batches = len(cuts) - 1
    order = np.arange(len(sizes), dtype=np.int32)
    if not shuffle:
        sort_pools(order, sizes, cuts[[0, -1]])
        return BatchPlan(order, cuts[:-1], cuts[1:])
    random = generator(seed, "batch_plan", epoch)
    random.shuffle(order)
    pools = 1 if atoms_per_batch is not None else max(batches // POOL, 1)
    sort_pools(order, sizes, cuts[np.linspace(0, batches, pools + 1).astype(np.int64)])
    turn = random.permutation(batches)
    return BatchPlan(order, cuts[turn], cuts[turn + 1])


def batch_count(
    sizes: NDArray[np.integer[Any]], batch_size: int | None = None, *, atoms_per_batch: int | None = None
) -> int:
    """Number of batches of an epoch, whichever epoch it is."""
    return len(_cuts(sizes, batch_size, atoms_per_batch)) - 1


def _cuts(
    sizes: NDArray[np.integer[Any]], batch_size: int | None, atoms_per_batch: int | None
) -> Int[np.ndarray, " batches_and_one"]:
    """Where batches begin and end in the sorted rows."""
    if (batch_size is None) == (atoms_per_batch is None):
        raise InputError(
            "how batches are cut",
            got=f"batch_size {batch_size} and atoms_per_batch {atoms_per_batch}",
            expected="one of the two",
            remedy="leave the other one out",
        )
    if (batch_size or atoms_per_batch or 0) < 1:
        raise InputError("a batch holds nothing", got=batch_size or atoms_per_batch, expected="at least 1")
    if batch_size is not None:
        return np.append(np.arange(0, len(sizes), batch_size), len(sizes))
    assert atoms_per_batch is not None
    return _budget_cuts(np.bincount(sizes), atoms_per_batch)


def _budget_cuts(counts: Int[np.ndarray, " sizes"], budget: int) -> Int[np.ndarray, " batches_and_one"]:
    """Cuts of the sorted rows, each as far behind the last as the budget lets it; counts[n] rows have n atoms."""
    cuts = [np.zeros(1, np.int64)]
    start = end = 0
    for size in np.flatnonzero(counts):
        capacity = max(budget // max(int(size), 1), 1)
        if end - start >= capacity:  # the open batch takes no molecule of this size
            cuts.append(np.array([end]))
            start = end
        end += int(counts[size])
        inside = np.arange(start + capacity, end, capacity)
        if len(inside):
            cuts.append(inside)
            start = int(inside[-1])
    return np.concatenate([*cuts, [end]]) if end else cuts[0]

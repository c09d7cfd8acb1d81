"""Batches: padded tensors of store rows, prepared ahead of their use by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.records import Batch, Molecules
from moldistill.core.shapes import Int
from moldistill.core.vocabulary import ATOM_FEATURES
from moldistill.data.kernels import gather_atoms, gather_pairs, gather_rows, measure, row_sizes
from moldistill.data.plan import batch_plan
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore

GROUP = 16
"""Batches that the thread makes and hands over at once, if they are small: every hand-over waits for Python's lock."""

GROUP_CELLS = 2**20
"""Entries of the pair matrices of a group (two bytes each): larger batches come alone."""

AHEAD = 1
"""Groups that the thread keeps ready, beside the one it is making."""


def collate(store: Store, rows: Int[np.ndarray, " batch"], targets: TargetStore | None = None) -> Batch:
    """Padded tensors of store rows, in their order. The rows must have a graph (`store.usable`).

    The atom axis is as long as the largest molecule, at least 1: a batch of no molecules is valid.
    """
    return next(_collated(store, [rows], targets))


def _collated(store: Store, shards: Sequence[NDArray[np.int64]], targets: TargetStore | None) -> Iterator[Batch]:
    """A batch per shard. Their tensors share memory: all of them are filled before the first is given out."""
    rows = np.ascontiguousarray(np.concatenate(shards), np.int64)
    bounds = np.zeros(len(shards) + 1, np.int64)
    np.cumsum([len(shard) for shard in shards], out=bounds[1:])
    size, atoms = np.empty(len(rows), np.int64), np.empty(len(shards), np.int64)
    measure(rows, bounds, store.atom_offsets, size, atoms)
    assert not len(rows) or size.min() > 0, "rows without a graph cannot be collated"
    counts = np.diff(bounds)
    tokens, pairs = int(counts @ atoms), int(counts @ atoms**2)
    target, known = np.empty(len(rows), np.float32), np.empty(len(rows), np.bool_)
    gather_rows(rows, store.target, store.has_positions, target, known)
    features, positions = np.empty(tokens * len(ATOM_FEATURES), np.uint8), np.empty(tokens * 3, np.float32)
    columns = store.atom_features.reshape(-1), store.positions.reshape(-1)
    gather_atoms(rows, bounds, atoms, store.atom_offsets, store.has_positions, *columns, features, positions)
    paths, codes = np.empty(pairs, np.uint8), np.empty(pairs, np.uint8)
    offsets = store.atom_offsets, store.bond_offsets, store.pair_offsets
    gather_pairs(rows, bounds, atoms, *offsets, store.bonds.reshape(-1), store.shortest_paths, paths, codes)
    token = pair = 0
    for begin, end, width in zip(bounds[:-1].tolist(), bounds[1:].tolist(), atoms.tolist(), strict=True):
        count = end - begin
        next_token, next_pair = token + count * width, pair + count * width**2
        square = (count, width, width)
        yield Batch(
            molecules=Molecules(
                rows=torch.from_numpy(rows[begin:end]),
                size=torch.from_numpy(size[begin:end]),
                atom_features=torch.from_numpy(features[token * 9 : next_token * 9].reshape(count, width, 9)),
                shortest_paths=torch.from_numpy(paths[pair:next_pair].reshape(square)),
                bond_codes=torch.from_numpy(codes[pair:next_pair].reshape(square)),
            ),
            target=torch.from_numpy(target[begin:end]),
            positions=torch.from_numpy(positions[token * 3 : next_token * 3].reshape(count, width, 3)),
            has_positions=torch.from_numpy(known[begin:end]),
            teacher=targets.gather(rows[begin:end], width) if targets is not None else None,
        )
        token, pair = next_token, next_pair


def epoch_batches(
    store: Store,
    rows: Int[np.ndarray, " rows"],
    *,
    batch_size: int | None = None,
    atoms_per_batch: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    rank: int = 0,
    world_size: int = 1,
    targets: TargetStore | None = None,
    start: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Batches of one pass over `rows` for worker `rank`, from batch `start` on.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    sizes = row_sizes(rows, store.atom_offsets)
    plan = batch_plan(sizes, batch_size, atoms_per_batch=atoms_per_batch, seed=seed, epoch=epoch, shuffle=shuffle)

    def make(first: int, last: int) -> Iterator[Batch]:
        shards = [rows[plan[batch][rank::world_size]] for batch in range(first, last)]
        return _collated(store, shards, targets)

    groups = []
    at, size = start, 1
    while at < len(plan):
        end = min(at + size, len(plan))
        groups.append((at, end))
        at = end
        size = min(size * 2, GROUP)
    return _prefetch(lambda g: make(*g), groups)


def _prefetch(make: Callable, groups: Sequence) -> Iterator[Batch]:
    ready: SimpleQueue = SimpleQueue()
    free = threading.Semaphore(AHEAD + 1)
    stop = threading.Event()

    def work() -> None:
        for group in groups:
            free.acquire()
            if stop.is_set():
                return
            items = []
            try:
                for b in make(group):
                    items.append(b)
            except BaseException as error:
                items.append(error)
            ready.put(items)
            if isinstance(items[-1], BaseException):
                return

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in groups:
            items = ready.get()
            free.release()
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                yield item
    finally:
        stop.set()
        free.release()
        thread.join()

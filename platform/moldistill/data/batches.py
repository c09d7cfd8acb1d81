"""Batches: which rows go together, and their padded tensors, prepared one step ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.records import Batch, Molecules, TeacherTargets
from moldistill.core.seeds import generator
from moldistill.core.shapes import Int
from moldistill.core.vocabulary import ATOM_FEATURES, UNREACHABLE
from moldistill.data.kernels import gather_graphs, gather_positions
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore

POOL = 50
"""Batches that are cut from one size-sorted pool: more of them pad less, fewer of them mix better."""

AHEAD = 2
"""Batches that the prefetch thread keeps ready."""


def batch_plan(
    sizes: Int[np.ndarray, " rows"], batch_size: int, *, seed: int, epoch: int, shuffle: bool
) -> list[NDArray[np.int64]]:
    """Batches of molecules of like size: indices into `sizes`, each exactly once.

    shuffle: rows fall into pools at random, pools are sorted by size (ties at random) and cut, and the batches come in
    random order; all of it by seed and epoch alone. Otherwise the rows are sorted by size.
    The number of batches is ceil(rows / batch_size) in every epoch.
    """
    if not shuffle:
        order = np.argsort(sizes, kind="stable")
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    random = generator(seed, "batch_plan", epoch)
    shuffled = random.permutation(len(sizes))
    batches: list[NDArray[np.int64]] = []
    for begin in range(0, len(shuffled), POOL * batch_size):
        pool = shuffled[begin : begin + POOL * batch_size]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches.extend(pool[start : start + batch_size] for start in range(0, len(pool), batch_size))
    return [batches[index] for index in random.permutation(len(batches))]


def collate(store: Store, rows: Int[np.ndarray, " batch"], targets: TargetStore | None = None) -> Batch:
    """Padded tensors of store rows, in their order. The rows must have a graph (`store.usable`).

    The atom axis is as long as the largest molecule, at least 1: a batch of no molecules is valid.
    """
    rows = np.ascontiguousarray(rows, np.int64)
    size = store.size(rows)
    assert not len(rows) or size.min() > 0, "rows without a graph cannot be collated"
    batch, atoms = len(rows), max(int(size.max(initial=1)), 1)
    features = np.zeros((batch, atoms, len(ATOM_FEATURES)), np.uint8)
    paths = np.full((batch, atoms, atoms), UNREACHABLE, np.uint8)
    codes = np.zeros((batch, atoms, atoms), np.uint8)
    positions = np.zeros((batch, atoms, 3), np.float32)
    gather_graphs(
        rows,
        store.atom_offsets,
        store.bond_offsets,
        store.path_offsets,
        store.atom_features,
        store.bond_index,
        store.bond_features,
        store.shortest_paths,
        features,
        paths,
        codes,
    )
    gather_positions(rows, store.atom_offsets, store.has_positions, store.positions, positions)
    teacher: TeacherTargets | None = targets.gather(rows, atoms) if targets is not None else None
    return Batch(
        molecules=Molecules(
            rows=torch.from_numpy(rows),
            size=torch.from_numpy(size),
            atom_features=torch.from_numpy(features),
            shortest_paths=torch.from_numpy(paths),
            bond_codes=torch.from_numpy(codes),
        ),
        target=torch.from_numpy(store.target[rows].astype(np.float32)),
        positions=torch.from_numpy(positions),
        has_positions=torch.from_numpy(store.has_positions[rows]),
        teacher=teacher,
    )


def epoch_batches(
    store: Store,
    rows: Int[np.ndarray, " rows"],
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    rank: int = 0,
    world_size: int = 1,
    targets: TargetStore | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches of one pass over `rows` for worker `rank`, from batch `start` on.

    batch_size counts the molecules of all workers together: worker r takes every world_size-th of each global batch,
    which may leave it a batch of no molecules, so that all workers see the same number of batches.
    A thread prepares them; it ends when the iterator is exhausted or closed.
    """
    plan = batch_plan(store.size(rows), batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    shards = [rows[indices][rank::world_size] for indices in plan[start:]]
    return _prefetch(lambda shard: collate(store, shard, targets), shards)


def _prefetch(make: Callable[[NDArray[np.int64]], Batch], shards: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
    """Results of `make`, computed AHEAD of their use in one thread, whose exceptions are raised here."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
    stop = threading.Event()

    def work() -> None:
        for shard in shards:
            item: Batch | BaseException
            try:
                item = make(shard)
            except BaseException as error:
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in shards:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()

"""Batches: padded tensors of store rows, prepared by a thread ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldistill.core.records import Batch, Molecules
from moldistill.core.shapes import Int
from moldistill.core.vocabulary import ATOM_FEATURES
from moldistill.data.hydrogens import FilledHydrogens
from moldistill.data.kernels import gather, gather_rows, row_sizes
from moldistill.data.plan import BatchPlan, batch_plan
from moldistill.data.store import Store
from moldistill.data.targets import TargetStore
from moldistill.data.teachers import TeacherSet

GROUP = 8
"""Batches that the thread makes in one compiled call and hands over at once: each hand-over waits for Python's lock."""

GROUP_PAIRS = 2**20
"""Pairs of atoms that a group holds at most (two bytes each); larger batches come one by one."""

AHEAD = 1
"""Groups that the thread has ready, beside the one that is being used."""

_FEATURES = len(ATOM_FEATURES)
_SPARE_BYTES = 2**25
_spare: deque[NDArray[np.uint8]] = deque(maxlen=AHEAD + 3)
_spare_hydrogens: deque[NDArray[np.uint8]] = deque(maxlen=AHEAD + 3)


class _Loan:
    """Memory of a group of batches, which the next group takes over, from `home`, once no tensor of this one is left.

    New memory costs a page fault per 4 KiB, as much time as filling it. Whoever holds a tensor holds, through its
    array, the loan; so nobody's batch is overwritten.
    """

    def __init__(self, length: int, home: deque[NDArray[np.uint8]]) -> None:
        try:
            buffer = home.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if len(buffer) < length:
            buffer = np.empty(1 << (length - 1).bit_length(), np.uint8)
        self.buffer, self.home = buffer, home
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        if 0 < len(self.buffer) <= _SPARE_BYTES:
            self.home.append(self.buffer)


def collate(
    store: Store,
    rows: Int[np.ndarray, " batch"],
    targets: TargetStore | TeacherSet | None = None,
    hydrogens: bool = False,
) -> Batch:
    """Padded tensors of store rows, in their order. The rows must have a graph (`store.usable`).

    The atom axis is as long as the largest molecule, at least 1: a batch of no molecules is valid.
    """
    return next(_collated(store, [rows], _Wanted(TeacherSet.of(targets), hydrogens)))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What batches hold beside the molecules, and the place (epoch, first batch) that teachers ask for."""

    teachers: TeacherSet | None = None
    hydrogens: bool = False
    pin: bool = False
    epoch: int = 0
    first: int = 0


def _collated(store: Store, shards: Sequence[NDArray[np.int64]], wanted: _Wanted) -> Iterator[Batch]:
    """One batch per shard; all are filled before the first is given out."""
    rows = np.concatenate(shards).astype(np.int64, copy=False)
    assert not len(rows) or (rows.min() >= 0 and rows.max() < len(store)), "rows outside the store"
    bounds = np.zeros(len(shards) + 1, np.int64)
    np.cumsum([len(shard) for shard in shards], out=bounds[1:])
    size, atoms = np.empty(len(rows), np.int64), np.empty(len(shards), np.int64)
    target, known = np.empty(len(rows), np.float32), np.empty(len(rows), np.bool_)
    columns = store.atom_offsets, store.target, store.has_positions
    gather_rows(rows, bounds, *columns, size, target, known, atoms)
    assert not len(rows) or size.min() > 0, "rows without a graph cannot be collated"
    filled = _Filled(store, rows, bounds, atoms, known)
    more = _filled_hydrogens(store, rows, bounds, known) if wanted.hydrogens else None
    teachers, pin = wanted.teachers, wanted.pin
    spans = zip(bounds[:-1].tolist(), bounds[1:].tolist(), atoms.tolist(), strict=True)
    for number, (begin, end, width) in enumerate(spans, wanted.first):
        shard = rows[begin:end]
        features, positions, paths, codes = filled.take(end - begin, width)
        molecules = Molecules(torch.from_numpy(shard), torch.from_numpy(size[begin:end]), features, paths, codes)
        batch = Batch(
            molecules,
            torch.from_numpy(target[begin:end]),
            positions,
            torch.from_numpy(known[begin:end]),
            () if teachers is None else teachers.gather(shard, width, epoch=wanted.epoch, batch=number, widen=not pin),
            more.take(end - begin) if more is not None else None,
        )
        yield batch.pin_memory() if pin else batch


def _filled_hydrogens(
    store: Store, rows: NDArray[np.int64], bounds: NDArray[np.int64], known: NDArray[np.bool_]
) -> FilledHydrogens:
    return FilledHydrogens(store, rows, bounds, known, lambda length: _Loan(length, _spare_hydrogens))


class _Filled:
    """The padded arrays of a group, one batch after another in each; `take` cuts them off in this order."""

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        bounds: NDArray[np.int64],
        atoms: NDArray[np.int64],
        known: NDArray[np.bool_],
    ) -> None:
        counts = np.diff(bounds)
        tokens, pairs = int(counts @ atoms), int(counts @ atoms**2)
        lengths = (tokens * 3 * 4, tokens * _FEATURES, pairs, pairs)
        ends = np.cumsum(lengths)
        memory = np.asarray(_Loan(int(ends[-1]), _spare))
        positions, self.features, self.paths, self.codes = np.split(memory[: ends[-1]], ends[:-1])
        self.positions = positions.view(np.float32)  # first, where it is aligned
        self.token = self.pair = 0
        gather(
            rows,
            bounds,
            atoms,
            known,
            store.atom_offsets,
            store.bond_offsets,
            store.pair_offsets,
            store.atom_features.reshape(-1),
            store.positions.reshape(-1),
            store.bonds.reshape(-1),
            store.shortest_paths,
            self.features,
            self.positions,
            self.paths,
            self.codes,
        )

    def take(self, count: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, positions, paths and codes of the next batch, `count` molecules padded to `width` atoms."""
        begin, end = self.token, self.token + count * width
        first, last = self.pair, self.pair + count * width**2
        self.token, self.pair = end, last
        return (
            torch.from_numpy(self.features[begin * _FEATURES : end * _FEATURES].reshape(count, width, _FEATURES)),
            torch.from_numpy(self.positions[begin * 3 : end * 3].reshape(count, width, 3)),
            torch.from_numpy(self.paths[first:last].reshape(count, width, width)),
            torch.from_numpy(self.codes[first:last].reshape(count, width, width)),
        )


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
    targets: TargetStore | TeacherSet | None = None,
    start: int = 0,
    hydrogens: bool = False,
    pin: bool = False,
) -> Iterator[Batch]:
    """Batches of one pass over `rows` for worker `rank`, from batch `start` on.

    batch_size (molecules) or atoms_per_batch (atoms, padding included) counts all workers together, see `batch_plan`:
    worker r takes every world_size-th of each global batch, which may leave it a batch of no molecules, so that all
    workers see the same number of batches.
    A thread prepares them; it ends when the iterator is exhausted or closed. hydrogens: `Batch.hydrogens` is filled;
    atoms_per_batch does not count them. pin: in page-locked memory, from which a
    GPU copies while it computes, with the teacher's states in 16 bits (`Batch.widened`).
    """
    sizes = row_sizes(np.ascontiguousarray(rows), store.atom_offsets)
    plan = batch_plan(sizes, batch_size, atoms_per_batch=atoms_per_batch, seed=seed, epoch=epoch, shuffle=shuffle)

    teachers = TeacherSet.of(targets)

    def make(group: range) -> Iterator[Batch]:
        wanted = _Wanted(teachers, hydrogens, pin, epoch, group.start)
        return _collated(store, [rows[plan[batch][rank::world_size]] for batch in group], wanted)

    return _prefetch(make, _groups(plan, sizes, start, world_size))


def _groups(plan: BatchPlan, sizes: NDArray[np.uint8], start: int, world_size: int) -> Iterator[range]:
    """Runs of batches from `start` on: 1, 2, 4 and so on, so that the first comes soon, up to what a group may hold."""
    most = 1
    while start < len(plan):
        stop, pairs = start, 0
        while stop < min(start + most, len(plan)):
            batch = plan[stop]
            pairs += len(batch) * int(sizes[batch[-1]]) ** 2 // world_size  # the last is the largest
            if stop > start and pairs > GROUP_PAIRS:
                break
            stop += 1
        yield range(start, stop)
        start, most = stop, min(2 * most, GROUP)


def _prefetch(make: Callable[[range], Iterator[Batch]], groups: Iterator[range]) -> Iterator[Batch]:
    """The batches of `make`, made in one thread ahead of their use; its exceptions are raised in their place, here."""
    ready: SimpleQueue[list[Batch | BaseException | None]] = SimpleQueue()
    free = threading.Semaphore(AHEAD + 1)
    stop = threading.Event()

    def made(group: range) -> list[Batch | BaseException | None]:
        items: list[Batch | BaseException | None] = []
        try:
            items.extend(make(group))  # keeps what came before an exception
        except BaseException as error:
            items.append(error)
        return items

    def work() -> None:
        for group in groups:
            free.acquire()
            if stop.is_set():
                return
            ready.put(made(group))
        ready.put([None])

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            for item in ready.get():
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
            free.release()
    finally:
        stop.set()
        free.release()
        thread.join()

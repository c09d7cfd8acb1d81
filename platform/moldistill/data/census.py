"""Counting a store by split, block by block: what its statistics are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.vocabulary import ATOM_SIZES, FLAGS, FLAGS_WITH_GRAPH, MAX_ATOMS, SPLITS
from moldistill.data.passes import SPLIT_NAMES, blocks, check_content, release, split_codes
from moldistill.data.store import Store
from moldistill.data.tallies import count_elements, count_outside

ELEMENTS = ATOM_SIZES[0]
TRAIN = SPLITS.index("train")


class Census:
    """Counts by split (index into SPLIT_NAMES).

    flags [splits, flags], positions [splits], sizes [splits, atoms], atoms and molecules [splits, elements]; larger,
    foreign and either [splits] count molecules outside the training ones. A training molecule has a graph and a known
    target, and is of the split train; known [elements] are its elements, largest the most atoms, median of the targets.
    Raises InputError for a store whose content is damaged.
    """

    def __init__(self, store: Store) -> None:
        check_content(store)
        splits = len(SPLIT_NAMES)
        self.store = store
        self.code = split_codes(store)
        self.readable = np.isin(store.flag, FLAGS_WITH_GRAPH)
        self.labelled = np.isfinite(store.target)
        self.flags = _table(self.code, store.flag, (splits, len(FLAGS)))
        self.positions = np.bincount(self.code[store.has_positions], minlength=splits)
        self.sizes = np.zeros((splits, MAX_ATOMS + 1), np.int64)
        self.atoms, self.molecules = np.zeros((2, splits, ELEMENTS), np.int64)
        self.larger, self.foreign, self.either = np.zeros((3, splits), np.int64)
        self.known = np.zeros(ELEMENTS, np.bool_)
        self.largest: int | None = None
        self.median: float | None = None
        training = (self.code == TRAIN) & self.readable & self.labelled
        self._count(training)
        if self.largest is not None:
            self._look_outside(self.largest)
            self.median = float(np.median(self.targets(training), overwrite_input=True))

    def _count(self, training: NDArray[np.bool_]) -> None:
        store = self.store
        trained = np.zeros((2, len(SPLIT_NAMES), ELEMENTS), np.int64)
        for block in blocks(len(store)):
            size = np.diff(store.atom_offsets[block.start : block.stop + 1])
            code, readable, chosen = self.code[block], self.readable[block], training[block]
            self.sizes += _table(code[readable], size[readable], self.sizes.shape)
            for rows, (atoms, molecules) in ((readable, (self.atoms, self.molecules)), (chosen, trained)):
                count_elements(block.start, code, rows, store.atom_offsets, store.atom_features, atoms, molecules)
            if chosen.any():
                self.largest = max(self.largest or 0, int(size[chosen].max()))
            release(store.atom_offsets, store.atom_features)
        self.known = trained[1][TRAIN] > 0

    def _look_outside(self, largest: int) -> None:
        store = self.store
        for block in blocks(len(store)):
            count_outside(
                block.start,
                self.code[block],
                self.readable[block],
                store.atom_offsets,
                store.atom_features,
                largest,
                self.known,
                self.larger,
                self.foreign,
                self.either,
            )
            release(store.atom_offsets, store.atom_features)

    def targets(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Targets (eV) of the chosen rows [rows], in an array of one's own."""
        found = np.empty(int(chosen.sum()))
        done = 0
        for block in blocks(len(chosen)):
            part = self.store.target[block][chosen[block]]
            found[done : done + len(part)] = part
            done += len(part)
            release(self.store.target)
        return found


def _table(one: NDArray[Any], other: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How often each pair of codes occurs."""
    table: NDArray[np.int64] = np.zeros(shape, np.int64)
    for block in blocks(len(one)):
        pairs = one[block].astype(np.int64) * shape[1] + other[block]
        table += np.bincount(pairs, minlength=table.size).reshape(shape)
    return table


def mean_power(
    values: NDArray[np.float64], centre: float, power: int, chosen: NDArray[np.bool_] | None = None
) -> float:
    """Mean of |value - centre| ** power over the chosen values, without arrays as large as `values`."""
    total, count = 0.0, 0
    for block in blocks(len(values)):
        part = values[block] if chosen is None else values[block][chosen[block]]
        total += float((np.abs(part - centre) ** power).sum())
        count += len(part)
    return total / count

"""Which elements the molecules of a store have: what a model was trained on, and what lies outside of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moldistill.core.vocabulary import ATOM_SIZES, FLAGS_WITH_GRAPH, SPLITS
from moldistill.data.passes import blocks, release
from moldistill.data.store import Store
from moldistill.data.tallies import count_elements

ELEMENTS = ATOM_SIZES[0]
"""Values of the first atom feature: atomic numbers from 1, and what the vocabulary does not name."""


def training_elements(store: Store, rows: NDArray[np.int64] | None = None) -> tuple[int, ...]:
    """Atomic numbers, ascending, in the given rows, or in all that a student may have been trained on.

    Without `rows`: those of the split train that have a graph and a target. 0 stands for what the vocabulary does not
    name. Memory does not grow with the store.
    """
    if rows is None:
        chosen = (store.split == SPLITS.index("train")) & np.isin(store.flag, FLAGS_WITH_GRAPH)
        chosen &= np.isfinite(store.target)
    else:
        chosen = np.zeros(len(store), np.bool_)
        chosen[rows] = True
    atoms, molecules = np.zeros((2, 1, ELEMENTS), np.int64)
    for block in blocks(len(store)):
        code = np.zeros(block.stop - block.start, np.uint8)
        count_elements(block.start, code, chosen[block], store.atom_offsets, store.atom_features, atoms, molecules)
        release(store.atom_offsets, store.atom_features)
    return tuple(sorted(atomic_number(int(code)) for code in np.flatnonzero(molecules[0])))


def atomic_number(code: int) -> int:
    """Of a value of the first atom feature; 0 for what the vocabulary does not name."""
    return code + 1 if code < ELEMENTS - 1 else 0


def element_codes(numbers: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which values of the first atom feature these atomic numbers are, [elements]."""
    known = np.zeros(ELEMENTS, np.bool_)
    known[[number - 1 for number in numbers]] = True  # 0 is the last one
    return known

"""Compiled counting over the rows of a store: repeated molecules, and the elements of each split.

No Python objects inside, so that the GIL is released; outside jaxtyping's import hook. Splits are given as codes from
0 on, those of SPLITS and one more for rows without a split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moldistill.core.compiled import compiled

Offsets = NDArray[np.int64]
Counts = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROUNDING = 2.0**-23  # of a 32-bit float, relative


@compiled
def tally_groups(
    rows: Offsets,
    starts: Offsets,
    code: Bytes,
    target: Floats,
    tolerance: float,
    shared: Counts,
    seen: Counts,
    crosses: Bools,
    spread: Floats,
    contradicts: Bools,
) -> None:
    """Count molecules that occur more than once; molecule g has rows[starts[g] : starts[g + 1]].

    shared [splits, splits]: molecules in both splits; on the diagonal, more than once in one. seen [splits, splits]:
    rows of the second split whose molecule is in the first. Per molecule: whether it is in several splits, the
    difference (eV) of its largest and smallest known label, and whether that is more than `tolerance` and the rounding
    of 32-bit floats. All are given as zeros.
    """
    splits = len(shared)
    counts = np.zeros(splits, np.int64)
    for group in range(len(starts) - 1):
        counts[:] = 0
        low, high = np.inf, -np.inf
        for place in range(starts[group], starts[group + 1]):
            row = rows[place]
            counts[code[row]] += 1
            if np.isfinite(target[row]):
                low, high = min(low, target[row]), max(high, target[row])
        present = 0
        for one in range(splits):
            if counts[one] == 0:
                continue
            present += 1
            for other in range(splits):
                if counts[other] and (one != other or counts[one] > 1):
                    shared[one, other] += 1
                    seen[one, other] += counts[other]
        crosses[group] = present > 1
        if high > low:
            spread[group] = high - low
            contradicts[group] = high - low > tolerance + _ROUNDING * max(abs(low), abs(high))


@compiled
def count_elements(
    first: int,
    code: Bytes,
    readable: Bools,
    atom_offsets: Offsets,
    atom_features: Bytes,
    atoms: Counts,
    molecules: Counts,
) -> None:
    """Add atoms and molecules of each element, [splits, elements], over readable rows from `first` on."""
    last = np.full(atoms.shape[1], -1)
    for place in range(len(code)):
        if not readable[place]:
            continue
        for atom in range(atom_offsets[first + place], atom_offsets[first + place + 1]):
            element = min(atom_features[atom, 0], atoms.shape[1] - 1)
            atoms[code[place], element] += 1
            if last[element] != place:
                last[element] = place
                molecules[code[place], element] += 1


@compiled
def count_outside(
    first: int,
    code: Bytes,
    readable: Bools,
    atom_offsets: Offsets,
    atom_features: Bytes,
    largest: int,
    known: Bools,
    larger: Counts,
    foreign: Counts,
    either: Counts,
) -> None:
    """Add, per split, the readable rows from `first` on that have more than `largest` atoms, and those with an element
    that is not `known` [elements].
    """
    for place in range(len(code)):
        if not readable[place]:
            continue
        begin, end = atom_offsets[first + place], atom_offsets[first + place + 1]
        is_larger = end - begin > largest
        is_foreign = False
        for atom in range(begin, end):
            is_foreign |= not known[min(atom_features[atom, 0], len(known) - 1)]
        larger[code[place]] += is_larger
        foreign[code[place]] += is_foreign
        either[code[place]] += is_larger or is_foreign

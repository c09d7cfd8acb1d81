"""Compiled copying from the store's columns into padded batches, and compiled sorting for their plan.

Outside jaxtyping's import hook, which numba cannot compile. No Python objects inside, so that the GIL is released.
Indices are unsigned, because numba otherwise looks at the sign of each; loops are plain, because the runs that they
copy are short.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_U = np.uint64
_ONE = _U(1)
_THREE = _U(3)
_FEATURES = _U(9)


@numba.njit(cache=True, nogil=True)
def row_sizes(rows: Offsets, atom_offsets: Offsets) -> NDArray[np.int32]:
    """Number of atoms of each row."""
    sizes = np.empty(len(rows), np.int32)
    for place in range(len(rows)):
        row = rows[place]
        sizes[place] = atom_offsets[row + 1] - atom_offsets[row]
    return sizes


@numba.njit(cache=True, nogil=True)
def sort_pools(shuffled: NDArray[Any], sizes: NDArray[np.int32], pools: Offsets) -> NDArray[np.int32]:
    """The shuffled places, each pool (pools[k]:pools[k + 1]) sorted by size; equal sizes keep their order."""
    order = np.empty(len(shuffled), np.int32)
    largest = 0
    for size in sizes:
        largest = max(largest, size)
    first = np.empty(largest + 2, np.int64)
    for pool in range(len(pools) - 1):
        first[:] = 0
        for place in range(pools[pool], pools[pool + 1]):
            first[sizes[shuffled[place]] + 1] += 1
        first[0] = pools[pool]
        for size in range(1, largest + 2):
            first[size] += first[size - 1]
        for place in range(pools[pool], pools[pool + 1]):
            size = sizes[shuffled[place]]
            order[first[size]] = shuffled[place]
            first[size] += 1
    return order


@numba.njit(cache=True, nogil=True)
def measure(rows: Offsets, bounds: Offsets, atom_offsets: Offsets, size: Offsets, atoms: Offsets) -> None:
    """Fill size [molecules] and atoms [batches]: the largest size, at least 1, of batch bounds[k]:bounds[k + 1]."""
    for batch in range(len(atoms)):
        largest = 1
        for place in range(bounds[batch], bounds[batch + 1]):
            row = rows[place]
            size[place] = atom_offsets[row + 1] - atom_offsets[row]
            largest = max(largest, size[place])
        atoms[batch] = largest


@numba.njit(cache=True, nogil=True)
def gather_rows(
    rows: Offsets,
    target: NDArray[np.float64],
    has_positions: NDArray[np.bool_],
    out_target: NDArray[np.float32],
    out_known: NDArray[np.bool_],
) -> None:
    """Fill out_target and out_known with what there is one of per row."""
    for place in range(len(rows)):
        row = rows[place]
        out_target[place] = target[row]
        out_known[place] = has_positions[row]


@numba.njit(cache=True, nogil=True)
def gather_atoms(
    rows: Offsets,
    bounds: Offsets,
    atoms: Offsets,
    atom_offsets: Offsets,
    has_positions: NDArray[np.bool_],
    atom_features: Bytes,
    positions: NDArray[np.float32],
    out_features: Bytes,
    out_positions: NDArray[np.float32],
) -> None:
    """Write the batches after one another, each [molecules, atoms, 9] and [molecules, atoms, 3], all arrays flat.

    Padding is 0, and so are the positions of rows that have none.
    """
    to_feature = to_position = _U(0)
    for batch in range(len(atoms)):
        features = _U(atoms[batch]) * _FEATURES
        coordinates = _U(atoms[batch]) * _THREE
        for place in range(bounds[batch], bounds[batch + 1]):
            row = _U(rows[place])
            first = _U(atom_offsets[row])
            size = _U(atom_offsets[row + _ONE]) - first
            source = first * _FEATURES
            for k in range(size * _FEATURES):
                out_features[to_feature + _U(k)] = atom_features[source + _U(k)]
            for k in range(size * _FEATURES, features):
                out_features[to_feature + _U(k)] = 0
            to_feature += features
            known = size * _THREE if has_positions[row] else _U(0)
            source = first * _THREE
            for k in range(known):
                out_positions[to_position + _U(k)] = positions[source + _U(k)]
            for k in range(known, coordinates):
                out_positions[to_position + _U(k)] = 0.0
            to_position += coordinates


@numba.njit(cache=True, nogil=True)
def gather_pairs(
    rows: Offsets,
    bounds: Offsets,
    atoms: Offsets,
    atom_offsets: Offsets,
    bond_offsets: Offsets,
    pair_offsets: Offsets,
    bonds: Bytes,
    shortest_paths: Bytes,
    out_paths: Bytes,
    out_codes: Bytes,
) -> None:
    """Write the batches after one another, each [molecules, atoms, atoms], all arrays flat.

    Paths are 255 where padded, bond codes 0. Both are the same in both directions.
    """
    corner = _U(0)  # of the molecule's square, in both outputs
    for batch in range(len(atoms)):
        width = _U(atoms[batch])
        square = width * width
        for place in range(bounds[batch], bounds[batch + 1]):
            row = _U(rows[place])
            size = _U(atom_offsets[row + _ONE]) - _U(atom_offsets[row])
            source = _U(pair_offsets[row])
            for i in range(size):
                line = corner + _U(i) * width
                mirrored = line + width + _U(i)
                out_paths[line + _U(i)] = 0
                for j in range(_U(i) + _ONE, size):
                    path = shortest_paths[source]
                    out_paths[line + _U(j)] = path
                    out_paths[mirrored] = path
                    source += _ONE
                    mirrored += width
                for j in range(size, width):
                    out_paths[line + _U(j)] = 255
            for k in range(size * width, square):
                out_paths[corner + _U(k)] = 255
            for k in range(square):
                out_codes[corner + _U(k)] = 0
            for bond in range(_U(bond_offsets[row]) * _THREE, _U(bond_offsets[row + _ONE]) * _THREE, _THREE):
                i, j, code = _U(bonds[bond]), _U(bonds[bond + _ONE]), bonds[bond + _ONE + _ONE]
                out_codes[corner + i * width + j] = code
                out_codes[corner + j * width + i] = code
            corner += square

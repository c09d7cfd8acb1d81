"""Compiled copying from the store's columns into padded batches.

Outside jaxtyping's import hook, which numba cannot compile. No Python objects inside, so that the GIL is released.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from moldistill.core.vocabulary import BOND_SIZES

_STEREO = BOND_SIZES[1]
_CONJUGATED = BOND_SIZES[2]

Offsets = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@numba.njit(cache=True, nogil=True)
def gather_graphs(
    rows: Offsets,
    atom_offsets: Offsets,
    bond_offsets: Offsets,
    path_offsets: Offsets,
    atom_features: Bytes,
    bond_index: Bytes,
    bond_features: Bytes,
    shortest_paths: Bytes,
    out_features: Bytes,
    out_paths: Bytes,
    out_codes: Bytes,
) -> None:
    """Fill out_features [batch, atoms, 9] (given as 0), out_paths (255) and out_codes (0) [batch, atoms, atoms].

    Bond codes are those of `vocabulary.bond_code`, the same in both directions.
    """
    for place in range(len(rows)):
        row = rows[place]
        first = atom_offsets[row]
        size = atom_offsets[row + 1] - first
        source = path_offsets[row]
        for i in range(size):
            for k in range(atom_features.shape[1]):
                out_features[place, i, k] = atom_features[first + i, k]
            for j in range(size):
                out_paths[place, i, j] = shortest_paths[source]
                source += 1
        for bond in range(bond_offsets[row], bond_offsets[row + 1]):
            kind, stereo, conjugated = bond_features[bond, 0], bond_features[bond, 1], bond_features[bond, 2]
            code = 1 + (kind * _STEREO + stereo) * _CONJUGATED + conjugated
            i, j = bond_index[bond, 0], bond_index[bond, 1]
            out_codes[place, i, j] = code
            out_codes[place, j, i] = code


@numba.njit(cache=True, nogil=True)
def gather_positions(
    rows: Offsets,
    atom_offsets: Offsets,
    has_positions: NDArray[np.bool_],
    positions: NDArray[np.float32],
    out: NDArray[Any],
) -> None:
    """Fill out [batch, atoms, 3] (given as 0) with the positions of rows that have them."""
    for place in range(len(rows)):
        row = rows[place]
        if has_positions[row]:
            first = atom_offsets[row]
            for i in range(atom_offsets[row + 1] - first):
                for k in range(3):
                    out[place, i, k] = positions[first + i, k]

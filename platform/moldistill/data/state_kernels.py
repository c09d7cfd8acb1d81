"""Compiled reading of states that are kept in 8 bits; `data.kernels` says how kernels are written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moldistill.core.compiled import compiled

_U = np.uint64


@compiled
def gather_scaled(
    entries: NDArray[np.int64],
    offsets: NDArray[np.int64],
    states: NDArray[np.int8],
    scale: NDArray[np.float32],
    atoms: int,
    out: NDArray[np.float32],
) -> None:
    """Fill out [molecules, atoms, width] with scale [width] times the states of each entry's atoms, and zeros behind.

    states: [atoms of all entries, width]. All arrays are flat. An entry below 0 has none.
    """
    width = _U(len(scale))
    place = _U(0)
    for molecule in range(len(entries)):
        source = last = _U(0)
        if entries[molecule] >= 0:
            source = _U(offsets[entries[molecule]]) * width
            last = _U(offsets[entries[molecule] + 1]) * width
        behind = place + _U(atoms) * width
        while source < last:
            for channel in range(width):
                out[place + _U(channel)] = states[source + _U(channel)] * scale[_U(channel)]
            source += width
            place += width
        for k in range(place, behind):
            out[_U(k)] = 0.0
        place = behind

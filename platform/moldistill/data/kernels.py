"""Compiled copying from the store's columns into padded batches, and compiled sorting for their plan.

Outside jaxtyping's import hook, which numba cannot compile. No Python objects inside, so that the GIL is released.
Arrays are flat and indices unsigned, because numba otherwise looks at the sign of each. Loops are plain, because the
runs that they copy are short.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from moldistill.core.compiled import compiled

Offsets = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_U = np.uint64
_ONE = _U(1)
_FEATURES = _U(9)  # of an atom
_AXES = _U(3)  # of a position
_BOND = _U(3)  # bytes: begin, end, code
_LINE = _U(64)  # bytes of a cache line
_FLOATS = _U(16)  # of a cache line
_AHEAD = _U(4)
"""Molecules between asking for data and reading them; the offsets are asked for twice as early."""


def _typed_prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask the processor for the cache line of array[index], without waiting for it.

    Rows are read in random order, so that nearly every read misses the caches: this is most of the kernel's speed.
    """
    helpers: Any = cgutils

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        place = context.make_array(kind)(context, builder, arguments[0])
        pointer = helpers.get_item_pointer(context, builder, kind, place, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = helpers.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
        to_read, near, data = number(0), number(3), number(1)
        builder.call(function, [builder.bitcast(pointer, byte), to_read, near, data])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_typed_prefetch)


@compiled
def row_sizes(rows: NDArray[Any], atom_offsets: Offsets) -> Bytes:
    """Number of atoms of each row; a row of a store has at most 255."""
    sizes = np.empty(len(rows), np.uint8)
    for place in range(len(rows)):
        row = rows[place]
        sizes[place] = atom_offsets[row + 1] - atom_offsets[row]
    return sizes


@compiled
def sort_pools(order: NDArray[np.int32], sizes: NDArray[Any], pools: Offsets) -> None:
    """Sort each pool order[pools[k]:pools[k + 1]] by the size of its places; equal sizes keep their order."""
    largest = np.int64(sizes.max()) if len(sizes) else np.int64(0)
    longest = np.diff(pools).max() if len(pools) > 1 else np.int64(0)
    unsorted, first = np.empty(longest, np.int32), np.empty(largest + 2, np.int64)
    for pool in range(len(pools) - 1):
        begin, count = pools[pool], pools[pool + 1] - pools[pool]
        first[:] = 0
        for place in range(count):
            unsorted[place] = order[begin + place]
            first[np.int64(sizes[unsorted[place]]) + 1] += 1
        first[0] = begin
        for size in range(1, largest + 2):
            first[size] += first[size - 1]
        for place in range(count):
            held = np.int64(sizes[unsorted[place]])
            order[first[held]] = unsorted[place]
            first[held] += 1


@compiled
def gather_rows(
    rows: Offsets,
    bounds: Offsets,
    atom_offsets: Offsets,
    target: NDArray[np.float64],
    has_positions: NDArray[np.bool_],
    out_size: Offsets,
    out_target: NDArray[np.float32],
    out_has_positions: NDArray[np.bool_],
    out_atoms: Offsets,
) -> None:
    """What there is one of per row, and out_atoms [batches]: the largest size, at least 1, of a batch.

    Batch k holds rows[bounds[k]:bounds[k + 1]].
    """
    for batch in range(len(out_atoms)):
        largest = 1
        for place in range(bounds[batch], bounds[batch + 1]):
            row = rows[place]
            size = atom_offsets[row + 1] - atom_offsets[row]
            largest = max(largest, size)
            out_size[place], out_target[place], out_has_positions[place] = size, target[row], has_positions[row]
        out_atoms[batch] = largest


@compiled
def gather(
    rows: Offsets,
    bounds: Offsets,
    atoms: Offsets,
    has_positions: NDArray[np.bool_],
    atom_offsets: Offsets,
    bond_offsets: Offsets,
    pair_offsets: Offsets,
    atom_features: Bytes,
    positions: NDArray[np.float32],
    bonds: Bytes,
    shortest_paths: Bytes,
    out_features: Bytes,
    out_positions: NDArray[np.float32],
    out_paths: Bytes,
    out_codes: Bytes,
) -> None:
    """Write batches after one another, padded to atoms[k] atoms; has_positions [molecules] is that of `gather_rows`.

    The outputs are [molecules, atoms, 9], [molecules, atoms, 3] and twice [molecules, atoms, atoms], flat. Padding is
    0, but 255 for paths. Paths and bond codes are the same in both directions.
    """
    feature = coordinate = pair = _U(0)
    for batch in range(len(atoms)):
        width = _U(atoms[batch])
        for index in range(bounds[batch], bounds[batch + 1]):
            place = _U(index)
            if place + _AHEAD + _AHEAD < len(rows):
                row = _U(rows[place + _AHEAD + _AHEAD])
                _prefetch(atom_offsets, row)
                _prefetch(bond_offsets, row)
                _prefetch(pair_offsets, row)
            if place + _AHEAD < len(rows):
                row = _U(rows[place + _AHEAD])
                _prefetch_runs(atom_features, atom_offsets, row, _FEATURES, _LINE)
                _prefetch_runs(positions, atom_offsets, row, _AXES, _FLOATS)
                _prefetch_runs(bonds, bond_offsets, row, _BOND, _LINE)
                _prefetch_runs(shortest_paths, pair_offsets, row, _ONE, _LINE)
            row = _U(rows[place])
            first = _U(atom_offsets[row])
            size = _U(atom_offsets[row + _ONE]) - first
            known = size if has_positions[place] else _U(0)
            _copy(atom_features, first * _FEATURES, size * _FEATURES, out_features, feature, width * _FEATURES)
            _copy(positions, first * _AXES, known * _AXES, out_positions, coordinate, width * _AXES)
            _mirror(shortest_paths, _U(pair_offsets[row]), size, out_paths, pair, width)
            _scatter(bonds, _U(bond_offsets[row]), _U(bond_offsets[row + _ONE]), out_codes, pair, width)
            feature += width * _FEATURES
            coordinate += width * _AXES
            pair += width * width


@compiled
def count_hydrogens(
    rows: Offsets,
    bounds: Offsets,
    has_positions: NDArray[np.bool_],
    atom_offsets: Offsets,
    hydrogen_offsets: Offsets,
    positions: NDArray[np.float32],
    parent: Bytes,
    out_count: Offsets,
    out_most: Offsets,
) -> None:
    """Hydrogens of each molecule, and out_most [batches]: the most of a batch. Rows and bounds are as in `gather`.

    None of a molecule without positions, or with a hydrogen that has no finite position or no atom to be bonded to.
    """
    for batch in range(len(out_most)):
        most = _U(0)
        for index in range(bounds[batch], bounds[batch + 1]):
            place = _U(index)
            if place + _AHEAD + _AHEAD < len(rows):
                row = _U(rows[place + _AHEAD + _AHEAD])
                _prefetch(atom_offsets, row)
                _prefetch(hydrogen_offsets, row)
            if place + _AHEAD < len(rows):
                row = _U(rows[place + _AHEAD])
                _prefetch_runs(positions, hydrogen_offsets, row, _AXES, _FLOATS)
                _prefetch_runs(parent, hydrogen_offsets, row, _ONE, _LINE)
            row = _U(rows[place])
            size = atom_offsets[row + _ONE] - atom_offsets[row]
            first, last = _U(hydrogen_offsets[row]), _U(hydrogen_offsets[row + _ONE])
            sound = has_positions[place]
            for k in range(first * _AXES, last * _AXES):
                sound &= np.isfinite(positions[_U(k)])
            for k in range(first, last):
                sound &= parent[_U(k)] < size
            count = last - first if sound else _U(0)
            out_count[place] = count
            most = max(most, count)
        out_most[batch] = most


@compiled
def gather_hydrogens(
    rows: Offsets,
    bounds: Offsets,
    count: Offsets,
    most: Offsets,
    hydrogen_offsets: Offsets,
    positions: NDArray[np.float32],
    parent: Bytes,
    out_positions: NDArray[np.float32],
    out_parent: Bytes,
) -> None:
    """Write [molecules, most[k], 3] and [molecules, most[k]] batch after batch, flat, with zeros for padding."""
    slot = _U(0)
    for batch in range(len(most)):
        width = _U(most[batch])
        for index in range(bounds[batch], bounds[batch + 1]):
            place = _U(index)
            first, length = _U(hydrogen_offsets[_U(rows[place])]), _U(count[place])
            _copy(positions, first * _AXES, length * _AXES, out_positions, slot * _AXES, width * _AXES)
            _copy(parent, first, length, out_parent, slot, width)
            slot += width


@compiled
def gather_states(
    entries: Offsets, offsets: Offsets, states: NDArray[np.uint16], width: int, atoms: int, out: NDArray[np.uint16]
) -> None:
    """Fill out [molecules, atoms, width] with the states of each entry's atoms, all arrays flat, and zeros behind them.

    states: [atoms of all entries, width]. An entry below 0 has none.
    """
    length = _U(atoms) * _U(width)
    for place in range(len(entries)):
        first = count = _U(0)
        if entries[place] >= 0:
            first = _U(offsets[entries[place]]) * _U(width)
            count = _U(offsets[entries[place] + 1]) * _U(width) - first
        _copy(states, first, count, out, _U(place) * length, length)


@compiled
def _prefetch_runs(column: Any, offsets: Any, row: Any, width: Any, line: Any) -> None:
    """Every cache line, of `line` values, of the row's entries, `width` values each."""
    begin, end = _U(offsets[row]) * width, _U(offsets[row + _ONE]) * width
    for k in range(begin, end, line):
        _prefetch(column, _U(k))
    if end > begin:
        _prefetch(column, end - _ONE)


@compiled
def _copy(column: Any, source: Any, count: Any, out: Any, place: Any, length: Any) -> None:
    """column[source : source + count] to out[place:], then zeros up to `length`."""
    for k in range(count):
        out[place + _U(k)] = column[source + _U(k)]
    for k in range(count, length):
        out[place + _U(k)] = 0


@compiled
def _mirror(paths: Any, source: Any, size: Any, out: Any, corner: Any, width: Any) -> None:
    """The symmetric matrix whose upper triangle begins at paths[source] to the square of `width` at out[corner]."""
    for i in range(size):
        line = corner + _U(i) * width
        mirrored = line + width + _U(i)
        out[line + _U(i)] = 0
        for j in range(_U(i) + _ONE, size):
            path = paths[source]
            out[line + _U(j)] = path
            out[mirrored] = path
            source += _ONE
            mirrored += width
        for j in range(size, width):
            out[line + _U(j)] = 255
    for k in range(size * width, width * width):
        out[corner + _U(k)] = 255


@compiled
def _scatter(bonds: Any, begin: Any, end: Any, out: Any, corner: Any, width: Any) -> None:
    """The codes of bonds begin:end to the square of `width` at out[corner], 0 elsewhere."""
    for k in range(width * width):
        out[corner + _U(k)] = 0
    for bond in range(begin * _BOND, end * _BOND, _BOND):
        i, j, code = _U(bonds[bond]), _U(bonds[bond + _ONE]), bonds[bond + _ONE + _ONE]
        if i < width and j < width:  # a damaged column must not write elsewhere
            out[corner + i * width + j] = code
            out[corner + j * width + i] = code

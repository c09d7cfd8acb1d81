"""Compiled part of `placement`: from the bytes of SDF records and the columns of graphs to positions."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from moldistill.chem.align import MATCHED, SAME_ORDER
from moldistill.chem.isomorphism import find_mapping
from moldistill.chem.molblock import MAX_RECORD, count_hydrogens, read_record

ASK = -2
"""Case of a row that `align.align` must look at."""

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def place_records(
    data: Bytes,
    ends: Numbers,
    present: NDArray[np.bool_],
    symbols: Bytes,
    atom_ends: Numbers,
    bond_ends: Numbers,
    atom_features: Bytes,
    graph_bonds: Bytes,
    case: NDArray[np.int8],
    positions: NDArray[np.float32],
    hydrogen_count: Numbers,
    hydrogen_positions: NDArray[np.float32],
    hydrogen_parent: Bytes,
) -> int:
    """Fill case, positions and, one row after the other, hydrogens; how many hydrogens there were.

    Rows whose record, or whose alignment, is not plain are left with the case ASK.
    """
    number, charge, hydrogens = (
        np.empty(MAX_RECORD, np.int64),
        np.empty(MAX_RECORD, np.int64),
        np.empty(MAX_RECORD, np.int64),
    )
    bonds, xyz = np.empty((MAX_RECORD, 3), np.int64), np.empty((MAX_RECORD, 3), np.float64)
    used = 0
    for row in range(len(case)):
        if not present[row]:
            continue
        case[row] = ASK
        first, last = atom_ends[row], atom_ends[row + 1]
        if first == last:
            continue
        atoms, count = read_record(data[ends[row] : ends[row + 1]], symbols, number, charge, bonds, xyz)
        if atoms < 1 or not _spread(xyz[:atoms]):
            continue
        if not count_hydrogens(number[:atoms], charge[:atoms], bonds[:count], hydrogens[:atoms]):
            continue
        features, ours = atom_features[first:last], graph_bonds[bond_ends[row] : bond_ends[row + 1]]
        found, mapping = _mapped(features, ours, number[:atoms], charge[:atoms], hydrogens[:atoms], bonds[:count])
        if found == ASK:
            continue
        added = _place(
            ours,
            number[:atoms],
            bonds[:count],
            mapping,
            xyz,
            positions[first:last],
            hydrogen_positions[used:],
            hydrogen_parent[used:],
        )
        if added >= 0:
            case[row] = found
            hydrogen_count[row] = added
            used += added
    return used


@numba.njit(cache=True, nogil=True)
def _spread(xyz: NDArray[np.float64]) -> bool:
    """Whether the atoms do not all lie in one place."""
    for atom in range(1, len(xyz)):
        for axis in range(3):
            if np.float32(xyz[atom, axis]) != np.float32(xyz[0, axis]):
                return True
    return len(xyz) == 1


@numba.njit(cache=True, nogil=True)
def _heavy(number: Numbers) -> Numbers:
    """Atoms other than hydrogen; all of them where there is nothing else."""
    heavy = np.flatnonzero(number > 1)
    return heavy if len(heavy) else np.arange(len(number))


@numba.njit(cache=True, nogil=True)
def _part(bonds: Numbers, heavy: Numbers, atoms: int) -> Numbers:
    """Bonds among the heavy atoms, numbered among themselves."""
    place = np.full(atoms, -1)
    for index in range(len(heavy)):
        place[heavy[index]] = index
    part, count = np.empty((len(bonds), 3), np.int64), 0
    for bond in range(len(bonds)):
        begin, end = place[bonds[bond, 0]], place[bonds[bond, 1]]
        if begin >= 0 and end >= 0:
            part[count, 0], part[count, 1], part[count, 2] = begin, end, bonds[bond, 2]
            count += 1
    return part[:count]


@numba.njit(cache=True, nogil=True)
def _mapped(
    features: Bytes, graph_bonds: Bytes, number: Numbers, charge: Numbers, hydrogens: Numbers, bonds: Numbers
) -> tuple[int, Numbers]:
    """Case, and the record's atom for each of the graph's, -1 for its hydrogens. As `align._map_heavy`."""
    size = len(features)
    ours_number, ours_charge, ours_hydrogens = (
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
    )
    ours_bonds = np.empty((len(graph_bonds), 3), np.int64)
    for atom in range(size):
        ours_number[atom] = int(features[atom, 0]) + 1
        ours_charge[atom] = int(features[atom, 3]) - 5
        ours_hydrogens[atom] = features[atom, 4]
    stereo = features[:, 1] > 0
    for bond in range(len(graph_bonds)):
        begin, end, code = graph_bonds[bond, 0], graph_bonds[bond, 1], int(graph_bonds[bond, 2]) - 1
        ours_bonds[bond, 0], ours_bonds[bond, 1], ours_bonds[bond, 2] = begin, end, code // 12 + 1
        if code // 2 % 6 > 0:
            stereo[begin] = stereo[end] = True
        ours_hydrogens[begin] += ours_number[end] == 1
        ours_hydrogens[end] += ours_number[begin] == 1
    left, right = _heavy(ours_number), _heavy(number)
    whole = np.full(size, -1)
    if len(left) != len(right):
        return ASK, whole
    left_bonds, right_bonds = _part(ours_bonds, left, size), _part(bonds, right, len(number))
    for strict in (True, False):
        mapping, tied = find_mapping(
            ours_number[left],
            ours_charge[left],
            ours_hydrogens[left],
            left_bonds,
            number[right],
            charge[right],
            hydrogens[right],
            right_bonds,
            strict,
        )
        if len(mapping) == 0:
            continue
        case = SAME_ORDER
        for index in range(len(left)):
            whole[left[index]] = right[mapping[index]]
            if mapping[index] != index:
                case = MATCHED
        if case == MATCHED and (stereo[left] & tied).any():
            return ASK, whole  # the choice of mapping matters for stereo: RDKit decides
        return case, whole
    return ASK, whole


@numba.njit(cache=True, nogil=True)
def _place(
    graph_bonds: Bytes,
    number: Numbers,
    bonds: Numbers,
    mapping: Numbers,
    xyz: NDArray[np.float64],
    positions: NDArray[np.float32],
    hydrogen_positions: NDArray[np.float32],
    hydrogen_parent: Any,
) -> int:
    """Write positions, and those of the hydrogens left over, by their parents. As `align._place`.

    The number of these hydrogens, or -1 where the record lacks one that the graph has as an atom.
    """
    hydrogen, parent = _free_hydrogens(number, bonds, mapping)
    if len(parent) > len(hydrogen_parent):  # hydrogens with several bonds: more than there is room for
        return -1
    # Hydrogens that the graph has as atoms take the first free one of their parent's.
    for bond in range(len(graph_bonds)):
        for side in range(2):
            this, that = graph_bonds[bond, side], graph_bonds[bond, 1 - side]
            if mapping[this] < 0 and mapping[that] >= 0:
                first = _first(parent, that)
                if first >= 0:
                    mapping[this] = hydrogen[first]
                    parent[first] = -1
    if (mapping < 0).any():
        return -1
    used = 0
    for atom in range(len(mapping)):
        positions[atom] = xyz[mapping[atom]]
        for index in range(len(parent)):
            if parent[index] == atom:
                hydrogen_parent[used] = atom
                hydrogen_positions[used] = xyz[hydrogen[index]]
                used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _free_hydrogens(number: Numbers, bonds: Numbers, mapping: Numbers) -> tuple[Numbers, Numbers]:
    """The record's hydrogens that stand for no atom of the graph, and the graph's atom that each is bound to."""
    owner = np.full(len(number), -1)
    for atom in range(len(mapping)):
        if mapping[atom] >= 0:
            owner[mapping[atom]] = atom
    hydrogen, parent, count = np.empty(2 * len(bonds), np.int64), np.empty(2 * len(bonds), np.int64), 0
    for bond in range(len(bonds)):
        for side in range(2):
            this, that = bonds[bond, side], bonds[bond, 1 - side]
            if number[this] == 1 and owner[this] < 0 and owner[that] >= 0:
                hydrogen[count], parent[count] = this, owner[that]
                count += 1
    return hydrogen[:count], parent[:count]


@numba.njit(cache=True, nogil=True)
def _first(values: Numbers, wanted: int) -> int:
    for index in range(len(values)):
        if values[index] == wanted:
            return index
    return -1

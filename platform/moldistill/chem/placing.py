"""Compiled part of `placement`: from the bytes of SDF records and the columns of graphs to positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.chem.align import MATCHED, SAME_ORDER
from moldistill.chem.isomorphism import find_mapping
from moldistill.chem.molblock import MAX_RECORD, count_hydrogens, read_record
from moldistill.core.compiled import compiled

ASK = -2
"""Case of a row that `align.align` must look at."""

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@compiled
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
    scratch, bonds = np.empty((3, MAX_RECORD), np.int64), np.empty((MAX_RECORD, 3), np.int64)
    xyz = np.empty((MAX_RECORD, 3), np.float64)
    used = 0
    for row in range(len(case)):
        if not present[row]:
            continue
        case[row] = ASK
        first, last = atom_ends[row], atom_ends[row + 1]
        atoms, count = read_record(data[ends[row] : ends[row + 1]], symbols, scratch[0], scratch[1], bonds, xyz)
        if first == last or atoms < 1 or not _spread(xyz[:atoms]):
            continue
        number, charge, hydrogens = scratch[0, :atoms], scratch[1, :atoms], scratch[2, :atoms]
        if not count_hydrogens(number, charge, bonds[:count], hydrogens):
            continue
        ours = graph_bonds[bond_ends[row] : bond_ends[row + 1]]
        found, mapping = _mapped(atom_features[first:last], ours, number, charge, hydrogens, bonds[:count])
        if found == ASK:
            continue
        out, parents = hydrogen_positions[used:], hydrogen_parent[used:]
        added = _place(ours, number, bonds[:count], mapping, xyz, positions[first:last], out, parents)
        if added >= 0:
            case[row], hydrogen_count[row] = found, added
            used += added
    return used


@compiled
def _spread(xyz: NDArray[np.float64]) -> bool:
    """Whether the atoms do not all lie in one place."""
    for atom in range(1, len(xyz)):
        for axis in range(3):
            if np.float32(xyz[atom, axis]) != np.float32(xyz[0, axis]):
                return True
    return len(xyz) == 1


@compiled
def _heavy(number: Numbers) -> Numbers:
    """Atoms other than hydrogen; all of them where there is nothing else."""
    heavy = np.flatnonzero(number > 1)
    return heavy if len(heavy) else np.arange(len(number))


@compiled
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


@compiled
def _mapped(
    features: Bytes, graph_bonds: Bytes, number: Numbers, charge: Numbers, hydrogens: Numbers, bonds: Numbers
) -> tuple[int, Numbers]:
    """Case, and the record's atom for each of the graph's, -1 for its hydrogens. As `align._map_heavy`."""
    ours, ours_bonds, stereo = _graph_side(features, graph_bonds)
    left, right = _heavy(ours[0]), _heavy(number)
    whole = np.full(len(features), -1)
    if len(left) != len(right):
        return ASK, whole
    left_bonds, right_bonds = _part(ours_bonds, left, len(features)), _part(bonds, right, len(number))
    for strict in (True, False):
        mapping, tied = find_mapping(
            ours[0][left],
            ours[1][left],
            ours[2][left],
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


@compiled
def _graph_side(features: Bytes, graph_bonds: Bytes) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Of the graph: number, charge, hydrogens [3, atoms], bonds [bonds, 3] with orders, which atoms have stereo."""
    atoms, bonds = np.empty((3, len(features)), np.int64), np.empty((len(graph_bonds), 3), np.int64)
    for atom in range(len(features)):
        atoms[0, atom] = int(features[atom, 0]) + 1
        atoms[1, atom] = int(features[atom, 3]) - 5
        atoms[2, atom] = features[atom, 4]
    stereo = features[:, 1] > 0
    for bond in range(len(graph_bonds)):
        begin, end, code = graph_bonds[bond, 0], graph_bonds[bond, 1], int(graph_bonds[bond, 2]) - 1
        bonds[bond, 0], bonds[bond, 1], bonds[bond, 2] = begin, end, code // 12 + 1
        if code // 2 % 6 > 0:
            stereo[begin] = stereo[end] = True
        atoms[2, begin] += atoms[0, end] == 1
        atoms[2, end] += atoms[0, begin] == 1
    return atoms, bonds, stereo


@compiled
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


@compiled
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


@compiled
def _first(values: Numbers, wanted: int) -> int:
    for index in range(len(values)):
        if values[index] == wanted:
            return index
    return -1

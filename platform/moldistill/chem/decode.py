"""RDKit's own bytes (`Mol.ToBinary` without properties) → features, compiled, many molecules at a time.

The layout is that of pickle versions 16.2 to 16.4, read off by experiment; it is no public contract. What is not
understood is left to the caller, and `featurize.decoding_works` holds it to table look-ups before it is relied on.

Header (30 bytes): magic, version, numbers of atoms (byte 20) and bonds (byte 24). Atoms: atomic number, flags, which
fields follow (4 bytes), fields. Marker, bonds: begin, end, flags, fields. Marker, rings: size and atoms of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moldistill.core.compiled import compiled

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_HEADER = 30
_MAGIC = (0xEF, 0xBE, 0xAD, 0xDE)
_MAJOR, _OLDEST, _NEWEST = 16, 2, 4
_ATOMS_END, _RINGS = 0x0B, 0x42
_STRANGE_ATOM = 0b11110  # a query, or something else that table look-ups understand better
_STRANGE_BOND = 0b10010001


@compiled
def measure(data: Bytes, ends: Numbers, atoms: Numbers, bonds: Numbers, limit: int) -> None:
    """Numbers of atoms and bonds of each molecule by its header; 0 atoms for what `decode` cannot read.

    Molecule i is data[ends[i] : ends[i + 1]].
    """
    for row in range(len(atoms)):
        start = ends[row]
        atoms[row] = bonds[row] = 0
        if ends[row + 1] - start < _HEADER or not _known(data, start):
            continue
        count = _little(data, start + 20)
        if 0 < count <= limit:
            atoms[row] = count
            bonds[row] = _little(data, start + 24)


@compiled
def _known(data: Bytes, start: int) -> bool:
    for place in range(4):
        if data[start + place] != _MAGIC[place]:
            return False
    return _little(data, start + 8) == _MAJOR and _OLDEST <= _little(data, start + 12) <= _NEWEST


@compiled
def _little(data: Bytes, at: int) -> int:
    return int(data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24)


@compiled
def decode(
    data: Bytes,
    ends: Numbers,
    atom_ends: Numbers,
    bond_ends: Numbers,
    tables: Bytes,
    atom_features: Bytes,
    bonds: Bytes,
    readable: NDArray[np.bool_],
) -> None:
    """Fill atom_features [atoms, 9] and bonds [bonds, 3], given as zeros; readable says of which molecules.

    tables [5, 256]: index in OGB's vocabulary by RDKit's value of atomic number, chirality, hybridization, bond type
    and bond stereo.
    """
    for row in range(len(readable)):
        first, first_bond = atom_ends[row], bond_ends[row]
        readable[row] = _molecule(
            data[: ends[row + 1]],
            ends[row] + _HEADER,
            tables,
            atom_features[first : atom_ends[row + 1]],
            bonds[first_bond : bond_ends[row + 1]],
        )


@compiled
def _molecule(data: Bytes, at: int, tables: Bytes, features: Bytes, bonds: Bytes) -> bool:
    """Whether one molecule, from byte `at` to the end of `data`, was read whole."""
    if len(features) == 0:
        return False
    value = np.empty(8, np.int64)
    for atom in range(len(features)):
        at = _atom(data, at, tables, value, features[atom])
        if at < 0:
            return False
    if at >= len(data) or data[at] != _ATOMS_END:
        return False
    at += 1
    for bond in range(len(bonds)):
        at = _bond(data, at, tables, bonds[bond], len(features))
        if at < 0:
            return False
    if at + 5 > len(data) or data[at] != _RINGS:
        return False
    for bond in range(len(bonds)):  # ogb's degree: neighbours and hydrogens
        features[bonds[bond, 0], 2] += 1
        features[bonds[bond, 1], 2] += 1
    for atom in range(len(features)):
        features[atom, 2] = min(features[atom, 2], 11)
    return _rings(data, at + 1, features)


@compiled
def _atom(data: Bytes, at: int, tables: Bytes, value: Numbers, out: Bytes) -> int:
    """Read one atom into out [9], its degree without its neighbours; where it ends, or -1.

    value [8] is scratch. By bit of the fields: charge, chirality, hybridization, explicit hydrogens, explicit valence,
    implicit hydrogens, radicals.
    """
    if at + 6 > len(data):
        return -1
    flags, fields = data[at + 1], _little(data, at + 2)
    if flags & _STRANGE_ATOM or fields & 1 or fields >= 512:
        return -1
    out[0] = tables[0, data[at]]
    at += 6
    value[:] = 0
    value[3] = 4  # sp3 is not written
    for bit in range(1, 8):
        if fields >> bit & 1:
            if at >= len(data):
                return -1
            value[bit] = data[at]
            at += 1
    charge = value[1] - 256 if value[1] > 127 else value[1]
    hydrogens = value[4] + value[6]
    out[1] = tables[1, value[2]]
    out[2] = min(hydrogens, 11)
    out[3] = charge + 5 if -5 <= charge <= 5 else 11
    out[4] = min(hydrogens, 9)
    out[5] = min(value[7], 5)
    out[6] = tables[2, value[3]]
    out[7] = flags >> 6 & 1
    return at + 4 if fields & 256 else at  # the isotope


@compiled
def _bond(data: Bytes, at: int, tables: Bytes, out: Bytes, atoms: int) -> int:
    """Read one bond into out [3]; where it ends, or -1."""
    if at + 3 > len(data):
        return -1
    begin, end, flags = data[at], data[at + 1], data[at + 2]
    if begin >= atoms or end >= atoms or flags & _STRANGE_BOND:
        return -1
    at += 3
    kind, stereo = 1, 0
    if flags & 8:
        if at >= len(data):
            return -1
        kind = data[at] + 0
        at += 1
    if flags & 4:
        at += 1  # the direction
    if flags & 2:
        if at + 2 > len(data):
            return -1
        stereo = data[at] + 0
        at += 2 + data[at + 1]
    out[0], out[1] = begin, end
    out[2] = 1 + (tables[3, kind] * 6 + tables[4, stereo]) * 2 + (flags >> 5 & 1)
    return at


@compiled
def _rings(data: Bytes, at: int, features: Bytes) -> bool:
    """Mark the members of the rings that begin at byte `at`."""
    count = _little(data, at)
    at += 4
    for _ in range(count):
        if at >= len(data):
            return False
        size = data[at] + 0
        if at + 1 + size > len(data):
            return False
        for place in range(at + 1, at + 1 + size):
            if data[place] >= len(features):
                return False
            features[data[place], 8] = 1
        at += 1 + size
    return True


@compiled
def shortest_paths(atom_ends: Numbers, bond_ends: Numbers, bonds: Bytes, pair_ends: Numbers, paths: Bytes) -> None:
    """Fill paths [pairs], given as 255, with the bonds between atoms i < j of each molecule, in the order of (i, j).

    A breadth-first search from each atom.
    """
    neighbours, degree = np.empty((256, 256), np.uint8), np.empty(256, np.int64)
    distance, queue = np.empty(256, np.int64), np.empty(256, np.int64)
    for row in range(len(pair_ends) - 1):
        size = atom_ends[row + 1] - atom_ends[row]
        degree[:size] = 0
        for bond in range(bond_ends[row], bond_ends[row + 1]):
            i, j = bonds[bond, 0], bonds[bond, 1]
            neighbours[i, degree[i]] = j
            neighbours[j, degree[j]] = i
            degree[i] += 1
            degree[j] += 1
        out = pair_ends[row]
        for start in range(size - 1):
            distance[:size] = 255
            distance[start] = 0
            queue[0] = start
            taken, waiting = 0, 1
            while taken < waiting:
                here = queue[taken]
                taken += 1
                for place in range(degree[here]):
                    there = neighbours[here, place]
                    if distance[there] == 255:
                        distance[there] = distance[here] + 1
                        queue[waiting] = there
                        waiting += 1
            for end in range(start + 1, size):
                paths[out] = distance[end]
                out += 1

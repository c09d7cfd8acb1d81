"""Records of an SDF file (V2000), read in compiled code: elements, charges, bonds, hydrogens and positions.

Only what is plain is read. Whatever else a record may hold (queries, radicals, isotopes by mass difference, other
versions) is left to RDKit by the caller. Follows the fixed columns of the CTfile format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from moldistill.core.compiled import compiled

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

MAX_RECORD = 999
"""Atoms, and bonds, that the columns of V2000 can count."""

_SPACE, _MINUS, _POINT, _ZERO, _NEWLINE, _RETURN = 32, 45, 46, 48, 10, 13
_BAD = -(10**9)


def _symbols() -> Bytes:
    """Atomic number by 128 × first + second letter of the symbol (a space where there is none); 0 unknown."""
    table, periodic = np.zeros(128 * 128, np.uint8), Chem.GetPeriodicTable()
    for number in range(1, 119):
        symbol = periodic.GetElementSymbol(number).ljust(2)
        table[128 * ord(symbol[0]) + ord(symbol[1])] = number
    return table


SYMBOLS = _symbols()


@compiled
def read_record(
    data: Bytes, symbols: Bytes, number: Numbers, charge: Numbers, bonds: Numbers, positions: NDArray[np.float64]
) -> tuple[int, int]:
    """Fill number, charge [atoms], bonds [bonds, 3] (begin, end, order; 4 is aromatic) and positions [atoms, 3] (Å).

    Numbers of atoms and bonds, or (-1, -1) for a record that is not plain.
    """
    no = -1, -1
    at = 0
    for _ in range(3):
        at = _next_line(data, at)
    end = _line_end(data, at)
    if end - at < 39 or not _is(data, at + 34, (86, 50, 48, 48, 48)) or not _integers(data[:end], at, at + 33):  # V2000
        return no
    if _integer(data, at + 6, at + 9) != 0:  # atom lists
        return no
    atoms, count = _integer(data, at, at + 3), _integer(data, at + 3, at + 6)
    if not (0 < atoms <= MAX_RECORD and 0 <= count <= MAX_RECORD):
        return no
    for atom in range(atoms):
        at = _next_line(data, at)
        if not _read_atom(data[: _line_end(data, at)], at, symbols, number, charge, positions, atom):
            return no
    for bond in range(count):
        at = _next_line(data, at)
        if not _read_bond(data[: _line_end(data, at)], at, bonds, bond, atoms):
            return no
    return (atoms, count) if _read_properties(data, _next_line(data, at), charge[:atoms]) else no


@compiled
def _next_line(data: Bytes, at: int) -> int:
    while at < len(data) and data[at] != _NEWLINE:
        at += 1
    return min(at + 1, len(data))


@compiled
def _line_end(data: Bytes, at: int) -> int:
    begin = at
    while at < len(data) and data[at] != _NEWLINE:
        at += 1
    return at - 1 if at > begin and data[at - 1] == _RETURN else at


@compiled
def _is(data: Bytes, at: int, text: Any) -> bool:
    if at + len(text) > len(data):
        return False
    same = True
    for place in range(len(text)):
        same &= data[at + place] == text[place]
    return same


@compiled
def _integer(line: Bytes, begin: int, end: int) -> int:
    """The number in columns begin to end; 0 where they are blank or past the line's end, _BAD for anything else."""
    end = min(end, len(line))
    while begin < end and line[begin] == _SPACE:
        begin += 1
    while end > begin and line[end - 1] == _SPACE:
        end -= 1
    if begin >= end:
        return 0
    negative = line[begin] == _MINUS
    if negative:
        begin += 1
    value = 0
    for place in range(begin, end):
        digit = line[place] - _ZERO
        if digit < 0 or digit > 9:
            return _BAD
        value = 10 * value + digit
    if begin == end:
        return _BAD
    return -value if negative else value


@compiled
def _integers(line: Bytes, begin: int, end: int) -> bool:
    """Whether each three columns from begin to end hold a number or nothing."""
    fine = True
    for at in range(begin, end, 3):
        fine &= _integer(line, at, at + 3) != _BAD
    return fine


@compiled
def _decimal(line: Bytes, begin: int, end: int) -> float:
    """The number in columns begin to end, NaN for anything but a plain decimal.

    Digits and power of ten are exact, so that their quotient is the double nearest to the text.
    """
    while begin < end and line[begin] == _SPACE:
        begin += 1
    negative = begin < end and line[begin] == _MINUS
    if negative:
        begin += 1
    digits, scale, point, read = 0, 1, False, 0
    for place in range(begin, end):
        if line[place] == _POINT and not point:
            point = True
            continue
        digit = line[place] - _ZERO
        if digit < 0 or digit > 9:
            return np.nan
        digits = 10 * digits + digit
        scale *= 10 if point else 1
        read += 1
    if read == 0 or not point:
        return np.nan
    value = float(digits) / float(scale)
    return -value if negative else value


@compiled
def _read_atom(
    line: Bytes,
    at: int,
    symbols: Bytes,
    number: Numbers,
    charge: Numbers,
    positions: NDArray[np.float64],
    atom: int,
) -> bool:
    if len(line) - at < 32 or line[at + 30] != _SPACE:
        return False
    for axis in range(3):
        value = _decimal(line, at + 10 * axis, at + 10 * axis + 10)
        if np.isnan(value):
            return False
        positions[atom, axis] = value
    first = line[at + 31]
    second = line[at + 32] if len(line) > at + 32 else np.uint8(_SPACE)
    third = line[at + 33] if len(line) > at + 33 else np.uint8(_SPACE)
    if first >= 128 or second >= 128 or third != _SPACE:
        return False
    number[atom] = symbols[128 * int(first) + int(second)]
    code = _integer(line, at + 36, at + 39)
    charge[atom] = 4 - code if code != 0 else 0
    # Mass difference, hydrogen count and valence change what RDKit makes of an atom, code 4 makes it a radical.
    plain = _integer(line, at + 34, at + 36) == 0 and _integer(line, at + 42, at + 45) == 0
    plain &= _integer(line, at + 48, at + 51) == 0 and _integers(line, at + 36, at + 69) and len(line) <= at + 69
    return number[atom] > 0 and plain and 0 <= code <= 7 and code != 4


@compiled
def _read_bond(line: Bytes, at: int, bonds: Numbers, bond: int, atoms: int) -> bool:
    begin, end, order = _integer(line, at, at + 3), _integer(line, at + 3, at + 6), _integer(line, at + 6, at + 9)
    bonds[bond, 0], bonds[bond, 1], bonds[bond, 2] = begin - 1, end - 1, order
    if not (1 <= begin <= atoms and 1 <= end <= atoms and begin != end and 1 <= order <= 4):
        return False
    for other in range(bond):
        same = bonds[other, 0] == begin - 1 and bonds[other, 1] == end - 1
        if same or (bonds[other, 1] == begin - 1 and bonds[other, 0] == end - 1):
            return False
    # Topology and reacting centre make queries.
    plain = _integer(line, at + 15, at + 18) == 0 and _integer(line, at + 18, at + 21) == 0
    return plain and _integers(line, at + 9, at + 15) and len(line) <= at + 21


@compiled
def _read_properties(data: Bytes, at: int, charge: Numbers) -> bool:
    """Take over the charges of the lines before `M  END`; whether there was nothing else that matters."""
    charged = False
    while at < len(data):
        line = data[: _line_end(data, at)]
        if _is(line, at, (77, 32, 32, 69, 78, 68)):  # M  END
            return True
        if _is(line, at, (77, 32, 32, 67, 72, 71)):  # M  CHG: replaces all charges of the atom block
            if not charged:
                charge[:] = 0
            charged = True
            count = _integer(line, at + 6, at + 9)
            if not 0 <= count <= 8:
                return False
            for entry in range(count):
                start = at + 9 + 8 * entry
                if not (_digit(line, start + 3) and _digit(line, start + 7)):
                    return False
                atom, value = _integer(line, start, start + 4), _integer(line, start + 4, start + 8)
                if not (1 <= atom <= len(charge) and -15 <= value <= 15):
                    return False
                charge[atom - 1] = value
        else:
            return False
        at = _next_line(data, at)
    return False


@compiled
def _digit(line: Bytes, at: int) -> bool:
    return at < len(line) and _ZERO <= line[at] <= _ZERO + 9


@compiled
def count_hydrogens(number: Numbers, charge: Numbers, bonds: Numbers, hydrogens: Numbers) -> bool:
    """Fill hydrogens [atoms]: those bound, or, in a record without any, those that valences leave.

    False where the valence is not one of the common ones, which RDKit knows better. An ion has the valences of the
    neutral element with as many electrons (N+ those of C), as in RDKit.
    """
    hydrogens[:] = 0
    if (number == 1).any():
        for bond in range(len(bonds)):
            i, j = bonds[bond, 0], bonds[bond, 1]
            hydrogens[i] += number[j] == 1
            hydrogens[j] += number[i] == 1
        return True
    for bond in range(len(bonds)):
        if bonds[bond, 2] == 4:
            return False
        hydrogens[bonds[bond, 0]] += bonds[bond, 2]
        hydrogens[bonds[bond, 1]] += bonds[bond, 2]
    for atom in range(len(number)):
        electrons = number[atom] - charge[atom]
        common = _valences(number[atom]) > 0 and _valences(electrons) > 0 and abs(charge[atom]) <= 1
        if not common or (number[atom] == 16 and charge[atom] < 0):  # RDKit lets S- have more bonds than chlorine
            return False
        hydrogens[atom] = _missing(electrons, hydrogens[atom])
    return True


@compiled
def _valences(number: int) -> int:
    """The lowest valence of a common element; 0 for others. Boron is left out: its ions follow other rules."""
    if number == 6 or number == 14:
        return 4
    if number == 7 or number == 15:
        return 3
    if number == 8 or number == 16:
        return 2
    if number == 9 or number == 17 or number == 35 or number == 53:
        return 1
    return 0


@compiled
def _missing(number: int, bonded: int) -> int:
    """Hydrogens that bring `bonded` up to the nearest valence of the element; 0 above the highest."""
    lowest = _valences(number)
    highest = lowest
    if number == 15:
        highest = 5
    elif number == 16:
        highest = 6
    elif number == 53:
        highest = 5
    for valence in range(lowest, highest + 1, 2):
        if bonded <= valence:
            return valence - bonded
    return 0

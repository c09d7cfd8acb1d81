"""Isomorphisms of small molecular graphs, compiled.

Colours are refined over both graphs at once (Weisfeiler and Leman), then atoms are assigned in an order in which each
has an assigned neighbour, going back where that fails. Refinement leaves almost nothing to go back over in molecules.
A graph is four arrays: number, charge, hydrogens [atoms] and bonds [bonds, 3] (begin, end, code; code 4 is aromatic).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.compiled import compiled

Integers = NDArray[np.int64]
Mapping = NDArray[np.int64]
Matrix = NDArray[np.int8]

_AROMATIC = 4
_OTHER = 5
_MAX_STEPS = 200_000  # of the search, far above what molecules need; then the graphs count as different


@compiled
def find_mapping(
    number: Integers,
    charge: Integers,
    hydrogens: Integers,
    bonds: Integers,
    number_2: Integers,
    charge_2: Integers,
    hydrogens_2: Integers,
    bonds_2: Integers,
    strict: bool,
) -> tuple[Mapping, NDArray[np.bool_]]:
    """Atom of graph 2 for each atom of graph 1 (empty if there is none), and which atoms are tied with others.

    The identity is taken where it is an isomorphism. strict: charges and bond codes agree too, except that an aromatic
    bond of graph 1 may be single or double in graph 2, which may be written with alternating bonds.
    """
    n = len(number)
    none = np.empty(0, np.int64)
    tied = np.zeros(n, np.bool_)
    if n != len(number_2) or len(bonds) != len(bonds_2) or n == 0:
        return none, tied
    identity = np.arange(n)
    if is_mapping(number, charge, hydrogens, bonds, number_2, charge_2, hydrogens_2, bonds_2, identity, strict):
        return identity, tied
    colours = _refined(
        _first_colours(number, charge, hydrogens, strict),
        bonds,
        _first_colours(number_2, charge_2, hydrogens_2, strict),
        bonds_2,
    )
    if not (np.sort(colours[:n]) == np.sort(colours[n:])).all():
        return none, tied
    for i in range(n):
        tied[i] = (colours[:n] == colours[i]).sum() > 1
    return _search(colours, _matrix(n, bonds), _matrix(n, bonds_2), strict), tied


@compiled
def is_mapping(
    number: Integers,
    charge: Integers,
    hydrogens: Integers,
    bonds: Integers,
    number_2: Integers,
    charge_2: Integers,
    hydrogens_2: Integers,
    bonds_2: Integers,
    mapping: Mapping,
    strict: bool,
) -> bool:
    """Whether `mapping`, a permutation, is an isomorphism of graph 1 onto graph 2 in the sense of `find_mapping`."""
    for i in range(len(mapping)):
        j = mapping[i]
        if number[i] != number_2[j] or hydrogens[i] != hydrogens_2[j] or (strict and charge[i] != charge_2[j]):
            return False
    matrix = _matrix(len(mapping), bonds_2)
    for bond in range(len(bonds)):
        code = matrix[mapping[bonds[bond, 0]], mapping[bonds[bond, 1]]]
        if not _agree(bonds[bond, 2], code, strict):
            return False
    return len(bonds) == len(bonds_2)


@compiled
def _agree(code: int, code_2: int, strict: bool) -> bool:
    if code_2 == 0:
        return False
    if not strict or code == _OTHER:
        return True
    if code == code_2:
        return True
    return bool(code == _AROMATIC and code_2 <= 2)


@compiled
def _matrix(n: int, bonds: Integers) -> Matrix:
    matrix = np.zeros((n, n), np.int8)
    for bond in range(len(bonds)):
        matrix[bonds[bond, 0], bonds[bond, 1]] = bonds[bond, 2]
        matrix[bonds[bond, 1], bonds[bond, 0]] = bonds[bond, 2]
    return matrix


@compiled
def _first_colours(number: Integers, charge: Integers, hydrogens: Integers, strict: bool) -> Integers:
    return number + 256 * hydrogens + (65536 * (charge + 128) if strict else 0 * charge)


@compiled
def _refined(colours: Integers, bonds: Integers, colours_2: Integers, bonds_2: Integers) -> Integers:
    """Colours of the atoms of graph 1 and then of graph 2, refined until no class splits any more."""
    n = len(colours)
    both = _dense(np.concatenate((colours, colours_2)))
    classes = both.max()
    while True:
        # The sum over neighbours of a scrambled colour stands for their multiset.
        sums = np.zeros(2 * n, np.int64)
        for bond in range(len(bonds)):
            i, j = bonds[bond, 0], bonds[bond, 1]
            sums[i] += _scramble(both[j])
            sums[j] += _scramble(both[i])
            i, j = bonds_2[bond, 0] + n, bonds_2[bond, 1] + n
            sums[i] += _scramble(both[j])
            sums[j] += _scramble(both[i])
        for i in range(2 * n):
            sums[i] = _scramble(sums[i]) * 31 + both[i]
        both = _dense(sums)
        if both.max() <= classes:
            return both
        classes = both.max()


@compiled
def _scramble(value: int) -> int:
    """Multiplicative hashing; int64 arithmetic wraps."""
    value = (value + 0x9E3779B97F4A7C1) * 0x2545F4914F6CDD1D
    value ^= value >> 29
    return value * 0x369DEA0F31A53F85


@compiled
def _dense(values: Integers) -> Integers:
    """Each value replaced by its rank among the different values."""
    return np.searchsorted(np.unique(values), values)


@compiled
def _order(colours: Integers, matrix: Matrix) -> tuple[Mapping, Mapping]:
    """Atoms so that each follows a neighbour (its anchor) where its fragment has begun; rare colours begin."""
    n = len(matrix)
    order, anchor = np.empty(n, np.int64), np.full(n, -1)
    placed = np.zeros(n, np.bool_)
    rarity = np.array([(colours[:n] == colours[i]).sum() for i in range(n)])
    for place in range(n):
        best = -1
        for i in range(n):
            if placed[i]:
                continue
            # Atoms with an anchor first, then those whose colour is rare.
            if best < 0 or (anchor[i] >= 0, -rarity[i]) > (anchor[best] >= 0, -rarity[best]):
                best = i
        order[place] = best
        placed[best] = True
        for i in range(n):
            if matrix[best, i] and not placed[i] and anchor[i] < 0:
                anchor[i] = best
    return order, anchor


@compiled
def _search(colours: Integers, matrix: Matrix, matrix_2: Matrix, strict: bool) -> Any:
    n = len(matrix)
    order, anchor = _order(colours, matrix)
    mapping, used = np.full(n, -1), np.zeros(n, np.bool_)
    following = np.zeros(n, np.int64)  # next candidate to try, by place in the order
    place = steps = 0
    while 0 <= place < n:
        atom = order[place]
        if mapping[atom] >= 0:  # come back to: give up the candidate held
            used[mapping[atom]] = False
            mapping[atom] = -1
        candidate = following[place]
        while candidate < n and not _fits(
            atom, candidate, anchor[atom], colours, matrix, matrix_2, mapping, used, strict
        ):
            candidate += 1
        steps += 1
        if steps > _MAX_STEPS:
            return np.empty(0, np.int64)
        if candidate == n:
            following[place] = 0
            place -= 1
            continue
        mapping[atom] = candidate
        used[candidate] = True
        following[place] = candidate + 1
        place += 1
    return mapping if place == n else np.empty(0, np.int64)


@compiled
def _fits(
    atom: int,
    candidate: int,
    anchor: int,
    colours: Integers,
    matrix: Matrix,
    matrix_2: Matrix,
    mapping: Mapping,
    used: NDArray[np.bool_],
    strict: bool,
) -> bool:
    """Whether `candidate` can stand for `atom` beside what is mapped already."""
    n = len(matrix)
    if used[candidate] or colours[atom] != colours[n + candidate]:
        return False
    if anchor >= 0 and not matrix_2[mapping[anchor], candidate]:
        return False
    for other in range(n):
        met = matrix[atom, other] and mapping[other] >= 0
        if met and not _agree(matrix[atom, other], matrix_2[candidate, mapping[other]], strict):
            return False
    return True

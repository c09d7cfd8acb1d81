"""A 64-bit hash of each row's molecule that equal molecules share whatever the order of their atoms, compiled.

Colours of atoms are refined over their neighbours (Weisfeiler and Leman), from what two SMILES of a molecule agree on:
element, degree, charge, hydrogens, radicals, aromaticity, ring membership, type of bonds. Chirality tags depend on the
order of atoms, hybridization and conjugation follow from the rest, and isotopes are not in the store: they are left
out. So equal molecules have equal hashes, and most others, but for stereoisomers and isotopes, have not.

No Python objects inside the kernels, so that the GIL is released; outside jaxtyping's import hook.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moldistill.core.compiled import compiled
from moldistill.core.vocabulary import BOND_FEATURES_OF_CODE, FLAGS, FLAGS_WITH_GRAPH, MAX_ATOMS
from moldistill.data.passes import blocks, damaged, release
from moldistill.data.store import Store

Offsets = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

ROUNDS = 8
"""Bonds that the environment of an atom reaches; with more, no pair of molecules was told apart in the sets tried."""

NO_MOLECULE = FLAGS.index("empty")
"""Flag of rows without atoms, which are equal to nothing."""

_KINDS = np.array([features[0] for features in BOND_FEATURES_OF_CODE], np.uint8)
_WORD = np.uint64
_GOLDEN = _WORD(0x9E3779B97F4A7C15)
_SCRATCH = MAX_ATOMS + 1


def row_hashes(store: Store) -> Hashes:
    """Hash of every row's molecule, [rows]; of the text where there is no graph.

    Rows of different flags differ. Raises InputError where a bond leads out of its molecule or has no known code.
    """
    hashes = np.zeros(len(store), np.uint64)
    for block in blocks(len(store)):
        wrong = hash_graphs(
            block.start,
            store.flag[block],
            store.atom_offsets,
            store.bond_offsets,
            store.atom_features,
            store.bonds,
            _KINDS,
            hashes[block],
        )
        if wrong >= 0:
            raise damaged(store, "bonds", f"a bond in row {wrong} that leads nowhere", "two atoms and a code")
        texts = block.start + np.flatnonzero(~np.isin(store.flag[block], FLAGS_WITH_GRAPH))
        hashes[texts] = text_hashes(store, texts)
        release(store.atom_offsets, store.bond_offsets, store.atom_features, store.bonds)
    return hashes


def text_hashes(store: Store, rows: Offsets) -> Hashes:
    """Hash of the SMILES of each of `rows`, as written."""
    out = np.zeros(len(rows), np.uint64)
    for block in blocks(len(rows)):
        hash_texts(rows[block], store.smiles_offsets, store.smiles_bytes, out[block])
        release(store.smiles_offsets, store.smiles_bytes)
    return out


@compiled
def _scrambled(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> _WORD(30))) * _WORD(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _WORD(27))) * _WORD(0x94D049BB133111EB)
    return value ^ (value >> _WORD(31))


@compiled
def hash_graphs(
    first: int,
    flag: Bytes,
    atom_offsets: Offsets,
    bond_offsets: Offsets,
    atom_features: Bytes,
    bonds: Bytes,
    kinds: Bytes,
    out: Hashes,
) -> int:
    """Fill out [rows] for the rows from `first` on, whose flags are given. kinds: bond type by bond code.

    Returns the row of the first bond that is wrong, or -1. Offsets must be right, with at most MAX_ATOMS atoms a row.
    """
    colour, sums = np.empty(_SCRATCH, np.uint64), np.empty(_SCRATCH, np.uint64)
    for place in range(len(out)):
        row = first + place
        start = atom_offsets[row]
        size = atom_offsets[row + 1] - start
        for bond in range(bond_offsets[row], bond_offsets[row + 1]):
            if bonds[bond, 0] >= size or bonds[bond, 1] >= size or bonds[bond, 2] >= len(kinds):
                return row
        for atom in range(size):
            colour[atom] = _first_colour(atom_features[start + atom])
        for _ in range(min(size, ROUNDS)):
            _refine(colour, sums, size, bonds[bond_offsets[row] : bond_offsets[row + 1]], kinds)
        total = _WORD(size) * _GOLDEN + _WORD(flag[place])
        for atom in range(size):
            total += _scrambled(colour[atom] + _GOLDEN)
        out[place] = _scrambled(total)
    return -1


@compiled
def _first_colour(features: Bytes) -> np.uint64:
    """The features of an atom that do not depend on how a molecule is written, 7 bits each."""
    packed = _WORD(0)
    for feature in (0, 2, 3, 4, 5, 7, 8):
        packed = (packed << _WORD(7)) | _WORD(features[feature])
    return _scrambled(packed + _GOLDEN)


@compiled
def _refine(colour: Hashes, sums: Hashes, size: int, bonds: Bytes, kinds: Bytes) -> None:
    """One round: the sum of scrambled colours over neighbours stands for their multiset."""
    for atom in range(size):
        sums[atom] = _WORD(0)
    for bond in range(len(bonds)):
        begin, end = bonds[bond, 0], bonds[bond, 1]
        kind = _WORD(kinds[bonds[bond, 2]] + 1) * _GOLDEN
        sums[begin] += _scrambled(colour[end] + kind)
        sums[end] += _scrambled(colour[begin] + kind)
    for atom in range(size):
        colour[atom] = _scrambled(colour[atom] * _GOLDEN + sums[atom])


@compiled
def hash_texts(rows: Offsets, smiles_offsets: Offsets, smiles_bytes: Bytes, out: Hashes) -> None:
    """Fill out [rows] with the hash of each row's SMILES."""
    for place in range(len(rows)):
        value = _WORD(0xCBF29CE484222325)
        for at in range(smiles_offsets[rows[place]], smiles_offsets[rows[place] + 1]):
            value = (value ^ _WORD(smiles_bytes[at])) * _WORD(0x100000001B3)
        out[place] = _scrambled(value)


@compiled
def mark_new_texts(
    rows: Offsets, order: Offsets, smiles_offsets: Offsets, smiles_bytes: Bytes, new: NDArray[np.bool_]
) -> None:
    """Set new[i] where the SMILES of rows[order[i]] is another than the one before in that order, byte by byte."""
    for place in range(1, len(order)):
        if new[place]:
            continue
        row, other = rows[order[place]], rows[order[place - 1]]
        here, before = smiles_offsets[row], smiles_offsets[other]
        length = smiles_offsets[row + 1] - here
        if length != smiles_offsets[other + 1] - before:
            new[place] = True
            continue
        for at in range(length):
            if smiles_bytes[here + at] != smiles_bytes[before + at]:
                new[place] = True
                break

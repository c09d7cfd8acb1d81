"""Many SMILES → the columns of their graphs, at the speed of RDKit's parser: its bytes are decoded in compiled code.

Equal to `features.smiles_to_graph`, molecule by molecule, which takes over wherever the bytes are not understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import rdkit
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from moldistill.chem import features
from moldistill.chem.decode import decode, measure, shortest_paths
from moldistill.chem.features import Graph, molecule_to_graph, smiles_to_graph
from moldistill.chem.parse import LONG, parse
from moldistill.core.progress import log
from moldistill.core.shapes import Bool, Int, UInt8
from moldistill.core.vocabulary import MAX_ATOMS, UNREACHABLE

_NO_PROPERTIES = int(Chem.PropertyPickleOptions.NoProps)


def _tables() -> UInt8[np.ndarray, "5 256"]:
    lists = (
        features.ATOMIC_NUMBER_INDEX,
        features.CHIRALITY_INDEX,
        features.HYBRIDIZATION_INDEX,
        features.BOND_TYPE_INDEX,
        features.BOND_STEREO_INDEX,
    )
    tables = np.zeros((len(lists), 256), np.uint8)
    for table, values in zip(tables, lists, strict=True):
        table[:] = values[-1]
        table[: len(values)] = values
    return tables


_TABLES = _tables()


@dataclass(frozen=True, slots=True)
class Graphs:
    """Graphs of consecutive rows, joined; row i has atom_count[i] atoms, bond_count[i] bonds and n (n - 1) / 2 pairs.

    bonds: (begin, end, `vocabulary.bond_code`). shortest_paths: bonds between atoms i < j, in the order of (i, j), 255
    where unreachable. reasons: why a row is flagged, by its place.
    """

    flag: UInt8[np.ndarray, " rows"]
    atom_count: Int[np.ndarray, " rows"]
    bond_count: Int[np.ndarray, " rows"]
    atom_features: UInt8[np.ndarray, "atoms 9"]
    bonds: UInt8[np.ndarray, "bonds 3"]
    shortest_paths: UInt8[np.ndarray, " pairs"]
    reasons: Mapping[int, str]


def featurize(smiles: Sequence[str]) -> Graphs:
    """Graphs of many SMILES, in their order; never raises for any text."""
    read = _read(_binaries(smiles) if decoding_works() else [b""] * len(smiles))
    others = {row: smiles_to_graph(smiles[row]) for row in np.flatnonzero(~read.readable).tolist()}
    return _joined(read, others)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What `decode` made of RDKit's bytes; nothing of use in rows that are not readable."""

    atom_count: Int[np.ndarray, " rows"]
    bond_count: Int[np.ndarray, " rows"]
    atom_features: UInt8[np.ndarray, "atoms 9"]
    bonds: UInt8[np.ndarray, "bonds 3"]
    readable: Bool[np.ndarray, " rows"]


def _read(blobs: Sequence[bytes]) -> _Decoded:
    ends = offsets(np.fromiter(map(len, blobs), np.int64, len(blobs)))
    data = np.frombuffer(b"".join(blobs), np.uint8)
    atom_count, bond_count = np.zeros((2, len(blobs)), np.int64)
    measure(data, ends, atom_count, bond_count, MAX_ATOMS)
    atom_ends, bond_ends = offsets(atom_count), offsets(bond_count)
    atoms, bonds = np.zeros((atom_ends[-1], 9), np.uint8), np.zeros((bond_ends[-1], 3), np.uint8)
    readable = np.zeros(len(blobs), np.bool_)
    decode(data, ends, atom_ends, bond_ends, _TABLES, atoms, bonds, readable)
    return _Decoded(atom_count, bond_count, atoms, bonds, readable)


def _binaries(smiles: Sequence[str]) -> list[bytes]:
    """RDKit's bytes of each molecule; none where it cannot be read, or would take long."""
    blobs = []
    with rdBase.BlockLogs():
        for text in smiles:
            molecule = parse(text) if len(text) < LONG else None
            blobs.append(b"" if molecule is None else molecule.ToBinary(_NO_PROPERTIES))
    return blobs


def offsets(counts: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows_and_one"]:
    """Where each row begins, and where the last one ends."""
    ends: NDArray[np.int64] = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def _joined(read: _Decoded, others: Mapping[int, Graph]) -> Graphs:
    """Columns in which the rows of `others`, ascending, stand in place of what was read, and all shortest paths."""
    flag, atom_count, bond_count = np.zeros(len(read.readable), np.uint8), read.atom_count, read.bond_count
    atoms = spliced(
        read.atom_features, offsets(atom_count), {row: graph.atom_features for row, graph in others.items()}
    )
    bonds = spliced(read.bonds, offsets(bond_count), {row: graph.bonds for row, graph in others.items()})
    for row, graph in others.items():
        flag[row], atom_count[row], bond_count[row] = graph.flag, len(graph.atom_features), len(graph.bonds)
    pair_ends = offsets(pairs(atom_count))
    paths = np.full(pair_ends[-1], UNREACHABLE, np.uint8)
    shortest_paths(offsets(atom_count), offsets(bond_count), bonds, pair_ends, paths)
    reasons = {row: graph.reason for row, graph in others.items() if graph.flag != features.FINE}
    return Graphs(flag, atom_count, bond_count, atoms, bonds, paths, reasons)


def spliced(values: Any, ends: Int[np.ndarray, " rows_and_one"], others: Mapping[int, Any]) -> Any:
    """`values` (row i has those from ends[i] to ends[i + 1]) with those of `others`, ascending rows, replaced."""
    if not others:
        return values
    parts, done = [], 0
    for row, replacement in others.items():
        parts += [values[ends[done] : ends[row]], replacement]
        done = row + 1
    return np.concatenate([*parts, values[ends[done] :]])


def pairs(atoms: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Number of pairs of different atoms."""
    count: Int[np.ndarray, " rows"] = atoms * (atoms - 1) // 2
    return count


_PROBES = (
    "CCO",
    "c1cc[nH]c1",
    "C[C@H](N)C(=O)O",
    "F/C=C/F",
    "F/C=C\\F",
    "[13CH4]",
    "[2H]C([2H])O",
    "C[N+](=O)[O-]",
    "[NH4+].[Cl-]",
    "[CH2]C#C",
    "O=S(=O)(O)c1ccc2ccccc2c1",
    "FS(F)(F)(F)(F)F",
    "FP(F)(F)(F)F",
    "C1CC2CCC1CC2",
    "[O-][Cl+3]([O-])([O-])[O-]",
    "[Fe+2]",
    "[CH3-]",
    "C=C=C",
    "B",
    "[SiH3][SiH3]",
)
"""Molecules that between them have every field that `decode` reads."""


@cache
def decoding_works() -> bool:
    """Whether this RDKit writes the bytes that `decode` reads; said in the log, once, where it does not."""
    works = _probe(_PROBES)
    if not works:
        log(
            f"RDKit {rdkit.__version__} writes molecules in a form that is not known here: features are looked up atom "
            "by atom, which gives the same result and takes about three times as long"
        )
    return works


def _probe(smiles: Sequence[str]) -> bool:
    read = _read(_binaries(smiles))
    expected = [molecule_to_graph(Chem.MolFromSmiles(text)) for text in smiles]
    return (
        bool(read.readable.all())
        and np.array_equal(read.atom_features, np.concatenate([graph.atom_features for graph in expected]))
        and np.array_equal(read.bonds, np.concatenate([graph.bonds for graph in expected]))
    )

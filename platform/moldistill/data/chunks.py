"""A chunk of rows, from text to columns: what one task of a preparation does, in any process of the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moldistill.chem.align import MATCHED, SAME_ORDER
from moldistill.chem.featurize import Graphs, featurize
from moldistill.chem.placement import Alignments, Records, align_records
from moldistill.core.compiled import announce
from moldistill.core.shapes import Float, Int, UInt8


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """Rows of the store from `first` on: their SMILES, and the SDF record of each that has one."""

    first: int
    smiles: tuple[str, ...]
    records: Records


@dataclass(frozen=True, slots=True)
class Note:
    """Why a row is flagged, or has lost its positions."""

    row: int
    flag: int
    smiles: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """Columns of a chunk; counts say how many atoms, bonds, hydrogens and bytes of SMILES each row has.

    alignment: index into `align.CASES` for rows with a record, -1 for others. positions: Å, NaN where there are none.
    """

    flag: UInt8[np.ndarray, " rows"]
    alignment: Int[np.ndarray, " rows"]
    atom_count: Int[np.ndarray, " rows"]
    bond_count: Int[np.ndarray, " rows"]
    hydrogen_count: Int[np.ndarray, " rows"]
    byte_count: Int[np.ndarray, " rows"]
    atom_features: UInt8[np.ndarray, "atoms 9"]
    bonds: UInt8[np.ndarray, "bonds 3"]
    shortest_paths: UInt8[np.ndarray, " pairs"]
    positions: Float[np.ndarray, "atoms 3"]
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"]
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"]
    smiles_bytes: UInt8[np.ndarray, " bytes"]
    notes: tuple[Note, ...]

    @property
    def has_positions(self) -> NDArray[np.bool_]:
        """Which rows have a geometry."""
        return np.asarray((self.alignment == SAME_ORDER) | (self.alignment == MATCHED))


_METHANOL = b"""


  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.4000    0.0000    0.0000 O   0  0
  1  2  1  0
M  END
"""


def warm_up() -> None:
    """Compile all that `process` runs, so that the tasks of a cluster find it on the disk."""
    announce()
    process(ChunkTask(0, ("CO",), Records.of([_METHANOL])))


def process(task: ChunkTask) -> ChunkColumns:
    """Featurize and align the rows of a chunk. Never raises for any text."""
    graphs = featurize(task.smiles)
    placed = align_records(task.smiles, graphs, task.records)
    text = [smiles.encode() for smiles in task.smiles]
    return ChunkColumns(
        flag=graphs.flag,
        alignment=placed.case,
        atom_count=graphs.atom_count,
        bond_count=graphs.bond_count,
        hydrogen_count=placed.hydrogen_count,
        byte_count=np.fromiter(map(len, text), np.int64, len(text)),
        atom_features=graphs.atom_features,
        bonds=graphs.bonds,
        shortest_paths=graphs.shortest_paths,
        positions=placed.positions,
        hydrogen_positions=placed.hydrogen_positions,
        hydrogen_parent=placed.hydrogen_parent,
        smiles_bytes=np.frombuffer(b"".join(text), np.uint8),
        notes=tuple(_notes(task, graphs, placed)),
    )


def _notes(task: ChunkTask, graphs: Graphs, placed: Alignments) -> Iterator[Note]:
    for place in sorted({*graphs.reasons, *placed.reasons}):
        reason = graphs.reasons.get(place) or f"no positions: {placed.reasons[place]}"
        yield Note(task.first + place, int(graphs.flag[place]), task.smiles[place], reason)

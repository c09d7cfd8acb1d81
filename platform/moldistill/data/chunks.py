"""A chunk of rows, from text to columns: what one task of a preparation does, in any process of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.chem.align import MATCHED, SAME_ORDER, Alignment, align
from moldistill.chem.features import FINE, Graph, smiles_to_graph
from moldistill.core.shapes import Float, Int, UInt8


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """Rows of the store from `first` on: their SMILES, and the SDF record of each that has one."""

    first: int
    smiles: tuple[str, ...]
    records: tuple[bytes | None, ...]


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
    bond_index: UInt8[np.ndarray, "bonds 2"]
    bond_features: UInt8[np.ndarray, "bonds 3"]
    shortest_paths: UInt8[np.ndarray, " paths"]
    positions: Float[np.ndarray, "atoms 3"]
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"]
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"]
    smiles_bytes: UInt8[np.ndarray, " bytes"]
    notes: tuple[Note, ...]

    @property
    def has_positions(self) -> NDArray[np.bool_]:
        """Which rows have a geometry."""
        return np.isin(self.alignment, (SAME_ORDER, MATCHED))


def process(task: ChunkTask) -> ChunkColumns:
    """Featurize and align the rows of a chunk. Never raises for any text."""
    graphs = [smiles_to_graph(smiles) for smiles in task.smiles]
    alignments = [
        None if record is None else align(smiles, graph, record.decode("utf-8", "replace"))
        for smiles, graph, record in zip(task.smiles, graphs, task.records, strict=True)
    ]
    found = [item for item in alignments if item is not None]
    text = [smiles.encode() for smiles in task.smiles]
    return ChunkColumns(
        flag=np.array([graph.flag for graph in graphs], np.uint8),
        alignment=np.array([-1 if item is None else item.case for item in alignments], np.int8),
        atom_count=_counts(graphs, lambda graph: graph.atom_features),
        bond_count=_counts(graphs, lambda graph: graph.bond_index),
        hydrogen_count=np.array([0 if item is None else len(item.hydrogen_parent) for item in alignments], np.int64),
        byte_count=np.array([len(item) for item in text], np.int64),
        atom_features=_joined([graph.atom_features for graph in graphs], (0, 9), np.uint8),
        bond_index=_joined([graph.bond_index for graph in graphs], (0, 2), np.uint8),
        bond_features=_joined([graph.bond_features for graph in graphs], (0, 3), np.uint8),
        shortest_paths=_joined([graph.shortest_paths.ravel() for graph in graphs], (0,), np.uint8),
        positions=_joined(
            [_positions(graph, item) for graph, item in zip(graphs, alignments, strict=True)], (0, 3), np.float32
        ),
        hydrogen_positions=_joined([item.hydrogen_positions for item in found], (0, 3), np.float32),
        hydrogen_parent=_joined([item.hydrogen_parent for item in found], (0,), np.uint8),
        smiles_bytes=np.frombuffer(b"".join(text), np.uint8),
        notes=tuple(_notes(task, graphs, alignments)),
    )


def _counts(graphs: Sequence[Graph], part: Callable[[Graph], Any]) -> Int[np.ndarray, " rows"]:
    return np.array([len(part(graph)) for graph in graphs], np.int64)


def _joined(parts: Sequence[Any], empty: tuple[int, ...], dtype: type[np.generic]) -> Any:
    return np.concatenate([np.zeros(empty, dtype), *parts])


def _positions(graph: Graph, alignment: Alignment | None) -> Float[np.ndarray, "atoms 3"]:
    if alignment is not None and alignment.positions is not None:
        return alignment.positions
    return np.full((len(graph.atom_features), 3), np.nan, np.float32)


def _notes(task: ChunkTask, graphs: Sequence[Graph], alignments: Sequence[Alignment | None]) -> list[Note]:
    notes = []
    for offset, (smiles, graph, alignment) in enumerate(zip(task.smiles, graphs, alignments, strict=True)):
        row = task.first + offset
        if graph.flag != FINE:
            notes.append(Note(row, graph.flag, smiles, graph.reason))
        elif alignment is not None and alignment.positions is None:
            notes.append(Note(row, graph.flag, smiles, f"no positions: {alignment.reason}"))
    return notes

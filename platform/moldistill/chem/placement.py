"""Many SDF records at once: each one's positions put onto the atoms of its SMILES, in compiled code.

The same result as `align.align`, row by row; whatever is not plain is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moldistill.chem.align import Alignment, align
from moldistill.chem.features import Graph
from moldistill.chem.featurize import Graphs, offsets, spliced
from moldistill.chem.molblock import SYMBOLS
from moldistill.chem.placing import ASK, place_records
from moldistill.core.shapes import Bool, Float, Int, UInt8

NO_RECORD = -1


@dataclass(frozen=True, slots=True)
class Records:
    """SDF records of consecutive rows, joined; record i is data[ends[i] : ends[i + 1]] where `present`."""

    data: UInt8[np.ndarray, " bytes"]
    ends: Int[np.ndarray, " rows_and_one"]
    present: Bool[np.ndarray, " rows"]

    @classmethod
    def of(cls, records: Sequence[bytes | None]) -> Records:
        """Join single records; None where a row has none."""
        counts = np.array([len(record or b"") for record in records], np.int64)
        present = np.array([record is not None for record in records], np.bool_)
        joined = np.frombuffer(b"".join(record or b"" for record in records), np.uint8)
        return cls(joined, offsets(counts), present)


@dataclass(frozen=True, slots=True)
class Alignments:
    """Geometries of consecutive rows. case: index into `align.CASES`, -1 for rows without a record.

    positions (Å) are NaN where there are none. hydrogens are those that are no atoms of the graph, with the atom each
    is bound to. reasons: why a record gave no positions, by its row.
    """

    case: Int[np.ndarray, " rows"]
    positions: Float[np.ndarray, "atoms 3"]
    hydrogen_count: Int[np.ndarray, " rows"]
    hydrogen_positions: Float[np.ndarray, "hydrogens 3"]
    hydrogen_parent: UInt8[np.ndarray, " hydrogens"]
    reasons: Mapping[int, str] = field(default_factory=dict)


def align_records(smiles: Sequence[str], graphs: Graphs, records: Records) -> Alignments:
    """Align the records of many rows. Never raises for any text."""
    atom_ends, bond_ends = offsets(graphs.atom_count), offsets(graphs.bond_count)
    case = np.full(len(smiles), NO_RECORD, np.int8)
    positions = np.full((len(graphs.atom_features), 3), np.nan, np.float32)
    # A hydrogen takes a line of at least 32 bytes.
    room = int((np.diff(records.ends)[records.present] // 32 + 1).sum())
    hydrogen_count = np.zeros(len(smiles), np.int64)
    hydrogen_positions, hydrogen_parent = np.zeros((room, 3), np.float32), np.zeros(room, np.uint8)
    used = place_records(
        records.data,
        records.ends,
        records.present,
        SYMBOLS,
        atom_ends,
        bond_ends,
        graphs.atom_features,
        graphs.bonds,
        case,
        positions,
        hydrogen_count,
        hydrogen_positions,
        hydrogen_parent,
    )
    others: dict[int, Alignment] = {}
    for row in np.flatnonzero(case == ASK).tolist():
        atoms, bonds = slice(atom_ends[row], atom_ends[row + 1]), slice(bond_ends[row], bond_ends[row + 1])
        graph = Graph(int(graphs.flag[row]), "", graphs.atom_features[atoms], graphs.bonds[bonds])
        record = records.data[records.ends[row] : records.ends[row + 1]].tobytes().decode("utf-8", "replace")
        others[row] = found = align(smiles[row], graph, record)
        case[row] = found.case
        if found.positions is not None:
            positions[atoms] = found.positions
    ends = offsets(hydrogen_count)
    for row, found in others.items():
        hydrogen_count[row] = len(found.hydrogen_parent)
    return Alignments(
        case,
        positions,
        hydrogen_count,
        spliced(hydrogen_positions[:used], ends, {row: item.hydrogen_positions for row, item in others.items()}),
        spliced(hydrogen_parent[:used], ends, {row: item.hydrogen_parent for row, item in others.items()}),
        {row: item.reason for row, item in others.items() if item.positions is None},
    )

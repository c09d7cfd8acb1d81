"""A source to a store: rows in chunks over the processes of the cluster, written in order, with bounded memory."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rdkit
from numpy.typing import NDArray

from moldistill.chem.align import CASES
from moldistill.core.artifacts import Manifest, check_out, hash_file, new_folder, write_manifest
from moldistill.core.cluster import ordered_map
from moldistill.core.errors import RunError
from moldistill.core.progress import log, progress
from moldistill.core.settings import PrepareSettings
from moldistill.core.vocabulary import FLAGS, SPLITS, vocabulary_hash
from moldistill.data.chunks import ChunkColumns, Note, process
from moldistill.data.columns import COLUMNS, ColumnWriter
from moldistill.data.source import TRAIN, Source, open_source, read_tasks
from moldistill.data.splits import mark_valid_3d, sample_rows, split_hash
from moldistill.data.store import STORE_SCHEMA

CHUNK = 1000
"""Rows per task."""

FLAGGED = "flagged.csv"
"""Table of the rows that are flagged or lost their positions: row, source_row, flag, smiles, reason."""


def prepare(source: Path, out: Path, settings: PrepareSettings) -> Manifest:
    """Make the store `out` from a root in PCQM4Mv2's layout or a CSV of SMILES.

    Every source row (or every sampled one) has its row in the store, in order. Equal input and settings give the same
    content, whatever the number of processes. Runs on the Ray cluster that is up, else in this process.
    Raises InputError for a wrong source or folder.
    """
    out = check_out(Path(out))
    origin = open_source(Path(source), settings)
    rows = sample_rows(origin.split, settings.limit, settings.seed)
    selected = np.zeros(len(origin.split), np.bool_)
    selected[rows] = True
    try:
        with new_folder(out) as folder:
            tasks = read_tasks(origin, settings, selected, CHUNK)
            with progress("prepare", total=len(rows)) as bar, ColumnsWriter(folder) as writer:
                for chunk in ordered_map(process, tasks):
                    writer.append(chunk)
                    bar.advance(len(chunk.flag))
                target, split = origin.target[rows], origin.split[rows]
                eligible = writer.has_positions() & np.isfinite(target)
                split = mark_valid_3d(split, eligible, settings.valid_3d, settings.seed)
                writer.finish(rows, split, target)
            _write_flagged(folder / FLAGGED, writer.notes, rows)
            facts = _facts(origin, settings, rows, split, target, writer)
            manifest = write_manifest(
                folder,
                "store",
                files=[*(spec.file for spec in COLUMNS), FLAGGED],
                inputs={path.name: hash_file(path) for path in origin.files},
                facts=facts,
            )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"no space left while writing {out}", remedy="free disk space, then run again") from error
        raise
    _log_summary(facts)
    return manifest


class ColumnsWriter(ExitStack):
    """All columns of a store, appended chunk by chunk. What there is once per row is kept and written at the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._writers = {spec.name: self.enter_context(ColumnWriter(folder, spec)) for spec in COLUMNS}
        self._ends = dict.fromkeys(("atom", "bond", "path", "hydrogen", "smiles"), 0)
        for kind in self._ends:
            self._writers[f"{kind}_offsets"].append(np.zeros(1, np.int64))
        self._has_positions: list[NDArray[Any]] = []
        self.notes: list[Note] = []
        self.flags = np.zeros(len(FLAGS), np.int64)
        self.cases = np.zeros(len(CASES), np.int64)

    def append(self, chunk: ChunkColumns) -> None:
        """Write the next rows."""
        counts = {
            "atom": chunk.atom_count,
            "bond": chunk.bond_count,
            "path": chunk.atom_count**2,
            "hydrogen": chunk.hydrogen_count,
            "smiles": chunk.byte_count,
        }
        for kind, count in counts.items():
            ends = self._ends[kind] + np.cumsum(count)
            self._writers[f"{kind}_offsets"].append(ends)
            self._ends[kind] = int(ends[-1])
        for name in _COPIED:
            self._writers[name].append(getattr(chunk, name))
        self._has_positions.append(chunk.has_positions)
        self.notes.extend(chunk.notes)
        self.flags += np.bincount(chunk.flag, minlength=len(FLAGS))
        self.cases += np.bincount(chunk.alignment[chunk.alignment >= 0], minlength=len(CASES))

    def has_positions(self) -> NDArray[np.bool_]:
        """Which of the rows so far have a geometry."""
        return np.concatenate([np.zeros(0, np.bool_), *self._has_positions])

    def finish(self, rows: Any, split: Any, target: Any) -> None:
        """Write the columns that are known only now."""
        assert len(rows) == self._writers["flag"].length
        for name, values in (("row", rows), ("split", split), ("target", target)):
            self._writers[name].append(values)


_COPIED = (
    "flag",
    "has_positions",
    "atom_features",
    "bond_index",
    "bond_features",
    "shortest_paths",
    "positions",
    "hydrogen_positions",
    "hydrogen_parent",
    "smiles_bytes",
)


def _write_flagged(path: Path, notes: Sequence[Note], rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["row", "source_row", "flag", "smiles", "reason"])
        for note in notes:
            table.writerow([note.row, int(rows[note.row]), FLAGS[note.flag], note.smiles, note.reason])


def _facts(
    source: Source, settings: PrepareSettings, rows: Any, split: Any, target: Any, writer: ColumnsWriter
) -> dict[str, Any]:
    known = target[(split == TRAIN) & np.isfinite(target)]
    return {
        "store_schema": STORE_SCHEMA,
        "vocabulary": vocabulary_hash(),
        "split_hash": split_hash(rows, split),
        "source": {"kind": source.kind, "path": str(source.table), "rows": len(source.split)},
        "settings": asdict(settings),
        "rows": len(rows),
        "splits": {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
        | {"none": int((split < 0).sum())},
        "flags": dict(zip(FLAGS, writer.flags.tolist(), strict=True)),
        "alignment": dict(zip(CASES, writer.cases.tolist(), strict=True)),
        "target": dict(_statistics(known)),
        "rdkit": rdkit.__version__,
    }


def _statistics(known: Any) -> Iterator[tuple[str, float | int]]:
    """Statistics (eV) of the known targets of the training rows; only their count where there are none."""
    yield "known", len(known)
    if len(known):
        for name in ("mean", "std", "median", "min", "max"):
            yield name, float(getattr(np, name)(known))


def _log_summary(facts: dict[str, Any]) -> None:
    def counts(name: str) -> str:
        return ", ".join(f"{key} {value:,}" for key, value in facts[name].items() if value) or "none"

    log(f"{facts['rows']:,} rows. Splits: {counts('splits')}. Flags: {counts('flags')}.")
    log(f"SDF records: {counts('alignment')}.")
    if not facts["target"]["known"]:
        log("warning: no training row has a target: nothing can be trained on this store (--target names the column)")

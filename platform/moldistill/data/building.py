"""A store in the making: columns that grow chunk by chunk, and a ledger by which a killed process is continued.

The work lies beside the store to be, in `.NAME.preparing`: `store/` with the columns, `plan.json` (what is made of
what), `ledger.jsonl` (one line per chunk, written after its columns) and `lock`. A line names, for each file, how much
was appended and its CRC-32. So whatever moment a process or a machine stops at, the longest run of chunks that are
whole on disk is found again, and the rest cut off.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moldistill.chem.align import CASES
from moldistill.chem.featurize import pairs
from moldistill.core.artifacts import check_out, publish, read_json, write_json
from moldistill.core.errors import InputError
from moldistill.core.locking import exclusive
from moldistill.core.progress import log
from moldistill.core.vocabulary import FLAGS
from moldistill.data.chunks import ChunkColumns, Note
from moldistill.data.columns import COLUMNS, HEADER, ColumnWriter, Piece

FLAGGED = "flagged.csv"
"""Table of the rows that are flagged or lost their positions: row, source_row, flag, smiles, reason."""

PLAN, LEDGER, LOCK, STORE = "plan.json", "ledger.jsonl", "lock", "store"

_LATE = ("row", "split", "target")
"""Columns that are known, and written, only at the end."""

_GROWING = tuple(spec for spec in COLUMNS if spec.name not in _LATE)
_COPIED = tuple(
    spec.name for spec in _GROWING if not spec.name.endswith("_offsets")
)  # those that a chunk holds as they are
_COUNTED = ("atom", "bond", "pair", "hydrogen", "smiles")


@dataclass(frozen=True, slots=True)
class Line:
    """A chunk in the ledger: its rows, how many of them have each flag and alignment, and its piece of each file."""

    rows: int
    flags: tuple[int, ...]
    cases: tuple[int, ...]
    pieces: dict[str, Piece]

    def text(self) -> str:
        """One line of JSON."""
        pieces = {name: [piece.entries, piece.crc] for name, piece in self.pieces.items()}
        return json.dumps([self.rows, self.flags, self.cases, pieces], separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, text: str) -> Line | None:
        """The line, or None for one that was cut off."""
        try:
            rows, flags, cases, pieces = json.loads(text)
            return cls(rows, tuple(flags), tuple(cases), {name: Piece(*piece) for name, piece in pieces.items()})
        except (ValueError, TypeError, AttributeError):
            return None


@contextmanager
def building(out: Path, plan: dict[str, Any]) -> Iterator[Building]:
    """Make the store `out`, or go on with what an earlier process left of the same `plan`.

    `Building.publish` gives the folder its name. If the block raises an InputError (the source is wrong), the work is
    removed; after anything else it stays, to be continued. Raises InputError where another process makes `out`.
    """
    work = work_folder(out)
    try:
        with exclusive(work / LOCK, f"{out} is being prepared already"):
            try:
                check_out(out)  # again: another process may have finished it just now
                with Building(out, work, _kept_lines(work, plan)) as build:
                    yield build
            except InputError:
                _empty(work)
                raise
            if build.finished:
                _empty(work)
    finally:
        _remove_if_empty(work)


def work_folder(out: Path) -> Path:
    """Where the store `out` is made."""
    return out.parent / f".{out.name}.preparing"


def discard_remains(out: Path) -> None:
    """Remove what a process left that was killed just after it finished the store `out`."""
    if (work := work_folder(out)).is_dir():
        with exclusive(work / LOCK, f"{out} is being prepared already"):
            _empty(work)
        _remove_if_empty(work)


def _empty(work: Path) -> None:
    """Remove everything but the lock, which its holder gives up last."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _remove_if_empty(work: Path) -> None:
    with suppress(OSError):  # another process may have come
        work.rmdir()


def _kept_lines(work: Path, plan: dict[str, Any]) -> list[Line]:
    """The chunks that are whole on disk; none where the work is of another plan, which then is begun anew."""
    path = work / PLAN
    if path.is_file() and read_json(path) == json.loads(json.dumps(plan)):
        return _whole(work)
    if (work / LEDGER).is_file():
        log(f"an unfinished preparation of another source, other settings or another version is discarded: {work}")
    for name in (PLAN, LEDGER):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / STORE, ignore_errors=True)
    (work / STORE).mkdir()
    write_json(path, plan)
    return []


def _whole(work: Path) -> list[Line]:
    lines: list[Line] = []
    if (work / LEDGER).is_file():
        with (work / LEDGER).open(encoding="utf-8", errors="replace") as stream:
            for text in stream:
                line = Line.parse(text) if text.endswith("\n") else None
                if line is None:
                    break
                lines.append(line)
    (work / STORE).mkdir(exist_ok=True)
    for spec in _GROWING:
        start = HEADER + (spec.width if spec.name.endswith("_offsets") else 0)  # offsets begin with a 0 of no chunk
        lines = lines[: _intact(work / STORE / spec.file, lines, spec.file, spec.width, start)]
    return lines[: _intact(work / STORE / FLAGGED, lines, FLAGGED, 1, len(_table_header()))]


def _intact(path: Path, lines: Sequence[Line], name: str, width: int, start: int) -> int:
    """How many of the chunks, from the first on, lie in the file as the ledger says."""
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        stream.seek(start)
        for count, line in enumerate(lines):
            content = stream.read(line.pieces[name].entries * width)
            if len(content) != line.pieces[name].entries * width or zlib.crc32(content) != line.pieces[name].crc:
                return count
    return len(lines)


class Building(ExitStack):
    """The columns of a store in the making. rows, chunks: how much is done, earlier processes included."""

    def __init__(self, out: Path, work: Path, lines: Sequence[Line]) -> None:
        super().__init__()
        self.out, self.work, self.folder = out, work, work / STORE
        self.chunks, self.rows = len(lines), sum(line.rows for line in lines)
        self.flags = np.sum([line.flags for line in lines] or [(0,) * len(FLAGS)], axis=0)
        self.cases = np.sum([line.cases for line in lines] or [(0,) * len(CASES)], axis=0)
        self.finished = False
        entries = {name: sum(line.pieces[name].entries for line in lines) for name in _file_names()}
        self._writers = {spec.name: self._column(spec, entries[spec.file], bool(lines)) for spec in _GROWING}
        self._flagged = self.enter_context(self._table(entries[FLAGGED] if lines else None))
        self._ledger = self.enter_context(self._open_ledger(lines))
        self._ends = {kind: self._last(kind) if lines else 0 for kind in _COUNTED}

    def _column(self, spec: Any, entries: int, resumed: bool) -> ColumnWriter:
        if not spec.name.endswith("_offsets"):
            return self.enter_context(ColumnWriter(self.folder, spec, entries))
        writer = self.enter_context(ColumnWriter(self.folder, spec, entries + 1 if resumed else 0))
        if not resumed:
            writer.append(np.zeros(1, np.int64))
        return writer

    def _table(self, size: int | None) -> IO[bytes]:
        """The table of flagged rows, with `size` bytes of rows kept; None: a new one."""
        header = _table_header()
        path = self.folder / FLAGGED
        if size is None or not path.is_file():
            path.write_bytes(header)
        stream = path.open("r+b")
        stream.write(header)  # also over an old one, which no line of the ledger vouches for
        stream.truncate(len(header) + (size or 0))
        stream.seek(0, io.SEEK_END)
        return stream

    def _open_ledger(self, lines: Sequence[Line]) -> IO[str]:
        """The ledger, cut back to the lines that hold."""
        path = self.work / LEDGER
        if not lines:
            return path.open("w", encoding="utf-8")
        stream = path.open("r+", encoding="utf-8")
        stream.truncate(sum(len(line.text().encode()) for line in lines))
        stream.seek(0, io.SEEK_END)
        return stream

    def _last(self, kind: str) -> int:
        with (self.folder / f"{kind}_offsets.npy").open("rb") as stream:
            stream.seek(-8, io.SEEK_END)
            return int.from_bytes(stream.read(8), "little")

    def append(self, chunk: ChunkColumns, source_rows: NDArray[np.int64]) -> None:
        """Write the next rows; once this returns, they outlive the process. source_rows: of the whole store."""
        counts = {
            "atom": chunk.atom_count,
            "bond": chunk.bond_count,
            "pair": pairs(chunk.atom_count),
            "hydrogen": chunk.hydrogen_count,
            "smiles": chunk.byte_count,
        }
        pieces = {}
        for kind, count in counts.items():
            ends = self._ends[kind] + np.cumsum(count)
            pieces[f"{kind}_offsets.npy"] = self._writers[f"{kind}_offsets"].append(ends)
            self._ends[kind] = int(ends[-1])
        for name in _COPIED:
            pieces[f"{name}.npy"] = self._writers[name].append(getattr(chunk, name))
        table = _table_rows(chunk.notes, source_rows)
        self._flagged.write(table)
        pieces[FLAGGED] = Piece(len(table), zlib.crc32(table))
        flags = np.bincount(chunk.flag, minlength=len(FLAGS))
        cases = np.bincount(chunk.alignment[chunk.alignment >= 0], minlength=len(CASES))
        for writer in self._writers.values():
            writer.flush()
        self._flagged.flush()
        line = Line(len(chunk.flag), tuple(flags.tolist()), tuple(cases.tolist()), pieces)
        self._ledger.write(line.text())
        self._ledger.flush()
        self.flags, self.cases = self.flags + flags, self.cases + cases
        self.rows, self.chunks = self.rows + line.rows, self.chunks + 1

    def has_positions(self) -> NDArray[np.bool_]:
        """Which of the rows so far have a geometry."""
        return np.fromfile(self.folder / "has_positions.npy", np.bool_, offset=HEADER)

    def complete(self, late: dict[str, Any]) -> None:
        """Write the columns that are known only now, and close all."""
        assert sorted(late) == sorted(_LATE)
        for spec in COLUMNS:
            if spec.name in late:
                assert len(late[spec.name]) == self.rows
                with ColumnWriter(self.folder, spec) as writer:
                    writer.append(np.asarray(late[spec.name]))
        self._flagged.flush()
        os.fsync(self._flagged.fileno())
        self.close()

    def publish(self) -> None:
        """Give the folder, which has its manifest, the name of the store."""
        publish(self.folder, self.out)
        self.finished = True


def _file_names() -> list[str]:
    return [*(spec.file for spec in _GROWING), FLAGGED]


def _table_header() -> bytes:
    return b"row,source_row,flag,smiles,reason\n"


def _table_rows(notes: Sequence[Note], source_rows: NDArray[np.int64]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    for note in notes:
        table.writerow([note.row, int(source_rows[note.row]), FLAGS[note.flag], note.smiles, note.reason])
    return text.getvalue().encode("utf-8")

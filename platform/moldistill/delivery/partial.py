"""A table in the making: pieces that outlive the process, and a ledger by which a killed one is continued.

The work lies beside the table to be, in `.NAME.partial`: `rows` with the pieces, `plan.json` (what is made with what),
`ledger.jsonl` (one line per window, written after its piece) and `lock`. A line holds the CRC-32 of the window's input
and of its piece, so that whatever was whole, and still is what the input asks for, is kept, and the rest made anew.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

from moldistill.core.artifacts import FULL, read_json, write_json
from moldistill.core.errors import RunError
from moldistill.core.locking import exclusive
from moldistill.core.progress import log
from moldistill.delivery.engine import Predicted
from moldistill.delivery.featurizing import Window
from moldistill.delivery.output import Writer

PLAN, LEDGER, LOCK, ROWS, TABLE = "plan.json", "ledger.jsonl", "lock", "rows", "table"


@dataclass(frozen=True, slots=True)
class Line:
    """A window in the ledger: its rows, CRC-32 of its input, size and CRC-32 of its piece, rows refused and outside."""

    rows: int
    asked: int
    size: int
    crc: int
    refused: int
    outside: int

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(astuple(self), separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, text: str) -> Line | None:
        """The line, or None for one that was cut off."""
        try:
            values = json.loads(text)
            return cls(*values) if all(isinstance(value, int) for value in values) else None
        except (ValueError, TypeError):
            return None


def asked(window: Window) -> int:
    """CRC-32 of a window's input."""
    return zlib.crc32(json.dumps(window.smiles).encode())


def work_folder(out: Path) -> Path:
    """Where the table `out` is made."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def making(out: Path, plan: dict[str, Any], writer: Writer) -> Iterator[Partial]:
    """Make the table `out`, or go on with what an earlier process left of the same `plan`.

    `Partial.publish` gives it its name. After an error the rows that are done stay, to be continued; where there are
    none, nothing stays. Raises InputError where another process makes `out`, RunError where the disk is full.
    """
    work = work_folder(out)
    partial: Partial | None = None
    try:
        with exclusive(work / LOCK, f"{out} is being written already"):
            try:
                with Partial(out, work, plan, writer) as partial:
                    yield partial
            finally:
                if partial is None or partial.published or not partial.lines:
                    _empty(work)
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"no space left while writing {out}", remedy="free disk space, then run again") from error
        raise
    finally:
        with suppress(OSError):  # it holds rows, or another process has come
            work.rmdir()


def _empty(work: Path) -> None:
    """Remove everything but the lock, which its holder gives up last; the ledger first, which vouches for the rest."""
    for name in (LEDGER, PLAN, ROWS, TABLE):
        (work / name).unlink(missing_ok=True)


class Partial:
    """The pieces of a table in the making. lines: of the windows that are done, earlier processes' included."""

    def __init__(self, out: Path, work: Path, plan: dict[str, Any], writer: Writer) -> None:
        self.out, self.work, self.writer = out, work, writer
        self.head = writer.head()
        self.published = False
        self.lines = _kept(work, plan, len(self.head))
        self.resumed = len(self.lines)
        self._rows: IO[bytes] = (work / ROWS).open("r+b" if self.lines else "w+b")
        self._ledger = (work / LEDGER).open("r+" if self.lines else "w", encoding="utf-8")

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._ledger.close()

    def remaining(self, parts: Iterator[Window]) -> Iterator[Window]:
        """Those of the windows that are still to be predicted: all from the first on that is not done as it is asked.

        To be exhausted before `append` is last called; the first window that it gives settles where it goes on.
        """
        for place, line in enumerate(self.lines):
            window = next(parts, None)
            if window is None or (len(window.smiles), asked(window)) != (line.rows, line.asked):
                first = sum(item.rows for item in self.lines[:place])
                log(f"the input has changed from row {first:,} on: what was predicted before that is kept")
                del self.lines[place:]
                self._cut()
                yield from [] if window is None else [window]
                break
        else:
            self._cut()
        yield from parts

    def _cut(self) -> None:
        """Leave what the ledger's lines vouch for, and nothing behind it."""
        self.resumed = len(self.lines)
        self._rows.seek(0)
        self._rows.write(self.head)
        for stream, size in (
            (self._rows, len(self.head) + sum(line.size for line in self.lines)),
            (self._ledger, sum(len(line.text()) for line in self.lines)),
        ):
            stream.flush()
            stream.truncate(size)
            stream.seek(0, io.SEEK_END)

    def append(self, part: Predicted) -> None:
        """Write the next window; once this returns, it outlives the process."""
        piece = self.writer.piece(part)
        self._rows.write(piece)
        self._rows.flush()
        sums = zlib.crc32(piece), part.refused, part.outside
        line = Line(len(part.window.smiles), asked(part.window), len(piece), *sums)
        self._ledger.write(line.text())
        self._ledger.flush()
        self.lines.append(line)

    def publish(self) -> None:
        """Give the table its name."""
        path = self.work / ROWS
        if self.writer.form == "parquet":
            self._rows.seek(len(self.head))
            self.writer.finish(self._rows, [line.size for line in self.lines], self.work / TABLE)
            path = self.work / TABLE
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        path.replace(self.out)
        self.published = True


def _kept(work: Path, plan: dict[str, Any], start: int) -> list[Line]:
    """The windows that are whole on disk; none where the work is of another plan, which then is begun anew."""
    path = work / PLAN
    plain = json.loads(json.dumps(plan))
    if path.is_file() and read_json(path) == plain:
        return _whole(work, start)
    if (work / LEDGER).is_file():
        log(f"unfinished predictions with another model or other options are discarded: {work}")
    for child in work.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != LOCK:
            child.unlink()
    write_json(path, plain)
    return []


def _whole(work: Path, start: int) -> list[Line]:
    lines: list[Line] = []
    ledger, rows = work / LEDGER, work / ROWS
    if not (ledger.is_file() and rows.is_file()):
        return lines
    with ledger.open(encoding="utf-8", errors="replace") as stream, rows.open("rb") as content:
        content.seek(start)
        for text in stream:
            line = Line.parse(text) if text.endswith("\n") else None
            if line is None or not _intact(content, line):
                break
            lines.append(line)
    return lines


def _intact(content: IO[bytes], line: Line) -> bool:
    piece = content.read(line.size)
    return len(piece) == line.size and zlib.crc32(piece) == line.crc


def done(lines: Sequence[Line]) -> tuple[int, int, int]:
    """Rows, refused and outside of the windows so far."""
    return sum(line.rows for line in lines), sum(line.refused for line in lines), sum(line.outside for line in lines)

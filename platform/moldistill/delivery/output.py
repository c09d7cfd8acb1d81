"""Predictions as bytes: windows become pieces of a CSV, or of a stream of Arrow that is made a Parquet file at the end.

Pieces stand for themselves (a gzipped one is a member of its own), so that a file may be cut off behind any of them.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from moldistill.core.errors import InputError
from moldistill.core.vocabulary import FLAGS
from moldistill.delivery.engine import Predicted

Form = Literal["csv", "csv.gz", "parquet"]

HEADER = ("row", "smiles", "prediction", "spread", "flag", "reason")
INTERVAL = ("low", "high")
"""Further columns where the ensemble has a calibration: the ends of the interval."""


def form_of(out: Path, asked: str | None = None) -> Form:
    """What to write: as asked (csv or parquet), else by the name's suffix; a CSV where it says nothing."""
    if asked not in (None, "csv", "parquet"):
        raise InputError("there is no such format", got=asked, expected="csv or parquet")
    if asked == "parquet" or (asked is None and out.suffix in (".parquet", ".pq")):
        return "parquet"
    return "csv.gz" if out.suffix == ".gz" else "csv"


@dataclass(frozen=True, slots=True)
class Writer:
    """Turns windows into bytes. interval: whether there are columns low and high."""

    form: Form
    interval: bool

    def head(self) -> bytes:
        """What stands before the first window."""
        if self.form == "parquet":
            return b""
        return self._packed(",".join(HEADER + (INTERVAL if self.interval else ())) + "\n")

    def piece(self, part: Predicted) -> bytes:
        """The rows of a window."""
        return self._arrow(part) if self.form == "parquet" else self._packed(self._lines(part))

    def _packed(self, text: str) -> bytes:
        content = text.encode("utf-8")
        return gzip.compress(content, 6, mtime=0) if self.form == "csv.gz" else content

    def _lines(self, part: Predicted) -> str:
        numbers = [part.value, part.spread]
        if self.interval:
            assert part.half_width is not None
            numbers += [part.value - part.half_width, part.value + part.half_width]
        value, spread, *ends = ([_number(item) for item in column.tolist()] for column in numbers)
        names = [FLAGS[code] for code in part.flag.tolist()]
        count = range(part.window.first, part.window.first + len(names))
        text = io.StringIO(newline="")
        plain, quoted = (
            csv.writer(text, lineterminator="\n"),
            csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL),
        )
        for row in zip(count, part.window.smiles, value, spread, names, part.reason, *ends, strict=True):
            # Only the line end that it writes is quoted by Python's csv, and a reader takes either for one.
            (quoted if "\r" in row[1] or "\r" in row[5] else plain).writerow(row)
        return text.getvalue()

    def _arrow(self, part: Predicted) -> bytes:
        import pyarrow as pa

        schema = _schema(self.interval)
        count = len(part.window.smiles)
        columns: list[Any] = [
            np.arange(part.window.first, part.window.first + count),
            list(part.window.smiles),
            part.value,
            _nullable(part.spread),
            [FLAGS[code] for code in part.flag.tolist()],
            part.reason,
        ]
        if self.interval:
            assert part.half_width is not None
            columns += [_nullable(part.value - part.half_width), _nullable(part.value + part.half_width)]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, schema) as stream:
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return buffer.getvalue()

    def finish(self, pieces: IO[bytes], sizes: Iterable[int], out: Path) -> None:
        """Make a Parquet file of the pieces, whose sizes are given: one group of rows each."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetWriter(out, _schema(self.interval), compression="zstd") as writer:
            for size in sizes:
                with pa.ipc.open_stream(pieces.read(size)) as stream:
                    writer.write_table(stream.read_all())


def _number(value: float) -> str:
    return f"{value:.6f}" if value == value else ""  # NaN differs from itself


def _nullable(values: Any) -> Any:
    return np.ma.masked_invalid(values)


def _schema(interval: bool) -> Any:
    import pyarrow as pa

    ends = [(name, pa.float64()) for name in INTERVAL] if interval else []
    kinds = (pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.string(), pa.string())
    return pa.schema([*zip(HEADER, kinds, strict=True), *ends])

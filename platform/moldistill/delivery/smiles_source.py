"""SMILES to predict: a CSV or a plain list, gzipped or not, from a file or from stdin, as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from moldistill.chem.reader import BROKEN, MAX_FIELD, SMILES_COLUMN, broken, open_bytes
from moldistill.core.errors import InputError, nearest

Layout = Literal["auto", "csv", "list"]

STDIN = Path("-")
"""Stands for stdin as a source, and for stdout as a target."""

_LISTS = (".smi", ".smiles", ".txt", ".can", ".ism")


@contextmanager
def open_smiles(source: Path, *, column: str = SMILES_COLUMN, layout: Layout = "auto") -> Iterator[Iterator[str]]:
    """The SMILES of a file, or of stdin (`-`), one per row, in order, without the space around them.

    A CSV has a header with `column`; its blank lines are no rows. In a list each line is a row, also a blank one; what
    follows the SMILES on its line is taken for a name, as RDKit does. auto: a list by its suffix (.smi, .smiles, .txt,
    .can, .ism) or if its first line names no `column` and holds no comma; else a CSV. Bytes that are not UTF-8 become
    U+FFFD: names may be of any encoding. Raises InputError, with file and line, for what is missing or is no table.
    """
    name = "stdin" if source == STDIN else str(source)
    with _open(source) as stream:
        lines = _text(source, stream)
        first = next(lines, "")
        whole = itertools.chain([first] if first else [], lines)
        if not first:
            raise InputError(f"{name} is empty", expected=_expected(column), remedy="check the file")
        if _is_list(source, first, column, layout):
            yield _counted(name, (line.strip() for line in whole))
        else:
            yield _counted(name, _column(name, whole, column))


def _expected(column: str) -> str:
    return f"a CSV with a column {column}, or a list with one SMILES per line"


@contextmanager
def _open(source: Path) -> Iterator[IO[bytes]]:
    if source != STDIN:
        with open_bytes(source) as stream:
            yield stream
        return
    raw: Any = sys.stdin.buffer
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        with gzip.open(buffered) as stream:
            yield io.BufferedReader(stream, 2**18)
    else:
        yield buffered


def _text(source: Path, stream: IO[bytes]) -> Iterator[str]:
    """Lines with their ends; a byte-order mark is dropped."""
    try:
        # Never more than a field may hold, lest a file without line ends fill the memory.
        for number, line in enumerate(iter(lambda: stream.readline(MAX_FIELD + 1), b"")):
            if len(line) > MAX_FIELD:
                raise InputError(
                    f"{source}:{number + 1}: a line of more than {MAX_FIELD:,} bytes",
                    expected="text",
                    remedy="check the file",
                )
            text = line.decode("utf-8", errors="replace")
            yield text if number else text.removeprefix("\ufeff")
    except BROKEN as error:
        raise broken(source, error) from error


def _is_list(source: Path, first: str, column: str, layout: Layout) -> bool:
    if layout != "auto":
        return layout == "list"
    suffix = Path(source.stem).suffix if source.suffix == ".gz" else source.suffix
    if suffix.lower() in _LISTS:
        return True
    names = [name.strip() for name in next(csv.reader([first]), [])]
    # Near misses (SMILES, Smiles) are a header with a mistake, which `_column` names, and not a molecule.
    header = column in names or len(names) > 1 or nearest(column.lower(), [name.lower() for name in names]) is not None
    return suffix.lower() != ".csv" and not header


def _column(name: str, lines: Iterator[str], column: str) -> Iterator[str]:
    """The fields of a column of a CSV."""
    csv.field_size_limit(MAX_FIELD)
    table = csv.reader(lines)
    header = next(_rows(name, table), [])
    place = _place(name, [item.strip() for item in header], column)
    for fields in _rows(name, table):
        if len(fields) != len(header):
            raise InputError(
                f"{name}:{table.line_num}: a row of another length",
                got=f"{len(fields)} fields",
                expected=f"{len(header)}, as in the header",
                remedy="quote fields that hold a comma",
            )
        yield fields[place].strip()


def _rows(name: str, table: Any) -> Iterator[list[str]]:
    """Rows that are not blank."""
    try:
        for fields in table:
            if fields:
                yield fields
    except csv.Error as error:
        raise InputError(f"{name}:{table.line_num}: not a CSV", got=error, remedy="check the quotes") from error


def _place(name: str, header: Sequence[str], column: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise InputError(f"{name} has column {column} {header.count(column)} times", remedy="keep one of them")
    likely = nearest(column.lower(), [item.lower() for item in header])
    meant = next((item for item in header if item.lower() == likely), None)
    raise InputError(
        f"{name} has no column {column}",
        got=", ".join(header)[:200],
        expected=column,
        remedy=f"did you mean {meant}? --smiles-column {meant}" if meant else "name it with --smiles-column",
    )


def _counted(name: str, rows: Iterator[str]) -> Iterator[str]:
    """The rows; InputError where there is none."""
    first = next(rows, None)
    if first is None:
        raise InputError(f"{name} has a header but no rows", remedy="check the file")
    yield first
    yield from rows

"""Sources as streams: CSV rows, splits and SDF records, of a root in PCQM4Mv2's layout or a plain CSV."""

from __future__ import annotations

import csv
import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moldistill.core.errors import InputError, MoldistillError, RunError, nearest
from moldistill.core.vocabulary import SPLITS

SMILES_COLUMN = "smiles"
TARGET_COLUMN = "homolumogap"
SPLIT_COLUMN = "split"
INDEX_COLUMN = "idx"
SOURCE_SPLITS = SPLITS[:4]
"""Splits that a source may name; `valid-3d` is `prepare`'s."""

BROKEN = (EOFError, OSError, zlib.error, tarfile.TarError)
"""What reading a damaged archive raises."""

MAX_FIELD = 2**24
"""Characters of a field of a CSV."""


@dataclass(frozen=True, slots=True)
class CsvColumns:
    """Which columns of a CSV hold what; None where there is none."""

    smiles: int
    target: int | None
    split: int | None
    index: int | None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One data row. target as written (no unit applied), NaN where blank. split: index into SPLITS, -1 none."""

    smiles: str
    target: float
    split: int


def read_csv(
    path: Path,
    target: str | None = None,
    *,
    require_target: bool = False,
    blank: Callable[[], None] | None = None,
) -> Iterator[SourceRow]:
    """Rows of a CSV, plain or gzipped, in order; blank lines are no rows.

    target: name of the target's column (default `homolumogap`, if there is one). blank: called for each blank line.
    Raises InputError with file and line for a missing file, a missing or doubled column, an empty file, bytes that are
    not UTF-8, a row of another length, a target that is no number or infinite, an unknown split.
    """
    with open_bytes(path) as stream:
        table = csv.reader(_lines(path, stream))
        header = _next_row(path, table, None)
        if header is None:
            raise InputError(
                f"{path} is empty", expected=f"a CSV with a column {SMILES_COLUMN}", remedy="check the file"
            )
        columns = find_columns(path, [name.strip() for name in header], target, require_target)
        count = 0
        while (fields := _next_row(path, table, blank)) is not None:
            where = f"{path}:{table.line_num}"
            if len(fields) != len(header):
                raise InputError(
                    f"{where}: a row of another length",
                    got=f"{len(fields)} fields",
                    expected=f"{len(header)}, as in the header",
                    remedy="quote fields that hold a comma",
                )
            if columns.index is not None and fields[columns.index].strip() != str(count):
                raise InputError(
                    f"{where}: column {INDEX_COLUMN} does not count the rows",
                    got=fields[columns.index],
                    expected=count,
                    remedy="restore the missing rows: splits and SDF records refer to them by number",
                )
            yield _row(where, fields, header, columns)
            count += 1
    if count == 0:
        raise InputError(f"{path} has a header but no rows", remedy="check the file")


def find_columns(path: Path, header: Sequence[str], target: str | None, require_target: bool) -> CsvColumns:
    """Where each column is; InputError where one is missing, doubled or unclear."""

    def find(name: str, required: bool) -> int | None:
        if header.count(name) > 1:
            raise InputError(f"{path} has column {name} {header.count(name)} times", remedy="keep one of them")
        if name in header:
            return header.index(name)
        if not required:
            return None
        likely = nearest(name.lower(), [column.lower() for column in header])
        raise InputError(
            f"{path} has no column {name}",
            got=", ".join(header),
            expected=name,
            remedy=f"did you mean {likely}? rename it" if likely else f"add or rename the column {name}",
        )

    if target is not None and target not in header and "," in target:
        raise InputError(
            "several targets were asked for", got=target, expected="one column", remedy="prepare one store per target"
        )
    smiles = find(SMILES_COLUMN, True)
    assert smiles is not None
    # Only a root has both: there, and only there, numbers of rows are referred to from elsewhere.
    index = find(INDEX_COLUMN, False) if require_target else None
    found = find(target or TARGET_COLUMN, require_target or target is not None)
    return CsvColumns(smiles, found, None if require_target else find(SPLIT_COLUMN, False), index)


def _row(where: str, fields: Sequence[str], header: Sequence[str], columns: CsvColumns) -> SourceRow:
    target, split = math.nan, -1
    if columns.target is not None:
        target = _number(where, header[columns.target], fields[columns.target])
    if columns.split is not None and (name := fields[columns.split].strip()):
        if name not in SOURCE_SPLITS:
            raise InputError(f"{where}: unknown split", got=name, expected=", ".join(SOURCE_SPLITS) + ", or nothing")
        split = SOURCE_SPLITS.index(name)
    return SourceRow(fields[columns.smiles].strip(), target, split)


def _number(where: str, column: str, text: str) -> float:
    text = text.strip()
    if not text:
        return math.nan
    try:
        value = float(text.replace("_", "?"))
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise InputError(
            f"{where}: column {column} is not a finite number",
            got=text[:80],
            expected="a number; blank or NaN where it is unknown",
            remedy="correct the value, or name another column with --target",
        )
    return value


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's content, decompressed if it is gzipped."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}", expected="a file", remedy="check the path")
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if gzipped:
            with gzip.open(raw) as stream:
                yield io.BufferedReader(stream, 2**18)
        else:
            yield raw


def broken(path: Path, error: BaseException) -> MoldistillError:
    """The error of a file that is damaged, or that the system cannot read just now (then a RunError)."""
    if isinstance(error, OSError) and error.errno is not None:
        return RunError(f"{path} cannot be read", got=error, remedy="see that its disk is there, then run again")
    return InputError(f"{path} cannot be read to its end", got=error, remedy="it may be cut short: fetch it again")


def _lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Lines as text, their ends kept; a byte-order mark is dropped."""
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            text = line.decode("utf-8")
            yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{number}: not UTF-8",
            got=f"byte 0x{error.object[error.start]:02x} at column {error.start + 1}",
            expected="UTF-8 text",
            remedy="save the file as UTF-8",
        ) from error
    except BROKEN as error:
        raise broken(path, error) from error


def _next_row(path: Path, table: Any, blank: Callable[[], None] | None) -> list[str] | None:
    """The next row that is not blank, or None at the end."""
    csv.field_size_limit(MAX_FIELD)
    try:
        for fields in table:
            if fields:
                return list(fields)
            if blank is not None:
                blank()
    except csv.Error as error:
        raise InputError(f"{path}:{table.line_num}: not a CSV", got=error, remedy="check the quotes") from error
    return None


def read_splits(path: Path, rows: int) -> NDArray[np.int8]:
    """Index into SPLITS of each of `rows` rows (-1: in no split), from a `split_dict.pt`.

    The file holds pickled numpy arrays: only numpy's own types are allowed while it is read. Raises InputError where it
    is something else, points past the last row, names a row twice, or its training or test rows do not ascend.
    """
    split = np.full(rows, -1, np.int8)
    for name, indices in _load_splits(path).items():
        if len(indices) and (indices.min() < 0 or indices.max() >= rows):
            raise InputError(
                f"{path}: split {name} points past the end of the data",
                got=f"row {indices.max() if indices.max() >= rows else indices.min():,}",
                expected=f"rows 0 to {rows - 1:,}",
                remedy="split_dict.pt and data.csv.gz must be of the same release",
            )
        if np.any(split[indices] >= 0) or len(np.unique(indices)) != len(indices):
            raise InputError(f"{path}: split {name} holds rows that are already in a split", expected="each row once")
        if name != "valid" and np.any(np.diff(indices) < 0):
            follows = "SDF records" if name == "train" else "the rows of a submission"
            raise InputError(
                f"{path}: the rows of {name} do not ascend", remedy=f"sort them: {follows} follow their order"
            )
        split[indices] = SOURCE_SPLITS.index(name)
    return split


def _load_splits(path: Path) -> Mapping[str, NDArray[np.int64]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist", expected="the splits of the root", remedy="copy split_dict.pt there")
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler lets anything through that damaged bytes lead to
        detail = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"{path} is not a file of splits", got=detail, expected="a dictionary of numpy index arrays"
        ) from error
    if not isinstance(raw, dict) or not set(raw) <= set(SOURCE_SPLITS) or "train" not in raw:
        got = ", ".join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{path} names other splits", got=got, expected=", ".join(SOURCE_SPLITS))
    splits = {}
    for name, value in raw.items():
        indices = np.asarray(value)
        if indices.ndim != 1 or (indices.dtype.kind not in "iu" and len(indices)):
            got = f"{indices.dtype} of shape {indices.shape}"
            raise InputError(f"{path}: split {name} is no list of row numbers", got=got, expected="integers [rows]")
        splits[name] = indices.astype(np.int64)
    return splits


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickled index array needs, under the names of numpy 1 and 2."""
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = [type(np.dtype(code)) for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
    return [
        np.ndarray,
        np.dtype,
        *kinds,
        _reconstruct,
        scalar,
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]

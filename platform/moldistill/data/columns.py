"""Plain `.npy` columns: written by appending, read as memory maps.

The header is written for no rows and patched when the column is closed, so that memory stays bounded.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moldistill.core.errors import InputError

Per = Literal["row", "row + 1", "atom", "bond", "pair", "hydrogen", "byte"]


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """Type of a column of the store: dtype, shape of one entry, and what there is one entry per."""

    name: str
    dtype: str
    per: Per
    shape: tuple[int, ...] = ()

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.npy"

    @property
    def width(self) -> int:
        """Bytes of one entry."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    def size(self, length: int) -> int:
        """Bytes of its file with `length` entries."""
        return HEADER + length * self.width


@dataclass(frozen=True, slots=True)
class Piece:
    """What was appended at one time: number of entries, and the CRC-32 of their bytes."""

    entries: int
    crc: int


COLUMNS = (
    ColumnSpec("row", "<i8", "row"),
    ColumnSpec("split", "|i1", "row"),
    ColumnSpec("target", "<f8", "row"),
    ColumnSpec("flag", "|u1", "row"),
    ColumnSpec("has_positions", "|b1", "row"),
    ColumnSpec("atom_offsets", "<i8", "row + 1"),
    ColumnSpec("bond_offsets", "<i8", "row + 1"),
    ColumnSpec("pair_offsets", "<i8", "row + 1"),
    ColumnSpec("hydrogen_offsets", "<i8", "row + 1"),
    ColumnSpec("smiles_offsets", "<i8", "row + 1"),
    ColumnSpec("atom_features", "|u1", "atom", (9,)),
    ColumnSpec("bonds", "|u1", "bond", (3,)),
    ColumnSpec("shortest_paths", "|u1", "pair"),
    ColumnSpec("positions", "<f4", "atom", (3,)),
    ColumnSpec("hydrogen_positions", "<f4", "hydrogen", (3,)),
    ColumnSpec("hydrogen_parent", "|u1", "hydrogen"),
    ColumnSpec("smiles_bytes", "|u1", "byte"),
)
"""Every column of a store."""

HEADER = 128
"""Bytes before the first entry: a multiple of 64, as the format asks."""


def _header(spec: ColumnSpec, length: int) -> bytes:
    """Header of format version 1.0, always of the same size."""
    shape = (length, *spec.shape)
    text = f"{{'descr': '{spec.dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


class ColumnWriter:
    """Appends arrays to `<folder>/<name>.npy`; the file is whole once `close` has run.

    length: entries that an earlier writer left there and that are kept; what follows them is cut off.
    """

    def __init__(self, folder: Path, spec: ColumnSpec, length: int = 0) -> None:
        self.spec = spec
        self.length = length
        self._stream = (folder / spec.file).open("r+b" if length else "wb")
        if length:
            self._stream.truncate(spec.size(length))
            self._stream.seek(0, os.SEEK_END)
        else:
            self._stream.write(_header(spec, 0))

    def append(self, values: NDArray[Any]) -> Piece:
        """Write entries, converted to the column's dtype. Shape [entries, *spec.shape]."""
        assert values.shape[1:] == self.spec.shape, f"{self.spec.name}: {values.shape}"
        content = np.ascontiguousarray(values, self.spec.dtype).reshape(-1).view(np.uint8).data
        self._stream.write(content)
        self.length += len(values)
        return Piece(len(values), zlib.crc32(content))

    def flush(self) -> None:
        """Hand everything to the system: from then on it outlives this process."""
        self._stream.flush()

    def close(self) -> None:
        """Patch the header and sync the file."""
        self._stream.seek(0)
        self._stream.write(_header(self.spec, self.length))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()


def open_column(folder: Path, spec: ColumnSpec) -> NDArray[Any]:
    """The column as a read-only memory map. Raises InputError where it is not exactly what a writer leaves."""
    path = folder / spec.file
    try:
        with path.open("rb") as stream:
            header, size = stream.read(HEADER), os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path} is not a column", got=error, remedy="prepare the store again") from error
    length, rest = divmod(size - HEADER, spec.width)
    # Compared, not parsed: numpy's parser of headers lets all kinds of exceptions through on damaged ones.
    if rest or length < 0 or header != _header(spec, length):
        raise InputError(
            f"{path} has another type, or is damaged",
            got=header.decode("latin-1").strip()[10:],
            expected=f"{np.dtype(spec.dtype)} of shape {('rows', *spec.shape)}",
            remedy="prepare the store again with this version",
        )
    shape = (length, *spec.shape)
    if length == 0:  # nothing that could be mapped
        empty = np.zeros(shape, spec.dtype)
        empty.flags.writeable = False
        return empty
    return np.asarray(np.memmap(path, spec.dtype, "r", HEADER, shape))

"""Columns of a targets folder in the making, filled in whatever order the molecules come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.artifacts import FULL
from moldistill.core.errors import RunError
from moldistill.data.targets import STATE_TYPES

CHUNK = 2**16
"""Atoms that are moved at once."""


class StateColumns:
    """States of all views of molecules of the given sizes, memory-mapped; `data.targets` has the layout."""

    def __init__(
        self, folder: Path, sizes: NDArray[np.int64], *, views: int, shape: tuple[int, int], bits: int
    ) -> None:
        self.folder, self.sizes, self.views = folder, sizes, views
        self.offsets = self._offsets()
        lengths = {"graph": len(sizes) * views, "atom": int(self.offsets[-1])}
        self.columns = {
            kind: _reserved(self._path(kind), (length, *shape), STATE_TYPES[bits]) for kind, length in lengths.items()
        }

    def _path(self, kind: str) -> Path:
        return self.folder / f"{kind}_states.npy"

    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.repeat(self.sizes, self.views))]).astype(np.int64)

    def write(self, places: NDArray[np.int64], view: int, graph: NDArray[Any], atoms: NDArray[Any]) -> None:
        """Write a view of the molecules at `places`: graph [layers, molecules, channels], atoms [layers, atoms of all
        these molecules, channels]."""
        entries = places * self.views + view
        self.columns["graph"][entries] = graph.transpose(1, 0, 2)
        spans = [np.arange(self.offsets[entry], self.offsets[entry + 1]) for entry in entries]
        if spans:
            self.columns["atom"][np.concatenate(spans)] = atoms.transpose(1, 0, 2)

    def finish(self, kept: NDArray[np.bool_]) -> None:
        """Take out the molecules that are not `kept`, and write the offsets of the others."""
        for column in self.columns.values():
            column.flush()
        if not kept.all():
            entries = np.repeat(kept, self.views)
            self.columns.clear()
            _compact(self._path("graph"), entries)
            _compact(self._path("atom"), np.repeat(entries, np.diff(self.offsets)))
            self.sizes = self.sizes[kept]
            self.offsets = self._offsets()
        np.save(self.folder / "atom_offsets.npy", self.offsets)


def _reserved(path: Path, shape: tuple[int, ...], dtype: Any) -> Any:
    """A new memory-mapped column whose place on the disk is taken: writing to a map cannot fail politely later on."""
    column = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("rb+") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, max(path.stat().st_size, 1))
        except OSError as error:
            if error.errno in FULL:
                raise RunError(
                    f"no space left while writing {path}", got=error, remedy="free disk space, then run again"
                ) from error
            # Else the file system knows no reservation, and goes on without.
    return column


def _compact(path: Path, kept: NDArray[np.bool_]) -> None:
    """Leave the `kept` items of the first axis of an .npy file, in place: a copy might not fit the disk."""
    column = np.load(path, mmap_mode="r+", allow_pickle=False)
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
    end = 0
    for start, stop in edges.reshape(-1, 2).tolist():
        for begin in range(start, stop, CHUNK):
            count = min(CHUNK, stop - begin)
            column[end : end + count] = column[begin : begin + count].copy()
            end += count
    column.flush()
    header = {"descr": np.lib.format.dtype_to_descr(column.dtype), "fortran_order": False}
    with path.open("rb+") as stream:
        # numpy leaves room in the header for any length of the first axis.
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (end, *column.shape[1:])})
        assert stream.tell() == column.offset
        stream.truncate(stream.tell() + end * column[:1].nbytes)

"""Write the layout of OGB's PCQM4Mv2: the table of gaps, the split, and the SDF of the training set.

The same content gives the same bytes: archives carry neither time nor owner.
"""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from jaxtyping import Int

from moldistill.core.artifacts import atomic_path

TABLE = "raw/data.csv.gz"
SPLIT = "split_dict.pt"
SDF = "pcqm4m-v2-train.sdf"
SDF_ARCHIVE = "pcqm4m-v2-train.sdf.tar.gz"
GAP_DECIMALS = 6
"""Decimals of the gap in eV, well below the convergence of the electronic energy (1e-6 Hartree)."""

_BLOCK = tarfile.BLOCKSIZE


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV, gzipped if the name ends in .gz."""
    with atomic_path(path) as temporary:
        if path.suffix == ".gz":
            with _deterministic_gzip(temporary) as packed, io.TextIOWrapper(packed, "utf-8", newline="") as text:
                _write_rows(text, columns, rows)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as text:
                _write_rows(text, columns, rows)


def _write_rows(stream: io.TextIOBase, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def format_gap(gap: float) -> str:
    """Text of a gap in eV; empty for NaN, as in PCQM4Mv2."""
    return "" if np.isnan(gap) else f"{gap:.{GAP_DECIMALS}f}".rstrip("0").rstrip(".")


def write_split(path: Path, split: Mapping[str, Int[np.ndarray, " rows"]]) -> None:
    """Write `split_dict.pt`: a dict of int64 index arrays, saved with torch as OGB does."""
    import torch

    # Through a buffer: torch writes the file's own name into the archive, and the temporary one is random.
    buffer = io.BytesIO()
    torch.save({name: np.asarray(rows, dtype=np.int64) for name, rows in split.items()}, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_sdf_archive(path: Path, records: Iterable[bytes], size: int) -> None:
    """Write the SDF records, `size` bytes in all, as the one member of a .tar.gz; they are streamed, never all held."""
    member = tarfile.TarInfo(SDF)
    member.size = size
    member.mode = 0o644
    written = 0
    with atomic_path(path) as temporary, _deterministic_gzip(temporary) as packed:
        packed.write(member.tobuf(tarfile.GNU_FORMAT))
        for record in records:
            written += packed.write(record)
        assert written == size, f"{written} bytes of SDF instead of {size}"
        end = -size % _BLOCK + 2 * _BLOCK
        packed.write(bytes(end + -(_BLOCK + size + end) % tarfile.RECORDSIZE))


@contextmanager
def _deterministic_gzip(path: Path) -> Iterator[BinaryIO]:
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
    ):
        yield cast(BinaryIO, packed)

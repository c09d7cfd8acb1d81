"""Going through a whole store block by block: checked before it is relied on, in memory that does not grow."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.errors import InputError
from moldistill.core.vocabulary import FLAGS, MAX_ATOMS, SPLITS
from moldistill.data.store import Store

BLOCK = 1 << 16
"""Rows per block."""

SPLIT_NAMES = (*SPLITS, "none")
"""Names of the splits, and of having none."""


def split_codes(store: Store) -> NDArray[np.uint8]:
    """Index into SPLIT_NAMES of each row."""
    return np.where(store.split < 0, len(SPLITS), store.split).astype(np.uint8)


def blocks(rows: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK rows."""
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def release(*columns: NDArray[Any]) -> None:
    """Give back the memory of pages that were read of memory-mapped columns; they can be read again."""
    for column in columns:
        base: Any = column
        while base is not None and not isinstance(base, mmap.mmap):
            base = getattr(base, "base", None)
        if base is not None and not column.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def check_content(store: Store) -> None:
    """See to it that offsets, splits and flags point to what exists, as compiled code takes for granted.

    Raises InputError for a store whose content is damaged; opening one checks sizes only.
    """
    offsets = {
        "atom_offsets": (store.atom_offsets, MAX_ATOMS),
        "bond_offsets": (store.bond_offsets, None),
        "smiles_offsets": (store.smiles_offsets, None),
    }
    for name, (ends, most) in offsets.items():
        if int(ends[0]) != 0:
            raise damaged(store, name, f"it begins with {int(ends[0])}", "0")
        for block in blocks(len(store)):
            counts = np.diff(ends[block.start : block.stop + 1])
            wrong = counts < 0 if most is None else (counts < 0) | (counts > most)
            if wrong.any():
                row = int(np.argmax(wrong))
                expected = "0 or more" if most is None else f"0 to {most}"
                raise damaged(store, name, f"{int(counts[row])} entries in row {block.start + row}", expected)
            release(ends)
    for name, codes, low, high in (("split", store.split, -1, len(SPLITS)), ("flag", store.flag, 0, len(FLAGS))):
        wrong = (codes < low) | (codes >= high)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise damaged(store, name, f"{int(codes[row])} in row {row}", f"{low} to {high - 1}")


def damaged(store: Store, column: str, got: str, expected: str) -> InputError:
    """The error for a column with wrong content."""
    return InputError(
        f"{store.path / column}.npy is damaged",
        got=got,
        expected=expected,
        remedy=f"run `moldistill doctor --store {store.path}`, then prepare the store again",
    )


def smiles_of(store: Store, row: int) -> str:
    """SMILES of a row, as in the source. Raises InputError where its bytes are no text."""
    try:
        return store.smiles(row)
    except UnicodeDecodeError as error:
        raise damaged(store, "smiles_bytes", f"row {row}: {error}", "UTF-8") from error

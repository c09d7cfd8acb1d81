"""A CSV of SMILES, thousands of rows at a time: `reader.read_csv` at the speed of Python's csv module.

Anything out of the ordinary in the file sends it to `read_csv`, which takes it or says what is wrong and where.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moldistill.chem.reader import BROKEN, MAX_FIELD, SOURCE_SPLITS, CsvColumns, find_columns, open_bytes, read_csv
from moldistill.core.shapes import Float, Int

BLOCK = 8192
"""Rows of a block."""

_UNKNOWN = -2
_SPLIT_CODES = {"": -1} | {name: code for code, name in enumerate(SOURCE_SPLITS)}


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows. target as written, NaN where blank. split: index into SPLITS, -1 none.

    blank_lines: lines without any character between these rows, which are no rows.
    """

    smiles: list[str]
    target: Float[np.ndarray, " rows"]
    split: Int[np.ndarray, " rows"]
    blank_lines: int = 0


class _OddError(Exception):
    """Something that `read_csv` must look at."""


def read_blocks(path: Path, target: str | None = None, *, require_target: bool = False) -> Iterator[Block]:
    """The rows of `read_csv`, in blocks; raises what it raises."""
    done = 0
    try:
        for block in _fast(path, target, require_target):
            yield block
            done += len(block.smiles)
    except (_OddError, csv.Error, ValueError, *BROKEN):
        yield from _careful(path, target, require_target, done)


def _careful(path: Path, target: str | None, require_target: bool, done: int) -> Iterator[Block]:
    """What follows the first `done` rows, row by row."""
    blank: list[None] = []
    rows = read_csv(path, target, require_target=require_target, blank=lambda: blank.append(None))
    for _ in range(done):
        next(rows, None)
    blank.clear()  # those before were counted
    while part := list(itertools.islice(rows, BLOCK)):
        yield Block(
            [row.smiles for row in part],
            np.array([row.target for row in part], np.float64),
            np.array([row.split for row in part], np.int8),
            len(blank),
        )
        blank.clear()


def _fast(path: Path, target: str | None, require_target: bool) -> Iterator[Block]:
    csv.field_size_limit(MAX_FIELD)
    with open_bytes(path) as stream:
        # As `read_csv` does, only \n ends a line here; csv itself knows \r\n.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
        try:
            header = next(csv.reader(text), None)
            if not header:
                raise _OddError
            columns = find_columns(path, [name.strip() for name in header], target, require_target)
            done = 0
            for fields, blank_lines in _fields(text, len(header)):
                block = _block(fields, columns, done, blank_lines)
                yield block
                done += len(block.smiles)
            if done == 0:
                raise _OddError
        finally:
            text.detach()


def _fields(text: Iterator[str], width: int) -> Iterator[tuple[list[Sequence[str]], int]]:
    """Columns of `width` fields, block by block, and the number of blank lines between their rows.

    Without quotes a comma always separates: then a block is split at once. From the first quote on, csv does it.
    """
    while lines := list(itertools.islice(text, BLOCK)):
        whole = "".join(lines)
        if '"' in whole:
            yield from _quoted_fields(itertools.chain(lines, text), width)
            return
        whole = whole.replace("\r\n", "\n")
        if "\r" in whole or "\0" in whole or len(whole) > MAX_FIELD:
            raise _OddError
        rows = whole.removesuffix("\n").split("\n")
        filled = [row for row in rows if row]
        if any(row.count(",") != width - 1 for row in filled):
            raise _OddError
        flat = ",".join(filled).split(",") if filled else []
        yield [flat[column::width] for column in range(width)], len(rows) - len(filled)


def _quoted_fields(text: Iterator[str], width: int) -> Iterator[tuple[list[Sequence[str]], int]]:
    table = csv.reader(text)
    while rows := list(itertools.islice(table, BLOCK)):
        filled = [row for row in rows if row]
        if any(len(row) != width for row in filled):
            raise _OddError
        yield [[row[column] for row in filled] for column in range(width)], len(rows) - len(filled)


def _block(fields: Sequence[Sequence[str]], columns: CsvColumns, done: int, blank_lines: int) -> Block:
    smiles = [text.strip() for text in fields[columns.smiles]]
    count = len(smiles)
    if columns.index is not None and fields[columns.index] != [*map(str, range(done, done + count))]:
        raise _OddError
    target = np.full(count, math.nan)
    if columns.target is not None:
        texts = fields[columns.target]
        if "_" in "".join(texts):  # Python reads 1_000, others do not
            raise _OddError
        target[:] = [float(text) if text and not text.isspace() else math.nan for text in texts]
        if np.isinf(target).any():
            raise _OddError
    split = np.full(count, -1, np.int8)
    if columns.split is not None:
        split[:] = [_SPLIT_CODES.get(text.strip(), _UNKNOWN) for text in fields[columns.split]]
        if _UNKNOWN in split:
            raise _OddError
    return Block(smiles, target, split, blank_lines)

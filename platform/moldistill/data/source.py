"""What is prepared: a root in PCQM4Mv2's layout, or a plain CSV. One pass over its table finds every mistake early."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moldistill.chem.blocks import read_blocks
from moldistill.chem.placement import Records
from moldistill.chem.reader import read_splits
from moldistill.chem.sdf import read_sdf
from moldistill.core.errors import InputError
from moldistill.core.progress import log
from moldistill.core.settings import PrepareSettings
from moldistill.core.shapes import Bool, Float, Int
from moldistill.core.units import ENERGY_IN_EV
from moldistill.core.vocabulary import SPLITS
from moldistill.data.chunks import ChunkTask
from moldistill.data.splits import random_splits

TABLES = ("raw/data.csv.gz", "raw/data.csv")
SPLIT_FILE = "split_dict.pt"
GEOMETRIES = ("pcqm4m-v2-train.sdf", "pcqm4m-v2-train.sdf.gz", "pcqm4m-v2-train.sdf.tar.gz")
"""Files of a root; of several tables or geometries, the first that exists is read."""

TRAIN = SPLITS.index("train")


@dataclass(frozen=True, slots=True)
class Source:
    """A checked source. target: eV, NaN unknown. split: index into SPLITS, -1 none. sdf: None where there is none."""

    kind: str
    table: Path
    sdf: Path | None
    files: tuple[Path, ...]
    target: Float[np.ndarray, " rows"]
    split: Int[np.ndarray, " rows"]
    blank_lines: int = 0


def open_source(path: Path, settings: PrepareSettings) -> Source:
    """Read and check targets and splits of a root (a folder) or a CSV (a file).

    A CSV without a column `split` is split at random if it has targets, and belongs to no split if it has none.
    Raises InputError for anything wrong with the files, but for SDF records, which are counted while they are read.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise InputError(
            f"{path} does not exist", expected="a folder in PCQM4Mv2's layout or a CSV", remedy="check the path"
        )
    factor = ENERGY_IN_EV[settings.unit]
    if path.is_dir():
        return _open_root(path, settings, factor)
    target, split, blank = _read_table(path, settings.target, require_target=False)
    if (split < 0).all() and np.isfinite(target).any():
        split = random_splits(len(split), settings.seed)
    return Source("csv", path, None, (path,), target * factor, split, blank)


def _open_root(path: Path, settings: PrepareSettings, factor: float) -> Source:
    table = next((path / name for name in TABLES if (path / name).is_file()), None)
    if table is None:
        inside = next((child.name for child in sorted(path.iterdir()) if (child / TABLES[0]).is_file()), None)
        raise InputError(
            f"{path} is no root in PCQM4Mv2's layout",
            got=", ".join(sorted(child.name for child in path.iterdir())[:8]) or "an empty folder",
            expected=f"{TABLES[0]}, {SPLIT_FILE} and {GEOMETRIES[-1]} in it",
            remedy=f"name {path / inside}" if inside else "check the path",
        )
    target, _, blank = _read_table(table, settings.target, require_target=True)
    split = read_splits(path / SPLIT_FILE, len(target))
    sdf = next((path / name for name in GEOMETRIES if (path / name).is_file()), None)
    if sdf is None:
        log(f"{path} has no {GEOMETRIES[-1]}: the store will have no geometries, so that no teacher can be trained")
    files = (table, path / SPLIT_FILE, *([sdf] if sdf else []))
    return Source("root", table, sdf, files, target * factor, split, blank)


def _read_table(
    table: Path, target: str | None, *, require_target: bool
) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"], int]:
    """Targets as written, splits, and the number of blank lines."""
    targets, splits, blank = [], [], 0
    for block in read_blocks(table, target, require_target=require_target):
        targets.append(block.target)
        splits.append(block.split)
        blank += block.blank_lines
    return np.concatenate(targets), np.concatenate(splits), blank


def read_tasks(
    source: Source, settings: PrepareSettings, selected: Bool[np.ndarray, " rows"], size: int, skip: int = 0
) -> Iterator[ChunkTask]:
    """The selected rows in chunks of `size`, in order, each training row with its SDF record.

    skip: chunks that are left out at the beginning. Raises InputError where the SDF has fewer or more records than
    there are training rows.
    """
    first = 0
    smiles: list[str] = []
    records: list[bytes | None] = []
    for part, found in _selected(source, settings, selected):
        smiles += part
        records += found
        while len(smiles) >= size:
            if first >= skip * size:
                yield ChunkTask(first, tuple(smiles[:size]), Records.of(records[:size]))
            first += size
            del smiles[:size], records[:size]
    if smiles and first >= skip * size:
        yield ChunkTask(first, tuple(smiles), Records.of(records))


def _selected(
    source: Source, settings: PrepareSettings, selected: Bool[np.ndarray, " rows"]
) -> Iterator[tuple[list[str], list[bytes | None]]]:
    """SMILES and SDF records (None for rows without one) of the selected rows, block by block."""
    stream = read_sdf(source.sdf) if source.sdf is not None else None
    expected, count, start = int((source.split == TRAIN).sum()), 0, 0
    for block in read_blocks(source.table, settings.target, require_target=source.kind == "root"):
        end = start + len(block.smiles)
        assert end <= len(selected), "the table grew while it was read"
        records: list[bytes | None] = [None] * len(block.smiles)
        if stream is not None:
            for place in np.flatnonzero(source.split[start:end] == TRAIN).tolist():
                records[place] = next(stream, None)
                if records[place] is None:
                    raise _wrong_count(source, count, expected)
                count += 1
        wanted = selected[start:end].tolist()
        yield list(itertools.compress(block.smiles, wanted)), list(itertools.compress(records, wanted))
        start = end
    assert start == len(selected), "the table shrank while it was read"
    if stream is not None and (excess := sum(1 for _ in stream)):
        raise _wrong_count(source, count + excess, expected)


def _wrong_count(source: Source, got: int, expected: int) -> InputError:
    return InputError(
        f"{source.sdf} does not fit the split: it is too {'short' if got < expected else 'long'}",
        got=f"{got:,} records",
        expected=f"{expected:,}, one for each training row of {SPLIT_FILE}",
        remedy="SDF, splits and table must be of the same release: fetch them again",
    )

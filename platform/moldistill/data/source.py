"""What is prepared: a root in PCQM4Mv2's layout, or a plain CSV. One pass over its table finds every mistake early."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moldistill.chem.reader import read_csv, read_splits
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
    target, split = _read_table(path, settings.target, require_target=False)
    if (split < 0).all() and np.isfinite(target).any():
        split = random_splits(len(split), settings.seed)
    return Source("csv", path, None, (path,), target * factor, split)


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
    target, _ = _read_table(table, settings.target, require_target=True)
    split = read_splits(path / SPLIT_FILE, len(target))
    sdf = next((path / name for name in GEOMETRIES if (path / name).is_file()), None)
    if sdf is None:
        log(f"{path} has no {GEOMETRIES[-1]}: the store will have no geometries, so that no teacher can be trained")
    files = (table, path / SPLIT_FILE, *([sdf] if sdf else []))
    return Source("root", table, sdf, files, target * factor, split)


def _read_table(
    table: Path, target: str | None, *, require_target: bool
) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    pairs = [(row.target, row.split) for row in read_csv(table, target, require_target=require_target)]
    return np.array([pair[0] for pair in pairs], np.float64), np.array([pair[1] for pair in pairs], np.int8)


def read_tasks(
    source: Source, settings: PrepareSettings, selected: Bool[np.ndarray, " rows"], size: int
) -> Iterator[ChunkTask]:
    """The selected rows in chunks of `size`, in order, each training row with its SDF record.

    Raises InputError where the SDF has fewer or more records than there are training rows.
    """
    records = read_sdf(source.sdf) if source.sdf is not None else None
    expected, count, first = int((source.split == TRAIN).sum()), 0, 0
    smiles: list[str] = []
    chosen: list[bytes | None] = []
    table = read_csv(source.table, settings.target, require_target=source.kind == "root")
    for row, split, wanted in zip(table, source.split.tolist(), selected.tolist(), strict=True):
        record = None
        if records is not None and split == TRAIN:
            record = next(records, None)
            if record is None:
                raise _wrong_count(source, count, expected)
            count += 1
        if not wanted:
            continue
        smiles.append(row.smiles)
        chosen.append(record)
        if len(smiles) == size:
            yield ChunkTask(first, tuple(smiles), tuple(chosen))
            first += size
            smiles, chosen = [], []
    if smiles:
        yield ChunkTask(first, tuple(smiles), tuple(chosen))
    if records is not None and (excess := sum(1 for _ in records)):
        raise _wrong_count(source, count + excess, expected)


def _wrong_count(source: Source, got: int, expected: int) -> InputError:
    return InputError(
        f"{source.sdf} does not fit the split: it is too {'short' if got < expected else 'long'}",
        got=f"{got:,} records",
        expected=f"{expected:,}, one for each training row of {SPLIT_FILE}",
        remedy="SDF, splits and table must be of the same release: fetch them again",
    )

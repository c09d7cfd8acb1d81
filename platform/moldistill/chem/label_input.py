"""The table of molecules to be labelled, and their split."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

from moldistill.core.errors import InputError, nearest
from moldistill.core.seeds import generator
from moldistill.core.vocabulary import SPLITS, TEST_SPLITS

SPLIT_NAMES = ("train", "valid", *TEST_SPLITS)
"""Splits of a root, in the order of the codes that the store uses."""


@dataclass(frozen=True, slots=True)
class SmilesTable:
    """Columns of the source, one entry per row; `split` is empty where the source has no such column."""

    smiles: Sequence[str]
    split: Sequence[str]
    idx: Sequence[str]

    def __len__(self) -> int:
        return len(self.smiles)


@dataclass(frozen=True, slots=True)
class SplitShares:
    """Shares of the molecules that each split gets where the source has no column `split`; training gets the rest.

    Molecules of more than `train_max_atoms` heavy atoms never go to the training set, as in PCQM4Mv2.
    """

    valid: float = 0.1
    test_dev: float = 0.05
    test_challenge: float = 0.05
    train_max_atoms: int = 20
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        shares = (self.valid, self.test_dev, self.test_challenge)
        if min(shares) < 0 or not 0 < sum(shares) < 1:
            raise InputError(
                "the shares of the splits leave nothing to train on, or nothing to validate on",
                got=f"valid {self.valid}, test-dev {self.test_dev}, test-challenge {self.test_challenge}",
                expected="shares of 0 or more, whose sum lies between 0 and 1",
                remedy="lower the shares, or raise that of valid",
            )


def read_table(source: Path) -> SmilesTable:
    """Read a CSV (or .csv.gz) with the columns `smiles` and, if wanted, `split` and `idx`.

    Raises InputError for a missing or empty file, bytes that are not UTF-8, a missing column, and unknown splits.
    """
    if not source.is_file():
        raise InputError(f"{source} does not exist", expected="a CSV with a column `smiles`", remedy="check the path")
    opener = gzip.open if source.suffix == ".gz" else open
    try:
        with opener(source, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            _check_columns(source, columns)
            rows = [tuple((row.get(name) or "").strip() for name in ("smiles", "split", "idx")) for row in reader]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8 text",
            got=f"byte 0x{error.object[error.start]:02x} ({error.reason})",
            expected="a CSV in UTF-8",
            remedy=f"convert it, e.g. iconv -f latin1 -t utf-8 {source.name}",
        ) from error
    except (OSError, EOFError, csv.Error) as error:
        raise InputError(f"{source} cannot be read", got=error, expected="a CSV, plain or gzipped") from error
    if not rows:
        raise InputError(f"{source} has a header and no rows", expected="one molecule a row")
    smiles, split, idx = (list(column) for column in zip(*rows, strict=True))
    if "split" in columns:
        _check_splits(source, split)
    return SmilesTable(smiles, split if "split" in columns else [], idx if "idx" in columns else [])


def _check_columns(source: Path, columns: list[str]) -> None:
    if not columns:
        raise InputError(f"{source} is empty", expected="a CSV with a column `smiles`")
    if "smiles" not in columns:
        likely = nearest("smiles", [name.lower() for name in columns])
        raise InputError(
            f"{source} has no column `smiles`",
            got=", ".join(columns[:10]),
            expected="a header line with `smiles`, and `split` if the split is fixed",
            remedy=f"rename the column {likely!r} to smiles" if likely else "add the header, or name the column smiles",
        )


def _check_splits(source: Path, split: list[str]) -> None:
    for row, name in enumerate(split):
        if name not in SPLIT_NAMES:
            likely = nearest(name, SPLIT_NAMES)
            raise InputError(
                f"{source}, row {row}: unknown split",
                got=repr(name),
                expected="one of " + ", ".join(SPLIT_NAMES),
                remedy=f"write {likely!r}" if likely else "correct it, or leave the column out for a random split",
            )


def given_splits(split: Sequence[str]) -> Int[np.ndarray, " rows"]:
    """Codes (int64) of a `split` column."""
    return np.array([SPLITS.index(name) for name in split], dtype=np.int64)


def random_splits(heavy_atoms: Int[np.ndarray, " rows"], shares: SplitShares) -> Int[np.ndarray, " rows"]:
    """Codes (int64) of a seeded random split by size.

    Molecules too large for training are dealt out over valid and tests in proportion to their shares; small ones
    fill each of these up to its share, and the rest is the training set.
    """
    draw = generator(shares.seed, "split")
    weights = np.array([shares.valid, shares.test_dev, shares.test_challenge])
    quotas = np.rint(weights * len(heavy_atoms)).astype(np.int64)
    codes = np.zeros(len(heavy_atoms), dtype=np.int64)
    large = draw.permutation(np.flatnonzero(heavy_atoms > shares.train_max_atoms))
    ends = np.rint(np.cumsum(weights) / weights.sum() * len(large)).astype(np.int64)
    small = draw.permutation(np.flatnonzero(heavy_atoms <= shares.train_max_atoms))
    begin, taken = 0, 0
    for code, (end, quota) in enumerate(zip(ends, quotas, strict=True), start=1):
        codes[large[begin:end]] = code
        fill = max(0, int(quota - (end - begin)))
        codes[small[taken : taken + fill]] = code
        begin, taken = int(end), taken + fill
    return codes

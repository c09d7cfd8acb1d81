"""That the test rows of a store are those of the split, in its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moldistill.chem.reader import read_splits
from moldistill.core.artifacts import hash_file
from moldistill.core.vocabulary import SPLITS, TEST_SPLITS
from moldistill.data.source import SPLIT_FILE
from moldistill.data.splits import split_hash
from moldistill.data.store import Store
from moldistill.delivery.checks import Check
from moldistill.delivery.members import Rows


def prove_split(store: Store, wanted: str) -> list[Check]:
    """Checks of each test split: its order, the hash `wanted` of rows and splits, and the source's own split file.

    The file is read again where the store says that it lies, if it is still the one that the store was made from.
    """
    return [*_order(store), *_hash(store, wanted), *_file(store)]


def _order(store: Store) -> list[Check]:
    found = []
    for split in TEST_SPLITS:
        rows = np.asarray(store.row[store.rows(split)], dtype=np.int64)
        wrong = np.flatnonzero(np.diff(rows) <= 0)
        if len(wrong):
            detail = f"source row {rows[wrong[0] + 1]} follows source row {rows[wrong[0]]}"
        else:
            detail = f"source rows {rows[0]:,} to {rows[-1]:,}, ascending, as in the split"
        found.append(Check(split, "order", "failed" if len(wrong) else "passed", detail))
    return found


def _hash(store: Store, wanted: str) -> list[Check]:
    got = split_hash(np.asarray(store.row), np.asarray(store.split))
    if got == wanted:
        return [Check("both tests", "split hash", "passed", f"rows and splits of the store have the hash {got}")]
    return [Check("both tests", "split hash", "failed", f"{got}, expected {wanted}: the store's columns have changed")]


def _file(store: Store) -> list[Check]:
    source = store.manifest.facts.get("source") or {}
    if source.get("kind") != "root":
        return []
    file = Path(str(source["path"])).parent.parent / SPLIT_FILE
    expected = store.manifest.inputs.get(SPLIT_FILE)
    if not file.is_file() or hash_file(file) != expected:
        detail = f"{SPLIT_FILE} (SHA-256 {expected}) is no longer at {file}: the order is the store's word"
        return [Check("both tests", "split file", "warning", detail)]
    split = read_splits(file, int(source["rows"]))
    whole = (store.manifest.facts.get("settings") or {}).get("limit") is None
    return [_compared(store, name, np.flatnonzero(split == SPLITS.index(name)), whole) for name in TEST_SPLITS]


def _compared(store: Store, name: str, wanted: Rows, whole: bool) -> Check:
    """Whether the store's rows of a split are those of the file: all of them, or some where it is a sample."""
    rows = np.asarray(store.row[store.rows(name)], dtype=np.int64)
    if not whole:
        wanted = wanted[np.isin(wanted, rows)]
    common = min(len(rows), len(wanted))
    wrong = np.flatnonzero(rows[:common] != wanted[:common])
    if len(wrong) or len(rows) != len(wanted):
        place = int(wrong[0]) if len(wrong) else common
        got = f"source row {rows[place]}" if place < len(rows) else "no row"
        expected = f"source row {wanted[place]}" if place < len(wanted) else "no row"
        return Check(name, "split file", "failed", f"{got} at place {place}, expected {expected} ({SPLIT_FILE})")
    of = "all" if whole else "a sample of the"
    return Check(name, "split file", "passed", f"{of} {len(rows):,} rows of {SPLIT_FILE}, in its order")

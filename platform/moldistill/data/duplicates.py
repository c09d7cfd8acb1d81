"""Molecules that occur more than once in a store, within and across splits, and labels of theirs that contradict."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import rdBase

from moldistill.core.artifacts import Manifest, atomic_path
from moldistill.core.errors import InputError
from moldistill.data.columns import COLUMNS, open_column
from moldistill.data.groups import Groups, canonical_smiles, find_groups
from moldistill.data.passes import SPLIT_NAMES, smiles_of, split_codes
from moldistill.data.store import Store
from moldistill.data.tallies import tally_groups

TOLERANCE = 1e-6
"""Difference (eV) of labels of a molecule that is none yet; the rounding of a 32-bit float (2⁻²³ of the larger label)
is allowed for on top, so that a table that once went through 32 bits does not contradict its source."""

EXAMPLES = 20
"""Molecules of each kind that are listed."""

MAX_ROWS = 10
"""Rows of a molecule that are listed: those with the extreme labels, the first of each split, then the first ones."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A molecule that occurs more than once: canonical SMILES (the text, where RDKit has none), and some of its rows.

    rows, ascending: rows of the store; splits and targets (eV, None unknown) go with them. occurrences: all of its
    rows. spread: largest minus smallest known label, eV.
    """

    smiles: str
    occurrences: int
    spread: float
    rows: tuple[int, ...]
    splits: tuple[str, ...]
    targets: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What repeats in a store.

    compared: rows with a molecule or a text to compare. different: different molecules among them. molecules: those
    that occur more than once, in `rows` rows. shared: by two splits, the number of molecules in both; for a split and
    itself, of those more than once in it. seen: rows of the second split whose molecule is in the first (or, for the
    same split, more than once in it). crossing: molecules in more than one split, listed in `across`, as they come.
    contradicting: molecules whose known labels differ by more than `tolerance` (eV), in contradicting_rows rows;
    largest: the largest difference, eV; `worst` lists them, largest difference first.
    """

    compared: int
    different: int
    molecules: int
    rows: int
    shared: Mapping[str, Mapping[str, int]]
    seen: Mapping[str, Mapping[str, int]]
    crossing: int
    tolerance: float
    contradicting: int
    contradicting_rows: int
    largest: float
    worst: tuple[Repeated, ...]
    across: tuple[Repeated, ...]


def find_duplicates(store: Store, *, tolerance: float = TOLERANCE, examples: int = EXAMPLES) -> Duplicates:
    """Look for repeated molecules and contradicting labels; `examples` of each kind are listed.

    Raises InputError for a tolerance that is no difference, and for a store whose content is damaged.
    """
    check_tolerance(tolerance)
    return summarize(store, find_groups(store), tolerance=tolerance, examples=examples)


def check_tolerance(tolerance: float) -> None:
    """Raises InputError unless `tolerance` can be a difference of labels."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(
            "the tolerance is no difference of two labels",
            got=tolerance,
            expected="a number of eV, 0 or more",
            remedy=f"leave it out for {TOLERANCE:g}",
        )


def summarize(store: Store, groups: Groups, *, tolerance: float = TOLERANCE, examples: int = EXAMPLES) -> Duplicates:
    """As `find_duplicates`, for groups that were found."""
    shared, seen = np.zeros((2, len(SPLIT_NAMES), len(SPLIT_NAMES)), np.int64)
    crosses, contradicts = np.zeros((2, len(groups)), np.bool_)
    spread = np.zeros(len(groups))
    code = split_codes(store)
    tally_groups(groups.rows, groups.starts, code, store.target, tolerance, shared, seen, crosses, spread, contradicts)
    contradicting, crossing = np.flatnonzero(contradicts), np.flatnonzero(crosses)
    worst = contradicting[np.argsort(-spread[contradicting], kind="stable")[:examples]]
    filled = np.flatnonzero(np.bincount(code, minlength=len(SPLIT_NAMES))).tolist()
    return Duplicates(
        compared=groups.compared,
        different=groups.compared - len(groups.rows) + len(groups),
        molecules=len(groups),
        rows=len(groups.rows),
        shared=_named(shared, filled),
        seen=_named(seen, filled),
        crossing=len(crossing),
        tolerance=tolerance,
        contradicting=len(contradicting),
        contradicting_rows=int(np.diff(groups.starts)[contradicting].sum()),
        largest=float(spread[contradicting].max(initial=0.0)),
        worst=tuple(_repeated(store, groups.members(group), code) for group in worst.tolist()),
        across=tuple(_repeated(store, groups.members(group), code) for group in crossing[:examples].tolist()),
    )


def _named(table: NDArray[np.int64], filled: list[int]) -> dict[str, dict[str, int]]:
    return {SPLIT_NAMES[one]: {SPLIT_NAMES[other]: int(table[one, other]) for other in filled} for one in filled}


def _repeated(store: Store, rows: NDArray[np.int64], code: NDArray[np.uint8]) -> Repeated:
    target = np.asarray(store.target[rows])
    known = np.flatnonzero(np.isfinite(target))
    extremes = [known[np.argmin(target[known])], known[np.argmax(target[known])]] if len(known) else []
    _, first_of_split = np.unique(code[rows], return_index=True)
    ranked = dict.fromkeys([*map(int, extremes), *first_of_split.tolist(), *range(min(len(rows), MAX_ROWS))])
    places = sorted(list(ranked)[:MAX_ROWS])
    first = int(rows[0])
    with rdBase.BlockLogs():
        _, smiles = canonical_smiles(smiles_of(store, first), int(store.flag[first]))
    return Repeated(
        smiles=smiles,
        occurrences=len(rows),
        spread=float(target[known].max() - target[known].min()) if len(known) else 0.0,
        rows=tuple(rows[places].tolist()),
        splits=tuple(SPLIT_NAMES[index] for index in code[rows[places]].tolist()),
        targets=tuple(value if math.isfinite(value) else None for value in target[places].tolist()),
    )


def duplicates_summary(folder: Path) -> dict[str, Any]:
    """Counts about repeated molecules for a manifest's facts.

    `folder` holds all columns of a store, written and closed; a manifest is not needed yet. `shared` names the pairs of
    splits that have molecules in common ("train, valid").
    """
    columns = {spec.name: open_column(folder, spec) for spec in COLUMNS}
    found = find_duplicates(Store(folder, Manifest("store"), **columns), examples=0)
    names = list(found.shared)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    return {
        "different": found.different,
        "molecules": found.molecules,
        "rows": found.rows,
        "within": {name: found.shared[name][name] for name in names if found.shared[name][name]},
        "shared": {f"{one}, {other}": found.shared[one][other] for one, other in pairs if found.shared[one][other]},
        "crossing": found.crossing,
        "contradicting": found.contradicting,
        "contradicting_rows": found.contradicting_rows,
        "largest": found.largest,
        "tolerance": found.tolerance,
    }


HEADER = ("molecule", "row", "source_row", "split", "target", "spread", "smiles")


def write_csv(store: Store, groups: Groups, path: Path) -> None:
    """Write every row whose molecule occurs more than once: HEADER, molecule by molecule (numbered from 0).

    target and spread (of the molecule's known labels) in eV, empty where unknown; smiles as in the source.
    Raises InputError where `path` exists or cannot be written, RunError where the disk is full.
    """
    check_csv(path)
    try:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(HEADER)
            for group in range(len(groups)):
                table.writerows(_lines(store, group, groups.members(group)))
    except OSError as error:
        raise InputError(
            f"{path} cannot be written", got=error.strerror, remedy="name another file with --csv"
        ) from error


def _lines(store: Store, group: int, rows: NDArray[np.int64]) -> Iterator[list[object]]:
    target = store.target[rows]
    known = target[np.isfinite(target)]
    spread = repr(float(known.max() - known.min())) if len(known) else ""
    for row, value in zip(rows.tolist(), target.tolist(), strict=True):
        shown = repr(value) if math.isfinite(value) else ""
        split = SPLIT_NAMES[int(store.split[row])]  # -1, the last, is none
        yield [group, row, int(store.row[row]), split, shown, spread, smiles_of(store, row)]


def check_csv(path: Path) -> None:
    """Raises InputError where a CSV would be written over something, or cannot be written."""
    remedy = "name another file with --csv"
    if path.exists():
        what = "is a folder" if path.is_dir() else "exists already"
        raise InputError(f"{path} {what}", expected="a new file", remedy=remedy)
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{path} cannot be written", got=place, expected="a folder to write to", remedy=remedy)

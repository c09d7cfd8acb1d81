"""What a submission file must satisfy, checked on arrays: OGB's own writer asserts the shape and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import numpy.typing as npt

from moldistill.core.errors import InputError
from moldistill.core.vocabulary import TEST_SPLITS
from moldistill.data.store import Store

FILE_NAMES = {split: f"y_pred_pcqm4m-v2_{split}.npz" for split in TEST_SPLITS}
"""OGB's official name of each submission file."""

OFFICIAL_SIZES = {"test-dev": 147_037, "test-challenge": 147_432}
"""Rows of PCQM4Mv2's test splits."""

LISTED = 20
"""Most rows that a message or a certificate lists."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `result` is passed, failed or warning."""

    split: str
    name: str
    result: str
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every check of one or two submission files. official: whether the counts are those of PCQM4Mv2."""

    files: tuple[str, ...]
    checks: tuple[Check, ...]
    official: bool

    @property
    def warnings(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.result == "warning")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a split's predictions are held to: source rows in the split's order, range of the training targets (eV)."""

    split: str
    source_rows: npt.NDArray[np.int64]
    low: float
    high: float


def expectations(store: Store) -> list[Expectation]:
    """What each test split's predictions must satisfy.

    Raises InputError where the store has no rows of a test split, or no training targets.
    """
    target = np.asarray(store.target[store.rows("train")], dtype=np.float64)
    target = target[np.isfinite(target)]
    rows = {split: store.rows(split) for split in TEST_SPLITS}
    empty = [split for split, members in rows.items() if not len(members)]
    if empty or not len(target):
        raise InputError(
            f"{store.path} cannot be submitted from",
            got=f"no rows of {' and '.join(empty)}" if empty else "no training targets",
            expected="a store of data in PCQM4Mv2's layout, with test-dev and test-challenge",
            remedy="use `predict` for molecules of your own",
        )
    low, high = float(target.min()), float(target.max())
    return [
        Expectation(split, np.asarray(store.row[members], dtype=np.int64), low, high) for split, members in rows.items()
    ]


def check_array(values: npt.NDArray[np.generic], expected: Expectation) -> list[Check]:
    """Dtype, count, finiteness and range of a split's predictions; what depends on a failed check is left out."""
    split = expected.split
    checks = [_verdict(split, "dtype", values.dtype == np.float32, str(values.dtype), "float32")]
    count = (len(expected.source_rows),)
    checks.append(_verdict(split, "count", values.shape == count, f"shape {values.shape}", f"shape {count}"))
    if any(check.result == "failed" for check in checks):
        return checks
    bad = np.flatnonzero(~np.isfinite(values))
    checks.append(
        _verdict(split, "finite", not len(bad), _listed(values, bad, expected) or f"all {count[0]:,} rows", "")
    )
    if len(bad):
        return checks
    checks.append(_implausible(values, expected))
    if checks[-1].result == "passed":
        checks.append(_outside(values, expected))
    return checks


def _verdict(split: str, name: str, passed: bool, got: str, wanted: str) -> Check:
    detail = got if passed or not wanted else f"{got}, expected {wanted}"
    return Check(split, name, "passed" if passed else "failed", detail)


def _implausible(values: npt.NDArray[np.generic], expected: Expectation) -> Check:
    """Fails further than one training range outside the training range: no unit or scale slip stays inside that."""
    width = expected.high - expected.low
    low, high = expected.low - width, expected.high + width
    numbers = values.astype(np.float64)
    wild = np.flatnonzero((numbers < low) | (numbers > high))
    limits = f"{low:.3f} to {high:.3f} eV"
    if len(wild):
        return Check(
            expected.split, "plausible", "failed", f"{_listed(values, wild, expected)}, expected within {limits}"
        )
    return Check(expected.split, "plausible", "passed", f"all within {limits}")


def _outside(values: npt.NDArray[np.generic], expected: Expectation) -> Check:
    numbers = values.astype(np.float64)
    outliers = np.flatnonzero((numbers < expected.low) | (numbers > expected.high))
    limits = f"training range, {expected.low:.3f} to {expected.high:.3f} eV"
    if len(outliers):
        detail = f"outside the {limits}: {_listed(values, outliers, expected)}"
        return Check(expected.split, "range", "warning", detail)
    return Check(expected.split, "range", "passed", f"all within the {limits}")


def _listed(values: npt.NDArray[np.generic], places: npt.NDArray[np.intp], expected: Expectation) -> str:
    """`row 17 (source row 2267): nan, …` of the first places."""
    shown = [
        f"row {place} (source row {expected.source_rows[place]}): {values[place]:.4g}" for place in places[:LISTED]
    ]
    more = f" and {len(places) - LISTED:,} more" if len(places) > LISTED else ""
    return ", ".join(shown) + more


def refuse_failures(checks: Sequence[Check], what: str) -> None:
    """Raise InputError naming the first failed check and its rows."""
    failed = [check for check in checks if check.result == "failed"]
    if failed:
        others = f" (and {len(failed) - 1} more failed checks)" if len(failed) > 1 else ""
        raise InputError(
            f"{what}: the check '{failed[0].name}' of {failed[0].split} failed{others}",
            got=failed[0].detail,
            remedy="nothing was written; mend the predictions, then run again",
        )


def check_submission(path: Path, store: Path) -> CheckReport:
    """Verify a submission file, or every submission file of a folder, that anybody made.

    Raises InputError, naming the rows, where a file has another name, key, dtype or count, holds numbers that are not
    finite or not plausible, or cannot be read. That the rows are in the right order cannot be seen in a file.
    """
    files = _files(path)
    wanted = {item.split: item for item in expectations(Store.open(store))}
    checks: list[Check] = []
    for split, file in files.items():
        found = check_array(_read(file), wanted[split])
        refuse_failures(found, str(file))
        checks += found
    official = all(len(wanted[split].source_rows) == OFFICIAL_SIZES[split] for split in files)
    return CheckReport(tuple(str(file) for file in files.values()), tuple(checks), official)


def _files(path: Path) -> dict[str, Path]:
    """Submission files at `path` by split."""
    if not path.exists():
        raise InputError(f"{path} does not exist", expected=" or ".join(FILE_NAMES.values()), remedy="check the path")
    folder = path if path.is_dir() else path.parent
    found = {split: folder / name for split, name in FILE_NAMES.items() if path.is_dir() or path.name == name}
    found = {split: file for split, file in found.items() if file.is_file()}
    if not found:
        raise InputError(
            f"{path} is no submission",
            got=path.name if path.is_file() else f"{len(list(path.iterdir()))} other files",
            expected=" or ".join(FILE_NAMES.values()),
            remedy="give the file its official name: the name says which split it is for",
        )
    return found


def _read(file: Path) -> npt.NDArray[np.generic]:
    remedy = "write it with np.savez_compressed(file, y_pred=array of float32)"
    if not is_zipfile(file):
        raise InputError(f"{file} is not an npz file", expected="an npz file", remedy=remedy)
    try:
        with np.load(file, allow_pickle=False) as content:
            keys = list(content.files)
            values: npt.NDArray[np.generic] | None = content["y_pred"] if keys == ["y_pred"] else None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise InputError(f"{file} cannot be read", got=error, expected="an npz file", remedy=remedy) from error
    if values is None:
        got = ", ".join(keys) or "none"
        raise InputError(f"{file} has the wrong keys", got=got, expected="y_pred", remedy=remedy)
    return values

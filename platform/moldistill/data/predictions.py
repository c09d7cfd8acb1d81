"""Predictions of one split: `row` int64 ascending, `y_pred` float32 in eV, `flag` uint8, in one `.npz`."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldistill.core.artifacts import atomic_path
from moldistill.core.errors import InputError, RunError
from moldistill.core.shapes import Float, Int, UInt8

_DTYPES = {"row": np.int64, "y_pred": np.float32, "flag": np.uint8}


@dataclass(frozen=True, slots=True)
class Predictions:
    """row: rows of the store, ascending. y_pred: eV. flag: the store's; rows without a graph hold a fallback."""

    row: Int[np.ndarray, " rows"]
    y_pred: Float[np.ndarray, " rows"]
    flag: UInt8[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.row)

    def save(self, path: Path) -> None:
        """Write atomically; equal predictions give equal bytes. Raises RunError where a value is not finite."""
        problem = _problem({"row": self.row, "y_pred": self.y_pred, "flag": self.flag})
        if problem:
            raise RunError(f"predictions for {path.name} cannot be saved", got=problem, expected="finite values in eV")
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, row=self.row, y_pred=self.y_pred, flag=self.flag)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read and check a file of predictions. Raises InputError where it is missing, damaged or not as promised."""
        if not path.is_file():
            raise InputError(f"{path} does not exist", expected="a file of predictions", remedy="check the path")
        try:
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in _DTYPES}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is not a file of predictions",
                got=str(error),
                expected=f"an .npz with {', '.join(_DTYPES)}",
                remedy="predict again",
            ) from error
        problem = _problem(columns)
        if problem:
            raise InputError(f"{path} holds wrong predictions", got=problem, remedy="predict again")
        return cls(**columns)


def _problem(columns: dict[str, NDArray[Any]]) -> str | None:
    """What is wrong with the columns, or None."""
    for name, dtype in _DTYPES.items():
        column = columns[name]
        if column.dtype != dtype or column.ndim != 1:
            return f"{name} is {column.dtype} of shape {column.shape}, not {np.dtype(dtype)} [rows]"
        if len(column) != len(columns["row"]):
            return f"{name} has {len(column):,} entries, row has {len(columns['row']):,}"
    row, value = columns["row"], columns["y_pred"]
    disorder = np.flatnonzero(np.diff(row) <= 0)
    if len(disorder):
        return f"row {row[disorder[0] + 1]} follows row {row[disorder[0]]}: rows must ascend"
    wrong = np.flatnonzero(~np.isfinite(value))
    if len(wrong):
        return f"{value[wrong[0]]} at row {row[wrong[0]]}, and {len(wrong) - 1:,} more that are not finite"
    return None

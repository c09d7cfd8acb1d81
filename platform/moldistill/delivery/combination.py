"""How members' predictions become one: value, spread, and a calibrated interval. `ensemble.json` and exports hold it.

Nothing here is chosen or fitted: `ensemble` does that on validation rows, and everything that predicts applies it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moldistill.core.errors import InputError

Kind = Literal["weighted", "median"]
Floats = npt.NDArray[np.float64]

KEYS = ("combination", "class_edges", "class_weights", "calibration")
"""Optional keys of `ensemble.json` that `Combination.of` reads; without them members are weighted, all sizes alike."""


def size_class(edges: Sequence[int], sizes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Class of each size: k for edges[k - 1] < size <= edges[k], so that n ascending edges make n + 1 classes."""
    return np.searchsorted(np.asarray(edges, dtype=np.int64), sizes, side="left").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Half-width (eV) of the interval of each level: a + b · spread, by size class.

    levels: coverage of the intervals, ascending. edges: see `size_class`. a (eV), b: [classes][levels].
    """

    levels: tuple[float, ...]
    edges: tuple[int, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check(_ascending(self.levels) and all(0 < level < 1 for level in self.levels), "levels", self.levels)
        _check(bool(self.levels), "levels", self.levels)
        _check(_ascending(self.edges), "edges", self.edges)
        for name, table in (("a", self.a), ("b", self.b)):
            fits = len(table) == len(self.edges) + 1 and all(len(row) == len(self.levels) for row in table)
            _check(fits and bool(np.isfinite(table).all()), f"calibration.{name}", table)

    def half_width(self, spread: Floats, sizes: npt.NDArray[np.integer[Any]]) -> Floats:
        """Half-widths (eV, never negative) of shape (levels, rows)."""
        place = size_class(self.edges, sizes)
        width: Floats = np.array(self.a)[place].T + np.array(self.b)[place].T * spread
        return np.maximum(width, 0.0)

    def to_mapping(self) -> dict[str, Any]:
        """As it stands in `ensemble.json`."""
        return {"levels": self.levels, "edges": self.edges, "a": self.a, "b": self.b}


@dataclass(frozen=True, slots=True)
class Combined:
    """value and spread (eV) of shape (rows,); half_width (eV) of shape (levels, rows), None without a calibration."""

    value: Floats
    spread: Floats
    half_width: Floats | None


@dataclass(frozen=True, slots=True)
class Combination:
    """How the predictions of members are combined.

    weights: of each member, sum 1. kind median: the plain median of the members with a weight; `weighted`: their
    weighted mean. class_weights: [classes][members], takes the place of `weights` for the classes of size that
    class_edges cut (`size_class`).
    """

    weights: tuple[float, ...]
    kind: Kind = "weighted"
    class_edges: tuple[int, ...] = ()
    class_weights: tuple[tuple[float, ...], ...] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        _check(self.kind in ("weighted", "median"), "combination", self.kind)
        _check(_weights(self.weights), "weights", self.weights)
        _check(_ascending(self.class_edges), "class_edges", self.class_edges)
        table = self.class_weights
        if table is not None:
            fits = len(table) == len(self.class_edges) + 1 and all(len(row) == len(self.weights) for row in table)
            _check(fits and all(_weights(row) for row in table), "class_weights", table)
        else:
            _check(not self.class_edges, "class_edges without class_weights", self.class_edges)

    @classmethod
    def of(cls, raw: Mapping[str, Any], weights: Sequence[float]) -> Combination:
        """From the optional keys of `ensemble.json`, for members with these weights; InputError for wrong ones."""
        try:
            table, calibration = raw.get("class_weights"), raw.get("calibration")
            return cls(
                tuple(map(float, weights)),
                raw.get("combination") or "weighted",
                tuple(map(int, raw.get("class_edges") or ())),
                None if table is None else _table(table),
                None
                if calibration is None
                else Calibration(
                    tuple(map(float, calibration["levels"])),
                    tuple(map(int, calibration["edges"])),
                    _table(calibration["a"]),
                    _table(calibration["b"]),
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("a combination cannot be read", got=repr(error), remedy="make the folder again") from error

    def to_mapping(self) -> dict[str, Any]:
        """The optional keys of `ensemble.json` that say it."""
        found: dict[str, Any] = {"combination": self.kind}
        if self.class_weights is not None:
            found |= {"class_edges": self.class_edges, "class_weights": self.class_weights}
        return found | ({} if self.calibration is None else {"calibration": self.calibration.to_mapping()})

    def apply(self, predictions: Floats, sizes: npt.NDArray[np.integer[Any]]) -> Combined:
        """Combine predictions (eV) of shape (members, rows) of molecules with `sizes` heavy atoms.

        spread: root of the mean squared distance of the members from the value, by the weights of the value's class.
        """
        weights = np.array(self.weights)[:, None]
        if self.class_weights is not None:
            weights = np.array(self.class_weights)[size_class(self.class_edges, sizes)].T
        if self.kind == "median":
            # Members without a weight in a row's class are hidden from its median.
            taken = np.broadcast_to(weights > 0, predictions.shape)
            value = np.nanmedian(np.where(taken, predictions, np.nan), axis=0) if predictions.size else predictions[0]
            weights = taken / np.maximum(taken.sum(axis=0), 1)
        else:
            value = (weights * predictions).sum(axis=0)
        spread: Floats = np.sqrt((weights * (predictions - value) ** 2).sum(axis=0))
        half = None if self.calibration is None else self.calibration.half_width(spread, sizes)
        return Combined(value, spread, half)


def _table(raw: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in raw)


def _ascending(values: Sequence[float]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))


def _weights(values: Sequence[float]) -> bool:
    """Whether these are shares: finite, none below 0, sum 1."""
    return bool(values) and min(values) >= 0 and abs(sum(values) - 1) < 1e-6


def _check(holds: bool, what: str, got: object) -> None:
    if not holds:
        raise InputError(f"a combination cannot be read: {what}", got=str(got)[:80], remedy="make the folder again")

"""Two trainings on the same molecules: the difference of their errors, by the paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moldistill.core.artifacts import MANIFEST, Manifest, read_manifest
from moldistill.core.errors import InputError
from moldistill.core.settings import Role
from moldistill.data.predictions import Predictions
from moldistill.data.store import Store
from moldistill.delivery.paired import Gain, bootstrap_gain
from moldistill.training.evaluate import MEASURED, scored

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OverMolecules:
    """A pair of trainings on the rows of a split. first, second: MAE in eV. gain: percent by which the first has the
    smaller one.
    """

    split: str
    rows: int
    first: float
    second: float
    gain: Gain


def over_molecules(
    first: tuple[str, Path], second: tuple[str, Path], role: str, metric: str
) -> tuple[OverMolecules | None, tuple[str, ...]]:
    """The paired bootstrap of two runs, given by name and folder, and why there is none.

    Both need saved predictions of the split that `metric` is an error of, and the store that they were trained on, at
    the place that their manifests name.
    """
    absent = [
        f"{name} has no predictions: its run folder is not finished."
        for name, path in (first, second)
        if not (path / MANIFEST).is_file()
    ]
    if absent:
        return None, tuple(absent)
    store, why = _store([read_manifest(path, "run") for _, path in (first, second)])
    if store is None:
        return None, why
    known_role: Role = "teacher" if role == "teacher" else "student"
    split = MEASURED[known_role][metric]
    absent = [
        f"{name} has no predictions of {split}." for name, path in (first, second) if not _file(path, split).is_file()
    ]
    if absent:
        return None, tuple(absent)
    rows = scored(store, split, known_role)
    left, right = (_errors(Predictions.load(_file(path, split)), store, rows) for _, path in (first, second))
    known = np.isfinite(left) & np.isfinite(right)
    if not known.any():
        return None, (f"{split} has no labelled rows that both have predicted.",)
    left, right = left[known], right[known]
    gain = bootstrap_gain(left, right)
    return OverMolecules(split, len(left), float(left.mean()), float(right.mean()), gain), ()


def _file(run: Path, split: str) -> Path:
    return run / "predictions" / f"{split}.npz"


def _store(manifests: Sequence[Manifest]) -> tuple[Store | None, tuple[str, ...]]:
    """The store of both runs, or why it is not at hand."""
    facts = [manifest.facts for manifest in manifests]
    if facts[0].get("store") != facts[1].get("store"):
        return None, ("They were trained on different stores, so that their errors are of different rows.",)
    places = list(dict.fromkeys(str(fact["store_path"]) for fact in facts if fact.get("store_path")))
    for place in places:
        try:
            if read_manifest(Path(place), "store").identity == facts[0].get("store"):
                return Store.open(Path(place)), ()
        except InputError:  # gone, unfinished, or something else by now
            continue
    if not places:
        return None, ("Their run folders do not say where their store lies: only values are compared.",)
    return None, (f"Their store is no longer at {' or '.join(places)}: only values are compared.",)


def _errors(predictions: Predictions, store: Store, rows: Rows) -> Floats:
    """Absolute errors (eV) on these rows, NaN where there is no prediction."""
    errors: Floats = np.full(len(rows), np.nan)
    if len(predictions):
        places = np.searchsorted(predictions.row, rows).clip(max=len(predictions) - 1)
        there = predictions.row[places] == rows
        errors[there] = np.abs(predictions.y_pred[places[there]].astype(np.float64) - store.target[rows[there]])
    return errors

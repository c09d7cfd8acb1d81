"""What an ensemble's folder says: `ensemble.json` and `validation.npz`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moldistill.core.artifacts import atomic_path, read_json, read_manifest
from moldistill.core.errors import InputError
from moldistill.delivery.calibration import Coverage, SizeClass
from moldistill.delivery.combination import Calibration, Combination
from moldistill.delivery.members import Rows
from moldistill.delivery.nested import Tried
from moldistill.delivery.selection import Floats, Score


@dataclass(frozen=True, slots=True)
class Member:
    """A run that was considered. Weights of sum 1, 0: not taken; MAE (eV) on the choosing and the scoring half.

    weight: what predicts. scored_weight: in the combination that was scored, which the choosing half made.
    seconds: predicted for the rows of the budget, where there is one. reason: why it could not be taken.
    """

    path: str
    identity: str
    weight: float
    chosen_on: float
    scored_on: float
    parameters: int
    scored_weight: float = 0.0
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Spending:
    """A budget of inference: seconds asked for and predicted for `rows` molecules, the share of reading their SMILES.

    how: where the figures are from. device: what they hold for.
    """

    asked: float
    rows: int
    predicted: float
    featurizing: float
    how: str
    device: str


@dataclass(frozen=True, slots=True)
class EnsembleSummary:
    """What `ensemble.json` holds. Energies in eV. Paths are relative to the folder where they can be, absolute here.

    score, best_single_score: MAE on the scoring half of the ensemble, and of the run that is best on the choosing half.
    difference: ensemble minus best single run, row by row (negative: the ensemble is better).
    mean_of_all, median_predictor: MAE on the same half of the plain mean, and of the training median.
    members: the runs with a weight, heaviest first. passed_over: the other runs.

    combiner: the rule that was taken, of those in `tried`. combination, class_edges, class_weights (of the members, in
    their order), calibration: see `combination.Combination`. refitted: whether the rule made the weights anew from all
    labelled rows after it was scored; else they are those that were scored. The score is that of the half either way.
    rows_calibrated_on, coverage: rows of the scoring half that stretched the intervals; how often these held on the
    others. by_size: errors and coverage by class of sizes.
    """

    seed: int
    store: str
    store_path: str
    split_hash: str
    vocabulary: str
    rows_chosen_on: int
    rows_scored_on: int
    score: Score
    best_single: str
    best_single_score: Score
    difference: Score
    mean_of_all: float
    median_predictor: float
    training_median: float
    training_range: tuple[float, float]
    training_sizes: tuple[int, int]
    members: tuple[Member, ...]
    passed_over: tuple[Member, ...]
    combiner: str = "greedy"
    tried: tuple[Tried, ...] = ()
    combination: str = "weighted"
    class_edges: tuple[int, ...] = ()
    class_weights: tuple[tuple[float, ...], ...] | None = None
    calibration: Calibration | None = None
    refitted: bool = False
    rows_calibrated_on: int = 0
    coverage: tuple[Coverage, ...] = ()
    by_size: tuple[SizeClass, ...] = ()
    budget: Spending | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """Identity of everything that it was made from."""
        return {"store": self.store} | {f"member {place}": item.identity for place, item in enumerate(self.members)}

    @property
    def rule(self) -> Combination:
        """How the predictions of `members`, in their order, are combined."""
        return Combination.of(asdict(self), [item.weight for item in self.members])

    def to_mapping(self, folder: Path) -> dict[str, Any]:
        """As `ensemble.json` of `folder` has it: places beside or below the folder relative to it, others absolute."""
        return asdict(self._with_paths(lambda path: _relative(path, folder.resolve())))

    def _with_paths(self, change: Callable[[str], str]) -> EnsembleSummary:
        return replace(
            self,
            store_path=change(self.store_path),
            best_single=change(self.best_single),
            members=tuple(replace(item, path=change(item.path)) for item in self.members),
            passed_over=tuple(replace(item, path=change(item.path)) for item in self.passed_over),
        )

    @classmethod
    def of(cls, raw: Mapping[str, Any], folder: Path) -> EnsembleSummary:
        """From what `ensemble.json` of `folder` holds; KeyError or TypeError where that is something else."""
        found = dict(raw)
        for name in ("score", "best_single_score", "difference"):
            found[name] = Score(**found[name])
        records = (("members", Member), ("passed_over", Member), ("tried", Tried), ("coverage", Coverage))
        for name, record in records:
            found[name] = tuple(record(**item) for item in found.get(name, ()))
        found["by_size"] = tuple(
            SizeClass(**{**item, "coverage": tuple(Coverage(**one) for one in item["coverage"])})
            for item in found.get("by_size", ())
        )
        for name in ("training_range", "training_sizes"):
            found[name] = tuple(found[name])
        rule = Combination.of(found, [item.weight for item in found["members"]])
        found["class_edges"], found["class_weights"] = rule.class_edges, rule.class_weights
        found["calibration"] = rule.calibration
        if found.get("budget") is not None:
            found["budget"] = Spending(**found["budget"])
        here = folder.resolve()  # an absolute path takes its place
        return cls(**found)._with_paths(lambda path: os.path.normpath(here / path))


def _relative(path: str, folder: Path) -> str:
    """`path` from `folder`, if it lies beside or below it: the two can then be moved together."""
    real = Path(path).resolve()
    return os.path.relpath(real, folder) if real.is_relative_to(folder.parent) else path


def load_ensemble(folder: Path) -> EnsembleSummary:
    """The summary of a finished ensemble folder."""
    read_manifest(folder, "ensemble")
    raw: dict[str, Any] = read_json(folder / "ensemble.json")
    try:
        return EnsembleSummary.of(raw, folder.expanduser())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{folder / 'ensemble.json'} does not hold an ensemble"
        raise InputError(what, got=repr(error), remedy="make the folder again") from error


@dataclass(frozen=True, slots=True)
class Validation:
    """Labelled validation rows as the ensemble saw them, for reports: `validation.npz`. Energies in eV.

    row: store row. size: heavy atoms. ensemble, spread: of the combination that the choosing half made. scored_on:
    whether the row lies in the scoring half. measured_on: whether it lies in that part of it which calibrated nothing.
    """

    row: Rows
    size: Rows
    target: Floats
    ensemble: Floats
    best_single: Floats
    scored_on: npt.NDArray[np.bool_]
    spread: Floats
    measured_on: npt.NDArray[np.bool_]

    @classmethod
    def load(cls, folder: Path) -> Validation:
        """Read it; InputError where the folder was made before it held all that."""
        with np.load(folder / "validation.npz", allow_pickle=False) as content:
            if missing := [name for name in cls.__slots__ if name not in content]:
                what = f"{folder / 'validation.npz'} lacks {', '.join(missing)}"
                raise InputError(what, remedy="make the ensemble again with this version")
            return cls(**{name: content[name] for name in cls.__slots__})

    def save(self, folder: Path) -> None:
        with atomic_path(folder / "validation.npz") as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **{name: getattr(self, name) for name in self.__slots__})

"""A study as it is read: its trials, what they came to, and the files of its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from moldistill.core.artifacts import MANIFEST, Manifest, read_manifest, write_json, write_manifest
from moldistill.core.errors import InputError
from moldistill.search.compile import quiet_optuna
from moldistill.search.space import ObjectiveSettings
from moldistill.trial.folder import read_metrics

JOURNAL = "optuna.journal"
SPACE = "space.yaml"
TABLE = "trials.json"
TRIALS = "trials"
FINALISTS = "finalists"
LOCK = ".lock"

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
"""Names of the states that a trial ends in."""

ENDED = tuple(STATES)


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial.

    state: complete, pruned (stopped early), failed, or running. value: the first objective's last value (eV), None if
    it failed. values: of all objectives, of a complete trial. folder: relative to the study's. seconds: wall time that
    it held its resources. attempts: what went wrong in attempts that others followed.
    """

    number: int
    state: str
    value: float | None
    parameters: Mapping[str, Any]
    epochs: int
    folder: str
    reason: str | None = None
    values: tuple[float, ...] = ()
    seconds: float = 0.0
    attempts: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StudySummary:
    """What a search came to.

    best: the trial with the smallest first objective, of the complete ones if there is one. front: with several
    objectives, numbers of the complete trials that no other one beats in all of them.
    """

    out: Path
    objectives: tuple[ObjectiveSettings, ...]
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    front: tuple[int, ...]
    seconds: float
    gpu_hours: float
    concurrent: int

    @property
    def metric(self) -> str:
        """The first objective's."""
        return str(self.objectives[0].metric)

    @property
    def direction(self) -> str:
        """The first objective's."""
        return self.objectives[0].direction

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state: complete, pruned (stopped early) and failed."""
        return counts(self.trials)

    @property
    def epochs(self) -> int:
        """Epochs trained in all."""
        return sum(row.epochs for row in self.trials)


def counts(rows: tuple[TrialRow, ...]) -> dict[str, int]:
    """Trials by the state that they ended in."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in STATES.values()}


def row_of(trial: FrozenTrial, folder: str) -> TrialRow:
    """What the storage says of a trial. One that was told with a penalty has failed, whatever its state."""
    told = trial.user_attrs
    failed = trial.state is TrialState.FAIL or told.get("failed", False)
    values = tuple(trial.values or ()) if trial.state is TrialState.COMPLETE and not failed else ()
    last = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
    return TrialRow(
        number=trial.number,
        state="failed" if failed else STATES.get(trial.state, "running"),
        value=None if failed else values[0] if values else last,
        parameters=told.get("parameters", dict(trial.params)),
        epochs=max([*trial.intermediate_values, int(told.get("epochs", 0))]),
        folder=folder,
        reason=told.get("reason"),
        values=values,
        seconds=float(told.get("seconds", 0.0)),
        attempts=tuple(told.get("attempts", ())),
    )


def best_first(rows: tuple[TrialRow, ...]) -> list[TrialRow]:
    """Trials with a value: complete ones by value, then those that were stopped, later ones first."""
    valued = [row for row in rows if row.value is not None and row.state in ("complete", "pruned")]
    return sorted(
        valued, key=lambda row: (row.state != "complete", -row.epochs if row.state != "complete" else 0, row.value)
    )


def finalists(rows: tuple[TrialRow, ...], top: int) -> list[TrialRow]:
    """The finalists: the best `top` complete trials."""
    return [row for row in best_first(rows) if row.state == "complete"][:top]


def front(rows: tuple[TrialRow, ...], objectives: tuple[ObjectiveSettings, ...]) -> tuple[int, ...]:
    """Numbers of the complete trials that no other one beats: at least as good in all objectives, better in one."""
    signs = [1.0 if objective.direction == "minimize" else -1.0 for objective in objectives]
    points = {
        row.number: tuple(sign * value for sign, value in zip(signs, row.values, strict=True))
        for row in rows
        if row.state == "complete" and len(row.values) == len(signs)
    }

    def beaten(point: tuple[float, ...]) -> bool:
        others = (other for other in points.values() if other != point)
        return any(all(theirs <= ours for theirs, ours in zip(other, point, strict=True)) for other in others)

    return tuple(number for number, point in points.items() if not beaten(point))


def open_storage(out: Path, storage: str) -> BaseStorage:
    """The Optuna storage of the study in `out`: its journal, or the database at a URL."""
    with quiet_optuna():
        if storage == "journal":
            return JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        try:
            return RDBStorage(storage)
        except Exception as error:
            raise InputError(
                "the Optuna storage does not open",
                got=f"{storage}: {error}",
                expected="journal, or a database URL such as postgresql://user@host/name",
                remedy="check `storage` of the space, and that the database's driver is installed",
            ) from error


def recorded_values(folder: Path, metric: str) -> dict[int, float]:
    """The metric by epoch from a run folder's `metrics.jsonl`, finite values only; empty where there is none."""
    return {
        int(record["epoch"]): record[metric]
        for record in read_metrics(folder)
        if math.isfinite(record.get(metric, math.nan))
    }


def final_metrics(folder: Path) -> dict[str, Any]:
    """Numbers from a finished run folder: the metrics of its last epoch, and `parameters`; empty for any other."""
    if not (folder / MANIFEST).is_file():
        return {}
    facts = read_manifest(folder, "run").facts
    told = {**(facts.get("metrics") or {}), "parameters": facts.get("parameters")}
    return {name: value for name, value in told.items() if isinstance(value, int | float)}


def write_study(summary: StudySummary, inputs: Mapping[str, str], facts: Mapping[str, Any]) -> Manifest:
    """Write the table of trials and the manifest, which finishes the study's folder. facts: more than the summary's.

    The journal is not among the hashed files: dashboards that people open on it write to it.
    """
    rows = [asdict(row) for row in summary.trials]
    write_json(summary.out / TABLE, rows)
    said = {
        "metric": summary.metric,
        "direction": summary.direction,
        "objectives": [asdict(objective) for objective in summary.objectives],
        "counts": summary.counts,
        "epochs": summary.epochs,
        "seconds": round(summary.seconds, 3),
        "gpu_hours": round(summary.gpu_hours, 4),
        "concurrent": summary.concurrent,
        "best": asdict(summary.best) if summary.best else None,
        "front": list(summary.front),
        "trials": rows,
    }
    return write_manifest(summary.out, "study", files=[SPACE, TABLE], inputs=inputs, facts={**said, **facts})

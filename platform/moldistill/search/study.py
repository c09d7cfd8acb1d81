"""The ledger of a study: the Optuna storage and the run folders, and nothing else.

Each Optuna trial carries user attributes: `folder` (its run folder's name), `parameters` (values by dotted key),
`reason` (why it failed), `superseded` (its work goes on under another number) and `refused` (never trained: its
settings contradict themselves).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from moldistill.core.artifacts import MANIFEST, Manifest, write_json, write_manifest
from moldistill.core.errors import InputError
from moldistill.search.compile import quiet_optuna
from moldistill.search.space import Space
from moldistill.trial.folder import read_metrics

JOURNAL = "optuna.journal"
SPACE = "space.yaml"
TABLE = "trials.json"
TRIALS = "trials"

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial. value: the objective's last value (eV), None if it failed. folder: relative to the study's."""

    number: int
    state: str
    value: float | None
    parameters: Mapping[str, Any]
    epochs: int
    folder: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StudySummary:
    """What a search came to. best: the trial with the smallest value, of the complete ones if there is one."""

    out: Path
    metric: str
    direction: str
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    seconds: float
    concurrent: int

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state: complete, pruned (stopped early) and failed."""
        found = Counter(row.state for row in self.trials)
        return {state: found[state] for state in STATES.values()}

    @property
    def epochs(self) -> int:
        """Epochs trained in all."""
        return sum(row.epochs for row in self.trials)


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


class Ledger:
    """A study's storage, and what the search writes to it."""

    def __init__(self, out: Path, space: Space, *, store: str, resume: bool) -> None:
        """Create the study, or open it with `resume`. store: identity of the store that trials read."""
        self.out, self.space = out, space
        storage = open_storage(out, space.storage)
        name = out.name
        with quiet_optuna():
            known = name in optuna.get_all_study_names(storage)
            if known and not resume:
                raise InputError(
                    f"the storage already holds a study '{name}'",
                    got=space.storage,
                    remedy="name another folder with --out, or continue with --resume",
                )
            self.study: Study = optuna.create_study(
                storage=storage, study_name=name, direction=space.direction, load_if_exists=True
            )
        if not known:
            self.study.set_user_attr("store", store)
            with quiet_optuna():
                self.study.set_metric_names([space.metric])
        elif self.study.user_attrs.get("store", store) != store:
            raise InputError(
                f"{out} was made with another store",
                got=store,
                expected=self.study.user_attrs["store"],
                remedy="name that store, or start a new study",
            )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials of these states (default: all), without those that were superseded or refused."""
        found = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in found if not ({"superseded", "refused"} & set(trial.user_attrs))]

    def folder(self, trial: FrozenTrial) -> Path:
        """The trial's run folder."""
        name = trial.user_attrs.get("folder") or f"{trial.number:04d}"
        return self.out / TRIALS / str(name)

    @property
    def left(self) -> int:
        """Trials that the budget still allows."""
        return max(0, self.space.budget.trials - len(self.trials(*STATES)))

    def adopt_orphans(self) -> tuple[int, int]:
        """Settle trials that a dead driver left RUNNING; (finished ones now told, unfinished ones to be continued).

        A finished run folder is told COMPLETE. Another trial is queued again with its parameters and folder, so that it
        goes on from its checkpoint, and then marked FAIL, in this order: dying in between loses nothing.
        """
        told = continued = 0
        following = {trial.user_attrs.get("continues") for trial in self.study.get_trials(deepcopy=False)}
        for orphan in self.trials(TrialState.RUNNING):
            folder = self.folder(orphan)
            value = self._recorded_value(orphan, folder)
            if value is not None:
                self.study.tell(orphan.number, value)
                told += 1
                continue
            if "folder" in orphan.user_attrs and orphan.number not in following:
                attributes = {"continues": orphan.number, "folder": folder.name}
                self.study.enqueue_trial(orphan.params, user_attrs=attributes)
                continued += 1
            self._set(orphan, "superseded", True)
            self._set(orphan, "reason", "the driver ended while it ran")
            self.study.tell(orphan.number, state=TrialState.FAIL)
        return told, continued

    def _set(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, key, value)

    def _recorded_value(self, orphan: FrozenTrial, folder: Path) -> float | None:
        """The objective in a finished run folder, its epochs written to the storage; None if it is unfinished."""
        if not (folder / MANIFEST).is_file():
            return None
        value = None
        for epoch, reported in recorded_values(folder, self.space.metric).items():
            value = reported
            if epoch not in orphan.intermediate_values:
                self.study._storage.set_trial_intermediate_value(orphan._trial_id, epoch, reported)
        return value

    def rows(self) -> tuple[TrialRow, ...]:
        """Every trial that ended, by number."""
        return tuple(self._row(trial) for trial in self.trials(*STATES))

    def _row(self, trial: FrozenTrial) -> TrialRow:
        value = trial.value if trial.state is not TrialState.FAIL else None
        return TrialRow(
            number=trial.number,
            state=STATES[trial.state],
            value=value,
            parameters=trial.user_attrs.get("parameters", dict(trial.params)),
            epochs=max(trial.intermediate_values, default=0),
            folder=str(self.folder(trial).relative_to(self.out)),
            reason=trial.user_attrs.get("reason"),
        )

    def summary(self, seconds: float, concurrent: int) -> StudySummary:
        """The study as it stands. seconds: wall time of this search."""
        rows = self.rows()
        ended = [row for row in rows if row.state == "complete"] or [row for row in rows if row.state == "pruned"]
        best = min((row for row in ended if row.value is not None), key=_value, default=None)
        return StudySummary(self.out, self.space.metric, self.space.direction, rows, best, seconds, concurrent)


def _value(row: TrialRow) -> float:
    assert row.value is not None
    return row.value


def recorded_values(folder: Path, metric: str) -> dict[int, float]:
    """The metric by epoch from a run folder's `metrics.jsonl`, finite values only; empty where there is none."""
    return {
        int(record["epoch"]): record[metric]
        for record in read_metrics(folder)
        if math.isfinite(record.get(metric, math.nan))
    }


def write_study(summary: StudySummary, inputs: Mapping[str, str]) -> Manifest:
    """Write the table of trials and the manifest, which finishes the study's folder.

    The journal is not among the hashed files: dashboards that people open on it write to it.
    """
    rows = [asdict(row) for row in summary.trials]
    write_json(summary.out / TABLE, rows)
    facts = {
        "metric": summary.metric,
        "direction": summary.direction,
        "counts": summary.counts,
        "epochs": summary.epochs,
        "seconds": round(summary.seconds, 3),
        "concurrent": summary.concurrent,
        "best": asdict(summary.best) if summary.best else None,
        "trials": rows,
    }
    return write_manifest(summary.out, "study", files=[SPACE, TABLE], inputs=inputs, facts=facts)

"""Between Tune and the ledger: who is tried next, what trials report, and how they end."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import Bar
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna
from moldistill.search.schedulers import Scheduler
from moldistill.search.space import Space
from moldistill.search.study import STATES, TRIALS, Ledger, recorded_values
from moldistill.search.trainable import Job, Runner
from moldistill.trial.spec import TrialSpec

MAX_REFUSED = 100
"""Contradictory configurations in a row after which the search gives up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every trial has in common: the store (absolute path) and the function that runs it."""

    store: Path
    runner: Runner


class LedgerSearch(OptunaSearch):
    """OptunaSearch whose storage tells the truth.

    Ray's own reports at `training_iteration`, which restarts after a failure, and calls trials that were stopped early
    complete. Here values stand at their epoch, stopped trials are PRUNED and failed ones FAIL, with the reason.
    """

    def __init__(self, ledger: Ledger, plan: Plan, scheduler: Scheduler, bar: Bar) -> None:
        space = ledger.space
        self._define = DefineByRun(space.parameters)
        self._study, self._objective = ledger.study, space.metric
        self._study.sampler = make_sampler(space.sampler, earlier=len(self._study.get_trials(deepcopy=False)))
        with quiet_optuna():
            super().__init__(
                space=self._define,
                metric=space.metric,
                mode=space.direction[:3],
                study_name=self._study.study_name,
                storage=self._study._storage,
            )
        self._ledger, self._plan, self._scheduler, self._bar = ledger, plan, scheduler, bar
        self._running: dict[str, Trial] = {}
        self._last: dict[str, dict[str, Any]] = {}
        rows = ledger.rows()
        self._ended = Counter(row.state for row in rows)
        self._best = min((row.value for row in rows if row.value is not None), default=math.inf)
        self.failure: RunError | None = None

    @property
    def space(self) -> Space:
        """The space that is searched."""
        return self._ledger.space

    def suggest(self, trial_id: str) -> Any:
        """The next trial's job. Tune's hook."""
        refusal: InputError | None = None
        for _ in range(MAX_REFUSED):
            with quiet_optuna():
                trial = self._study.ask()
                values = self._define(trial)
            try:
                settings = self._ledger.space.settings(values)
            except InputError as error:
                refusal = error
                trial.set_user_attr("refused", error.what)
                self._tell(trial, None, TrialState.FAIL)
                continue
            folder = trial.user_attrs.get("folder") or f"{trial.number:04d}"
            trial.set_user_attr("parameters", values)
            trial.set_user_attr("folder", folder)
            self._inherit(trial, folder)
            self._running[trial_id] = trial
            self._note()
            spec = TrialSpec(settings=settings, store=self._plan.store, out=self._ledger.out / TRIALS / folder)
            return {"job": Job(trial.number, spec, self._plan.runner, self._objective)}
        self.failure = RunError(f"{MAX_REFUSED} configurations in a row contradict themselves", got=refusal)
        return Searcher.FINISHED

    def _inherit(self, trial: Trial, folder: str) -> None:
        """Give a continued trial the values of its predecessor, also those that reached the folder only."""
        earlier = trial.user_attrs.get("continues")
        if earlier is not None:
            told = self._study.get_trials(deepcopy=False)[earlier].intermediate_values
            recorded = recorded_values(self._ledger.out / TRIALS / folder, self._objective)
            for epoch, value in sorted((recorded | told).items()):
                trial.report(value, epoch)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A report at the end of an epoch. Tune's hook."""
        trial = self._running[trial_id]
        if self._objective in result and "epoch" in result:
            epoch = int(result["epoch"])
            if self._last.get(trial_id, {}).get("epoch", 0) < epoch:
                self._report(trial, float(result[self._objective]), epoch)
            self._last[trial_id] = result
            self._note()

    def _report(self, trial: Trial, value: float, epoch: int) -> None:
        self._best = min(self._best, value)
        known = self._ledger.study._storage.get_trial(trial._trial_id).intermediate_values
        if epoch not in known:  # Optuna keeps the first value of a step, and warns of a second
            trial.report(value, epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial: its own, the scheduler's decision, or a crash. Tune's hook."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        result = result or {}
        outcome = "failed" if error else result.get("outcome", "pruned")
        if outcome == "failed":
            state, value = TrialState.FAIL, None
            reason = result.get("reason") or self._scheduler.reasons.get(trial_id, "the trial ended without a word")
            trial.set_user_attr("reason", reason)
        else:
            # The report that a trial is stopped at has not come through on_trial_result.
            value = float(result[self._objective])
            self._report(trial, value, int(result["epoch"]))
            state = TrialState.COMPLETE if outcome == "complete" else TrialState.PRUNED
        self._tell(trial, value if state is TrialState.COMPLETE else None, state)
        self._last.pop(trial_id, None)
        self._ended[STATES[state]] += 1
        self._note(done=1)

    def _tell(self, trial: Trial, value: float | None, state: TrialState) -> None:
        with quiet_optuna():
            self._study.tell(trial, value, state=state)

    def _note(self, done: int = 0) -> None:
        """Tell the bar how things stand."""
        states = ", ".join(f"{self._ended[state]} {state}" for state in STATES.values())
        best = f"best {self._best:.4f} eV, " if math.isfinite(self._best) else ""
        self._bar.advance(done, f"{best}{len(self._running)} running, {states}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the storage is the truth, and Tune's own state is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

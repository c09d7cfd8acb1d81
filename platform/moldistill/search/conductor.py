"""What a search decides, apart from how trials are run: who is tried next, who goes on, and how trials end.

Tune drives it in a real search (`search.searcher`, `search.schedulers`), and a clock of events in a simulated one
(`search.simulator`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from moldistill.core.artifacts import MANIFEST
from moldistill.core.errors import InputError, RunError
from moldistill.core.seeds import named_seed
from moldistill.core.settings import RunSettings
from moldistill.search.compile import DefineByRun, make_sampler, quiet_optuna
from moldistill.search.disk import Keeper
from moldistill.search.grid import Grid
from moldistill.search.ledger import Ledger
from moldistill.search.pruners import stopped_there
from moldistill.search.spending import Spending
from moldistill.search.study import ENDED, final_metrics, recorded_values
from moldistill.trial.memory import known_too_large

MAX_REFUSED = 100
"""Configurations in a row that must not be trained after which the search gives up."""

DRAW_AFTER = 20
"""Refused configurations in a row after which they are drawn at random: a sampler may propose the same for ever."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to be run: its number, settings and run folder. accumulate: in how many parts it must split batches."""

    number: int
    settings: RunSettings
    folder: Path
    accumulate: int | None = None


@dataclass(slots=True)
class Active:
    """A trial under way. epoch, value, metrics: its last report. cut: why it was stopped, but for the scheduler."""

    trial: Trial
    settings: RunSettings
    values: Mapping[str, Any]
    epoch: int = 0
    value: float = math.nan
    metrics: dict[str, Any] = field(default_factory=dict)
    cut: str | None = None


class Conductor:
    """Decides, and keeps the ledger. Not thread-safe: one driver calls it."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        penalty: Callable[[], float | None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """penalty: the error (eV) that the sampler is told of trials that diverged or had too little memory, asked for
        when it is needed; None where there is none to tell. now: the clock, in seconds.
        """
        self.ledger, self.space, self.penalty = ledger, ledger.space, penalty
        self.spending = Spending(ledger, now)
        self.define = DefineByRun(self.space.parameters)
        self.active: dict[int, Active] = {}
        self.reports = 0
        self.failure: RunError | None = None
        self.keeper = Keeper(ledger)
        self._too_large: list[tuple[int, RunSettings]] = [
            (trial.number, self.space.settings(trial.user_attrs["parameters"]))
            for trial in ledger.trials()
            if trial.user_attrs.get("memory")
        ]
        self._left_behind: list[FrozenTrial] = []

    # -- what the dead have left ------------------------------------------------------------------------------------

    def adopt(self) -> tuple[int, int]:
        """Take over what a dead driver left RUNNING: (finished trials, told now; others, to be continued first)."""
        told = 0
        for orphan in self.ledger.trials(TrialState.RUNNING):
            folder, trial = self.ledger.folder(orphan), self.ledger.handle(orphan)
            if "parameters" in orphan.user_attrs and (folder / MANIFEST).is_file():
                self._catch_up(trial, orphan, folder)
                self._complete(trial, final_metrics(folder), {})
                told += 1
            else:
                self._left_behind.append(orphan)
        return told, len(self._left_behind)

    def _catch_up(self, trial: Trial, orphan: FrozenTrial, folder: Path) -> bool:
        """Tell the storage what reached the run folder only; whether the trial goes on after that.

        What the scheduler said of the last report that it heard may be lost: it is asked again.
        """
        if len(self.space.objectives) > 1:
            return True
        if "stopped_at" in orphan.user_attrs:
            return False
        epochs = self.space.settings(orphan.user_attrs["parameters"]).training.epochs
        heard = orphan.intermediate_values
        known = recorded_values(folder, self.space.metric) | heard
        for epoch, value in sorted(known.items()):
            if epoch not in heard:
                trial.report(value, epoch)
            elif epoch < max(known):
                continue  # it went on
            if epoch < epochs and (self._stopped_there(trial) or trial.should_prune()):
                return False
        return True

    def _stopped_there(self, trial: Trial) -> bool:
        study = self.ledger.study
        return stopped_there(self.space, study._storage.get_trial(trial._trial_id), study.get_trials(deepcopy=False))

    # -- who is next ------------------------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Trials that the budget still allows to begin; those to be continued are not counted."""
        held = len(self.active) + len(self._left_behind)
        return max(0, self.space.most_trials - len(self.ledger.trials(*ENDED)) - held)

    def next(self) -> Proposal | None:
        """The next trial to run; None where there is none: the budget is spent, or `failure` says why."""
        self.ledger.check()
        if self.spending.over():
            return None
        while self._left_behind:
            orphan = self._left_behind.pop(0)
            if "parameters" not in orphan.user_attrs:  # asked for, and not yet written down
                return self._propose(orphan)
            trial, folder = self.ledger.handle(orphan), self.ledger.folder(orphan)
            values = orphan.user_attrs["parameters"]
            if self._catch_up(trial, orphan, folder):
                return self._begin(trial, values, self.space.settings(values))
            self._tell(trial, TrialState.PRUNED)
        return self._propose() if self.left else None

    def _propose(self, begun: FrozenTrial | None = None) -> Proposal | None:
        """A new trial, or what becomes of one that was asked for."""
        refusal: InputError | None = None
        for attempt in range(MAX_REFUSED):
            with quiet_optuna():
                trial = self._ask(begun if attempt == 0 else None, at_random=attempt >= DRAW_AFTER)
                if trial is None:
                    return None
                values = self.define(trial)
            try:
                settings = self.space.settings(values)
                self._refuse_too_large(settings)
            except InputError as error:
                refusal = error
                self._tell(trial, TrialState.FAIL, refused=error.what)
                continue
            self.ledger.note(trial, folder=f"{trial.number:04d}", parameters=values)
            return self._begin(trial, values, settings)
        self.failure = RunError(
            f"{MAX_REFUSED} configurations in a row must not be trained",
            got=refusal,
            remedy="loosen the constraints, or change the ranges",
        )
        return None

    def _ask(self, begun: FrozenTrial | None, *, at_random: bool) -> Trial | None:
        """Ask Optuna for a trial, by a sampler seeded by how many were begun before: a driver that takes over draws as
        the one before would have. None where a grid has no further point.
        """
        study, space = self.ledger.study, self.space
        trials = study.get_trials(deepcopy=False)
        earlier = sum(trial.state is not TrialState.WAITING for trial in trials) - (begun is not None)
        usual = make_sampler(space, earlier=earlier)
        if isinstance(usual, Grid):
            if begun is None and not usual.open_points(study):
                return None
            at_random = False  # a random draw is no point of the grid
        if at_random:
            study.sampler = RandomSampler(seed=named_seed(space.sampler.seed, "drawn", earlier) % 2**32)
        else:
            study.sampler = usual
        return study.ask() if begun is None else self.ledger.handle(begun)

    def _refuse_too_large(self, settings: RunSettings) -> None:
        place = known_too_large(settings, [failed for _, failed in self._too_large])
        if place is not None:
            number = self._too_large[place][0]
            raise InputError(f"it needs no less memory than trial {number}, which had too little")

    def _begin(self, trial: Trial, values: Mapping[str, Any], settings: RunSettings) -> Proposal:
        self.spending.begin(trial.number)
        self.active[trial.number] = Active(trial, settings, values)
        stored = trial.user_attrs
        folder = self.ledger.folder(self.ledger.study._storage.get_trial(trial._trial_id))
        return Proposal(trial.number, settings, folder, stored.get("accumulate"))

    # -- who goes on ------------------------------------------------------------------------------------------------

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """A trial's figures at the end of an epoch; whether it goes on."""
        active = self.active[number]
        epoch, value = int(metrics["epoch"]), float(metrics[self.space.metric])
        if epoch <= active.epoch:
            return active.cut is None
        self.reports += 1
        active.epoch, active.value, active.metrics = epoch, value, dict(metrics)
        self.spending.tell()
        if len(self.space.objectives) == 1:
            self._record(active.trial, epoch, value)
        if epoch >= active.settings.training.epochs:
            return True  # it has trained to its end, and still has to write its predictions
        active.cut = self.spending.over()
        if active.cut is not None:
            return False
        if len(self.space.objectives) > 1 or not active.trial.should_prune():
            return True
        self.ledger.note(active.trial, stopped_at=epoch)  # a pruner is asked once: the decision outlives this process
        return False

    def _record(self, trial: Trial, epoch: int, value: float) -> None:
        known = self.ledger.study._storage.get_trial(trial._trial_id).intermediate_values
        if math.isfinite(value) and epoch not in known:  # Optuna keeps the first value of a step, and warns of a second
            trial.report(value, epoch)

    # -- how it ends ------------------------------------------------------------------------------------------------

    def end(self, number: int, outcome: str, result: Mapping[str, Any]) -> None:
        """The end of a trial.

        outcome: complete, stopped (by `report`), failed, diverged, memory, or cancelled. result: its last metrics, and
        `reason`, `attempts` and `accumulate` where there are any.
        """
        self.ledger.check()
        active = self.active.pop(number)
        held = self.spending.end(number)
        trial, said = active.trial, dict(result)
        attempts = [*trial.user_attrs.get("attempts", ()), *said.get("attempts", ())]
        notes = {
            "seconds": round(float(trial.user_attrs.get("seconds", 0.0)) + held, 3),
            "attempts": attempts or None,
            "accumulate": said.get("accumulate"),
            "epochs": active.epoch or None,
        }
        if outcome == "complete":
            self._complete(trial, {**active.metrics, **said}, notes)
        elif outcome == "stopped":
            self._tell(trial, TrialState.PRUNED, reason=active.cut, **notes)
        else:
            self._fail(trial, outcome, active, said.get("reason") or "the trial ended without a word", notes)
        self.spending.tell(now=True)
        self.keeper.tidy()

    def _complete(self, trial: Trial, metrics: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        values = [float(metrics[str(objective.metric)]) for objective in self.space.objectives]
        if len(values) == 1:
            self._record(trial, int(metrics["epoch"]), values[0])
        self._tell(trial, TrialState.COMPLETE, values, **{**notes, "epochs": int(metrics["epoch"])})

    def _fail(self, trial: Trial, outcome: str, active: Active, reason: str, notes: Mapping[str, Any]) -> None:
        marks: dict[str, Any] = {"reason": reason, **notes}
        if outcome == "memory":
            self._too_large.append((trial.number, active.settings))
            marks["memory"] = True
        told = self.space.options.failures.told == "penalty" and outcome in ("diverged", "memory")
        penalty = self.penalty() if told and len(self.space.objectives) == 1 else None
        if penalty is None:
            self._tell(trial, TrialState.FAIL, **marks)
        else:
            self._tell(trial, TrialState.COMPLETE, [penalty], failed=True, **marks)

    def _tell(self, trial: Trial, state: TrialState, values: Any = None, **marks: Any) -> None:
        """Marks first: a trial that has ended takes none."""
        self.ledger.note(trial, **marks)
        with quiet_optuna():
            self.ledger.study.tell(trial, values, state=state)

"""Whether the scheduler hears of metrics: trials that train nothing, through the real Ray Tune, beside a simulation.

A search whose reports are lost, late, or told under other names looks well and stops nobody, or the wrong ones.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moldistill.core.cluster import cluster
from moldistill.core.errors import RunError
from moldistill.core.settings import RunSettings
from moldistill.search.bridge import Crew, Plan
from moldistill.search.capacity import cluster_capacity, concurrency
from moldistill.search.conductor import Conductor
from moldistill.search.ledger import Ledger
from moldistill.search.simulator import Simulated, Simulator
from moldistill.search.space import BudgetSettings, SamplerSettings, SchedulerSettings, Space, TrackingSettings
from moldistill.search.study import TrialRow
from moldistill.training.loop import EpochReport
from moldistill.trial.spec import TrialSpec

TRIALS, MOST = 3, 30
"""Trials of a preflight; as many more, up to MOST, as it takes until the scheduler stops one."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a preflight showed. ends: each trial's state and last epoch, as foreseen. seconds: without Ray's start."""

    reports: int
    ends: tuple[tuple[str, int], ...]
    seconds: float

    def text(self) -> str:
        """In one line."""
        stopped = [epoch for state, epoch in self.ends if state == "pruned"]
        what = "nobody is to be stopped early, and nobody was"
        if stopped:
            at = ", ".join(map(str, sorted(set(stopped))))
            what = f"{len(stopped)} of them were stopped, at epoch {at}, as foreseen"
        return (
            f"preflight: {len(self.ends)} empty trials went through Ray Tune in {self.seconds:.1f} s; "
            f"all {self.reports} reports reached the scheduler at their epochs; {what}"
        )


def figures(number: int, epoch: int, names: tuple[str, ...]) -> dict[str, float]:
    """What trial `number` reports after an epoch: each one is worse than those before it."""
    return dict.fromkeys(names, 0.1 * (number + 1) + 0.3 / epoch)


@dataclass(frozen=True, slots=True)
class EmptyRun:
    """A runner that reports and trains nothing. Picklable."""

    names: tuple[str, ...]

    def __call__(self, spec: TrialSpec, *, report: Any) -> None:
        """Report every epoch."""
        for epoch in range(1, spec.settings.training.epochs + 1):
            report(EpochReport(epoch, {"train_loss": 1.0, **figures(int(spec.out.name), epoch, self.names)}, True))


class _InTurn:
    """The curves of trials that run one after another."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.number = names, -1

    def __call__(self, settings: RunSettings, epoch: int) -> Mapping[str, float]:
        self.number += epoch == 1
        return figures(self.number, epoch, self.names)


def preflight(space: Space) -> Preflight:
    """Run a few empty trials of the space, with its scheduler, resources and actors.

    InputError where not one trial fits the cluster. RunError where a report did not arrive at its epoch, or a trial
    ended otherwise than the scheduler says.
    """
    names = tuple(str(objective.metric) for objective in space.objectives)
    space, foreseen = _foreseen(space, names)
    with tempfile.TemporaryDirectory(prefix="preflight") as folder, cluster():
        concurrency(space.resources, cluster_capacity(), space.where)
        started = time.monotonic()
        conductor = _run(space, Path(folder) / "study", EmptyRun(names))
        seconds = time.monotonic() - started
        rows = conductor.ledger.rows()
        if len(space.objectives) == 1:
            check_reports(conductor.ledger, rows)
    return Preflight(conductor.reports, check_ends(rows, foreseen), seconds)


def _foreseen(space: Space, names: tuple[str, ...]) -> tuple[Space, Simulated]:
    """The space with as many trials as it takes until one is stopped, and how they end in a simulation."""
    scheduler: SchedulerSettings = replace(space.scheduler, startup_trials=1)
    options = replace(
        space.options,
        scheduler=scheduler,
        sampler=SamplerSettings(name="random", seed=space.sampler.seed),
        tracking=TrackingSettings(),
        storage="journal",
        starting_points=(),
    )
    for trials in range(TRIALS, MOST + 1):
        one = replace(space, options=replace(options, budget=BudgetSettings(trials=trials)), starting_points=())
        simulated = Simulator(one, _InTurn(names), concurrent=1).run()
        if scheduler.name == "none" or len(space.objectives) > 1 or "stopped" in simulated.states:
            return one, simulated
    raise RunError(
        f"preflight: {space.scheduler.name} would stop none of {MOST} trials, each worse than those before it",
        remedy="lower scheduler.grace, or train longer",
    )


def _run(space: Space, out: Path, runner: EmptyRun) -> Conductor:
    from moldistill.search.tuner import run_tune

    out.mkdir()
    ledger = Ledger.create(out, space, {})
    ledger.take()
    conductor = Conductor(ledger)
    crew = Crew(conductor, Plan(out, runner))
    run_tune(crew, 1, out / ".tune")
    lost = crew.lost or conductor.failure
    if lost is not None:
        raise RunError("preflight: the search ended early", got=lost, remedy="run `moldistill doctor`") from lost
    return conductor


def check_reports(ledger: Ledger, rows: tuple[TrialRow, ...]) -> None:
    """RunError unless the storage has each trial's value at each epoch that it trained."""
    for trial, row in zip(ledger.trials(), rows, strict=True):
        expected = {
            epoch: figures(row.number, epoch, (ledger.space.metric,))[ledger.space.metric]
            for epoch in range(1, row.epochs + 1)
        }
        if trial.intermediate_values != expected:
            raise RunError(
                f"preflight: the scheduler was told other figures than trial {row.number} reported",
                got=trial.intermediate_values,
                expected=expected,
                remedy="check the versions of ray and optuna with `moldistill doctor`",
            )


def check_ends(rows: tuple[TrialRow, ...], foreseen: Simulated) -> tuple[tuple[str, int], ...]:
    """How the trials ended; RunError unless as foreseen."""
    states = {"complete": "complete", "stopped": "pruned"}
    expected = tuple((states[ending.outcome], ending.epoch) for ending in foreseen.endings)
    got = tuple((row.state, row.epochs) for row in rows)
    if got != expected:
        reasons = "; ".join(row.reason for row in rows if row.reason)
        raise RunError(
            "preflight: trials did not end as the scheduler says",
            got=f"(state, epochs) {got}" + (f": {reasons}" if reasons else ""),
            expected=expected,
            remedy="check the versions of ray and optuna with `moldistill doctor`",
        )
    return got

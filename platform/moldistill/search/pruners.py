"""Who stops trials early: Optuna's pruners, which keep what they know in the study's storage, and survive a restart."""

from __future__ import annotations

import binascii
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

from moldistill.search.compile import quiet_optuna
from moldistill.search.space import SchedulerSettings, Space


class SeededHyperband(HyperbandPruner):
    """Hyperband whose brackets follow from the seed and the trial's number, and not from the study's name."""

    def __init__(self, settings: SchedulerSettings, epochs: int, seed: int) -> None:
        super().__init__(min_resource=settings.grace, max_resource=epochs, reduction_factor=settings.reduction)
        self._seed = seed
        self._try_initialization(None)  # type: ignore[arg-type]  # the largest resource is known: no trial is looked at

    def _get_bracket_id(self, study: Any, trial: Any) -> int:
        return self.bracket(trial.number)

    def bracket(self, number: int) -> int:
        """The bracket of a trial, from 0; each later one begins one rung later."""
        place = binascii.crc32(f"{self._seed}_{number}".encode()) % self._total_trial_allocation_budget
        for bracket, share in enumerate(self._trial_allocation_budgets):
            place -= share
            if place < 0:
                return bracket
        raise AssertionError("the shares add up to the total")


RUNG = "completed_rung_"
"""Where Optuna's successive halving keeps a trial's value at a rung, behind it the rung's number from 0."""


def make_pruner(settings: SchedulerSettings, epochs: int, seed: int = 0) -> BasePruner:
    """The pruner of trials of at most `epochs` epochs. seed: of the sampler; it decides the brackets of `hyperband`."""
    with quiet_optuna():
        if settings.name == "asha":
            return SuccessiveHalvingPruner(min_resource=settings.grace, reduction_factor=settings.reduction)
        if settings.name == "hyperband":
            return SeededHyperband(settings, epochs, seed)
        if settings.name == "median":
            return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.grace)
        return NopPruner()


def rung_values(space: Space, number: int, values: Mapping[int, float]) -> dict[str, float]:
    """What the scheduler would have kept of trial `number` with these values by epoch: attributes of the storage."""
    settings, found = space.scheduler, dict[str, float]()
    if settings.name not in ("asha", "hyperband"):
        return found
    place = _bracket(space, number)
    for rung in itertools.count():
        reached = [epoch for epoch in values if epoch >= settings.grace * settings.reduction ** (place + rung)]
        if not reached:
            return found
        found[f"{RUNG}{rung}"] = values[min(reached)]
    return found


def _bracket(space: Space, number: int) -> int:
    if space.scheduler.name != "hyperband":
        return 0
    return SeededHyperband(space.scheduler, space.epochs, space.sampler.seed).bracket(number)


def stopped_there(space: Space, trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> bool:
    """Whether the scheduler stops a trial at its last report, where it had kept the value and its answer was lost.

    Optuna's successive halving answers once: asked again at the same rung, it lets everybody go on. Its rule: of n
    values at a rung, the best n // reduction go on, and the best one in any case.
    """
    last, values = trial.last_step, trial.intermediate_values
    before = {epoch: value for epoch, value in values.items() if epoch != last}
    passed = rung_values(space, trial.number, before)
    place = _bracket(space, trial.number)
    for key, value in rung_values(space, trial.number, values).items():
        if key in passed or key not in trial.system_attrs:
            continue
        theirs = sorted(
            other.system_attrs[key]
            for other in trials
            if other.number != trial.number and key in other.system_attrs and _bracket(space, other.number) == place
        )
        go_on = max(1, (len(theirs) + 1) // space.scheduler.reduction)
        if sum(other < value for other in theirs) >= go_on:
            return True
    return False


def rungs(space: Space) -> tuple[int, ...]:
    """Epochs at which trials may be stopped, ascending: those of `asha` and of all brackets of `hyperband`; all from
    `grace` on for `median`; empty where nobody stops trials.
    """
    settings = space.scheduler
    if settings.name == "none":
        return ()
    if settings.name == "median":
        return tuple(range(settings.grace, space.epochs))
    count = math.floor(math.log(max(1, space.epochs / settings.grace), settings.reduction) + 1e-9) + 1
    found = [settings.grace * settings.reduction**rung for rung in range(count)]
    return tuple(epoch for epoch in found if epoch < space.epochs)

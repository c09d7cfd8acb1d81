"""What a search will cost: real steps of sampled configurations, timed, and what early stopping saves, simulated."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moldistill.core.errors import InputError, RunError
from moldistill.core.progress import progress
from moldistill.core.seeds import generator
from moldistill.core.settings import RunSettings
from moldistill.search.simulator import Simulator
from moldistill.search.space import BudgetSettings, Parameter, Range, Space, walk
from moldistill.training.budget import Cost, fast_bf16
from moldistill.training.loop import Trainer
from moldistill.training.turns import TURNS, measure_in_turns
from moldistill.trial.run import check_run, choose_device, make_trainer
from moldistill.trial.spec import TrialSpec

MOST_SIMULATED = 128
"""Trials of a simulated study: the share that is stopped early hardly changes after that."""

SURFACES = 3
"""Made-up spaces that are simulated; they say how far the share depends on what is searched."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A configuration that was timed. step, evaluation: seconds (CPU time; on a GPU elapsed). steps: of an epoch."""

    values: Mapping[str, Any]
    step: float
    evaluation: float
    steps: int
    epochs: int
    evaluate_every: int
    on_gpu: bool = False

    @property
    def seconds(self) -> float:
        """Of a whole trial."""
        evaluations = -(-self.epochs // self.evaluate_every)
        return self.epochs * self.steps * self.step + evaluations * self.evaluation


@dataclass(frozen=True, slots=True)
class StudyCost:
    """An estimate for a study, in hours of `unit` (CPU or GPU).

    per_trial: of the cheapest, median and dearest of the timed configurations, trained to their end. trials: that the
    budget allows, at this speed. at_most: if none is stopped early; expected: with early stopping. wall: hours that the
    expected work takes at the allowed concurrency. by_time: whether it is the hours that end the budget. on_gpu:
    whether a GPU was timed. failed: why configurations could not be.
    """

    unit: str
    timed: tuple[Timed, ...]
    per_trial: tuple[float, float, float]
    trials: int
    at_most: float
    expected: float
    wall: float
    by_time: bool
    on_gpu: bool
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """Part of all epochs that trials are expected to train: the mean over made-up spaces, the least and the most."""

    mean: float
    low: float
    high: float


def foreseen_share(space: Space, trials: int, concurrent: int) -> Share:
    """What early stopping leaves of `trials` trials' epochs, from simulated studies of this space.

    The real sampler (in place of `gp`, which is slow, `random`) and scheduler meet trials whose errors are made up: a
    bowl over the parameters with a random lowest point, power laws down to it, and noise as of small students. 1 where
    nobody stops trials.
    """
    if space.scheduler.name == "none" or len(space.objectives) > 1:
        return Share(1.0, 1.0, 1.0)
    sampler = space.sampler
    if sampler.name == "gp":
        sampler = replace(sampler, name="random")
    budget = BudgetSettings(trials=min(trials, MOST_SIMULATED))
    found = []
    for surface in range(SURFACES):
        options = replace(space.options, sampler=replace(sampler, seed=sampler.seed + surface), budget=budget)
        simulated = Simulator(replace(space, options=options), MadeUp(space, surface), concurrent=concurrent).run()
        whole = sum(ending.settings.training.epochs for ending in simulated.endings)
        found.append(simulated.epochs / whole if whole else 1.0)
    return Share(statistics.fmean(found), min(found), max(found))


class MadeUp:
    """Curves of trials that nobody trained, for any space: errors in eV by settings and epoch, the same every time."""

    def __init__(self, space: Space, seed: int) -> None:
        self._parameters = {parameter.name: parameter for parameter in walk(space.parameters)}
        self._seed, self._known = seed, dict[tuple[str, ...], list[float]]()
        draw = generator(seed, "surface")
        names = sorted(self._parameters)
        self._lowest = dict(zip(names, draw.random(len(names)).tolist(), strict=True))
        self._weight = dict(zip(names, draw.dirichlet(np.ones(len(names))).tolist(), strict=True))

    def __call__(self, settings: RunSettings, epoch: int) -> float:
        """The error after `epoch` epochs."""
        values = {name: _read(settings, name) for name in self._parameters}
        key = tuple(str(value) for value in values.values())
        if key not in self._known:
            self._known[key] = self._curve(values, settings.training.epochs, key)
        return self._known[key][epoch - 1]

    def _curve(self, values: Mapping[str, Any], epochs: int, key: tuple[str, ...]) -> list[float]:
        draw = generator(self._seed, *key)
        away = sum(
            self._weight[name] * (_place(self._parameters[name], value) - self._lowest[name]) ** 2
            for name, value in values.items()
        )
        epoch = np.arange(1, epochs + 1)
        schedule = 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        speed = draw.uniform(0.4, 0.8)
        smooth = 0.3 * (1 + away) + 0.2 * epoch**-speed + 0.02 * schedule
        noisy = smooth * (1 + (0.003 + 0.017 * schedule) * draw.standard_normal(epochs))
        return [float(value) for value in noisy]


def _place(parameter: Parameter, value: Any) -> float:
    """Where a value lies in its domain, from 0 to 1; a choice by its place in the list."""
    domain = parameter.domain
    if not isinstance(domain, Range):
        options = [option.value for option in domain.options]
        return (options.index(value) + 0.5) / len(options) if value in options else 0.5
    low, high, value = (np.log(x) if domain.log and x > 0 else x for x in (domain.low, domain.high, value))
    return float((value - low) / (high - low)) if high > low else 0.5


def _read(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def time_configurations(space: Space, store: Path, samples: Sequence[Mapping[str, Any]]) -> dict[int, Timed | RunError]:
    """The cost of each configuration on this machine, by its place in `samples`: some real steps, and an evaluation.

    InputError where the store or the targets do not fit.
    """
    settings = [_plain(space, values) for values in samples]
    per_epoch: dict[str, int] = {}

    def make(name: str) -> Trainer:
        trainer = make_trainer(TrialSpec(settings[int(name)], store, Path()))
        per_epoch[name] = trainer.steps_per_epoch
        return trainer

    with _naming(space.where):
        check_run(TrialSpec(settings[0], store, Path()))
    makers: dict[str, Callable[[], Trainer]] = {str(place): partial(make, str(place)) for place in range(len(samples))}
    with progress("timing steps", total=TURNS * len(samples)) as bar:
        costs = measure_in_turns(makers, rounds=1, told=lambda name: bar.advance(1, f"configuration {int(name) + 1}"))
    return {
        place: cost
        if isinstance(cost, RunError)
        else _timed(samples[place], settings[place], cost, per_epoch[str(place)])
        for place, cost in enumerate(costs[str(place)] for place in range(len(samples)))
    }


def _timed(values: Mapping[str, Any], settings: RunSettings, cost: Cost, steps: int) -> Timed:
    training = settings.training
    on_gpu = choose_device(settings).type == "cuda"
    return Timed(dict(values), cost.step, cost.evaluation, steps, training.epochs, training.evaluate_every, on_gpu)


def _plain(space: Space, values: Mapping[str, Any]) -> RunSettings:
    """Settings to be timed: one worker, on the device that a trial would get, not compiled."""
    settings = space.settings(values)
    training = replace(settings.training, workers=1, min_workers=None, compile="never")
    if training.device == "auto" and not space.resources.gpus:
        training = replace(training, device="cpu")  # an actor without GPUs sees none
    settings = replace(settings, training=training)
    if training.precision == "auto":
        bf16 = fast_bf16(choose_device(settings))
        settings = replace(settings, training=replace(training, precision="bf16" if bf16 else "fp32"))
    return settings


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{where}: {error.what}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error


def study_cost(
    space: Space, found: Mapping[int, Timed | RunError], concurrent: int, share: Callable[[int], float]
) -> StudyCost:
    """The estimate from timed configurations. share: of a number of trials' epochs that are trained.

    RunError where no configuration could be timed.
    """
    timed = sorted((one for one in found.values() if isinstance(one, Timed)), key=lambda one: one.seconds)
    failed = tuple(one.what for one in found.values() if isinstance(one, RunError))
    if not timed:
        raise RunError("no sampled configuration trains", got=failed[0], remedy="change the space or its base")
    held, on_gpu = space.resources, space.resources.gpus > 0
    # CPU time is of all threads together. Workers are taken to share the work without loss.
    at_once = held.workers * (1 if on_gpu else max(1, int(held.cpus)))
    wall = [one.seconds / 3600 / at_once for one in timed]
    hours = [each * held.gpus * held.workers for each in wall] if on_gpu else [one.seconds / 3600 for one in timed]
    mean, mean_wall = statistics.fmean(hours), statistics.fmean(wall)
    trials, part = space.most_trials, share(space.most_trials)
    by_time = False
    for _ in range(2):  # fewer trials are stopped less: the share and their number depend on each other
        allowed = _within(space, part * mean_wall, part * mean_wall * held.gpus * held.workers, concurrent)
        by_time = allowed < space.most_trials
        trials = min(space.most_trials, allowed)
        part = share(trials)
    return StudyCost(
        unit="GPU" if on_gpu else "CPU",
        timed=tuple(timed),
        per_trial=(hours[0], statistics.median(hours), hours[-1]),
        trials=trials,
        at_most=trials * mean,
        expected=trials * mean * part,
        wall=trials * mean_wall * part / min(concurrent, trials),
        by_time=by_time,
        on_gpu=any(one.on_gpu for one in timed),
        failed=failed,
    )


def _within(space: Space, wall: float, gpu: float, concurrent: int) -> int:
    """Trials of so many hours (of wall time, of GPUs) that the budget's hours allow; at least one begins."""
    budget, allowed = space.budget, float(space.most_trials)
    if budget.hours is not None and wall > 0:
        allowed = min(allowed, budget.hours * concurrent / wall)
    if budget.gpu_hours is not None and gpu > 0:
        allowed = min(allowed, budget.gpu_hours / gpu)
    return max(1, round(allowed))

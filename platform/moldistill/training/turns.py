"""Costs of several trainers, told apart on a machine that others use, too, where a measurement is 10% off at times.

They take a few steps each, in turns, so that what goes on beside meets all of them alike; and in several rounds, of
which the smallest counts. Each trainer runs in a thread of its own, of which one at a time goes on.
"""

from __future__ import annotations

import queue
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moldistill.core.errors import RunError
from moldistill.core.settings import RunSettings
from moldistill.training.budget import WARM_STEPS, Cost, evaluation_cost, probe_cost, wait
from moldistill.training.loop import Trainer
from moldistill.training.steps import EpochSums

ROUNDS, TURNS, EACH = 5, 5, 4
"""Rounds, turns of a round, and steps of a turn."""

MANY = 10**9


@dataclass(slots=True)
class Turn:
    """Seconds of the steps of a turn; `first` are those that begin an epoch, where a probe of the gradient may be."""

    first: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)


class _Enough(BaseException):
    """Raised out of a step when no more turns come; nobody's `except Exception` is to hold it up."""


class _Steps(threading.Thread):
    """A trainer that stands still but for its turns."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self._told: queue.Queue[Turn | Exception] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._turn, self._ended, self._since = Turn(), False, 0.0

    def take(self) -> Turn:
        """The next turn. Raises what the trainer raises."""
        if self.ident is None:
            self.start()
        self._go.release()
        told = self._told.get()
        if isinstance(told, Exception):
            raise told
        return told

    def end(self) -> None:
        """No more turns."""
        if self.ident is not None:
            self._ended = True
            self._go.release()
            self.join()

    def run(self) -> None:
        """The thread's own."""
        try:
            self._wait_for_turn()
            self._warm_up()
            while True:
                self.trainer.run_epoch(self._after_step)
                self._begin(self.trainer.epoch + 1)
        except _Enough:
            pass
        except Exception as error:
            self._told.put(error)

    def _warm_up(self) -> None:
        """Steps that are not timed; then the second epoch, so that its beginning is warm, too."""
        self.trainer.settings = _with_steps(self.trainer, WARM_STEPS)
        self.trainer.run_epoch()
        self.trainer.settings = _with_steps(self.trainer, MANY)
        self._begin(1)
        self._since = self.trainer.now()

    def _begin(self, epoch: int) -> None:
        self.trainer.epoch, self.trainer.step = epoch, epoch * self.trainer.steps_per_epoch
        self.trainer.sums = EpochSums()

    def _after_step(self) -> None:
        wait(self.trainer.device)
        begins = self.trainer.step % self.trainer.steps_per_epoch == 1 % self.trainer.steps_per_epoch
        (self._turn.first if begins else self._turn.others).append(self.trainer.now() - self._since)
        if len(self._turn.first) + len(self._turn.others) == EACH:
            self._told.put(self._turn)
            self._turn = Turn()
            self._wait_for_turn()
        self._since = self.trainer.now()

    def _wait_for_turn(self) -> None:
        self._go.acquire()
        if self._ended:
            raise _Enough


def _with_steps(trainer: Trainer, steps: int) -> RunSettings:
    return replace(trainer.settings, training=replace(trainer.settings.training, steps=steps))


def measure_in_turns(
    make: Mapping[str, Callable[[], Trainer]], rounds: int = ROUNDS, told: Callable[[str], None] = lambda _: None
) -> dict[str, Cost | RunError]:
    """The cost of each trainer, or why it cannot train. told: hears of whose turn ended.

    `make` builds them, anew in each round: twins of one process differ by some percent for as long as they live.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in make}
    failed: dict[str, RunError] = {}
    for _ in range(rounds):
        trainers = {name: make[name]() for name in make if name not in failed}
        turns, wrong = _take_turns(trainers, told)
        failed |= wrong
        for name in [name for name in trainers if name not in wrong]:
            trainer = trainers[name]
            step = step_seconds(turns[name]) + probe_cost(trainer)
            costs[name].append(Cost(step, evaluation_cost(trainer)))
    fair = fair_costs({name: found for name, found in costs.items() if name not in failed})
    return {name: failed.get(name) or fair[name] for name in make}


def _take_turns(
    trainers: Mapping[str, Trainer], told: Callable[[str], None]
) -> tuple[dict[str, list[Turn]], dict[str, RunError]]:
    steps = {name: _Steps(trainer) for name, trainer in trainers.items()}
    taken: dict[str, list[Turn]] = {name: [] for name in trainers}
    failed: dict[str, RunError] = {}
    try:
        for _ in range(TURNS):
            for name in [name for name in trainers if name not in failed]:
                try:
                    taken[name].append(steps[name].take())
                except RunError as error:
                    failed[name] = error
                told(name)
    finally:
        for one in steps.values():
            one.end()
    return taken, failed


def step_seconds(turns: Sequence[Turn]) -> float:
    """Seconds of a mean step, without its part of a probe: the median over turns within an epoch."""
    return statistics.median(statistics.fmean(turn.others or turn.first) for turn in turns)


def fair_costs(rounds: Mapping[str, Sequence[Cost]]) -> dict[str, Cost]:
    """Each trainer's cost from its rounds: the smallest, times how far all are above their trainers' smallest (median).

    Other work on the machine only ever adds to a measurement, to one trainer or another by chance: the smallest tells
    them apart better than a mean of so few. What it adds in general is then for all alike.
    """
    least = {
        name: Cost(min(one.step for one in found), min(one.evaluation for one in found))
        for name, found in rounds.items()
    }
    above = [one.step / least[name].step for name, found in rounds.items() for one in found]
    factor = statistics.median(above) if above else 1.0
    return {name: Cost(cost.step * factor, cost.evaluation * factor) for name, cost in least.items()}

"""A search against a clock of events, with trials that train nothing: thousands of times faster than a real one.

What decides is real: the conductor, its ledger, sampler, scheduler and Optuna's storage. What is made up is time, the
curves of trials, and deaths. With it you can try a space's sampler, scheduler and budget before a machine is paid for:

>>> space = load_space("loss_weights", ["scheduler.grace=1", "budget.hours=8"])
>>> simulated = Simulator(space, lambda settings, epoch: 0.1 + 0.3 / epoch, seconds=lambda settings: 40.0).run()
>>> simulated.epochs, simulated.seconds, simulated.states, simulated.best

`explain` foresees with it what early stopping saves, and the tests kill drivers and trials in it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.storages import BaseStorage, InMemoryStorage

from moldistill.core.artifacts import MANIFEST
from moldistill.core.settings import RunSettings
from moldistill.search.conductor import Conductor, Proposal
from moldistill.search.ledger import Ledger
from moldistill.search.made_up_folders import Disk, Folders, Memory
from moldistill.search.space import Space
from moldistill.search.watched_storage import Killed, watched

Curve = Callable[[RunSettings, int], float | Mapping[str, float]]
"""The metric (eV) of a trial with these settings after so many epochs, counted from 1; or several metrics by name."""

Fault = Literal["died", "diverged", "memory"]
Faults = Callable[[int, int, int], Fault | None]
"""What befalls a trial (by number) in an epoch of an attempt (from 1), if anything."""

DIED = "the trial's process died"


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a trial. epoch, value: its last report (NaN: none). seconds, epochs: of the whole study until then."""

    number: int
    settings: RunSettings
    outcome: str
    epoch: int
    value: float
    seconds: float
    epochs: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulated study came to.

    epochs: that trials began, those trained again after a death included. seconds: of the clock. drivers: how many it
    took, one more than were killed. failure: why the search gave up, if it did.
    """

    epochs: int
    seconds: float
    drivers: int
    endings: tuple[Ending, ...]
    failure: str | None = None

    @property
    def states(self) -> dict[str, int]:
        """Trials by how they ended."""
        return dict(Counter(ending.outcome for ending in self.endings))

    @property
    def best(self) -> tuple[Ending, ...]:
        """The trials that ended complete and with a smaller value than any before them."""
        found: list[Ending] = []
        for ending in self.endings:
            if ending.outcome == "complete" and (not found or ending.value < found[-1].value):
                found.append(ending)
        return tuple(found)


@dataclass(slots=True)
class _Running:
    proposal: Proposal
    epoch: int
    attempt: int = 1
    attempts: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


class Simulator:
    """A study, its storage and its trials, which outlive the drivers that are killed."""

    def __init__(
        self,
        space: Space,
        curve: Curve,
        *,
        seconds: Callable[[RunSettings], float] = lambda settings: 1.0,
        latency: float = 0.0,
        concurrent: int | None = None,
        faults: Faults = lambda number, epoch, attempt: None,
        checkpoint_every: int = 1,
        kills: Iterable[int] = (),
        penalty: Callable[[], float | None] = lambda: None,
        until: Callable[[Ending], bool] = lambda ending: False,
        out: Path = Path("simulated"),
        storage: BaseStorage | None = None,
    ) -> None:
        """seconds: of an epoch. latency: seconds between what a trial writes and when the driver hears of it.
        concurrent: trials at once (default: the space's). checkpoint_every: epochs after which a trial that died goes
        on. kills: the k-th driver dies instead of the n-th thing that is written in its life, to the storage or a run
        folder; those after the last one live. penalty: as of `Conductor`. until: ends the simulation early.
        out: the study's folder. It is written to where there are kills, and only then need exist. storage: default, in
        memory.
        """
        self.space, self.curve, self.seconds, self.latency = space, curve, seconds, latency
        self.concurrent = concurrent or space.resources.concurrent
        self.faults, self.checkpoint_every, self.until, self.penalty = faults, checkpoint_every, until, penalty
        self._kills = iter(kills)
        self._life: float = math.inf
        self.out, self.clock, self.epochs, self.drivers = out, 0.0, 0, 0
        self.storage = watched(storage or InMemoryStorage(), self._write)
        mortal = not isinstance(kills, tuple) or bool(kills)
        self.folders: Folders = Disk() if mortal else Memory()
        self.endings: list[Ending] = []
        self.written: Counter[tuple[int, str]] = Counter()
        self._running: dict[int, _Running] = {}
        self._events: list[tuple[float, int, int, Callable[[_Running], None]]] = []
        self._order = itertools.count()
        self._over = False

    def run(self) -> Simulated:
        """The study, to its end, by as many drivers as it takes."""
        failure = None
        while True:
            self._life = next(self._kills, math.inf)
            self.drivers += 1
            try:
                failure = self._drive()
            except Killed:
                self._running.clear()
                self._events.clear()
                continue
            return Simulated(self.epochs, self.clock, self.drivers, tuple(self.endings), failure)

    def _write(self) -> None:
        """Before each thing that is written."""
        self._life -= 1
        if self._life < 0:
            raise Killed

    def _drive(self) -> str | None:
        """One driver's life: why it gave up, if it did."""
        ledger = Ledger.create(self.out, self.space, {}, storage=self.storage)
        ledger.take()
        self.conductor = Conductor(ledger, penalty=self.penalty, now=lambda: self.clock)
        self.conductor.adopt()
        while not self._over:
            while len(self._running) < self.concurrent and (proposal := self.conductor.next()) is not None:
                self._begin(proposal)
            if not self._events:
                break
            self.clock, _, number, step = heapq.heappop(self._events)
            step(self._running[number])
        return str(self.conductor.failure) if self.conductor.failure else None

    def _at(self, seconds: float, run: _Running, step: Callable[[_Running], None]) -> None:
        heapq.heappush(self._events, (self.clock + seconds, next(self._order), run.proposal.number, step))

    def _begin(self, proposal: Proposal) -> None:
        run = _Running(proposal, 0)
        self._running[proposal.number] = run
        self._resume(run)

    def _resume(self, run: _Running) -> None:
        """Go on behind the last checkpoint."""
        records = self.folders.records(run.proposal.folder)
        epochs = run.proposal.settings.training.epochs
        kept = len(records) if len(records) == epochs else len(records) // self.checkpoint_every * self.checkpoint_every
        if kept < len(records):
            self.folders.keep(run.proposal.folder, kept)
        run.epoch = kept
        if kept == epochs:  # only its end is missing; what it reports of the last epoch, it has reported before
            run.record = records[-1]
            self._at(self.latency, run, self._report)
        else:
            self._train(run)

    def _train(self, run: _Running) -> None:
        self.epochs += 1
        self._at(self.seconds(run.proposal.settings), run, self._trained)

    def _trained(self, run: _Running) -> None:
        """An epoch has ended, in the trial's process."""
        settings, number = run.proposal.settings, run.proposal.number
        fault = self.faults(number, run.epoch + 1, run.attempt)
        if fault is not None:
            self._fail(run, fault)
            return
        run.epoch += 1
        found = self.curve(settings, run.epoch)
        told = found if isinstance(found, Mapping) else {self.space.metric: found}
        run.record = {**told, "epoch": run.epoch}
        self._write()
        self.written[number, str(run.epoch)] += 1
        self.folders.append(run.proposal.folder, run.record)
        self._at(self.latency, run, self._report)

    def _fail(self, run: _Running, fault: Fault) -> None:
        reason = {"died": DIED, "memory": "out of memory", "diverged": f"train_loss is nan at epoch {run.epoch + 1}"}[
            fault
        ]
        if fault == "died" and run.attempt <= self.space.options.failures.retries:
            run.attempt += 1
            run.attempts.append({"reason": reason})
            self._resume(run)
            return
        outcome = "failed" if fault == "died" else fault
        self._end(run, outcome, {"reason": reason, "attempts": run.attempts})

    def _report(self, run: _Running) -> None:
        """The driver hears of an epoch."""
        if not self.conductor.report(run.proposal.number, run.record):
            self._end(run, "stopped", run.record)
        elif run.epoch == run.proposal.settings.training.epochs:
            self._at(self.latency, run, self._close)
        else:
            self._train(run)

    def _close(self, run: _Running) -> None:
        """The trial's process makes its run folder a finished one."""
        self._write()
        self.written[run.proposal.number, MANIFEST] += 1
        self.folders.close(run.proposal.folder, run.record)
        self._at(self.latency, run, lambda run: self._end(run, "complete", run.record))

    def _end(self, run: _Running, outcome: str, result: Mapping[str, Any]) -> None:
        number, said = run.proposal.number, dict(result)
        if run.attempts:
            said["attempts"] = run.attempts
        self.conductor.end(number, outcome, said)
        del self._running[number]
        value = float(run.record.get(self.space.metric, math.nan))
        ending = Ending(number, run.proposal.settings, outcome, run.epoch, value, self.clock, self.epochs)
        self.endings.append(ending)
        self._over = self._over or self.until(ending)

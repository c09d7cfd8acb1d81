"""What a search spends, and when its budget of hours is over."""

from __future__ import annotations

import math
from collections.abc import Callable

from moldistill.search.ledger import Ledger

TELL_EVERY = 5.0
"""Seconds after which the storage is told what has been spent."""


class Spending:
    """Wall time and GPU time of a study, of all its drivers; the storage knows them within TELL_EVERY seconds."""

    def __init__(self, ledger: Ledger, now: Callable[[], float]) -> None:
        self.ledger, self.now = ledger, now
        self.budget, resources = ledger.space.budget, ledger.space.resources
        self.gpus = resources.gpus * resources.workers
        self.began, self.told = now(), -math.inf
        self.before = ledger.spent(before=True)
        self.since: dict[int, float] = {}
        self.gpu_seconds = 0.0

    def begin(self, number: int) -> None:
        """A trial holds its resources from now on."""
        self.since[number] = self.now()

    def end(self, number: int) -> float:
        """A trial holds them no more; seconds that it did."""
        held = self.now() - self.since.pop(number)
        self.gpu_seconds += held * self.gpus
        return held

    def spent(self) -> tuple[float, float]:
        """Seconds of wall time and of GPUs."""
        now = self.now()
        running = sum(now - since for since in self.since.values()) * self.gpus
        return self.before[0] + now - self.began, self.before[1] + self.gpu_seconds + running

    def over(self) -> str | None:
        """Why no trial may begin or go on any more; None while there is time."""
        (seconds, gpu_seconds), budget = self.spent(), self.budget
        if budget.hours is not None and seconds >= budget.hours * 3600:
            return f"the budget of {budget.hours:g} hours was over"
        if budget.gpu_hours is not None and gpu_seconds >= budget.gpu_hours * 3600:
            return f"the budget of {budget.gpu_hours:g} GPU-hours was over"
        return None

    def tell(self, *, now: bool = False) -> None:
        """Tell the storage, if it is time. DriverLostError where another search has taken the study over."""
        if now or self.now() - self.told >= TELL_EVERY:
            self.ledger.check()
            self.told = self.now()
            seconds, gpu_seconds = self.spent()
            self.ledger.spend(seconds - self.before[0], gpu_seconds - self.before[1])

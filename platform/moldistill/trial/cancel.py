"""Cancelling a run: a mark in its folder, which the run looks for.

The mark holds until it is withdrawn. A trial that was cancelled has ended, and a study that is resumed does not begin
it again; one whose process died before it saw the mark ends at once when it is continued. `train --resume` withdraws
the mark, since it names the run that is to go on; so must whoever else continues a cancelled run on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from moldistill.core.artifacts import write_json
from moldistill.core.errors import InputError, RunError
from moldistill.training.collective import ALONE, Collective

CANCEL = ".cancel.json"

LOOK_EVERY = 0.5
"""Seconds between two looks for the mark."""

_MANY = 1_000
"""Steps after which several workers look at the latest, however fast they are."""


class CancelledError(RunError):
    """Somebody asked for the end of this run."""


def ask_to_cancel(run: Path) -> None:
    """Ask for the end of a run: where it is under way, it writes a checkpoint and ends within a second or a step.

    InputError where there is no such folder. A finished run stays as it is.
    """
    if not run.is_dir():
        raise InputError(f"{run} does not exist", expected="the folder of a run", remedy="check the path")
    write_json(run / CANCEL, {"time": time.time()})


def is_cancelled(run: Path) -> bool:
    """Whether somebody has asked for the end of the run, and nobody has withdrawn that."""
    return (run / CANCEL).is_file()


def withdraw_cancel(run: Path) -> None:
    """Let a run that was cancelled go on when it is continued."""
    (run / CANCEL).unlink(missing_ok=True)


class CancelWatch:
    """Looks for the mark while a run trains. Several workers learn of it at the same step, and so end together."""

    def __init__(self, run: Path, collective: Collective = ALONE, now: Callable[[], float] = time.monotonic) -> None:
        self.run, self.collective, self.now = run, collective, now
        self._since = now()
        self._steps, self._next = 0, 1

    def after_step(self) -> None:
        """CancelledError if the mark is there; looks no more than every LOOK_EVERY seconds. All workers must call it.

        Workers cannot all go by a clock: the first one says after how many steps they meet again.
        """
        if self.collective.world_size == 1:
            if self.now() - self._since >= LOOK_EVERY:
                self.look()
            return
        self._steps += 1
        if self._steps >= self._next:
            self.look()

    def look(self) -> None:
        """CancelledError if the mark is there. All workers must call it at the same place."""
        passed = max(self.now() - self._since, 1e-6)
        soon = min(max(1, int(self._steps * LOOK_EVERY / passed)), 2 * self._next, _MANY)
        found = self.collective.leads and is_cancelled(self.run)
        cancelled, self._next = self.collective.lead(int(found), soon)
        self._since, self._steps = self.now(), 0
        if cancelled:
            raise CancelledError(f"{self.run} was cancelled", remedy="to go on with it: moldistill train --resume")

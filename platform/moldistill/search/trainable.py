"""The Ray actor that runs trials, one after another, and hands each report to Tune."""

from __future__ import annotations

import queue
import threading
from typing import Any

from ray import tune

from moldistill.search.attempts import DivergedError, Job, Outcome, Runner, Stopped, run_job, shrunk
from moldistill.trial.memory import memory_reason

__all__ = ["DivergedError", "Job", "Outcome", "Runner", "Stopped", "TrialActor", "memory_reason", "run_job", "shrunk"]

JOIN_SECONDS = 120.0
"""How long a stopped trial may take to make its files safe before its actor is given up."""


class TrialActor(tune.Trainable):
    """Runs a job in a thread, one Tune step per report. Reused for the next trial: a new actor costs seconds."""

    _current: _TrialThread

    def setup(self, config: dict[str, Any]) -> None:
        """Tune's hook: the first trial."""
        self._current = _TrialThread(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune's hook: the next trial. False gives up the actor: the last one does not end, or has broken the GPU."""
        if not self._current.end() or self._current.spoiled:
            return False
        self._current = _TrialThread(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        """Tune's hook: run to the next report, or to the end."""
        return self._current.proceed()

    def cleanup(self) -> None:
        """Tune's hook: let the trial make its files safe before the process goes."""
        self._current.end()


class _TrialThread(threading.Thread):
    """The job, stopped at each report until `proceed` or `end` is called."""

    def __init__(self, job: Job) -> None:
        super().__init__(name=f"trial-{job.number}", daemon=True)
        self.job = job
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._stop_asked = False
        self.spoiled = False

    def proceed(self) -> dict[str, Any]:
        if self.ident is None:
            self.start()
        else:
            self._go_on.release()
        return self._results.get()

    def end(self) -> bool:
        """Stop the trial at its report and wait for its thread; whether it ended."""
        self._stop_asked = True
        self._go_on.release()
        if self.ident is not None:
            self.join(JOIN_SECONDS)
        return not self.is_alive()

    def run(self) -> None:
        last: dict[str, Any] = {"outcome": "failed", "reason": "the trial's thread was ended"}
        try:
            last = run_job(self.job, self._report)
        finally:
            # Whatever this process asks of its GPU after such an error fails, too.
            self.spoiled = any("CUDA error" in attempt["reason"] for attempt in last.get("attempts", ()))
            self._results.put(last | {"done": True})

    def _report(self, metrics: dict[str, Any]) -> None:
        self._results.put(metrics)
        self._go_on.acquire()
        if self._stop_asked:
            raise Stopped

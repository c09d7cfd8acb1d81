"""The Ray actor that runs trials inline, one after another, and hands each report to Tune."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray import tune

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.errors import InputError, RunError
from moldistill.training.loop import EpochReport
from moldistill.trial.spec import TrialSpec

Outcome = Literal["complete", "failed", "stopped"]

JOIN_SECONDS = 120.0
"""How long a stopped trial may take to make its files safe before its actor is given up."""


Runner = Callable[..., Any]
"""``runner(spec, report=…)``: `trial.run.run_trial`, or what a test puts in its place. Picklable."""


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """One trial as the actor gets it."""

    number: int
    spec: TrialSpec
    runner: Runner
    metric: str

    def __repr__(self) -> str:
        return f"trial {self.number}"  # Tune writes it into names and logs


class Stopped(Exception):  # noqa: N818  (no error: the scheduler's decision)
    """Raised out of `report` in a trial that the scheduler has stopped."""


class DivergedError(RunError):
    """A loss or metric is no longer a finite number."""


class TrialActor(tune.Trainable):
    """Runs a job in a thread, one Tune step per report. Reused for the next trial: a new actor costs seconds."""

    _current: _TrialThread

    def setup(self, config: dict[str, Any]) -> None:
        """Tune's hook: the first trial."""
        self._current = _TrialThread(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune's hook: the next trial. False gives up the actor, when the last one does not end."""
        if not self._current.end():
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
            self._results.put(last | {"done": True})

    def _report(self, metrics: dict[str, Any]) -> None:
        self._results.put(metrics)
        self._go_on.acquire()
        if self._stop_asked:
            raise Stopped


def run_job(job: Job, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a trial to its end and say how it ended: `outcome`, and the last metrics or the `reason`.

    A trial that raises is tried once more, from its checkpoint where it has one. Wrong settings and a diverged loss
    would end the same way again: they are not.
    """
    last: dict[str, Any] = {}

    def forward(epoch_report: EpochReport) -> None:
        told = epoch_report.metrics
        for name in ("train_loss", job.metric):
            if name in told and not math.isfinite(told[name]):
                raise DivergedError(f"diverged: {name} is {told[name]} at epoch {epoch_report.epoch}")
        if job.metric in told:
            last.update({name: float(value) for name, value in told.items()}, epoch=int(epoch_report.epoch))
            report(dict(last))

    reason = ""
    for attempt in (1, 2):
        started = job.spec.out.is_dir() and any(job.spec.out.iterdir())
        try:
            job.runner(replace(job.spec, resume=started), report=forward)
        except Stopped:
            return last | {"outcome": "stopped"}
        except (DivergedError, InputError) as error:
            return {"outcome": "failed", "reason": error.what, "attempts": attempt}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        final = {**_final_metrics(job), **last}
        if job.metric not in final or "epoch" not in final:
            return {"outcome": "failed", "reason": f"the trial never reported {job.metric}", "attempts": attempt}
        return {**final, "outcome": "complete", "attempts": attempt}
    return {"outcome": "failed", "reason": f"{reason} (twice)", "attempts": 2}


def _final_metrics(job: Job) -> dict[str, Any]:
    """Metrics from the run folder: of a trial that had ended before, and so reports nothing more."""
    if not (job.spec.out / MANIFEST).is_file():
        return {}
    metrics = read_manifest(job.spec.out, "run").facts.get("metrics") or {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

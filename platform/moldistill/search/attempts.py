"""One trial, from its first attempt to its outcome: what is tried again, with less memory, and what is not."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moldistill.core.artifacts import MANIFEST, read_manifest
from moldistill.core.config import load_run
from moldistill.core.errors import InputError, RunError
from moldistill.core.settings import RunSettings
from moldistill.training.loop import EpochReport
from moldistill.trial.cancel import CancelledError
from moldistill.trial.fence import Fence, SupersededError, has_begun
from moldistill.trial.folder import CONFIG
from moldistill.trial.memory import in_more_parts, is_memory_error, most_parts, release_memory
from moldistill.trial.spec import TrialSpec

Outcome = Literal["complete", "stopped", "failed", "diverged", "memory", "cancelled", "superseded"]
"""How a trial ends: trained to its end; by the scheduler; by an error; by a loss or metric that is no finite number;
for want of memory, however small the parts; because somebody asked; because another attempt has taken its folder."""

Runner = Callable[..., Any]
"""``runner(spec, report=…)``: `trial.run.run_trial`, or what a test puts in its place. Picklable."""


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """One trial as the actor gets it.

    retries: times that a crashed trial is tried again. accumulate: into how many parts batches must at least be cut,
    because the trial had too little memory before. gpu_memory: share of the GPU's memory that it may use.
    """

    number: int
    spec: TrialSpec
    runner: Runner
    metric: str
    retries: int = 1
    accumulate: int | None = None
    gpu_memory: float | None = None

    def __repr__(self) -> str:
        return f"trial {self.number}"  # Tune writes it into names and logs


class Stopped(Exception):  # noqa: N818  (no error: the scheduler's decision)
    """Raised out of `report` in a trial that the scheduler has stopped."""


class DivergedError(RunError):
    """A loss or metric is no longer a finite number."""


DIVERGED = "training diverged"
"""How `training.steps.FiniteGuard` begins to say that a gradient is not finite."""


def run_job(job: Job, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a trial to its end and say how it ended: `outcome`, and the last metrics or the `reason`.

    A trial that crashes is tried `retries` times more, from its checkpoint where it has one. One that runs out of
    memory goes on from there with batches in twice as many parts, until they are single molecules; `accumulate` says in
    how many, where it is another number than the settings'. `attempts` lists all that crashed or ran out of memory
    (reason, seconds). Wrong settings and a diverged loss would end the same way again: they are not tried again, nor is
    what was stopped, cancelled or superseded.
    """
    trial = _Trial(job, report)
    try:
        last = trial.run()
    except Stopped:
        last = trial.last | {"outcome": "stopped"}
    except CancelledError as error:
        last = trial.last | {"outcome": "cancelled", "reason": error.what}
    except DivergedError as error:
        last = {"outcome": "diverged", "reason": error.what}
    except SupersededError as error:
        last = {"outcome": "superseded", "reason": error.what}
    except InputError as error:
        last = {"outcome": "failed", "reason": error.what}
    if trial.settings.training.accumulate != job.spec.settings.training.accumulate:
        last["accumulate"] = trial.settings.training.accumulate
    return last | {"attempts": trial.attempts}


_FINAL = (Stopped, CancelledError, DivergedError, SupersededError, InputError)
"""What ends a trial, whatever is left of its retries."""


@dataclass(slots=True)
class _Trial:
    """A job under way: settings of the present attempt, last metrics, attempts that failed, and the job's claim."""

    job: Job
    report: Callable[[dict[str, Any]], None]
    last: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    owner: str | None = None
    settings: RunSettings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = self.job.spec.settings

    def run(self) -> dict[str, Any]:
        """The trial's last word. Raises what is in _FINAL."""
        crashes, smaller = 0, _begun_with(self.job)
        while True:
            if smaller is None:
                reason = self.attempts[-1]["reason"] if self.attempts else "the node ran out of memory"
                return {"outcome": "memory", "reason": f"{reason} (with batches in the smallest parts)"}
            self.settings = smaller
            since = time.monotonic()
            error = self._attempt()
            if error is None:
                return self._complete()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.attempts.append({"reason": reason, "seconds": round(time.monotonic() - since, 3)})
            memory = is_memory_error(error)
            release_memory(error)
            if memory:
                smaller = in_more_parts(self.settings)
            elif (crashes := crashes + 1) > self.job.retries:
                return {"outcome": "failed", "reason": reason}

    def _attempt(self) -> Exception | None:
        """What an attempt failed of; None where it came to the end. Raises what is in _FINAL."""
        job = self.job
        try:
            self.owner = self.owner or Fence.claim(job.spec.out, job.spec.owner).owner
            spec = replace(job.spec, settings=self.settings, owner=self.owner, resume=has_begun(job.spec.out))
            if job.gpu_memory is not None:
                spec = replace(spec, gpu_memory=job.gpu_memory)
            job.runner(spec, report=self._forward)
        except _FINAL:
            raise
        except Exception as error:
            if isinstance(error, RunError) and error.what.startswith(DIVERGED):
                raise DivergedError(error.what, got=error.got, remedy=error.remedy) from None
            return error
        return None

    def _forward(self, state: EpochReport) -> None:
        """An epoch's metrics to whoever decides."""
        told, metric = state.metrics, self.job.metric
        for name in ("train_loss", metric):
            if name in told and not math.isfinite(told[name]):
                raise DivergedError(f"diverged: {name} is {told[name]} at epoch {state.epoch}")
        if metric in told:
            self.last = {name: float(value) for name, value in told.items()} | {"epoch": int(state.epoch)}
            self.report(dict(self.last))

    def _complete(self) -> dict[str, Any]:
        final = {**_final_metrics(self.job), **self.last}
        if self.job.metric not in final or "epoch" not in final:
            return {"outcome": "failed", "reason": f"the trial never reported {self.job.metric}"}
        return {**final, "outcome": "complete"}


def shrunk(job: Job) -> Job:
    """The job for the next attempt, when Ray has ended the process of this one because the node ran out of memory."""
    return replace(job, accumulate=2 * max(job.accumulate or 1, _parts_used(job)))


def _parts_used(job: Job) -> int:
    """The parts that batches were cut into at last: the run folder says so, once the run has begun."""
    asked = job.spec.settings.training.accumulate
    with contextlib.suppress(InputError, OSError):
        return max(asked, load_run(job.spec.out / CONFIG).training.accumulate)
    return asked


def _begun_with(job: Job) -> RunSettings | None:
    """The settings of the first attempt: with as many parts as an earlier one needed; None where that was the most.

    What an earlier process came to is in the run folder: a trial that is killed and goes on is the same to the bit.
    """
    settings, used = job.spec.settings, _parts_used(job)
    most = max(used, most_parts(settings.training))
    if job.accumulate is not None and job.accumulate > most == used:
        return None
    parts = min(max(used, job.accumulate or 1), most)
    return replace(settings, training=replace(settings.training, accumulate=parts))


def _final_metrics(job: Job) -> dict[str, Any]:
    """Metrics from the run folder: of a trial that had ended before, and so reports nothing more."""
    if not (job.spec.out / MANIFEST).is_file():
        return {}
    metrics = read_manifest(job.spec.out, "run").facts.get("metrics") or {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

"""The same run under Ray Train: one or more workers, restarted from the last checkpoint when one is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import MANIFEST, hash_object, read_json, read_manifest, write_json, write_text
from moldistill.core.cluster import QUIET_WORKERS, cluster
from moldistill.core.errors import InputError, MoldistillError, RunError
from moldistill.core.progress import log, progress
from moldistill.training.collective import Collective
from moldistill.training.loop import EpochReport
from moldistill.trial.cancel import CancelledError, withdraw_cancel
from moldistill.trial.channel import Workers, answer, open_channel
from moldistill.trial.fence import Fence, SupersededError, read_attempt
from moldistill.trial.folder import claim_folder, read_metrics
from moldistill.trial.memory import TooLargeError, is_memory_error, memory_reason
from moldistill.trial.run import Report, check_run, choose_device, run_trial
from moldistill.trial.spec import RunResult, TrialSpec

POLL_SECONDS = 0.5
_GROUP = ".placement-group-"
_HEALTH_CHECK = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_KINDS = {kind.__name__: kind for kind in (InputError, RunError, SupersededError, CancelledError, TooLargeError)}


class _Halted(Exception):  # noqa: N818  (no error: the driver's decision)
    """Raised in every worker of a trial that is not to go on."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What each worker gets. failure: the file for an error that would come again; channel: of a trial of a search."""

    spec: TrialSpec
    failure: Path
    channel: Any = None


def train_under_ray(spec: TrialSpec, title: str = "training") -> RunResult:
    """Train under Ray Train and return what `run_trial` would.

    The run folder must lie where all workers see it. Joins Ray where it is up, else starts it for this run. A run that
    was cancelled goes on.
    """
    check_run(spec)
    task = _claim(spec)
    withdraw_cancel(spec.out)
    with cluster(), _watch(spec, title):
        _fit(task)
    records = read_metrics(spec.out)
    return RunResult(spec.out, records[-1])


def run_trial_under_ray(spec: TrialSpec, *, report: Report | None = None) -> RunResult:
    """`run_trial` by a group of `training.workers` workers, each with `training.cpus_per_worker` and `spec.gpus`.

    `report` is called in this process; the workers wait for it, and all end in order where it raises. The folder must
    lie where all of them see it. TooLargeError where a worker has too little memory.
    """
    if spec.resume and (spec.out / MANIFEST).is_file():
        return RunResult(spec.out, dict(read_manifest(spec.out, "run").facts["metrics"]))
    check_run(spec)
    os.environ.setdefault(_HEALTH_CHECK, QUIET_WORKERS[_HEALTH_CHECK])
    with cluster():
        task = replace(_claim(spec), channel=open_channel())
        release_workers(spec.out)
        try:
            answer(task.channel, report or (lambda state: None), Workers(lambda: _fit(task)))
        finally:
            release_workers(spec.out)
    records = read_metrics(spec.out)
    return RunResult(spec.out, records[-1])


def release_workers(run: Path) -> None:
    """Free what a group of workers of `run_trial_under_ray` may still hold whose driver was killed.

    Ray frees a placement group when its whole job ends. Before that Ray Train's watcher does, but at times it misses
    the death of a controller. To be called where Ray is up, and when nobody is to go on with that group.
    """
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for path in run.glob(f"{_GROUP}*"):
        with contextlib.suppress(FileNotFoundError):
            identity = path.read_text(encoding="utf-8").strip()
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))
            path.unlink()


def _note_group(task: _Task) -> None:
    """Leave the name of this worker's placement group in the run folder, for `release_workers`."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        write_text(task.spec.out / f"{_GROUP}{group.id.hex()}", group.id.hex() + "\n")


def _claim(spec: TrialSpec) -> _Task:
    """Workers that are started anew claim the folder by the claim of this process, as long as that stands."""
    claim_folder(spec.out, spec.resume)
    owner = Fence.claim(spec.out, spec.owner).owner
    # The folder is claimed: a restarted worker goes on from its checkpoint.
    return _Task(replace(spec, resume=True, owner=owner), spec.out / f".failure-{uuid.uuid4().hex}.json")


def _fit(task: _Task) -> None:
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    spec = task.spec
    scaling, backend = _group(spec)
    with tempfile.TemporaryDirectory(prefix="train") as storage:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"task": task},
            torch_config=backend,
            scaling_config=scaling,
            run_config=RunConfig(
                name=f"run-{hash_object(str(spec.out))[:12]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=spec.settings.training.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _take_failure(task) or _lost(error, task) from None
        if (said := _take_failure(task)) is not None:
            raise said


def _group(spec: TrialSpec) -> tuple[Any, Any]:
    """Ray Train's words for the workers: how many, with what; and how they send each other their sums."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig

    training = spec.settings.training
    gpus = spec.gpus if spec.gpus is not None else float(choose_device(spec.settings).type == "cuda")
    # A pair makes the group elastic; Train's own annotation does not know it.
    workers: Any = training.workers if training.min_workers is None else (training.min_workers, training.workers)
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": training.cpus_per_worker} | ({"GPU": gpus} if gpus > 0 else {}),
    )
    # NCCL refuses two workers on one GPU.
    return scaling, TorchConfig(backend="gloo" if 0 < gpus < 1 else None)


def _take_failure(task: _Task) -> MoldistillError | None:
    """The error that a worker left in the run folder, if there is one."""
    if not task.failure.is_file():
        return None
    said = read_json(task.failure)
    task.failure.unlink()
    return _KINDS[said["kind"]](said["what"], got=said["got"], expected=said["expected"], remedy=said["remedy"])


def _lost(error: Any, task: _Task) -> RunError:
    """What to say where a worker was lost more often than is allowed."""
    failures = [str(failure).strip() for failure in getattr(error, "worker_failures", {}).values()]
    words = failures[0] if failures else str(error).strip()
    last = words.splitlines()[-1] if words else str(error)
    if task.channel is not None and any(memory_reason(text) for text in failures):
        return TooLargeError("a worker ran out of memory", got=last)
    return RunError("training failed in a worker", got=last)


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    context = ray.train.get_context()
    collective = Collective(context.get_world_rank(), context.get_world_size())
    task: _Task = config["task"]
    if not _agreed(collective, collective.leads and _is_wanted(task)):
        return
    if task.channel is not None and collective.leads:
        _note_group(task)
    try:
        run_trial(task.spec, report=partial(_report, task, collective), collective=collective)
    except _Halted:
        pass
    except Exception as error:
        told = _lasting(error, task)
        if told is None:
            raise
        parts = {name: getattr(told, name) for name in ("what", "got", "expected", "remedy")}
        write_json(task.failure, {"kind": type(told).__name__} | parts)
        if collective.world_size > 1 and not isinstance(error, CancelledError):
            raise  # the other workers wait for this one: only the end of its process releases them


def _is_wanted(task: _Task) -> bool:
    """Whether no error that would come again has ended the workers before these, and nobody has stopped them."""
    import ray

    return not task.failure.exists() and (task.channel is None or bool(ray.get(task.channel.is_open.remote())))


def _report(task: _Task, collective: Collective, state: EpochReport) -> None:
    """Tell the driver of an epoch. All workers of a trial wait for its answer; _Halted where it is no."""
    import ray.train

    if task.channel is None:
        ray.train.report(state.metrics)  # all ranks must call it
    elif not _agreed(collective, collective.leads and ray.get(task.channel.ask.remote(state))):
        raise _Halted


def _agreed(collective: Collective, said: bool) -> bool:
    """What the first worker said."""
    return bool(collective.lead(int(said))[0])


def _lasting(error: Exception, task: _Task) -> MoldistillError | None:
    """The error as the driver is to raise it where it would come again; None where Ray Train starts workers anew.

    What is wrong with input or settings stays wrong.
    """
    if task.channel is not None and is_memory_error(error):
        return error if isinstance(error, TooLargeError) else TooLargeError("a worker ran out of memory", got=error)
    if isinstance(error, SupersededError):
        holder = read_attempt(task.spec.out)
        if holder is not None and holder.owner == task.spec.owner:  # by a worker that has taken this one's place
            return None
    return error if isinstance(error, MoldistillError) else None


@contextmanager
def _watch(spec: TrialSpec, title: str) -> Iterator[None]:
    """A bar over the epochs, read off the run's metrics: workers may be on other machines."""
    stop = threading.Event()

    def follow() -> None:
        training = spec.settings.training
        by_epochs = training.steps is None and not training.awaits_budget
        with progress(title, training.epochs if by_epochs else None) as bar:
            seen = 0
            while True:
                ended = stop.wait(POLL_SECONDS)
                records = read_metrics(spec.out)
                if len(records) > seen:
                    bar.advance(len(records) - seen, _note(records[-1]))
                    seen = len(records)
                if ended:
                    return

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)
        with contextlib.suppress(IndexError):
            log(f"{title}: {_note(read_metrics(spec.out)[-1])}")


def _note(record: dict[str, float]) -> str:
    names = (("train_loss", "loss"), ("valid_3d_mae", "valid-3d"), ("valid_mae", "valid"))
    return "  ".join(f"{label} {record[name]:.4f}" for name, label in names if name in record)

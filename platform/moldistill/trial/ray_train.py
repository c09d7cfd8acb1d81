"""The same run under Ray Train: one or more workers, restarted from the last checkpoint when one is lost."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moldistill.core.artifacts import hash_object, read_json, write_json
from moldistill.core.cluster import cluster
from moldistill.core.errors import InputError, MoldistillError, RunError
from moldistill.core.progress import log, progress
from moldistill.trial.folder import claim_folder, read_metrics
from moldistill.trial.run import check_run, choose_device, run_trial
from moldistill.trial.spec import RunResult, TrialSpec

POLL_SECONDS = 0.5
FAILURE = "failure.json"


def train_under_ray(spec: TrialSpec, title: str = "training") -> RunResult:
    """Train under Ray Train and return what `run_trial` would.

    The run folder must lie where all workers see it. Joins Ray where it is up, else starts it for this run.
    """
    check_run(spec)
    claim_folder(spec.out, spec.resume)
    worker_spec = replace(spec, resume=True)  # the folder is claimed: a restarted worker goes on from its checkpoint
    with cluster(), _watch(spec, title):
        _fit(worker_spec)
    records = read_metrics(spec.out)
    return RunResult(spec.out, records[-1])


def _fit(spec: TrialSpec) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    training = spec.settings.training
    # A pair makes the group elastic; Train's own annotation does not know it.
    workers: Any = training.workers if training.min_workers is None else (training.min_workers, training.workers)
    use_gpu = choose_device(spec.settings).type == "cuda"
    with tempfile.TemporaryDirectory(prefix="train") as storage:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"spec": spec},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": training.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
            ),
            run_config=RunConfig(
                name=f"run-{hash_object(str(spec.out))[:12]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=training.max_failures),
            ),
        )
        (spec.out / FAILURE).unlink(missing_ok=True)
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_failure(spec.out)
            failures = list(getattr(error, "worker_failures", {}).values())
            words = str(failures[0] if failures else error).strip().splitlines()
            raise RunError("training failed in a worker", got=words[-1] if words else error) from None
        _raise_failure(spec.out)


def _raise_failure(run: Path) -> None:
    """Raise the error that a worker left in the run folder, if there is one."""
    path = run / FAILURE
    if path.is_file():
        said = read_json(path)
        path.unlink()
        kind = InputError if said["exit_code"] == InputError.exit_code else RunError
        raise kind(said["what"], got=said["got"], expected=said["expected"], remedy=said["remedy"])


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    from moldistill.training.collective import Collective
    from moldistill.training.loop import EpochReport

    context = ray.train.get_context()
    collective = Collective(context.get_world_rank(), context.get_world_size())

    def report(state: EpochReport) -> None:
        ray.train.report(state.metrics)  # all ranks must call it

    spec: TrialSpec = config["spec"]
    try:
        run_trial(spec, report=report, collective=collective)
    except MoldistillError as error:
        # Ray Train would start the worker anew. What is wrong with input or settings stays wrong: the driver raises it.
        parts = {name: getattr(error, name) for name in ("what", "got", "expected", "remedy", "exit_code")}
        write_json(spec.out / FAILURE, parts)
        if collective.world_size > 1:
            raise  # the other workers wait for this one: only the end of its process releases them


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
